"""Minima against QM: exact where the reference is the force field itself."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from rdkit import Chem

from offjax import InputError
from offjax.constants import ANGSTROM
from offjax.fit import benchmark
from offjax.interop.records import Record
from tests import samples
from tests.report import example


def rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def record(smiles, x, energies, driven=()):
    made = samples.molecule(smiles)
    return Record(smiles, made.to_smiles(mapped=True), made.to_inchikey(), x, energies, None, "memory", driven)


@pytest.fixture(scope="module")
def found():
    """Butane, whose QM geometries are minima of the force field itself, moved; the same as a torsion drive; water."""
    with jax.enable_x64(True):
        butane, water = samples.system("CCCC"), samples.system("O")
        start = samples.positions("CCCC")
        turned = start.copy()
        axis = (start[2] - start[1]) / np.linalg.norm(start[2] - start[1])
        for atom in (3, 9, 10, 11, 12, 13):
            v = start[atom] - start[2]
            along = axis * (axis @ v)
            turned[atom] = start[2] + along + np.cos(2.1) * (v - along) + np.sin(2.1) * np.cross(axis, v)
        first = np.stack([start, turned])
        wet = samples.positions("O")[None]
        driven = record("CCCC", first, np.array([0.0, 1.0]), ((0, 1, 2, 3),))
        once = [record("CCCC", first, np.zeros(2)), record("O", wet, np.zeros(1)), driven]
        systems = [butane, water, butane]
        minima = benchmark.compare(once, {"a": (systems, butane.parameters)}, tolerance=1e-3).minima["a"]
        x = [np.stack([y @ rotation(c).T + c for c, y in enumerate(m.positions)]) for m in minima[:2]]
        x[0][1] = x[0][1][[3, 2, 1, 0, 11, 12, 13, 9, 10, 7, 8, 4, 5, 6]]  # the chain read backwards
        energies = minima[0].energies + [0.0, 5.0]
        same = [record("CCCC", x[0], energies - energies.min()), record("O", x[1], np.zeros(1)), driven]
        contenders = {"a": (systems, butane.parameters)}
        stiff = butane.parameters
        lengths = np.asarray(stiff["Bonds"]["length"]) * 1.05
        contenders["longer"] = (contenders["a"][0], stiff.replace("Bonds", "length", lengths))
        return minima, same, benchmark.compare(same, contenders, tolerance=1e-3)


def test_a_force_field_against_its_own_minima(found):
    before, records, result = found
    own, water, _ = result.minima["a"]
    assert own.converged.all() and water.converged.all()
    # the second conformer is read backwards, which symmetry undoes
    np.testing.assert_allclose(own.rmsd, 0.0, atol=2e-5)
    np.testing.assert_allclose(own.tfd, 0.0, atol=1e-3)
    np.testing.assert_allclose(own.energies, before[0].energies, atol=1e-5)
    lowest = int(np.argmin(records[0].energies))
    assert np.isnan(own.dde[lowest])
    shift = np.array([0.0, 5.0])
    np.testing.assert_allclose(own.dde[1 - lowest], shift[lowest] - shift[1 - lowest], atol=1e-4)
    assert water.rmsd[0] < 2e-5 and np.isnan(water.tfd[0]) and np.isnan(water.dde[0])


def test_points_of_a_torsion_drive_keep_their_driven_dihedral(found):
    _, records, result = found
    for x, reference in zip(result.minima["a"][2].positions, records[2].positions, strict=True):
        distances = [np.linalg.norm(y[:4, None] - y[None, :4], axis=-1) for y in (x, reference)]
        np.testing.assert_allclose(*distances, atol=1e-12)


def test_longer_bonds_show_in_the_numbers_and_tables(found):
    _, _, result = found
    assert result.force_fields == ["a", "longer"]
    [a, longer] = result.summary()
    assert a["conformers"] == 5 and a["unconverged"] == 0 and a["rmsd_median"] < longer["rmsd_median"]
    table = result.table()
    assert len(table) == 10 and set(table.force_field) == {"a", "longer"}
    row = table[(table.force_field == "longer") & (table.molecule == "O")].iloc[0]
    assert row.rmsd == pytest.approx(result.minima["longer"][1].rmsd[0] / ANGSTROM)
    assert len(result.values("a", "dde")) == 2 and len(result.values("a", "rmsd")) == 5


def test_superposition_is_that_of_known_geometries():
    molecule = Chem.AddHs(Chem.MolFromSmiles("CC"))
    x = 0.1 * np.array([[0.0, 0, 0], [1.5, 0, 0], *np.random.default_rng(0).normal(size=(6, 3))])
    longer = x.copy()
    longer[1, 0] += 0.02
    rmsd, moved = benchmark.superposed(molecule, longer @ rotation(3).T + 7.0, x)
    assert rmsd == pytest.approx(0.01)
    np.testing.assert_allclose(moved[:2, 0], [-0.01, 0.16], atol=1e-9)


def test_conformers_that_are_no_minima_are_left_out():
    x = np.stack([samples.positions("CCO")] * 3)
    forces = np.zeros(x.shape)
    forces[1, 0, 0] = 60.0
    made = record("CCO", x, np.arange(3.0))
    assert benchmark.minima_of(made) is made
    assert benchmark.minima_of(replace(made, forces=forces)).energies.tolist() == [0.0, 2.0]
    assert benchmark.minima_of(replace(made, forces=forces + 100.0)) is None


def test_a_fit_compares_every_minimum_once(tmp_path, monkeypatch):
    fitted = example.result(tmp_path, n_conformers=2, forces=False)
    assert benchmark.of_fit(fitted) is None  # nothing says that the geometries are minima
    monkeypatch.setattr(benchmark, "compare", lambda records, contenders: (records, contenders))
    both = [replace(fitted.molecules[0], kind=kind) for kind in ("hessians", "vibrations")]
    records, contenders = benchmark.of_fit(replace(fitted, molecules=both))
    assert len(records) == 1 and contenders["initial"][0] == [both[0].system]


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="no conformer is given"):
        benchmark.compare([], {})
    with pytest.raises(InputError, match="a: 0 Systems for 1 records"):
        made = record("CCO", samples.positions("CCO")[None], np.zeros(1))
        benchmark.compare([made], {"a": ([], samples.system("CCO").parameters)})
