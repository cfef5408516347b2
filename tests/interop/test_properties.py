"""Readers of data beside energies and forces: Hessians, vibrations, interaction energies, potentials, ForceBalance."""

import json

import h5py
import numpy as np
import pytest

from offjax import constants
from offjax.errors import InputError
from offjax.interop.reading import read
from offjax.interop.records import components

WATER = "[O:1]([H:2])[H:3]"
X = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]])
HESSIAN = np.arange(81.0).reshape(9, 9) + np.arange(81.0).reshape(9, 9).T
MOL2 = """@<TRIPOS>MOLECULE
water
3 2 0 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 O 0.0 0.0 0.0 O.3
2 H 0.957 0.0 0.0 H
3 H -0.24 0.927 0.0 H
@<TRIPOS>BOND
1 1 2 1
2 1 3 1
"""
ROWS = "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in zip("OHH", (X / constants.ANGSTROM).tolist(), strict=True))


def test_hdf5(tmp_path):
    path = tmp_path / "water.h5"
    datasets = {
        "conformations": (X[None] / constants.BOHR, "bohr"),
        "dft_total_hessian": (HESSIAN[None] / constants.HARTREE * constants.BOHR**2, "hartree/bohr^2"),
        "esp_grid": (X[None] / constants.ANGSTROM + 3.0, "angstrom"),
        "esp": (np.array([[0.1, 0.2, 0.3]]), "hartree/e"),
        "esp_weights": (np.array([[1.0, 2.0, 3.0]]), "dimensionless"),
    }

    def write(**changes):
        with h5py.File(path, "w") as file:
            group = file.create_group("water")
            group.create_dataset("smiles", data=[WATER], dtype=h5py.string_dtype())
            for name, (values, units) in (datasets | changes).items():
                group.create_dataset(name, data=values).attrs["units"] = units
        return read(path, forces=False, strict=False)

    [record] = write().records
    np.testing.assert_allclose(record.properties["hessian"][0], HESSIAN, rtol=1e-12)
    np.testing.assert_allclose(record.properties["grid"][0], X + 0.3, rtol=1e-12)
    np.testing.assert_allclose(record.properties["potential"][0], np.array([0.1, 0.2, 0.3]) * constants.HARTREE)
    assert record.properties["grid_weights"].tolist() == [[1.0, 2.0, 3.0]] and not record.has_energies
    unlike = write(dft_total_hessian=(np.triu(HESSIAN)[None], "kj/mol/nm^2")).rejected[0].reason
    assert "not symmetric" in unlike
    modes = {"frequencies": (np.ones(1), "1/cm"), "modes": (np.ones((1, 1, 3, 3)), "dimensionless")}
    assert "frequencies: shape (1,)" in write(**modes).rejected[0].reason
    assert "potential: shape" in write(esp=(np.ones((1, 2)), "kj/mol/e")).rejected[0].reason
    assert "not finite" in write(esp=(np.full((1, 3), np.nan), "kj/mol/e")).rejected[0].reason


def test_qcschema_hessian(tmp_path):
    molecule = {
        "symbols": ["O", "H", "H"],
        "geometry": (X / constants.BOHR).ravel().tolist(),
        "identifiers": {"canonical_isomeric_explicit_hydrogen_mapped_smiles": WATER},
    }
    hessian = (HESSIAN / constants.HARTREE * constants.BOHR**2).ravel().tolist()
    entry = {
        "driver": "hessian",
        "molecule": molecule,
        "return_result": hessian,
        "properties": {"return_energy": -76.0},
    }
    path = tmp_path / "water.json"
    path.write_text(json.dumps(entry))
    [record] = read(path, forces=False).records
    np.testing.assert_allclose(record.properties["hessian"][0], HESSIAN, rtol=1e-12)
    assert record.energies[0] == pytest.approx(-76.0 * constants.HARTREE)
    path.write_text(json.dumps(entry | {"return_result": hessian[:-1]}))
    assert "80 elements" in read(path, forces=False, strict=False).rejected[0].reason


def test_interaction_energies_in_extended_xyz(tmp_path):
    smiles = "[O:1]([H:2])[H:3].[O:4]([H:5])[H:6]"
    far = "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in zip("OHH", (X / 0.1 + 4).tolist(), strict=True))
    path = tmp_path / "dimer.xyz"
    path.write_text(f'6\nsmiles="{smiles}" interaction_energy=-0.2\n{ROWS}{far}')
    [record] = read(path, forces=False).records
    assert record.properties["interaction"].tolist() == [-0.2 * constants.ELECTRONVOLT] and not record.has_energies
    assert [m.n_atoms for m in record.molecules()] == [3, 3]
    frame = f'6\nsmiles="{smiles}" interaction_energy=-0.2\n{ROWS}{far}'
    path.write_text(2 * frame + f'6\nsmiles="{smiles}" energy=-1.0\n{ROWS}{far}')
    found = read(path, forces=False, strict=False)
    assert found.records[0].properties["interaction"].tolist() == [-0.2 * constants.ELECTRONVOLT] * 2
    assert [p.reason for p in found.rejected] == ["it has energy; most frames of this molecule have interaction"]
    with pytest.raises(InputError, match="must stand one after the other"):
        components("[O:1]([H:2])[H:4].[O:3]([H:5])[H:6]", "here", "mixed")


def test_forcebalance_optimized_geometries(tmp_path):
    (tmp_path / "water.mol2").write_text(MOL2)
    (tmp_path / "water.xyz").write_text(f"3\n\n{ROWS}")
    options = "$global\nbond_denom 0.02\n$end\n# comment\n$system\nname w\ngeometry water.xyz\nmol2 water.mol2\n$end\n"
    (tmp_path / "optgeo_options.txt").write_text(options)
    found = read(tmp_path)
    [record] = found.records
    assert record.name == "w"
    np.testing.assert_allclose(record.positions[0], X, atol=1e-12)
    assert [p.kind for p in found.problems] == ["ignored"] and "bond_denom" in found.problems[0].reason
    (tmp_path / "optgeo_options.txt").write_text(options[:-5])
    with pytest.raises(InputError, match=r"\$end"):
        read(tmp_path)


def test_forcebalance_vibrations(tmp_path):
    block = "1600.5\n 0.0 0.1 0.2\n 0.3 0.4 0.5\n 0.6 0.7 0.8\n\n"
    path = tmp_path / "vdata.txt"
    path.write_text(f"# comment\n\n3\ncomment\n{ROWS}\n{block}{block.replace('1600.5', '-20.0')}")
    [record] = read(path, molecule=WATER).records
    assert record.properties["frequencies"].tolist() == [[1600.5, -20.0]]
    np.testing.assert_allclose(record.properties["modes"][0, 0].ravel(), np.arange(9) / 10)
    path.write_text(f"3\ncomment\n{ROWS}\n{chr(10).join(block.splitlines()[:3])}")
    assert "copied completely" in read(path, molecule=WATER, strict=False).rejected[0].reason
    with pytest.raises(InputError, match="mapped SMILES"):
        read(path)


def test_what_would_make_a_residual_senseless_costs_its_conformer(tmp_path):
    x = np.stack([X, X + 0.01])
    good = {
        "conformations": (x, "nm"),
        "dft_total_hessian": (np.stack([HESSIAN, HESSIAN]), "kJ/mol/nm^2"),
        "esp_grid": (x + [[0.3, 0.0, 0.0]], "nm"),
        "esp": (np.ones((2, 3)), "kJ/mol/e"),
        "esp_weights": (np.ones((2, 3)), "dimensionless"),
        "frequencies": (np.ones((2, 2)), "1/cm"),
        "modes": (np.ones((2, 2, 3, 3)), "dimensionless"),
    }
    cases = []
    for name, index, value, words in (
        ("dft_total_hessian", (1, 0, 5), 1e4, "hessian of conformer 1: not symmetric"),
        ("esp_grid", (1, 2), x[1, 0], "grid of conformer 1: points are 0 to"),
        ("esp_grid", (1,), x[1] + 3.0, "is the unit right"),
        ("esp_weights", (1, 0), -1.0, "grid weights of conformer 1"),
        ("esp_weights", (1,), 0.0, "grid weights of conformer 1"),
        ("modes", (1, 1), 0.0, "modes of conformer 1: no atom moves in mode 1"),
    ):
        values = np.array(good[name][0])
        values[index] = value
        cases.append(({name: (values, good[name][1])}, words))
    for number, (change, words) in enumerate(cases):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("water")
            group.create_dataset("smiles", data=[WATER], dtype=h5py.string_dtype())
            for name, (values, units) in (good | change).items():
                group.create_dataset(name, data=values).attrs["units"] = units
        found = read(path, forces=False, strict=False)
        [record], [problem] = found.records, found.rejected
        np.testing.assert_allclose(record.positions, x[:1], atol=1e-12)
        assert problem.record == "water, conformer 1" and words in problem.reason
