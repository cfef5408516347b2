"""Whole fits of synthetic data: recovery, resuming, interruption, and the files."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

import offjax
from offjax import InputError, UnassignedParameterError
from offjax.fit import FitConfig, FitResult, driver, fold, run, summary
from offjax.fit.progress import Lines, Recorder
from offjax.interop import spice

from .conftest import config_text, molecule, true_parameters

SCRIPT = """
import os, signal, sys, time
from offjax.fit import FitConfig, Silent, run

class Stop(Silent):
    def iteration(self, entry, maximum):
        if entry["iteration"] == 3:
            os.kill(os.getpid(), signal.{signal})

result = run(FitConfig.load(sys.argv[1]), progress=Stop())
print(result.stopped)
sys.exit(130 if result.interrupted else 0)
"""


def child(path, how):
    """Run a fit in another process that gets a signal when iteration 3 is done."""
    cache = jax.config.jax_compilation_cache_dir
    env = os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})
    script = SCRIPT.format(signal=how)
    return subprocess.run(
        [sys.executable, "-c", script, str(path)], env=env, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def recovered(data_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("recovered") / "fit.toml"
    path.write_text(config_text(data_file))
    return run(FitConfig.load(path))


def test_known_parameters_are_recovered_exactly(recovered):
    selection = recovered.selection
    expected = np.asarray(true_parameters(recovered.initial).to_vector())[selection.indices]
    found = np.asarray(recovered.fitted.to_vector())[selection.indices]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found / selection.to_vector() - 1).max() > 0.05
    assert recovered.metrics["train"]["force_rmse_fitted"] < 1e-3 < recovered.metrics["train"]["force_rmse_initial"]
    objectives = [entry["objective"] for entry in recovered.history]
    assert objectives == sorted(objectives, reverse=True)


def test_entries_that_are_not_free_stay_bitwise(recovered):
    before, after = (np.array(p.to_vector()) for p in (recovered.initial, recovered.fitted))
    changed = np.flatnonzero(before != after)
    assert set(changed) <= set(recovered.selection.indices)


def test_the_files(recovered):
    directory = recovered.directory
    assert {p.name for p in directory.iterdir()} == {
        "fitted.offxml", "parameters.csv", "log.jsonl", "checkpoint.npz", "result.h5", "uncertainty.csv",
        "posterior.npz",
    }  # fmt: skip
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", *["iteration"] * len(recovered.history), "stop"]
    assert lines[0]["train"] == ["ethane", "formaldehyde", "methanol"] and lines[0]["test"] == []
    assert any("no training molecule uses it" in item for item in lines[0]["left_out"])
    again = FitResult.load(directory)
    assert again.config == recovered.config
    assert again.stopped == recovered.stopped and again.metrics == recovered.metrics
    assert again.table().equals(recovered.table())
    for a, b in zip(again.molecules, recovered.molecules, strict=True):
        assert a.name == b.name and a.system.digest == b.system.digest
        np.testing.assert_array_equal(a.charges, b.charges)
        np.testing.assert_array_equal(a.forces_fitted, b.forces_fitted)
    assert [row[0] for row in summary(recovered)] == ["energy", "force"]


def test_the_fitted_file_gives_the_fitted_energies_in_the_plain_toolkit(recovered):
    from openff.toolkit import ForceField

    import offjax

    path = recovered.directory / "fitted.offxml"
    text = path.read_text()
    assert "Fitted by offjax" in text and ForceField(path)
    provenance = recovered.provenance
    for words in (provenance["command"], provenance["data"][0]["sha256"], provenance["config_digest"],
                  f"jax {provenance['versions']['jax']}"):  # fmt: skip
        assert words.replace("--", "- -") in text.split("-->")[0]
    molecule = recovered.molecules[0]
    from openff.toolkit import Molecule

    read = Molecule.from_mapped_smiles(molecule.smiles)
    read.assign_partial_charges("gasteiger")
    energy = offjax.System.from_smirnoff(path, read, charge_from_molecules=[read]).without_constraints().to_jax()
    p = offjax.System.from_smirnoff(path, read, charge_from_molecules=[read]).parameters
    # the provenance changes no value, and reading gives what was fitted
    fitted = np.asarray(recovered.fitted.to_vector())
    np.testing.assert_array_max_ulp(np.asarray(p.to_vector()), fitted, maxulp=1)
    plain = offjax.System.from_smirnoff(text.split("-->", 1)[1], read, charge_from_molecules=[read]).parameters
    np.testing.assert_array_equal(np.asarray(plain.to_vector()), np.asarray(p.to_vector()))
    u = np.array([energy(p, x) for x in molecule.positions])
    np.testing.assert_allclose(u - u.mean(), molecule.energies_fitted, atol=1e-9)


@pytest.mark.parametrize("method, iterations", [("l-bfgs", 60), ("adam", 60)])
def test_the_other_methods_get_close(method, iterations, make_config):
    result = run(FitConfig.load(make_config(method, iterations)))
    history = [entry["objective"] for entry in result.history]
    assert history[-1] < (1e-3 if method == "l-bfgs" else 0.1) * history[0]


def test_bounds_are_respected_and_reported(make_config):
    extra = '[[parameters]]\npath = "Bonds/k"\npatterns = ["b14"]\nprior = inf\nscale = 50.0\nlower = {:.12g}\n'
    start = run(FitConfig.load(make_config(iterations=1)))
    k = start.table().query("id == 'b14'").initial.item()
    result = run(FitConfig.load(make_config(extra=extra.format(0.97 * k))))
    row = result.table().query("id == 'b14'").iloc[0]
    assert row.at_bound and row.fitted == pytest.approx(0.97 * k)
    assert result.at_bound.sum() == 1


def test_a_strong_prior_keeps_the_start(make_config):
    result = run(FitConfig.load(make_config(prior="1e-6")))
    np.testing.assert_allclose(result.table().fitted, result.table().initial, rtol=1e-6)


def test_held_out_molecules_do_not_change_the_fit(make_config, data_file, tmp_path):
    split = "[split]\nfolds = 2\nholdout_fold = {}\n"
    keys = {"methanol": "OKKJLVBELUTLKV-UHFFFAOYSA-N", "ethane": "OTMSDBZUPAUEDD-UHFFFAOYSA-N",
            "formaldehyde": "WSFSSNUMVMOOMR-UHFFFAOYSA-N"}  # fmt: skip
    held = {name for name, key in keys.items() if fold(key, 2) == 0}
    assert 0 < len(held) < 3
    path = make_config(iterations=3, extra=split.format(0))
    result = run(FitConfig.load(path))
    assert {m.name for m in result.molecules if m.split == "test"} == held
    copy = tmp_path / "copy.h5"
    copy.write_bytes(data_file.read_bytes())
    with h5py.File(copy, "a") as file:
        for name in held:
            file[name]["dft_total_energy"][0] += 0.1
            file[name]["dft_total_gradient"][:] *= 1.5
    path.write_text(path.read_text().replace(str(data_file), str(copy)))
    other = run(FitConfig.load(path))
    assert other.fitted.to_vector().tobytes() == result.fitted.to_vector().tobytes()
    assert other.metrics["test"]["force_rmse_fitted"] != result.metrics["test"]["force_rmse_fitted"]


def test_a_killed_fit_resumes_exactly(make_config):
    path = make_config(iterations=6, prior='"5%"', output="killed")
    assert child(path, "SIGKILL").returncode == -signal.SIGKILL
    config = FitConfig.load(path)
    recorder = Recorder()
    resumed = run(config, resume=True, progress=recorder)
    assert [entry["iteration"] for entry in recorder.entries][:2] == [3, 4]
    whole = run(FitConfig.load(path, {"output.directory": "whole"}))
    assert resumed.fitted.to_vector().tobytes() == whole.fitted.to_vector().tobytes()
    drop = ("seconds",)
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    lines = [json.loads(line)["event"] for line in (resumed.directory / "log.jsonl").read_text().splitlines()]
    assert lines == ["resume", *["iteration"] * len(whole.history), "stop"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(make_config, rng):
    """SIGKILL wherever it falls: while importing, compiling, iterating or writing."""
    path = make_config(method="l-bfgs", iterations=12, output="killed", name="killed.toml")
    checkpoint = path.parent / "killed" / "checkpoint.npz"
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    command = [sys.executable, "-m", "offjax", "fit", str(path)]

    def resumed(timeout):
        started = time.monotonic()
        resume = ["--resume"] if checkpoint.exists() else []
        with contextlib.suppress(subprocess.TimeoutExpired):  # subprocess.run then kills with SIGKILL
            done = subprocess.run(command + resume, env=env, capture_output=True, text=True, timeout=timeout)
            assert done.returncode == 0, done.stderr
        return time.monotonic() - started

    duration = resumed(600)
    whole = FitResult.load(checkpoint.parent)
    shutil.rmtree(checkpoint.parent)
    for fraction in rng.uniform(0.1, 1.1, size=20):
        resumed(fraction * duration)
    resumed(600)
    killed = FitResult.load(checkpoint.parent)
    np.testing.assert_array_equal(killed.fitted.to_vector(), whole.fitted.to_vector())
    assert [e["objective"] for e in killed.history] == [e["objective"] for e in whole.history]


def test_ctrl_c_writes_everything_and_exits_with_130(make_config):
    path = make_config(iterations=8, prior='"5%"', output="stopped")
    done = child(path, "SIGINT")
    assert done.returncode == 130, done.stderr
    assert "--resume" in done.stdout
    result = FitResult.load(path.parent / "stopped")
    assert result.interrupted and result.history[-1]["iteration"] == 3
    assert (result.directory / "fitted.offxml").is_file()
    with pytest.raises(
        InputError, match=r"configuration changed since the checkpoint: parameters\[2\].prior: '5%' -> '6%'"
    ):
        text = path.read_text()
        path.write_text("6%".join(text.rsplit("5%", 1)))
        run(FitConfig.load(path), resume=True)
    path.write_text(text.replace("max_iterations = 8", "max_iterations = 4"))
    assert run(FitConfig.load(path), resume=True).history[-1]["iteration"] == 4


def test_resuming_refuses_other_data(make_config, data_file, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(data_file.read_bytes())
    path = make_config(iterations=1)
    path.write_text(path.read_text().replace(str(data_file), str(copy)))
    run(FitConfig.load(path))
    with h5py.File(copy, "a") as file:
        file["ethane/dft_total_energy"][0] += 1e-6
    with pytest.raises(InputError, match="the reference data, force field or charges changed"):
        run(FitConfig.load(path), resume=True)


def test_resuming_refuses_a_force_field_with_another_periodicity(make_config, tmp_path):
    """Nothing that is a parameter has changed."""
    source = offjax.System.from_smirnoff(
        "openff-2.2.1.offxml", molecule("ethane"), charge_from_molecules=[molecule("ethane")]
    ).source
    (tmp_path / "own.offxml").write_text(source)
    path = make_config(iterations=1)
    path.write_text(path.read_text().replace("openff-2.2.1.offxml", str(tmp_path / "own.offxml")))
    run(FitConfig.load(path))
    assert 'periodicity1="3"' in source
    (tmp_path / "own.offxml").write_text(source.replace('periodicity1="3"', 'periodicity1="2"'))
    with pytest.raises(InputError, match="the reference data, force field or charges changed"):
        run(FitConfig.load(path), resume=True)


def test_the_split_is_a_hash_of_the_inchikey():
    assert [fold(key, 4) for key in ("LFQSCWFLJHTTHZ-UHFFFAOYSA-N", "QTBSBXVTEAMEQO-UHFFFAOYSA-N")] == [2, 1]


def test_errors_while_reading_name_file_and_molecule(make_config, data_file, tmp_path):
    path = make_config()
    path.write_text(path.read_text().replace(str(data_file), "none.h5"))
    with pytest.raises(InputError, match="none.h5: no such file"):
        run(FitConfig.load(path))
    path = make_config(extra="[split]\nfolds = 2\nholdout_fold = 1\n")
    path.write_text(path.read_text().replace("[charges]", 'include = ["methanol"]\n[charges]'))
    one = FitConfig.load(path, {"split.holdout_fold": fold("OKKJLVBELUTLKV-UHFFFAOYSA-N", 2)})
    with pytest.raises(InputError, match="leaves no training molecule"):
        driver.prepare(one)


def test_lines_are_printed_where_there_is_no_terminal(make_config, capsys):
    run(FitConfig.load(make_config(iterations=1)), progress=Lines(sys.stdout))
    text = capsys.readouterr().out
    assert "typing and charges (3)" in text and "iteration 1/1: f = " in text and "kJ/mol/nm" in text


def test_charges_of_a_method_are_computed_once(make_config, tmp_path, monkeypatch):
    """AM1-BCC takes minutes: `offjax conflicts`, `--resume` and the next fit find what the first one computed."""
    from openff.toolkit import Molecule

    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path / "cache"))
    config = FitConfig.load(make_config())
    first = driver.prepare(config)

    def fail(*args, **kwargs):
        raise ValueError("no charges today")

    monkeypatch.setattr(Molecule, "assign_partial_charges", fail)
    assert driver.prepare(config).digest == first.digest
    monkeypatch.setenv("OFFJAX_CACHE", "off")
    with pytest.raises(UnassignedParameterError, match="synthetic.h5, group 'ethane': .*no charges today"):
        driver.prepare(config)


@pytest.mark.skipif(
    not (shutil.which("sqm") or (Path(sys.executable).parent / "sqm").exists()),
    reason="needs AmberTools' sqm: pip install 'offjax[am1bcc]'",
)
def test_am1_charges_are_computed_before_anything_else(data_file, tmp_path, monkeypatch, capsys):
    """A stage of its own, of the molecules that are not in the cache; the charges are those of the force field."""
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path / "cache"))
    chosen, files = spice.read(data_file)[:2], ["openff_unconstrained-2.2.1.offxml"]
    systems = driver.parameterize([*chosen, chosen[0]], files, progress=Lines(sys.stdout))
    assert capsys.readouterr().out.splitlines() == ["AM1 charges (2)", "typing and charges (3)"]
    assert {m for s in systems for m in s.charge_methods} == {"ToolkitAM1BCC am1bcc"} and systems[2] is systems[0]
    for record, system in zip(chosen, systems, strict=False):
        alone = offjax.System.from_smirnoff(files, record.molecules())
        q, expected = (s.instances()["Electrostatics"]["charge"] for s in (system, alone))
        np.testing.assert_array_equal(q, expected)
    driver.parameterize(chosen, files, charges="am1bcc", progress=Lines(sys.stdout))
    assert capsys.readouterr().out.splitlines() == ["typing and charges (2)"]
