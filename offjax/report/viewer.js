"use strict";
// Molecules in three dimensions on a canvas: sticks and balls, painted from back to front. Nothing is loaded.
function offjaxViewer(figure, molecule, colors) {
  const canvas = figure.querySelector("canvas"), legend = figure.querySelector(".legend");
  const radius = { H: 0.25, C: 0.4 };
  const element = { H: "#c3c8ce", C: "#737a83", N: "#3a6fe0", O: "#dd3a35", F: "#33a05a", P: "#d0801f", S: "#c9a20c", Cl: "#2a9d44",
    Br: "#a5432a", I: "#7d3fa6", B: "#d88f8f", Si: "#b89a72" };
  const hidden = new Set();
  let turn = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], zoom = 1;
  const reach = Math.max(1, ...molecule.sets.flatMap((s) => s.xyz.map((p) => Math.hypot(...p)))) + 0.6;

  function product(a, b) { return a.map((row) => b[0].map((_, j) => row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j])); }
  function rotate(dx, dy) {
    const [cx, sx, cy, sy] = [Math.cos(dx), Math.sin(dx), Math.cos(dy), Math.sin(dy)];
    turn = product(product([[1, 0, 0], [0, cy, -sy], [0, sy, cy]], [[cx, 0, sx], [0, 1, 0], [-sx, 0, cx]]), turn);
    draw();
  }
  function mix(a, b, t) {
    const parse = (c) => [1, 3, 5].map((n) => parseInt(c.slice(n, n + 2), 16));
    const [p, q] = [parse(a), parse(b)];
    return "#" + p.map((v, n) => Math.round(v + (q[n] - v) * t).toString(16).padStart(2, "0")).join("");
  }
  function atomColor(set, atom) {
    if (set > 0) return colors[(set - 1) % colors.length];
    if (molecule.heat) return mix("#b9bfc6", "#d0261c", molecule.heat[atom]);
    return element[molecule.elements[atom]] || "#b06bb0";
  }
  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 300, height = canvas.clientHeight || 240;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.lineCap = "round";
    const scale = zoom * Math.min(width, height) / (2 * reach), items = [];
    molecule.sets.forEach((set, number) => {
      if (hidden.has(number)) return;
      const thin = number > 0 ? 0.6 : 1;
      const at = set.xyz.map((p) => turn.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]));
      const flat = ([x, y]) => [width / 2 + scale * x, height / 2 - scale * y];
      for (const [i, j] of molecule.bonds) {
        const middle = at[i].map((v, n) => (v + at[j][n]) / 2);
        for (const [atom, p] of [[i, at[i]], [j, at[j]]]) {
          items.push({ z: (p[2] + middle[2]) / 2, paint: (shade) => {
            g.strokeStyle = mix(atomColor(number, atom), shade[0], shade[1]);
            g.lineWidth = 0.2 * thin * scale;
            g.beginPath(); g.moveTo(...flat(p)); g.lineTo(...flat(middle)); g.stroke();
          } });
        }
      }
      at.forEach((p, atom) => items.push({ z: p[2] + 0.01, paint: (shade) => {
        const [x, y] = flat(p), r = (radius[molecule.elements[atom]] || 0.42) * 0.62 * thin * scale;
        const color = mix(atomColor(number, atom), shade[0], shade[1]);
        const light = g.createRadialGradient(x - 0.35 * r, y - 0.35 * r, 0.1 * r, x, y, r);
        light.addColorStop(0, mix(color, "#ffffff", 0.45)); light.addColorStop(1, color);
        g.fillStyle = light;
        g.beginPath(); g.arc(x, y, r, 0, 2 * Math.PI); g.fill();
      } }));
    });
    items.sort((a, b) => a.z - b.z);
    const ground = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim() || "#ffffff";
    for (const item of items) item.paint([ground, 0.35 * Math.min(1, Math.max(0, 0.5 - item.z / (2 * reach)))]);
    canvas.dataset.painted = String(items.length);
  }

  legend.replaceChildren(...molecule.sets.map((set, number) => {
    const label = document.createElement("label"), box = document.createElement("input"), mark = document.createElement("span");
    box.type = "checkbox"; box.checked = true;
    mark.className = "dot"; mark.style.background = number ? colors[(number - 1) % colors.length] : "linear-gradient(90deg,#737a83 50%,#dd3a35 50%)";
    box.addEventListener("change", () => { if (box.checked) hidden.delete(number); else hidden.add(number); draw(); });
    label.append(box, mark, set.name);
    return label;
  }));
  legend.hidden = molecule.sets.length < 2;
  let last = null;
  canvas.addEventListener("pointerdown", (e) => { last = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { last = null; });
  canvas.addEventListener("pointermove", (e) => {
    if (!last) return;
    rotate((e.clientX - last[0]) * 0.011, (e.clientY - last[1]) * 0.011);
    last = [e.clientX, e.clientY];
  });
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom *= Math.exp(-0.0015 * e.deltaY); draw(); }, { passive: false });
  canvas.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[e.key];
    if (step) { e.preventDefault(); rotate(...step); }
    if (e.key === "+" || e.key === "-") { zoom *= e.key === "+" ? 1.15 : 1 / 1.15; draw(); }
  });
  new ResizeObserver(draw).observe(canvas);
  draw();
  return draw;
}
