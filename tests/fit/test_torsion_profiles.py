"""Relaxed torsion profiles as targets: exact gradient, recovery of known parameters, exact resume."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import constants
from offjax.errors import UnsupportedError
from offjax.fit import FitConfig, conflicts, run, uncertainty
from offjax.fit.driver import prepare
from offjax.interop.torsiondrives import dihedrals

pa = pytest.importorskip("pyarrow")

SMILES = "[C:1]([O:2][H:6])([H:3])([H:4])[H:5]"
DRIVEN = (2, 0, 1, 5)
ANGLES = (60.0, 120.0, 150.0, 180.0, -90.0)


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


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A drive of methanol: geometries and energies of changed parameters."""
    from openff.toolkit import Molecule

    with jax.enable_x64(True):
        molecule = Molecule.from_mapped_smiles(SMILES)
        molecule.assign_partial_charges("gasteiger")
        molecule.generate_conformers(n_conformers=1)
        system = offjax.System.from_smirnoff(
            "openff-2.2.1.offxml", molecule, charge_from_molecules=[molecule]
        ).without_constraints()
        x = molecule.conformers[0].m_as("nanometer")
        batch = offjax.SystemBatch.from_systems([system])
        conformers = batch.pack([np.stack([turned(x, a) for a in ANGLES])])
        frozen = np.tile(np.isin(np.arange(6), DRIVEN), len(ANGLES))
        found = batch.minimize(changed(system.parameters), conformers, frozen=frozen, tolerance=1e-6)
        assert np.all(found.converged)
    path = tmp_path_factory.mktemp("drive") / "drive.arrow"
    row = {
        "smiles": SMILES,
        "coords": (np.asarray(found.positions).ravel() / constants.ANGSTROM).tolist(),
        "energy": ((np.asarray(found.energies) - 3e5) / constants.KCAL).tolist(),
        "forces": None,
    }
    content = pa.Table.from_pylist([row])
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content)
    return path


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
        with pytest.raises(UnsupportedError, match="conflicts of relaxed torsion profiles"):
            conflicts.analyse(data, chosen, x)


def test_a_fit_finds_the_parameters_and_resumes_exactly(table, tmp_path):
    whole = run(config(table, tmp_path / "whole"))
    [before, after] = (whole.metrics["train"][f"energy_rmse_{when}"] for when in ("initial", "fitted"))
    assert before > 0.1 and after < 1e-3 * before
    assert whole.history[-1]["unconverged"] == 0
    run(config(table, tmp_path / "cut", iterations=2))
    resumed = run(config(table, tmp_path / "cut"), resume=True)
    np.testing.assert_array_equal(resumed.fitted.to_vector(), whole.fitted.to_vector())
