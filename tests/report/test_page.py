"""The page of a fit: complete, self-contained, and drawn without an error by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from offjax import report
from offjax.constants import ANGSTROM
from offjax.errors import InputError
from offjax.fit import metrics
from offjax.report import drawings, figures, geometries, rows
from tests import samples
from tests.report import example

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    made = example.result(tmp_path_factory.mktemp("report"))
    theta = np.asarray(made.fitted.to_vector())[made.selection.indices]
    errors = {"indices": made.selection.indices, "theta": theta, "standard_errors": 0.5 * made.free.widths}
    np.savez(made.directory / "posterior.npz", noise="residuals", **errors)
    return made


@pytest.fixture(scope="module")
def page(result):
    return report.write(result, result.directory / "report.html", example.benchmark(result))


def _data(path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found.group(1).replace("<\\/", "</"))


def test_the_page_loads_nothing_from_the_network(page):
    text = page.read_text()
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", own)
    assert "@import" not in own and "url(" not in own
    assert text.count("<script>") == 2 and len(text) < 8e6


def test_the_numbers_on_the_page_are_those_of_the_result(page, result):
    text = page.read_text()
    assert all(m.name in text for m in result.molecules)
    table = result.table()
    for row in rows.parameters(result)[:5]:
        match = table[(table.id == row["id"]) & (table.attribute == row["attribute"])]
        assert row["fitted"] == match.fitted.item() and row["shift"] == match.shift_in_widths.item()
        assert f'data-value="{row["fitted"]}"' in text
        assert row["error"] == pytest.approx(0.5 * row["width"]) and row["learned"] == pytest.approx(0.75)
        assert f'data-value="{row["error"]}"' in text
    bound = next(row for row in rows.parameters(result) if row["at_bound"])
    assert f"a bound of [{bound['lower']}, {bound['upper']}]" in text and "size of\n    the residuals" in text
    assert "46 % lower" in text and "82.00" in text
    assert "no training molecule uses it" in text


def test_every_force_component_is_counted_once(result):
    found = figures.forces(result, "train")
    n = sum(m.forces_qm.size for m in result.molecules if m.split == "train")
    for when in ("initial", "fitted"):
        assert int(np.sum(found[when])) + found[f"{when}_outside"] == found["total"] == n


def test_scatter_is_sampled_beyond_a_limit_and_says_so(result, monkeypatch):
    monkeypatch.setattr(figures, "MAX_POINTS", 30)
    found = figures.energies(result, "train")
    assert found["shown"] == len(found["qm"]) == 30 < found["total"]


def test_profiles_are_sorted_by_angle_and_start_at_the_minimum_of_qm(result):
    (profile,) = figures.profiles(result)
    molecule = next(m for m in result.molecules if m.name == profile["name"])
    assert np.all(np.diff(profile["angle"]) >= 0) and np.all(np.abs(profile["angle"]) <= 180)
    lowest = np.argmin(profile["qm"])
    assert profile["qm"][lowest] == profile["fitted"][lowest] == 0.0
    assert np.ptp(profile["qm"]) == pytest.approx(np.ptp(molecule.energies_qm))


def test_touched_atoms_are_those_of_the_assignment():
    system = samples.system("CCO")
    p = system.parameters
    numbers = system.topology.atomic_numbers
    oh = p.select("Bonds/k", "[#8:1]-[#1:2]").indices[0]
    [(a, b)] = drawings.touched(system, [oh])
    assert {int(numbers[a]), int(numbers[b])} == {1, 8}
    hydrogen = p.select("vdW/epsilon", "[#1:1]-[#8]").indices[0]
    assert all(numbers[atoms[0]] == 1 for atoms in drawings.touched(system, [hydrogen]))
    unused = int(np.nonzero(np.asarray(system.used.to_vector()) == 0)[0][0])
    assert drawings.touched(system, [unused]) == []


def test_drawings_mark_atoms_and_show_the_hydrogens_of_the_match():
    smiles = samples.molecule("CCO").to_smiles(mapped=True)
    plain, marked = drawings.molecule(smiles), drawings.molecule(smiles, [(2, 8), (0, 1)])
    assert plain.startswith("<svg") and "currentColor" in plain
    assert plain.count("<ellipse") == 0 and marked.count("<ellipse") == 4
    assert "atom-3" in marked and "atom-3" not in plain


def test_other_kinds_of_data_have_rows_and_no_energies(result, tmp_path):
    errors = {"errors_initial": {"bond": 0.002, "angle": 3.0}, "errors_fitted": {"bond": 0.001, "angle": 2.0}}
    whole = [replace(m, kind="optimized-geometries", forces_qm=None, **errors) for m in result.molecules]
    last = {"energy_rmse_train": None, "force_rmse_train": None, "bond_rmse_train": 0.001}
    history = [entry | last | {"optimized_geometries_part": 0.5} for entry in result.history]
    bond = {"bond_rmse_initial": 0.002, "bond_rmse_fitted": 0.001}
    other = replace(result, molecules=whole, history=history, metrics={"train": bond, "test": bond}, directory=tmp_path)
    table = rows.targets(other)
    assert [(row["quantity"], row["split"], row["molecules"]) for row in table] == [
        ("bond length", "test", 2), ("angle", "test", 2), ("bond length", "train", 3), ("angle", "train", 3)
    ]  # fmt: skip
    assert table[0]["before"] == pytest.approx(0.002) and table[0]["unit"] == "nm"
    path = report.write(other, tmp_path / "report.html")
    text = path.read_text()
    assert 'id="energies"' not in text and "Bond length RMSE, held out" in text and "optimised geometries" in text
    assert "bond length 0.00200 &rarr;" in text and not geometries.largest_errors(other)
    assert _data(path)["history"]["quantity"] == "bond length RMSE (nm)"
    if CHROMIUM:
        _browse(path, tmp_path)

    mixed = rows.targets(replace(result, molecules=[*result.molecules[:2], whole[2]]))
    assert {row["kind"] for row in mixed} == {"energies and forces", "optimised geometries"}
    forces = {(r["split"], r["quantity"]): r["after"] for r in mixed}
    first = result.molecules[0]
    assert forces["test", "force"] == metrics.force_rmse([first.forces_fitted], [first.forces_qm])


def test_cumulative_curves_count_converged_conformers(result):
    minima = example.benchmark(result)
    by_name = {c["quantity"]: {line["name"]: line for line in c["lines"]} for c in geometries.curves(minima)}
    assert by_name["rmsd"]["initial"]["n"] == 15 and by_name["rmsd"]["fitted"]["n"] == 14
    assert by_name["tfd"]["initial"]["n"] == 12 and by_name["dde"]["initial"]["n"] == 10
    line = by_name["rmsd"]["initial"]
    values = minima.values("initial", "rmsd")
    for x, y in zip(line["x"], line["y"], strict=True):
        assert y == pytest.approx(100 * np.mean(values <= x) if x else 0.0)


def test_the_worst_conformers_are_shown(result):
    minima = example.benchmark(result)
    cards = geometries.worst(minima)
    largest = max(
        range(5), key=lambda m: float(np.max(minima.minima["fitted"][m].rmsd * minima.minima["fitted"][m].converged))
    )
    assert cards[0]["name"] == minima.records[largest].name and len({c["name"] for c in cards}) == len(cards)
    view = cards[0]["view"]
    assert [s["name"] for s in view["sets"]] == ["QM", "initial", "fitted"]
    assert len(view["elements"]) == len(view["sets"][0]["xyz"]) == minima.records[largest].positions.shape[1]
    n = int(cards[0]["where"].split()[1])
    distances = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (view["sets"][0]["xyz"],
                 minima.records[largest].positions[n] / ANGSTROM)]  # fmt: skip
    np.testing.assert_allclose(*distances, atol=3e-3)

    errors = geometries.largest_errors(result)
    force = {m.name: metrics.force_rmse([m.forces_fitted], [m.forces_qm]) for m in result.molecules}
    assert [c["name"] for c in errors] == sorted(force, key=lambda name: -force[name])
    assert errors[0]["size"] == pytest.approx(max(force.values())) and max(errors[0]["view"]["heat"]) == 1.0

    without = replace(result.molecules[0], forces_qm=None)  # forces are not compared with energies
    mixed = geometries.largest_errors(replace(result, molecules=[without, *result.molecules[1:]]))
    assert mixed[-1]["name"] == without.name and len(mixed) == len(errors)


@pytest.mark.parametrize("options", [{"test": False}, {"forces": False}, {"test": False, "forces": False}])
def test_fits_without_held_out_molecules_or_forces_have_a_page(tmp_path, options):
    path = report.write(example.result(tmp_path, n_conformers=3, **options), tmp_path / "report.html")
    assert "Learned" not in path.read_text() and "add standard errors" in path.read_text()
    data = _data(path)
    assert set(data["energies"]) == ({"train"} if options.get("test") is False else {"train", "test"})
    assert bool(data["forces"]) == options.get("forces", True)
    if CHROMIUM:
        _browse(path, tmp_path)


def test_text_of_the_user_cannot_break_the_page(tmp_path):
    made = example.result(tmp_path, n_conformers=3)
    first = replace(made.molecules[0], name="</script><b>x")
    path = report.write(replace(made, molecules=[first, *made.molecules[1:]]), tmp_path / "report.html")
    assert "</script><b>x" not in path.read_text()
    assert "</script><b>x" in _data(path)["energies"]["test"]["names"]


def test_a_directory_that_does_not_exist_is_an_error(result, tmp_path):
    with pytest.raises(InputError, match="no such"):
        report.write(result, tmp_path / "no such" / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_browser_draws_every_plot_without_an_error(page, tmp_path):
    dom = _browse(page, tmp_path)
    for name in (
        "objective",
        "rmse",
        "energies-initial",
        "energies-fitted",
        "forces-initial",
        "forces-fitted",
        "profile-0",
        "shifts",
        "geometry-rmsd",
        "geometry-tfd",
        "geometry-dde",
    ):
        plot = re.search(rf'id="plot-{name}".*?</figure>', dom, re.S)
        assert plot and 'class="main-svg"' in plot.group(0), name
    assert dom.count('class="point"') > 200
    painted = re.findall(r'data-painted="(\d+)"', dom)
    assert len(painted) == 10 and min(map(int, painted)) > 10
    assert re.search(r'id="count"[^>]*>(\d+) of \1 values', dom)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_the_page_of_a_benchmark_is_drawn_and_molecules_turn(result, tmp_path):
    path = report.write_benchmark(example.benchmark(result), tmp_path / "benchmark.html", files=[__file__])
    probe = """<script>
      const canvas = document.querySelector(".viewer canvas"), before = canvas.toDataURL();
      const send = (type, x) => canvas.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: 50, pointerId: 1 }));
      canvas.setPointerCapture = () => {};
      send("pointerdown", 50); send("pointermove", 90); send("pointerup", 90);
      const turned = canvas.toDataURL();
      document.querySelector(".viewer input").click();
      document.body.dataset.turned = String(before !== turned && turned !== canvas.toDataURL());
    </script></body>"""
    path.write_text(path.read_text().replace("</body>\n</html>", probe + "</html>"))
    dom = _browse(path, tmp_path)
    assert 'data-turned="true"' in dom and "test_page.py" in dom
    assert all(f'id="plot-geometry-{q}"' in dom for q in ("rmsd", "tfd", "dde"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_the_page_does_not_overflow_a_narrow_window_and_tables_sort(page, tmp_path):
    probe = """<script>
      const table = document.getElementById("table-parameters");
      const button = [...table.tHead.rows[0].cells].at(-3).querySelector("button");
      button.click();
      const shifts = [...table.tBodies[0].rows].map((r) => Number(r.cells[10].dataset.value));
      document.body.dataset.sorted = String(shifts.every((v, n) => n === 0 || shifts[n - 1] <= v));
      const search = document.getElementById("search");
      search.value = "bonds k"; search.dispatchEvent(new Event("input"));
      document.body.dataset.overflow = document.documentElement.scrollWidth - window.innerWidth;
    </script></body>"""
    narrow = tmp_path / "narrow.html"
    narrow.write_text(page.read_text().replace("</body>\n</html>", probe + "</html>"))
    dom = _browse(narrow, tmp_path, "--window-size=500,900")
    assert 'data-sorted="true"' in dom
    assert int(re.search(r'data-overflow="(-?\d+)"', dom).group(1)) <= 0
    shown, total = map(int, re.search(r'id="count"[^>]*>(\d+) of (\d+) values', dom).groups())
    assert 0 < shown < total


def _browse(path, folder, *options) -> str:
    """The document after its scripts have run; fails on an uncaught error or a console message."""
    profile = folder / f"profile-{path.stem}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    flags += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", *options, "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not console, console
    assert 'data-drawn="true"' in done.stdout, done.stderr[-2000:]
    return done.stdout
