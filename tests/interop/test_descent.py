"""Reading descent's Arrow tables, and finding the driven dihedrals of torsion drives in them."""

import numpy as np
import pytest

from offjax import InputError
from offjax.interop import descent, torsiondrives
from offjax.interop.records import Problem, Record

pa = pytest.importorskip("pyarrow")

ETHANE = "[C:1]([C:2]([H:6])([H:7])[H:8])([H:3])([H:4])[H:5]"
FORMALDEHYDE = "[C:1](=[O:2])([H:3])[H:4]"
X = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.21], [0.94, 0.0, -0.59], [-0.94, 0.0, -0.59]])


def ethane(angles):
    """Ethane, angstrom, (n, 8, 3): H2 of atom 0 and H5 of atom 1 at dihedral ``angles`` (degrees), others at +-119."""
    height, radius = 0.39, 1.03
    x = np.zeros((len(angles), 8, 3))
    x[:, 1, 2] = 1.53
    for n, offset in enumerate((0.0, 119.0, -118.5)):
        for atom, z, phase in ((2 + n, -height, np.zeros(len(angles))), (5 + n, 1.53 + height, np.asarray(angles))):
            turn = np.radians(phase + offset * (1.0 if atom < 5 else 1.01))
            x[:, atom] = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(len(turn), z)], axis=-1)
    return x


def write(path, rows, kind="stream"):
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def row(smiles=FORMALDEHYDE, x=(X, X * 1.01), energy=(-1.0, 0.5), forces=None):
    return {"smiles": smiles, "coords": np.ravel(x).tolist(), "energy": list(energy), "forces": forces}


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_reads_and_converts(tmp_path, kind):
    path = write(tmp_path / "data.arrow", [row(forces=np.ones(24).tolist())], kind)
    for source in (path, tmp_path):
        [record] = descent.read(source)
        assert (record.name, record.inchikey) == ("row-0", "WSFSSNUMVMOOMR-UHFFFAOYSA-N")
        np.testing.assert_allclose(record.positions[0], 0.1 * X)
        np.testing.assert_allclose(record.energies, [-4.184, 2.092])
        np.testing.assert_allclose(record.forces, np.full((2, 4, 3), 41.84))


BROKEN = {
    "SMILES without map": (row(smiles="C=O"), "smiles: 'C=O' is not a SMILES"),
    "another number of atoms": (
        row(x=np.concatenate([X, X[:3]])),
        "coords: 21 numbers, expected 24 = 2 energies x 4 atoms",
    ),
    "NaN": (row(energy=(0.0, np.nan), forces=[0.0] * 24), "energy: 1 values are not finite, first at index [1]"),
    "no conformers": (row(x=(), energy=()), "energy: no conformers"),
    "nanometres": (row(x=(0.1 * X, 0.1 * X), forces=[0.0] * 24), "coords: bond C0-O1 of conformer 0 is 0.0121 nm long"),
    "shuffled atoms": (
        row(x=(X[[2, 1, 0, 3]],) * 2, forces=[0.0] * 24),
        "the order of the atoms or the connectivity is wrong",
    ),
    "no forces": (row(), "forces: there are none but forces are asked for"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named(tmp_path, case):
    broken, message = BROKEN[case]
    path = write(tmp_path / "data.arrow", [row(forces=np.zeros(24).tolist()), broken])
    with pytest.raises(InputError) as caught:
        descent.read(path)
    assert f"{path}, row-1" in str(caught.value) and message in str(caught.value)


def test_a_conformer_that_cannot_be_used_costs_the_row_only_that_one(tmp_path):
    x = [X, X[[1, 0, 2, 3]], 0.1 * X, X * 1.01, X * 1.02]
    forces = np.zeros((5, 4, 3))
    forces[3, 0, 0] = np.nan
    path = write(tmp_path / "a.arrow", [row(x=x, energy=(None, 1.0, 2.0, 3.0, 4.0), forces=forces.ravel().tolist())])
    *problems, record = descent.scan(path)
    np.testing.assert_allclose(record.energies, [4 * 4.184])
    assert [p.record for p in problems] == [f"row-0, conformer {c}" for c in range(4)]
    words = (
        "energy: 1 values are not finite, first at index [0]",
        "conformer 1 is",
        "as if nm read as angstrom",
        "forces: 1",
    )
    for problem, text in zip(problems, words, strict=True):
        assert text in problem.reason and problem.kind == "rejected"


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_of_a_truncated_table_whole_batches_are_read(tmp_path, kind):
    table = pa.Table.from_pylist([row(x=(X * (1 + 0.001 * n),), energy=(float(n),)) for n in range(20)])
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(str(tmp_path / "whole.arrow"), table.schema) as w:
        w.write_table(table, max_chunksize=4)
    half = tmp_path / "half.arrow"
    content = (tmp_path / "whole.arrow").read_bytes()
    half.write_bytes(content[: int(0.6 * len(content))])
    *records, problem = descent.scan(half, forces=False)
    assert isinstance(problem, Problem) and f"{len(records)} rows can be read" in problem.reason
    assert [r.energies[0] / 4.184 for r in records] == pytest.approx(range(len(records))) and len(records) >= 8


def test_include_and_exclude_take_names_inchikeys_and_smiles(tmp_path):
    path = write(tmp_path / "data.arrow", [row(), row(ETHANE, ethane([60.0, 75.0]))])
    assert [r.name for r in descent.read(path, include=["WSFS*"], forces=False)] == ["row-0"]
    assert [r.name for r in descent.read(path, exclude=[FORMALDEHYDE], forces=False)] == ["row-1"]
    with pytest.raises(InputError, match="no record matches 'water'"):
        descent.read(path, include=["water"], forces=False)


def test_files_that_are_no_tables_of_descent(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        descent.read(tmp_path / "none.arrow")
    half = tmp_path / "half.arrow"
    half.write_bytes(write(tmp_path / "data.arrow", [row()]).read_bytes()[:300])
    with pytest.raises(InputError, match="not a complete Arrow table"):
        descent.read(half)
    with pytest.raises(InputError, match="columns coords, energy, smiles are missing"):
        descent.read(write(tmp_path / "other.arrow", [{"a": 1}]))


def record(angles):
    x = 0.1 * ethane(angles)
    return Record("ethane", ETHANE, "", x, np.arange(float(len(x))), None, "somewhere")


def test_dihedrals_follow_iupac_signs():
    np.testing.assert_allclose(torsiondrives.dihedrals(ethane([60.0, -75.0, 180.0]), (2, 0, 1, 5)), [60, -75, 180])


def test_the_driven_dihedral_is_found_and_repeated_scans_are_separated():
    scan = [0.0, 15.0, 30.0, -15.0, 180.0]
    [drive] = torsiondrives.drives(record(scan))
    assert drive.driven == ((2, 0, 1, 5),) and drive.name == "ethane"
    first, second = torsiondrives.drives(record(scan + scan[:4]))
    assert [len(d.energies) for d in (first, second)] == [5, 4] and second.name == "ethane-2"
    np.testing.assert_array_equal(second.energies, [5, 6, 7, 8])


def test_points_off_the_grid_are_no_drive():
    with pytest.raises(InputError, match="points 5 to .* are no torsion drive"):
        torsiondrives.drives(record([0.0, 15.0, 30.0, -15.0, 180.0, 21.3, 30.0]))
