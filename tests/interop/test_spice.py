"""Reading SPICE's HDF5 layout, and errors that name file, group and dataset."""

import h5py
import numpy as np
import pytest

from offjax import InputError, constants
from offjax.interop import spice
from offjax.interop.records import Problem

SMILES = "[C:1](=[O:2])([H:3])[H:4]"
NUMBERS = [6, 8, 1, 1]
X = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.28], [1.77, 0.0, -1.11], [-1.77, 0.0, -1.11]])


@pytest.fixture
def path(tmp_path):
    """Formaldehyde, two conformers."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("formaldehyde")
        group.create_dataset("smiles", data=[SMILES], dtype=h5py.string_dtype())
        group["atomic_numbers"] = NUMBERS
        group["conformations"] = np.stack([X, X * 1.01])
        group["dft_total_energy"] = [-114.5, -114.4]
        group["dft_total_gradient"] = np.full((2, 4, 3), 0.01)
        for key, unit in (
            ("conformations", "bohr"),
            ("dft_total_energy", "hartree"),
            ("dft_total_gradient", "hartree/bohr"),
        ):
            group[key].attrs["units"] = unit
    return path


def replace(group, key, value, **attrs):
    attrs = dict(group[key].attrs) | attrs
    del group[key]
    group[key] = value
    group[key].attrs.update(attrs)


def smiles(group, text):
    del group["smiles"]
    group.create_dataset("smiles", data=[text], dtype=h5py.string_dtype())


BROKEN = {
    "no conformers": (lambda g: replace(g, "conformations", np.zeros((0, 4, 3))), "conformations: no conformers"),
    "wrong number of atoms": (
        lambda g: replace(g, "conformations", np.zeros((2, 5, 3))),
        "conformations: shape (2, 5, 3), expected (2, 4, 3)",
    ),
    "one energy too few": (
        lambda g: replace(g, "dft_total_energy", [-114.5]),
        "dft_total_energy: shape (1,), expected (2,)",
    ),
    "NaN": (
        lambda g: replace(g, "dft_total_energy", [-114.5, np.nan]),
        "dft_total_energy: 1 values are not finite, first at index [1]",
    ),
    "integers": (lambda g: replace(g, "dft_total_energy", [1, 2]), "dft_total_energy: expected floating-point"),
    "unknown element": (lambda g: replace(g, "atomic_numbers", [6, 8, 1, 119]), "unknown element 119 of atom 3"),
    "another order": (
        lambda g: replace(g, "atomic_numbers", [8, 6, 1, 1]),
        "atom 0 has number 8, but map index 1 of the SMILES has 6",
    ),
    "unknown element in the SMILES": (lambda g: smiles(g, SMILES.replace("O", "Xq")), "is not a SMILES"),
    "SMILES without map": (lambda g: smiles(g, "C=O"), "is not a SMILES with explicit hydrogens"),
    "missing hydrogens": (lambda g: smiles(g, "[CH2:1]=[O:2]"), "explicit hydrogens"),
    "angstrom called bohr": (
        lambda g: replace(g, "conformations", np.stack([X, X]) * 0.529),
        "bond C0-O1 of conformer 0 is 0.0638 nm long",
    ),
    "unknown unit": (
        lambda g: g["dft_total_energy"].attrs.__setitem__("units", "Ry"),
        "unit 'Ry' is not known; allowed are hartree",
    ),
    "no unit": (
        lambda g: g["conformations"].attrs.__delitem__("units"),
        "conformations: the attribute units is missing",
    ),
    "no gradient": (
        lambda g: g.__delitem__("dft_total_gradient"),
        "dft_total_gradient: the dataset is missing but forces are asked for",
    ),
    "no energies": (lambda g: g.__delitem__("dft_total_energy"), "dft_total_energy: the dataset is missing"),
    "no smiles": (lambda g: g.__delitem__("smiles"), "smiles: the dataset is missing"),
}


def test_reads_and_converts(path):
    [record] = spice.read(path)
    assert (record.name, record.smiles, record.n_conformers) == ("formaldehyde", SMILES, 2)
    assert record.inchikey == "WSFSSNUMVMOOMR-UHFFFAOYSA-N"
    np.testing.assert_allclose(record.positions[0], X * constants.BOHR)
    np.testing.assert_allclose(np.diff(record.energies), 0.1 * 2625.4996, rtol=1e-7)
    np.testing.assert_allclose(record.forces, -0.01 * 2625.4996 / 0.0529177, rtol=1e-6)
    assert record.molecule().n_atoms == 4


def test_units_are_read_from_the_file(path):
    [one] = spice.read(path)
    with h5py.File(path, "a") as file:
        group = file["formaldehyde"]
        replace(group, "conformations", group["conformations"][()] * constants.BOHR * 10, units="angstrom")
        replace(group, "dft_total_energy", group["dft_total_energy"][()] * constants.HARTREE, units="kJ/mol")
    [two] = spice.read(path)
    np.testing.assert_allclose(two.positions, one.positions)
    np.testing.assert_allclose(two.energies, one.energies)


def test_energies_alone_need_no_gradient(path):
    with h5py.File(path, "a") as file:
        del file["formaldehyde/dft_total_gradient"]
    assert spice.read(path, forces=False)[0].forces is None


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_is_named(case, path):
    change, message = BROKEN[case]
    with h5py.File(path, "a") as file:
        change(file["formaldehyde"])
    with pytest.raises(InputError) as caught:
        spice.read(path)
    assert str(path) in str(caught.value) and "'formaldehyde'" in str(caught.value)
    assert message in str(caught.value)


def test_include_and_exclude(path):
    assert len(spice.read(path, include=["form*"])) == 1
    with pytest.raises(InputError, match="no group matches 'water'; groups: formaldehyde"):
        spice.read(path, include=["water"])
    with pytest.raises(InputError, match="no molecule is left after exclude"):
        spice.read(path, exclude=["formaldehyde"])


def test_a_file_that_is_not_there_or_not_hdf5(tmp_path, path):
    with pytest.raises(InputError, match="no such file"):
        spice.read(tmp_path / "none.h5")
    half = tmp_path / "half.h5"
    half.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="truncated: 500 of [0-9,]* bytes are there"):
        spice.read(half)
    half.write_bytes(b"no HDF5" * 100)
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        spice.read(half)


def test_a_conformer_that_cannot_be_used_costs_the_molecule_only_that_one(path):
    x = np.stack([X, X[[1, 0, 2, 3]], X * 0.529177, X * 1.01, X, X, X * 1.02])
    x[4, 3] += 3.0
    x[5, 0, 0] = np.inf
    energies, gradients = np.arange(7.0) * 0.01, np.full((7, 4, 3), 0.01)
    energies[0] = np.nan
    gradients[3, 2, 1] = np.nan
    with h5py.File(path, "a") as file:
        for key, values in (("conformations", x), ("dft_total_energy", energies), ("dft_total_gradient", gradients)):
            replace(file["formaldehyde"], key, values)
    *problems, record = spice.scan(path)
    np.testing.assert_allclose(record.energies, [0.06 * constants.HARTREE])
    assert [p.record for p in problems] == [f"formaldehyde, conformer {c}" for c in range(6)]
    words = [
        "dft_total_energy: 1 values are not finite, first at index [0]",
        "conformer 1 is",
        "angstrom read as bohr",
        "dft_total_gradient: 1 values are not finite, first at index [3, 2, 1]",
        "conformer 4 is",
        "index [5, 0, 0]",
    ]
    for problem, text in zip(problems, words, strict=True):
        assert text in problem.reason and "'formaldehyde'" in problem.reason and problem.kind == "rejected"


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("chunked", [False, True])
def test_of_a_truncated_file_whole_molecules_are_read(tmp_path, version, chunked):
    path = tmp_path / "whole.h5"
    rng = np.random.default_rng(0)
    true = {f"m{k}": np.stack([X * s for s in rng.uniform(0.98, 1.02, 60)]) for k in range(12)}
    with h5py.File(path, "w", libver=version) as file:
        for name, x in true.items():
            group = file.create_group(name)
            group.create_dataset("smiles", data=[SMILES], dtype=h5py.string_dtype())
            options = {"chunks": True} if chunked else {}
            energies = np.full(60, float(name[1:]))
            for key, values, unit in (("conformations", x, "bohr"), ("dft_total_energy", energies, "hartree"),
                                      ("dft_total_gradient", x, "hartree/bohr")):  # fmt: skip
                group.create_dataset(key, data=values, **options).attrs["units"] = unit
    content = path.read_bytes()
    half = tmp_path / "half.h5"
    for part in (0.7, 0.9, 0.99):
        half.write_bytes(content[: int(part * len(content))])
        found = list(spice.scan(half))
        records = [r for r in found if not isinstance(r, Problem)]
        problems = [p for p in found if isinstance(p, Problem)]
        assert "truncated" in problems[0].reason and all("completely?" in p.reason for p in problems)
        for record in records:
            name = record.name if record.name in true else f"m{record.energies[0] / constants.HARTREE:.0f}"
            np.testing.assert_allclose(record.positions, true[name] * constants.BOHR)
        assert len(records) >= (part - 0.2) * len(true)
