"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const words = { test: "held out", train: "training" };
  const when = { initial: "before the fit", fitted: "after the fit" };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = { displayModeBar: false, responsive: true };

  function layout(x, y, more) {
    const axis = (title) => ({
      title: { text: title, standoff: 8, font: { size: 13 } }, gridcolor: css("--line"), linecolor: css("--line"), zeroline: false,
      automargin: true,
    });
    return Object.assign({
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Arial, sans-serif", size: 13, color: css("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 64, r: 16, t: 40, b: 52 },
      xaxis: axis(x), yaxis: axis(y), hoverlabel: { font: { size: 12 } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    }, more || {});
  }

  function titled(text) {
    return { text: text, x: 0.02, xanchor: "left", y: 0.98, yanchor: "top", font: { size: 14 } };
  }

  function line(name, x, y, color, dash, width) {
    return { type: "scatter", mode: "lines+markers", name: name, x: x, y: y, connectgaps: false,
      line: { color: color, width: width || 2, dash: dash || "solid" }, marker: { size: 4, color: color } };
  }

  function logTicks(values) {
    const low = Math.min(...values), high = Math.max(...values);
    const steps = high / low < 300 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)) + 1; e++) {
      for (const step of steps) ticks.push(Number(`${step}e${e}`));
    }
    return { tickmode: "array", tickvals: ticks, ticktext: ticks.map((v) => (v >= 1e-3 && v < 1e5 ? String(v) : v.toExponential(0))) };
  }

  function course() {
    const h = data.history, it = h.iteration;
    const parts = [line("objective", it, h.objective, css("--ink"))];
    const colors = { forces: "--train", energies: "--test", priors: "--before" }, more = ["--first", "--good", "--bad"];
    h.parts.forEach((part, n) => {
      const color = css(colors[part.name] || more[n % more.length]);
      if (part.y.some((v) => v > 0)) parts.push(line(part.name, it, part.y.map((v) => (v > 0 ? v : null)), color, "dot", 1.5));
    });
    const l = layout("iteration", "objective");
    l.yaxis.type = "log";
    Object.assign(l.yaxis, logTicks(parts.flatMap((t) => t.y).filter((v) => v > 0)));
    l.xaxis.rangemode = "tozero"; l.xaxis.tickformat = "d";
    Plotly.react("plot-objective", parts, l, config);

    const has = (v) => v.some((x) => x !== null && x !== undefined);
    const traces = [];
    for (const split of ["train", "test"]) {
      if (has(h.rmse[split])) traces.push(line(words[split], it, h.rmse[split], css("--" + split)));
    }
    const m = layout("iteration", h.quantity);
    m.xaxis.rangemode = "tozero"; m.xaxis.tickformat = "d"; m.showlegend = true;
    Plotly.react("plot-rmse", traces, m, config);
  }

  function range(values) {
    let low = Infinity, high = -Infinity;
    for (const list of values) for (const v of list) { if (v < low) low = v; if (v > high) high = v; }
    const pad = 0.05 * (high - low) || 1;
    return [low - pad, high + pad];
  }

  function identity(r) {
    return { type: "scatter", mode: "lines", x: r, y: r, hoverinfo: "skip", showlegend: false,
      line: { color: css("--before"), width: 1, dash: "dash" } };
  }

  function energies() {
    if (!byId("energies")) return;
    const splits = Object.keys(data.energies).sort().reverse(); // training below, held out on top
    const r = range(splits.flatMap((s) => ["qm", "initial", "fitted"].map((k) => data.energies[s][k])));
    for (const key of ["initial", "fitted"]) {
      const traces = [identity(r)];
      for (const split of splits) {
        const d = data.energies[split];
        traces.push({ type: "scatter", mode: "markers", name: words[split], x: d.qm, y: d[key],
          text: d.molecule.map((n) => d.names[n]), hovertemplate: "%{text}<br>QM %{x:.2f}, MM %{y:.2f} kJ/mol<extra></extra>",
          marker: { size: 5, opacity: 0.65, color: css("--" + split) } });
      }
      const l = layout("QM energy (kJ/mol)", "MM energy (kJ/mol)", { title: titled(when[key]), margin: { l: 64, r: 16, t: 66, b: 52 } });
      l.xaxis.range = r; l.yaxis.range = r; l.showlegend = true;
      Plotly.react("plot-energies-" + key, traces, l, config);
    }
    const sampled = splits.filter((s) => data.energies[s].shown < data.energies[s].total);
    byId("caption-energies").textContent = sampled.map((s) =>
      `${words[s]}: ${data.energies[s].shown} of ${data.energies[s].total} conformers are shown, evenly sampled.`).join(" ");
  }

  let chosen = Object.keys(data.forces || {})[0];
  function forces() {
    const section = byId("forces");
    if (!chosen) { section.hidden = true; return; }
    const box = byId("choice-forces");
    box.replaceChildren(...Object.keys(data.forces).map((split) => {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = words[split];
      button.setAttribute("aria-pressed", String(split === chosen));
      button.addEventListener("click", () => { chosen = split; forces(); });
      return button;
    }));
    const d = data.forces[chosen];
    const most = Math.max(...["initial", "fitted"].flatMap((k) => d[k].map((row) => Math.max(...row))));
    const top = Math.max(1, Math.log10(most));
    const ticks = [...Array(Math.floor(top) + 1).keys()];
    const r = [-d.limit, d.limit];
    for (const key of ["initial", "fitted"]) {
      const heat = { type: "heatmap", x: d.centres, y: d.centres, customdata: d[key],
        z: d[key].map((row) => row.map((n) => (n ? Math.log10(n) : null))), zmin: 0, zmax: top,
        colorscale: [[0, css("--low")], [1, css("--high")]], hoverongaps: false,
        hovertemplate: "QM %{x:.0f}, MM %{y:.0f} kJ/mol/nm<br>%{customdata} components<extra></extra>",
        colorbar: { thickness: 10, outlinewidth: 0, tickvals: ticks, ticktext: ticks.map((n) => (10 ** n).toLocaleString("en")),
          title: { text: "count", side: "right" } } };
      const l = layout("QM force (kJ/mol/nm)", "MM force (kJ/mol/nm)", { title: titled(when[key]) });
      l.xaxis.range = r; l.yaxis.range = r; l.xaxis.nticks = 5; l.yaxis.nticks = 6; l.xaxis.tickangle = 0;
      Plotly.react("plot-forces-" + key, [heat, identity(r)], l, config);
    }
    const outside = (k) => (d[k + "_outside"] ? `${d[k + "_outside"]} ${when[k]}` : "");
    const beyond = ["initial", "fitted"].map(outside).filter(Boolean).join(", ");
    byId("caption-forces").textContent = `${d.total.toLocaleString("en")} components of ${words[chosen]} molecules, all counted.` +
      (beyond ? ` Outside the frame: ${beyond}.` : "");
  }

  function profiles() {
    data.profiles.forEach((d, n) => {
      if (!byId("plot-profile-" + n)) return;
      const traces = [line("QM", d.angle, d.qm, css("--ink")), line("before", d.angle, d.initial, css("--before"), "dot", 1.5),
        line("after", d.angle, d.fitted, css("--" + d.split), "solid", 2)];
      const l = layout("dihedral (°)", "energy (kJ/mol)", { margin: { l: 52, r: 10, t: 28, b: 44 } });
      l.xaxis.range = [-180, 180]; l.xaxis.tickvals = [-180, -90, 0, 90, 180]; l.showlegend = true;
      Plotly.react("plot-profile-" + n, traces, l, config);
    });
  }

  function shifts() {
    const d = data.shifts, n = d.name.length, plot = byId("plot-shifts");
    if (!n) { plot.parentElement.hidden = true; return; }
    plot.style.height = Math.max(180, 92 + 21 * n) + "px";
    const rows = [...Array(n).keys()].reverse();
    const pick = (list) => rows.map((i) => list[i]);
    const traces = [false, true].map((bound) => ({
      type: "bar", orientation: "h", name: bound ? "at its bound" : "free", y: rows.map((i) => n - 1 - i),
      x: rows.map((i) => (d.at_bound[i] === bound ? d.shift[i] : null)),
      marker: { color: css(bound ? "--test" : "--train") }, customdata: rows.map((i) => [d.section[i] + " " + d.name[i], d.smirks[i], d.text[i]]),
      hovertemplate: "%{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]}<br>%{x:+.2f} widths<extra></extra>",
    })).filter((t) => t.x.some((v) => v !== null));
    const l = layout("shift (widths of the prior)", "", { barmode: "overlay", bargap: 0.3, margin: { l: 90, r: 16, t: 34, b: 48 } });
    l.yaxis.tickmode = "array"; l.yaxis.tickvals = rows.map((i) => n - 1 - i); l.yaxis.ticktext = pick(d.name);
    l.yaxis.showgrid = false; l.yaxis.title = { text: "" }; l.yaxis.range = [-0.6, n - 0.4];
    const reach = 1.08 * Math.max(1, ...d.shift.map(Math.abs));
    l.xaxis.range = [-reach, reach];
    l.showlegend = traces.length > 1;
    l.shapes = [-1, 0, 1].map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: { color: css("--before"), width: x ? 1 : 1.5, dash: x ? "dot" : "solid" } }));
    Plotly.react("plot-shifts", traces, l, config);
    byId("caption-shifts").textContent = n < d.total ? `The ${n} largest of ${d.total} shifts; the table has all.` : "";
  }

  const palette = () => ["--first", "--train", "--test", "--good", "--bad"].map(css);
  function geometry() {
    for (const curve of data.geometry || []) {
      const colors = palette();
      const traces = curve.lines.map((d, n) => ({ type: "scatter", mode: "lines", name: d.name, x: d.x, y: d.y,
        line: { color: colors[n % colors.length], width: 2, shape: "hv" },
        hovertemplate: "%{y:.0f} % up to %{x:.3f}<extra>" + d.name + "</extra>" }));
      const l = layout(curve.title, "conformers (%)", { margin: { l: 56, r: 10, t: 40, b: 46 } });
      l.xaxis.rangemode = "tozero"; l.yaxis.range = [0, 102]; l.showlegend = true;
      Plotly.react("plot-geometry-" + curve.quantity, traces, l, config);
    }
  }

  let redraws = null;
  function views() {
    if (!redraws) redraws = [...document.querySelectorAll(".viewer")].map((figure) => offjaxViewer(figure, data.views[figure.dataset.view], palette()));
    else for (const redraw of redraws) redraw();
  }

  function draw() {
    if (data.history) { course(); energies(); forces(); profiles(); shifts(); }
    geometry(); views();
    document.body.dataset.drawn = "true";
  }

  function sortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      if (cell.hasAttribute("data-plain")) return;
      const button = document.createElement("button");
      button.type = "button"; button.append(...cell.childNodes); cell.append(button);
      button.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const td = row.cells[column];
          return td.dataset.value === undefined ? td.textContent.trim().toLowerCase() : Number(td.dataset.value);
        };
        const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
        const rows = [...body.rows].map((row) => [value(row), row]).sort((a, b) => compare(a[0], b[0]));
        if (down) rows.reverse();
        body.append(...rows.map((pair) => pair[1]));
      });
    });
  }

  function searchable() {
    const rows = [...byId("table-parameters").tBodies[0].rows];
    const texts = rows.map((row) => [0, 1, 2].map((c) => row.cells[c].textContent).join(" ").toLowerCase());
    const update = () => {
      const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, n) => { const hit = wanted.every((w) => texts[n].includes(w)); row.hidden = !hit; shown += hit; });
      byId("count").textContent = `${shown} of ${rows.length} values`;
    };
    byId("search").addEventListener("input", update);
    update();
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  if (byId("search")) searchable();
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
