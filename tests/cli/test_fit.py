"""``offjax fit`` from a configuration to its files, and what it does when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openff.toolkit import ForceField

DATA = Path(__file__).parents[2] / "data" / "qm" / "small-molecules.h5"
CONFIG = """
force_field = "openff_unconstrained-2.2.1.offxml"

[[data]]
path = "{data}"
include = ["ethene", "methanethiol"]

[charges]
method = "gasteiger"

[[parameters]]
path = "Bonds/length"
prior = 0.02

[optimizer]
method = "{method}"
max_iterations = {iterations}
objective_tolerance = {tolerance}
gradient_tolerance = {tolerance}

[output]
directory = "out"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "fit.toml"

    def write(iterations: int, tolerance: float = 1e-6, method: str = "levenberg-marquardt") -> Path:
        path.write_text(CONFIG.format(data=DATA, iterations=iterations, tolerance=tolerance, method=method))
        return path

    return write


def test_fit_writes_its_files_resumes_and_reports(run, config, tmp_path):
    result = run("fit", config(1))
    assert result.code == 0, result.err
    assert "RMSE against QM" in result.out and "stopped: max_iterations = 1" in result.out
    out = tmp_path / "out"
    assert {"fitted.offxml", "parameters.csv", "report.html", "log.jsonl", "checkpoint.npz"} <= set(os.listdir(out))
    assert ForceField(str(out / "fitted.offxml"))["Bonds"].parameters

    page = out / "report.html"
    page.unlink()
    assert run("report", out).code == 0
    assert page.stat().st_size > 1e6

    certain = run("uncertainty", out)
    assert certain.code == 0, certain.err
    assert "directions better than the priors" in certain.out and (out / "uncertainty.csv").is_file()
    document = json.loads(run("uncertainty", out, "--noise", "residuals", "--json").out)
    assert document["noise"] == "residuals" and 0 < document["n_determined"] <= document["n_parameters"]
    assert {kind["name"] for kind in document["kinds"]} == {"energy", "force"}

    torn = run("conflicts", out, "-o", "conflicts.json")
    assert torn.code == 0, torn.err
    pulls = json.loads((tmp_path / "conflicts.json").read_text())["pulls"]
    assert "Proposed splits" in torn.out and pulls[0]["parameter"].startswith("Bonds/length")
    child = "[#6X4;$(*~[#16]):1]-[#1:2]"
    done = run("split", out, "--section", "Bonds", "-p", "b84", "-s", child, "--no-refit")
    assert done.code == 0, done.err
    rows = [p.smirks for p in ForceField(str(tmp_path / "split" / "split.offxml"))["Bonds"].parameters]
    assert rows.index(child) == rows.index("[#6X4:1]-[#1:2]") + 1
    again = run("split", out, "--section", "Bonds", "-p", "b84", "-s", child, "--no-benchmark", "-o", "again")
    assert again.code == 0 and "objective after the split: " in again.out, again.err
    assert (tmp_path / "again" / "fit-output" / "report.html").is_file()
    unclear = run("split", out, "--smirks", "[#6:1]-[#1:2]")
    assert unclear.code == 2 and "--smirks needs --parameter and --section" in unclear.err

    resumed = run("fit", config(2), "--resume")
    assert resumed.code == 0, resumed.err
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["iteration"] for e in entries if e["event"] == "iteration"] == [0, 1, 2]

    (out / "checkpoint.npz").write_bytes((out / "checkpoint.npz").read_bytes()[:100])
    broken = run("fit", config(3), "--resume")
    assert broken.code == 2 and "checkpoint.npz" in broken.err
    assert [line.startswith("error: ") for line in broken.err.splitlines()][-1]


@pytest.mark.slow
def test_ctrl_c_stops_after_the_iteration_with_130_and_leaves_a_result(config, tmp_path):
    command = [sys.executable, "-c", "import sys; from offjax.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "fit", config(100000, 0.0, "adam")],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("iteration 1/"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "continue with --resume" in out
    assert (tmp_path / "out" / "report.html").is_file()
