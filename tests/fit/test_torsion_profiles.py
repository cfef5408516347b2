"""Relaxed torsion profiles as targets: exact gradient, recovery of known parameters, exact resume."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import constants
from offjax.fit import FitConfig, conflicts, find_conflicts, run, uncertainty
from offjax.fit.driver import prepare
from offjax.fit.shards import accumulated
from offjax.fit.split import refit_files, split
from offjax.interop.torsiondrives import dihedrals

pa = pytest.importorskip("pyarrow")

SMILES = "[C:1]([O:2][H:6])([H:3])([H:4])[H:5]"
DRIVEN = (2, 0, 1, 5)
ANGLES = (60.0, 120.0, 150.0, 180.0, -90.0)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """The programs here are many and run for milliseconds: they are not optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def turned(x, angle):
    """Methanol with the hydroxyl hydrogen turned about C-O to a dihedral in degrees."""
    axis = (x[1] - x[0]) / np.linalg.norm(x[1] - x[0])
    # to a multiple of 5 degrees within 1e-6: the axis is exact
    a = np.radians(angle - dihedrals(x[None], DRIVEN)[0])
    v = x[5] - x[1]
    rotated = v * np.cos(a) + np.cross(axis, v) * np.sin(a) + axis * (axis @ v) * (1 - np.cos(a))
    x = x.copy()
    x[5] = x[1] + rotated
    return x


def changed(p):
    """The parameters behind the synthetic profile."""
    return p.replace("ProperTorsions", "k", 1.6 * np.asarray(p["ProperTorsions"]["k"]))


def profile(smiles, force_field, change=lambda p: p):
    """A row of a drive: geometries and energies of a force field with changed parameters."""
    from openff.toolkit import Molecule

    with jax.enable_x64(True):
        molecule = Molecule.from_mapped_smiles(smiles)
        molecule.assign_partial_charges("gasteiger")
        molecule.generate_conformers(n_conformers=1)
        system = offjax.System.from_smirnoff(
            force_field, molecule, charge_from_molecules=[molecule]
        ).without_constraints()
        x = molecule.conformers[0].m_as("nanometer")
        batch = offjax.SystemBatch.from_systems([system])
        conformers = batch.pack([np.stack([turned(x, a) for a in ANGLES])])
        frozen = np.tile(np.isin(np.arange(6), DRIVEN), len(ANGLES))
        found = batch.minimize(change(system.parameters), conformers, frozen=frozen, tolerance=1e-6)
        assert np.all(found.converged)
    return {
        "smiles": smiles,
        "coords": (np.asarray(found.positions).ravel() / constants.ANGSTROM).tolist(),
        "energy": ((np.asarray(found.energies) - 3e5) / constants.KCAL).tolist(),
        "forces": None,
    }


def write(path, rows):
    """An Arrow file as descent writes them."""
    content = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A drive of methanol with changed parameters."""
    return write(tmp_path_factory.mktemp("drive") / "drive.arrow", [profile(SMILES, "openff-2.2.1.offxml", changed)])


def config(table, directory, iterations=8):
    return FitConfig.from_dict(
        {
            "force_field": "openff-2.2.1.offxml",
            "data": [{"path": str(table), "format": "descent-arrow", "kind": "torsion-profiles"}],
            "charges": {"method": "gasteiger"},
            "parameters": [
                {"path": "ProperTorsions/k", "prior": float("inf"), "scale": 0.1},
                {"path": "Angles/angle", "prior": 0.1},
                {"path": "Angles/k", "prior": 2.0, "transform": "log"},
            ],
            "relaxation": {"tolerance": 1e-5},
            "optimizer": {"max_iterations": iterations, "objective_tolerance": 0.0, "gradient_tolerance": 1e-9},
            "output": {"directory": str(directory)},
        }
    )


def test_the_jacobian_of_relaxed_energies_is_exact(table, tmp_path):
    with jax.enable_x64(True):
        chosen = config(table, tmp_path)
        data = prepare(chosen)
        assert data.records[0].driven in ((DRIVEN,), (DRIVEN[::-1],))
        objective = data.objective(chosen)
        x = jnp.linspace(0.5, 1.0, len(data.free))
        value, gradient, hessian = objective.gauss_newton(x)
        assert value == pytest.approx(float(objective.value(x)), rel=1e-10)
        direction = jnp.linspace(-1.0, 0.7, len(data.free))
        h = 0.1

        def slope(h):
            return (objective.value(x + h * direction) - objective.value(x - h * direction)) / (2 * h)

        assert gradient @ direction == pytest.approx(float((4 * slope(h / 2) - slope(h)) / 3), rel=1e-5)
        moved = np.asarray(objective.parts(x).positions - data.targets.conformers.positions)
        frozen = np.tile(np.isin(np.arange(6), DRIVEN), len(ANGLES))
        assert np.all(moved[frozen] == 0) and np.max(np.abs(moved)) > 1e-5

        found = uncertainty.laplace(objective, x)
        np.testing.assert_allclose(found.fitted, hessian, rtol=1e-9, atol=1e-9 * np.abs(hessian).max())
        assert [(kind.name, kind.n_residuals) for kind in found.kinds] == [("energy", len(ANGLES) - 1)]
        assert found.kinds[0].sum_of_squares == pytest.approx(2 * float(objective.parts(x).energy))

        pulls = conflicts.analyse(data, chosen, x, top=0).pulls
        by_label = dict(zip(map(str, data.free.selection.labels), gradient - objective.data.prior**2 * x, strict=True))
        assert {str(p.label) for p in pulls} == set(by_label)
        for pull in pulls:
            slope = float(by_label[str(pull.label)])
            assert -(pull.up + pull.down) == pytest.approx(slope, rel=1e-6, abs=1e-8)
            assert pull.label.id != "t93" or len(pull.places) == 3


TWO_DEVICES = """
import sys
from dataclasses import replace
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_num_cpu_devices", 2)
from offjax.fit.driver import prepare
from tests.fit.test_torsion_profiles import config

chosen = config(*sys.argv[1:])
objective = prepare(chosen).objective(chosen)
print(len(objective.data.targets.conformers.packed.devices()))
x = np.linspace(0.5, 1.0, len(objective))
for values in objective.gauss_newton(x):
    print(*np.ravel(values).tolist())
"""


def test_two_devices_relax_profiles_as_one_does(tmp_path):
    """Each point 60 times, so that there is more than one chunk."""
    row = profile(SMILES, "openff-2.2.1.offxml", changed)
    table = write(tmp_path / "drive.arrow", [row | {k: 60 * row[k] for k in ("coords", "energy")}])
    command = [sys.executable, "-c", TWO_DEVICES, str(table), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    devices, *lines = ran.stdout.splitlines()
    assert devices == "2"
    with jax.enable_x64(True):
        chosen = config(table, tmp_path)
        objective = prepare(chosen).objective(chosen)
        for line, values in zip(lines, objective.gauss_newton(np.linspace(0.5, 1.0, len(objective))), strict=True):
            scale = np.abs(values).max()
            np.testing.assert_allclose([float(v) for v in line.split()], np.ravel(values), rtol=1e-6, atol=1e-9 * scale)


def test_profiles_in_parts(table, tmp_path):
    with jax.enable_x64(True):
        chosen = config(table, tmp_path)
        data = prepare(chosen)
        twice = replace(data.records[0], positions=data.records[0].positions + 0.01)
        records, systems = [data.records[0], twice], 2 * data.systems
        data = replace(
            data, records=records, systems=systems, batch=offjax.SystemBatch.from_systems(systems), weights=np.ones(2)
        )
        chosen = chosen.model_copy(update={"objective": chosen.objective.model_copy(update={"parts": 2})})
        parts, whole = accumulated(chosen, replace(data, folder=tmp_path)), data.objective(chosen)
        x = jnp.linspace(0.5, 1.0, len(whole))
        for a, b in zip(parts.gauss_newton(x), whole.gauss_newton(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9 * np.abs(b).max())


def test_a_fit_finds_the_parameters_and_resumes_exactly(table, tmp_path):
    whole = run(config(table, tmp_path / "whole"))
    [before, after] = (whole.metrics["train"][f"energy_rmse_{when}"] for when in ("initial", "fitted"))
    assert before > 0.1 and after < 1e-3 * before
    assert whole.history[-1]["unconverged"] == 0
    run(config(table, tmp_path / "cut", iterations=2))
    resumed = run(config(table, tmp_path / "cut"), resume=True)
    np.testing.assert_array_equal(resumed.fitted.to_vector(), whole.fitted.to_vector())


@pytest.mark.slow
def test_a_split_separates_two_environments(tmp_path):
    """Methanol and fluoromethanol have one torsion parameter, but the data come from a force field with two."""
    parent = "[*:1]-[#6X4:2]-[#8X2:3]-[#1:4]"
    true, identity = split("openff-2.2.1.offxml", "ProperTorsions", parent, "[*:1]-[#6X4;$(*-[#9]):2]-[#8X2:3]-[#1:4]")

    def apart(p):
        for pattern, factor in (("t93", 0.6), (identity, 1.9)):
            chosen = p.select("ProperTorsions/k", pattern)
            p = chosen.insert(factor * np.asarray(chosen.to_vector()))
        return p

    fluoromethanol = SMILES.replace("[H:3]", "[F:3]")
    table = write(tmp_path / "drives.arrow", [profile(s, true, apart) for s in (SMILES, fluoromethanol)])
    chosen = config(table, tmp_path / "fit")
    chosen = chosen.model_copy(update={"parameters": [chosen.parameters[0].model_copy(update={"patterns": ["t93"]})]})
    fit = run(chosen)
    best = find_conflicts(fit).splits[0]
    assert best.smirks == parent and best.n_child in (3, best.n_places - 3) and len(best.molecules) == 1
    again = run(FitConfig.load(refit_files(chosen, best.section, best.smirks, best.child, tmp_path)))
    before, after = (f.history[-1]["objective"] for f in (fit, again))
    assert after < 0.1 * before and best.gain == pytest.approx(before - after, rel=0.02)
