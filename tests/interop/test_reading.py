"""Readers of foreign formats: right numbers from good files, and a reason for every record that cannot be used."""

import gzip
import json
import re

import numpy as np
import pytest
from openff.toolkit import Molecule

from offjax import constants
from offjax.errors import InputError
from offjax.interop import energy_units, forcebalance
from offjax.interop.reading import read
from offjax.interop.records import SLIPS, Problem, Record
from tests.fit.conftest import write_spice

SMILES = "[C:1]([O:2][H:6])([H:3])([H:4])[H:5]"
SYMBOLS = ["C", "O", "H", "H", "H", "H"]


@pytest.fixture(scope="module")
def frames():
    """Positions (nm), energies (kJ/mol) and forces (kJ/mol/nm) of eight conformers in a harmonic well."""
    rng = np.random.default_rng(2)
    x0 = geometry()
    d = 0.004 * rng.normal(size=(8, 6, 3))
    return x0 + d, -3e5 + 0.5 * 1e5 * np.sum(d**2, axis=(1, 2)), -1e5 * d


def geometry():
    from rdkit.Chem import AllChem

    rdmol = Molecule.from_mapped_smiles(SMILES).to_rdkit()
    AllChem.EmbedMolecule(rdmol, randomSeed=7)
    return rdmol.GetConformer().GetPositions() * constants.ANGSTROM


def xyz(frames, smiles=SMILES, name="methanol"):
    text = ""
    for x, e, f in zip(*frames, strict=True):
        text += "6\nProperties=species:S:1:pos:R:3:forces:R:3 "
        text += f'energy={float(e) / constants.ELECTRONVOLT!r} smiles="{smiles}" name={name} pbc="F F F"\n'
        unit = constants.ELECTRONVOLT / constants.ANGSTROM
        for symbol, a, b in zip(SYMBOLS, x / constants.ANGSTROM, f / unit, strict=True):
            text += " ".join([symbol, *map(repr, map(float, (*a, *b)))]) + "\n"
    return text


def qdata(frames, key="FORCES", sign=1.0):
    def line(key, values):
        return f"{key} " + " ".join(map(repr, map(float, np.ravel(values))))

    blocks = []
    for n, (x, e, f) in enumerate(zip(*frames, strict=True)):
        force = sign * f / (constants.HARTREE / constants.BOHR)
        rows = (("COORDS", x / constants.ANGSTROM), ("ENERGY", e / constants.HARTREE), (key, force))
        blocks.append("\n".join([f"JOB {n}", *(line(k, v) for k, v in rows)]))
    return "\n\n".join(blocks) + "\n"


def result(x, e, f, smiles=SMILES, **extra):
    molecule = {
        "symbols": SYMBOLS,
        "geometry": (x / constants.BOHR).ravel().tolist(),
        "schema_name": "qcschema_molecule",
    }
    molecule |= {"identifiers": {"canonical_isomeric_explicit_hydrogen_mapped_smiles": smiles}} | extra
    gradient = (-f / (constants.HARTREE / constants.BOHR)).ravel().tolist()
    return {"schema_name": "qcschema_output", "driver": "gradient", "molecule": molecule, "success": True,
            "return_result": gradient, "properties": {"return_energy": e / constants.HARTREE}}  # fmt: skip


def same(record, frames, n=8):
    x, e, f = (a[:n] for a in frames)
    assert record.smiles == SMILES and record.n_conformers == n
    np.testing.assert_allclose(record.positions, x, atol=1e-12)
    np.testing.assert_allclose(record.energies, e, rtol=1e-13)
    np.testing.assert_allclose(record.forces, f, rtol=1e-9, atol=1e-8)


def test_formats_give_the_same_numbers(frames, tmp_path):
    (tmp_path / "a.extxyz").write_text(xyz(frames))
    (tmp_path / "a.json").write_text(json.dumps([result(*frame) for frame in zip(*frames, strict=True)]))
    for name in ("a.extxyz", "a.json"):
        [record] = read(tmp_path / name).records
        same(record, frames)
        assert record.source.endswith(name)
    for key, sign in (("FORCES", 1.0), ("FORCES", -1.0), ("GRADIENT", -1.0)):
        (tmp_path / "qdata.txt").write_text(qdata(frames, key, sign))
        [record] = read(tmp_path / "qdata.txt", molecule=SMILES).records
        same(record, frames)
    (tmp_path / "metadata.json").write_text('{"dihedrals": [[2, 0, 1, 5]]}')
    [record] = read(tmp_path, molecule=SMILES).records
    assert record.driven == ((2, 0, 1, 5),)


def test_the_sign_of_forces_is_never_guessed(frames, tmp_path):
    few = tuple(a[:3] for a in frames)
    path = tmp_path / "qdata.txt"
    path.write_text(qdata(few))
    with pytest.raises(InputError, match='3 conformers do not tell.*give sign = "forces" or sign = "gradient"'):
        read(path, molecule=SMILES)
    same(read(path, molecule=SMILES, sign="forces").records[0], few, 3)
    np.testing.assert_allclose(read(path, molecule=SMILES, sign="gradient").records[0].forces, -few[2], rtol=1e-9)
    found = read(path, molecule=SMILES, forces=False, strict=False)
    assert found.records[0].forces is None and found.problems[0].kind == "ignored"
    # a scan along a soft coordinate tells by its energies, though its bonds hardly move
    x = geometry() + np.linspace(0, 0.02, 9)[:, None, None] * np.array([0, 0, 0, 0, 0, 1.0])[:, None] * [0, 0, 1.0]
    f = np.zeros_like(x)
    f[:, 5, 2] = -np.linspace(-300, 900, 9)
    e = np.concatenate([[0], np.cumsum(-0.5 * (f[1:] + f[:-1])[:, 5, 2] * 0.0025)])
    assert forcebalance._along_steps(x, f, e) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["extxyz", "json"])
def test_every_bad_frame_is_reported_and_the_rest_is_usable(frames, tmp_path, kind):
    x, e, f = (a.copy() for a in frames)
    x[1][[0, 1]] = x[1][[1, 0]]  # positions of C and O in another order
    x[2][:] = x[2] / 10  # another unit
    x[3][5] += 0.2  # a hydrogen left
    x[4][2] = x[4][3] + 0.01  # two hydrogens too near
    e[5] = np.nan
    f[6][0, 0] = np.inf
    path = tmp_path / f"bad.{kind}"
    if kind == "extxyz":
        path.write_text(xyz((x, e, f)))
    else:
        path.write_text(json.dumps([result(*frame) for frame in zip(x, e, f, strict=True)]))
    found = read(path, strict=False)
    [record] = found.records
    assert record.n_conformers == 2
    np.testing.assert_allclose(record.energies, e[[0, 7]])
    reasons = {int(p.record.split()[1]): p.reason for p in found.rejected}
    assert sorted(reasons) == [1, 2, 3, 4, 5, 6] and all(p.source == str(path) for p in found.problems)
    for n, words in ((1, "order of the atoms"), (2, "0.1 times as long as they should be, as if nm read as angstrom"),
                     (3, "nm long, expected about"), (4, "connectivity changed: H2-H3"),
                     (5, "energy: 1 values are not finite"), (6, "forces: 1 values are not finite")):  # fmt: skip
        assert words in reasons[n], reasons[n]
    assert list(found.table().columns) == ["source", "record", "kind", "reason", "molecule"]
    name = "methanol" if kind == "extxyz" else SMILES
    assert len(read(path, strict=False, include=[name]).rejected) == 6
    with pytest.raises(InputError, match=f"{kind}, (frame|result) 1: bond C0-"):
        read(path)


def test_slips_are_what_they_say():
    assert sorted(SLIPS) == pytest.approx([0.1, 0.529177, 1.889726, 10.0, 18.89726], rel=1e-5)


def test_elements_and_given_bonds_are_compared_with_the_smiles(frames, tmp_path):
    first = next(zip(*frames, strict=True))
    bonds = [[0, 1, 1], [0, 2, 1], [0, 3, 1], [0, 4, 1], [0, 5, 1]]
    shuffled = result(*first)
    shuffled["molecule"] = shuffled["molecule"] | {"symbols": ["O", "C", "H", "H", "H", "H"]}
    failed = result(*first) | {"success": False, "error": "SCF"}
    other = result(*first) | {"driver": "properties"}
    bare = result(*first)["molecule"]
    entries = [result(*first, connectivity=bonds), shuffled, failed, other, bare, result(*first, smiles="CO"), {}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    found = read(tmp_path / "a.json", strict=False)
    words = ["the connectivity differs: bond O1-H5 is in the SMILES only; bond C0-H5 is in the file only",
             "atom 0 has atomic number 8, but map index 1 of the SMILES has 6", "the calculation failed: SCF",
             "the driver 'properties' is not read", "a QCSchema Molecule has no energy", "all mapped 1..n",
             "not of the expected layout (KeyError: 'driver')"]  # fmt: skip
    assert not found.records and sorted(p.record for p in found.rejected) == [f"result {n}" for n in range(7)]
    for problem in found.rejected:
        assert words[int(problem.record.split()[1])] in problem.reason


def test_yammbs(frames, tmp_path):
    x, e, _ = frames
    molecules = [{"id": n, "qcarchive_id": 70 + n, "mapped_smiles": SMILES, "coordinates": (y * 10).tolist(),
                  "final_energy": v / 4.184} for n, (y, v) in enumerate(zip(x, e, strict=True))]  # fmt: skip
    (tmp_path / "opt.json").write_text(json.dumps({"tag": "t", "version": 1, "qm_molecules": molecules}))
    [record] = read(tmp_path / "opt.json", forces=False).records
    np.testing.assert_allclose(record.energies, e)
    np.testing.assert_allclose(record.positions, x, atol=1e-12)
    angles = ["-165.0", "15.0", "-90.0"]
    torsion = {"id": 5, "mapped_smiles": SMILES, "dihedral_indices": [2, 0, 1, 5],
               "coordinates": {a: (y * 10).tolist() for a, y in zip(angles, x, strict=False)},
               "energies": {a: v / 4.184 for a, v in zip([*angles[:2], "30"], e, strict=False)}}  # fmt: skip
    (tmp_path / "td.json").write_text(json.dumps({"tag": "t", "version": 1, "qm_torsions": [torsion]}))
    found = read(tmp_path / "td.json", forces=False, strict=False)
    assert found.records[0].driven == ((2, 0, 1, 5),)
    np.testing.assert_allclose(found.records[0].energies, e[:2])
    assert [p.record for p in found.rejected] == ["torsion 5, angle -90.0", "torsion 5, angle 30"]
    assert "an energy, but no geometry" in found.rejected[1].reason
    (tmp_path / "submit.json").write_text(json.dumps({"dataset_name": "x", "dataset": {}}))
    with pytest.raises(InputError, match="'x' holds molecules to be computed .0 entries. and no energies: submit it"):
        read(tmp_path / "submit.json")


def test_damaged_files(frames, tmp_path):
    x, e, f = frames
    whole = {"smiles": SMILES, "numbers": [6, 8, 1, 1, 1, 1], "positions": x, "energies": e, "forces": f}
    write_spice(tmp_path / "a.h5", {"good": whole, "nan": whole | {"energies": e * np.nan}})
    found = read(tmp_path / "a.h5", strict=False)
    assert [r.name for r in found.records] == ["good"]
    assert [(p.record, p.kind) for p in found.problems] == [("nan", "rejected")] and "not finite" in found.problems[
        0
    ].reason
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    found = read(tmp_path / "cut.h5", strict=False)
    assert not found.records and "was it copied completely" in found.rejected[0].reason

    text = xyz(frames)
    (tmp_path / "cut.xyz").write_text(text[: int(0.6 * len(text))].rsplit("\n", 1)[0])
    found = read(tmp_path / "cut.xyz", strict=False)
    assert found.records[0].n_conformers == 4 and "copied completely" in found.rejected[0].reason
    (tmp_path / "odd.xyz").write_text(text + "\nnonsense\n")
    found = read(tmp_path / "odd.xyz", strict=False)
    same(found.records[0], frames)
    assert "expected a number of atoms, found 'nonsense'" in found.rejected[0].reason

    cut = qdata(frames)[:-200]
    (tmp_path / "qdata.txt").write_text(cut)
    found = read(tmp_path, strict=False, molecule=SMILES)
    assert found.records[0].n_conformers == 7 and [p.record for p in found.rejected] == ["JOB 7"]
    (tmp_path / "cut.json").write_text('{"qm_molecules": [')
    with pytest.raises(InputError, match="not complete JSON"):
        read(tmp_path / "cut.json")


def test_every_damaged_block_of_a_qdata_file_is_reported(frames, tmp_path):
    blocks = [block.split("\n") for block in qdata(frames, "GRADIENT", -1.0).rstrip().split("\n\n")]
    blocks[1][1:2] = [blocks[1][1], blocks[2][1]]  # two geometries in one block: which has the energy?
    blocks[3][0] = "JBO 3"  # no block of its own: it would take the place of the one before
    blocks[4][2] = "ENERGY"
    blocks[5][1] = blocks[5][1].replace(".", "*", 1)
    damaged = "\n\n".join("\n".join(block) for block in blocks).encode()
    at = damaged.index(b"JOB 7") + 30
    (tmp_path / "qdata.txt").write_bytes(b"\xef\xbb\xbf" + damaged[:at] + b"\xff\x80" + damaged[at + 2 :])
    found = read(tmp_path, strict=False, molecule=SMILES)
    np.testing.assert_allclose(found.records[0].energies, frames[1][[0, 6]])
    reasons = {p.record: p.reason for p in found.rejected}
    assert sorted(reasons) == [f"JOB {n}" for n in (1, 2, 4, 5, 7)]
    for n, words in ((1, "line 8: COORDS a second time"), (2, "line 1[0-9]: COORDS a second time; is a line JOB miss"),
                     (4, "ENERGY: '' is not a number"), (5, r"COORDS: could not convert .*\*"),
                     (7, "COORDS: could not convert .*\ufffd")):  # fmt: skip
        assert re.search(words, reasons[f"JOB {n}"]), reasons[f"JOB {n}"]
    [ignored] = [p for p in found.problems if p.kind == "ignored"]
    assert "lines that begin with 'JBO' are not read" in ignored.reason


def test_forces_that_some_conformers_lack_are_not_dropped_silently(frames, tmp_path):
    blocks = qdata(frames, "GRADIENT", -1.0).split("\n\n")
    blocks[3] = blocks[3].rsplit("\n", 1)[0]
    (tmp_path / "qdata.txt").write_text("\n\n".join(blocks))
    found = read(tmp_path, strict=False, molecule=SMILES)
    assert [p.record for p in found.rejected] == ["JOB 3"] and found.records[0].forces is not None
    found = read(tmp_path, strict=False, molecule=SMILES, forces=False)
    assert found.records[0].n_conformers == 8 and found.records[0].forces is None
    [problem] = found.problems
    assert problem.kind == "ignored" and "1 of 8 conformers have no forces (JOB 3 the first)" in problem.reason


def test_duplicates_and_outliers_are_remarked_on_and_used(frames, tmp_path):
    x, e, f = (np.concatenate([a, a[:1]]) for a in frames)
    e[4] += 4000.0
    f[5] *= 40.0
    (tmp_path / "a.xyz").write_text(xyz((x, e, f)))
    found = read(tmp_path / "a.xyz")
    assert found.records[0].n_conformers == 9 and not found.rejected
    remarks = {(p.record.split()[-1], p.kind) for p in found.problems}
    assert remarks == {("8", "duplicate"), ("4", "outlier"), ("5", "outlier")}


def test_names_and_options(frames, tmp_path):
    path = tmp_path / "two.xyz"
    path.write_text(xyz(frames, name="a") + xyz(frames, name="b"))
    assert [r.name for r in read(path, include=["b"]).records] == ["b"]
    for options, message in (
        ({"include": ["c"]}, "no record matches 'c'"),
        ({"molecule": SMILES}, "molecule belongs to ForceBalance.s formats"),
        ({"format": "pdb"}, "there is no format 'pdb'"),
    ):
        with pytest.raises(InputError, match=message):
            read(path, **options)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.xyz")
    (tmp_path / "a.dat").write_text("")
    with pytest.raises(InputError, match="the name does not tell its format"):
        read(tmp_path / "a.dat")


def test_stereocentres_charges_and_multiplicities_are_compared(tmp_path):
    smiles = "[C:1]([F:2])([Cl:3])([Br:4])[H:5]"
    from rdkit.Chem import AllChem

    right = Molecule.from_mapped_smiles(smiles.replace("[C:1]", "[C@:1]"))
    rdmol = right.to_rdkit()
    AllChem.EmbedMolecule(rdmol, randomSeed=7)
    x = rdmol.GetConformer().GetPositions()
    text = ""
    for geometry, keys in ((x, ""), (x * [1, 1, -1], ""), (x, "charge=1"), (x, "multiplicity=3"), (x, "charge=0")):
        text += f'5\nenergy=0.0 name=m smiles="{right.to_smiles(mapped=True)}" {keys}\n'
        for symbol, position in zip(("C", "F", "Cl", "Br", "H"), geometry, strict=True):
            text += " ".join([symbol, *map(repr, map(float, position))]) + "\n"
    (tmp_path / "a.xyz").write_text(text)
    found = read(tmp_path / "a.xyz", forces=False, strict=False)
    assert found.records[0].n_conformers == 2
    words = ["stereocentre C0 of conformer 0 is", "has the charge 1, the SMILES 0", "has the multiplicity 3"]
    assert [p.record for p in found.rejected] == ["frame 1", "frame 2", "frame 3"]
    assert all(w in p.reason for w, p in zip(words, found.rejected, strict=True))


def test_result_collections_name_the_molecules_of_records(frames, tmp_path):
    """Records of a server have an id and no SMILES, which QCSubmit's collection has."""
    results = [result(*frame) | {"id": str(70 + n)} for n, frame in enumerate(zip(*frames, strict=True))]
    for entry in results:
        entry["molecule"]["identifiers"] = {}
    drive = {
        "schema_name": "qcschema_torsion_drive_output",
        "id": "99",
        "keywords": {"dihedrals": [[2, 0, 1, 5]]},
        "final_energies": {str(a): e / constants.HARTREE for a, e in zip((-60, 60), frames[1], strict=False)},
        "final_molecules": {str(a): r["molecule"] for a, r in zip((-60, 60), results, strict=False)},
    }
    (tmp_path / "records.json").write_text(json.dumps([*results, drive]))
    ids = [str(70 + n) for n in range(7)] + ["99", "123"]
    entries = [{"type": "basic", "record_id": identity, "cmiles": SMILES} for identity in ids]
    collection = {"type": "BasicResultCollection", "entries": {"https://server": entries}, "provenance": {}}
    (tmp_path / "collection.json").write_text(json.dumps(collection))
    found = read(tmp_path / "records.json", molecule=str(tmp_path / "collection.json"), forces=False, strict=False)
    same(found.records[0], frames, 7)
    assert found.records[1].driven == ((2, 0, 1, 5),) and found.records[1].name == "99"
    np.testing.assert_allclose(found.records[1].energies, frames[1][:2])
    assert [p.record for p in found.rejected] == ["result 7 (id 77)", "record 123"]
    assert "no result collection (molecule) names its id" in found.rejected[0].reason
    half = drive | {"final_energies": {**drive["final_energies"], "120": -1.0}}
    failed = drive | {"success": False, "error": {"error_message": "SCF"}}
    (tmp_path / "drives.json").write_text(json.dumps([half, failed]))
    found = read(tmp_path / "drives.json", molecule=str(tmp_path / "collection.json"), forces=False, strict=False)
    reasons = {p.record: p.reason for p in found.rejected if p.record.startswith("result")}
    assert found.records[0].n_conformers == 2 and len(reasons) == 3
    assert "an energy, but no geometry" in reasons["result 0 (id 99), angle 120"]
    assert "the calculation failed: {'error_message': 'SCF'}" in reasons["result 1 (id 99), angle 60"]
    with pytest.raises(InputError, match="holds references to results .9 entries. and no energies.*molecule = this"):
        read(tmp_path / "collection.json")
    with pytest.raises(InputError, match="not a result collection of OpenFF QCSubmit"):
        read(tmp_path / "records.json", molecule=str(tmp_path / "records.json"))


def test_results_of_another_method_are_told_apart(tmp_path, frames):
    def model(method, basis="def2-SVP"):
        return {"model": {"method": method, "basis": basis}}

    own = [result(x, e, f) | model("B3LYP") for x, e, f in zip(*frames, strict=True)]
    own[1] |= model("b3lyp", "DEF2-svp")  # the same
    own[2] |= model("mp2")
    own[3] |= model("B3LYP", "def2-TZVP")
    own[4].pop("model")  # it does not say
    optimised = {
        "schema_name": "qcschema_optimization_output",
        "final_molecule": own[5]["molecule"],
        "energies": [-115.0],
    }
    own[5] = optimised | {"input_specification": model("hf", None)}
    x, e, f = (a[0] for a in frames)
    others = [result(x, e, f, name=name) | model("mp2" if name == "c" else "b3lyp") for name in "abc"]
    (tmp_path / "a.json").write_text(json.dumps([*own, *others]))
    found = read(tmp_path / "a.json", forces=False, strict=False, check_units=False)
    assert [record.n_conformers for record in found.records] == [5, 1, 1, 1]
    reasons = {p.record: p.reason for p in found.problems if p.kind != "duplicate"}
    assert reasons == {
        "result 2": "computed with mp2/def2-svp; most frames of this molecule with b3lyp/def2-svp",
        "result 3": "computed with b3lyp/def2-tzvp; most frames of this molecule with b3lyp/def2-svp",
        "result 5": "computed with hf; most frames of this molecule with b3lyp/def2-svp",
        "c": "computed with mp2/def2-svp; most molecules of the file with b3lyp/def2-svp",
    }
    assert {p.record for p in found.rejected} == {"result 2", "result 3", "result 5"}


def test_a_damaged_frame_of_an_xyz_file_costs_itself(tmp_path, frames):
    text = xyz(frames).encode()
    lines = text.splitlines(keepends=True)
    third = 2 * 8  # the first line of frame 2, of 8 lines each
    damaged = {
        "a byte that is no UTF-8 text": [*lines[: third + 3], b"C\xff" + lines[third + 3][2:], *lines[third + 4 :]],
        "one in the line of pairs": [*lines[: third + 1], b"\xe9" + lines[third + 1], *lines[third + 2 :]],
        "one in the number of atoms": [*lines[:third], b"\x96\n", *lines[third + 1 :]],
        "another number, too large": [*lines[:third], b"26\n", *lines[third + 1 :]],
        "larger than the file": [*lines[:third], b"666\n", *lines[third + 1 :]],
        "no number": [*lines[:third], b"x\n", *lines[third + 1 :]],
        "a line is missing": [*lines[: third + 3], *lines[third + 4 :]],
        "no line of pairs": [*lines[: third + 1], *lines[third + 2 :]],
    }
    for what, content in damaged.items():
        (tmp_path / "a.xyz").write_bytes(b"".join(content))
        found = read(tmp_path / "a.xyz", strict=False)
        [record] = found.records
        assert record.n_conformers == 7, what
        np.testing.assert_allclose(record.energies, np.delete(frames[1], 2), rtol=1e-13)
        assert [p.record for p in found.rejected] == ["frame 2"], what
        str(found.rejected[0]).encode()  # can be printed
    (tmp_path / "b.xyz").write_bytes(b"".join([*lines[:third], b"4\n", *lines[third + 1 :]]))
    found = read(tmp_path / "b.xyz", strict=False)  # too small: two atoms are left over
    assert found.records[0].n_conformers == 7 and [p.record for p in found.rejected] == ["frame 3", "frame 2"]


def test_a_byte_that_is_no_text_costs_its_json_entry(tmp_path, frames):
    entries = [json.dumps(result(x, e, f)).encode() for x, e, f in zip(*frames, strict=True)]
    entries[3] = entries[3].replace(b"[C:1]", b"[C:\xff]", 1)
    (tmp_path / "a.json").write_bytes(b"[" + b", ".join(entries) + b"]")
    found = read(tmp_path / "a.json", strict=False)
    assert [record.n_conformers for record in found.records] == [7]
    assert [p.record for p in found.rejected] == ["result 3"]
    entries[5] = entries[5].replace(b"0.", b"\xff.", 1)  # a number: what follows cannot be read
    (tmp_path / "a.json").write_bytes(b"[" + b", ".join(entries) + b"]")
    found = read(tmp_path / "a.json", strict=False)
    assert [record.n_conformers for record in found.records] == [4]
    assert [p.record for p in found.rejected] == ["what follows 5 entries", "result 3"]


def test_what_is_left_of_cut_files_is_read(frames, tmp_path):
    text = json.dumps([result(*frame) for frame in zip(*frames, strict=True)])
    (tmp_path / "cut.json").write_text(text[: int(0.7 * len(text))])
    found = read(tmp_path / "cut.json", strict=False)
    same(found.records[0], frames, 5)
    assert [p.record for p in found.rejected] == ["what follows 5 entries"]
    packed = gzip.compress(text.encode())
    (tmp_path / "a.json.gz").write_bytes(packed)
    same(read(tmp_path / "a.json.gz").records[0], frames)
    (tmp_path / "bom.json").write_text("\ufeff" + text)
    same(read(tmp_path / "bom.json").records[0], frames)
    (tmp_path / "cut.json.gz").write_bytes(packed[:-600])
    found = read(tmp_path / "cut.json.gz", strict=False)
    assert 0 < found.records[0].n_conformers < 8 and "gzip file is truncated" in found.rejected[0].reason
    (tmp_path / "a.xyz.gz").write_bytes(gzip.compress(xyz(frames).encode())[:-300])
    found = read(tmp_path / "a.xyz.gz", strict=False)
    assert 0 < found.records[0].n_conformers < 8 and "gzip file is truncated" in found.rejected[0].reason
    for name, content, words in (
        ("no.json.gz", b"[]", "not a gzip file"),
        ("a.h5.gz", packed, "spice-hdf5 is not read from a gzip file"),
        ("empty.json", b"", "not complete JSON"),
        ("empty.xyz", b"", "there are no records"),
        ("empty.arrow", b"", "0 rows can be read"),
        ("empty.h5", b"", "not a readable HDF5 file"),
        ("bytes.xyz", bytes(range(256)), "cannot be read as text"),
        ("list.json", b"[1, null]", "not of the expected layout"),
        ("minus.xyz", b"-2\n\nC 0 0 0\n", "expected a number of atoms, found '-2'"),
        ("words.json", b'{"qm_molecules": [5]}', "molecule 0: not of the expected layout"),
        ("angles.json", b'{"qm_torsions": [{"id": 3}]}', "torsion 3: there are no coordinates by angle"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)


FACTORS = {"hartree": constants.HARTREE, "eV": constants.ELECTRONVOLT, "kcal/mol": constants.KCAL, "kJ/mol": 1.0}


@pytest.mark.parametrize(
    ("true", "taken"), [("hartree", "kcal/mol"), ("kcal/mol", "hartree"), ("hartree", "eV"), ("kcal/mol", "kJ/mol")]
)
def test_energies_in_another_unit_are_rejected_record_by_record(frames, tmp_path, true, taken):
    x, e, f = frames
    wrong = e / FACTORS[true] * FACTORS[taken]
    good = {"smiles": SMILES, "numbers": [6, 8, 1, 1, 1, 1], "positions": x, "energies": e, "forces": f}
    write_spice(tmp_path / "a.h5", {"good": good, "wrong": good | {"energies": wrong}})
    found = read(tmp_path / "a.h5", strict=False)
    assert [r.name for r in found.records] == ["good"] and [p.record for p in found.rejected] == ["wrong"]
    assert f"as if {true} read as {taken}" in found.rejected[0].reason
    with pytest.raises(InputError, match="check_units = false"):
        read(tmp_path / "a.h5")
    assert len(read(tmp_path / "a.h5", check_units=False).records) == 2


def test_relative_energies_are_judged_by_forces_and_bonds(frames):
    x, e, f = frames

    def judged(energies, forces, x=x):
        record = Record("m", SMILES, "", x, energies, forces, "here")
        return [(p.kind, p.reason) for p in energy_units.checked([record]) if isinstance(p, Problem)]

    relative = e - e.min()
    for forces in (f, None):
        assert judged(relative, forces) == []
        assert judged(e, forces) == []
    [(kind, reason)] = judged(relative * 1000, None)
    assert kind == "rejected" and "more than 6 bound atoms can" in reason
    [(kind, reason)] = judged(relative / 627.5, f)
    assert kind == "rejected" and "bonds and forces need" in reason
    for factor, words in (
        (-1.0, "as if gradients read as forces"),
        (1 / 41.84, "force constant"),
        (1186, "force constant"),
    ):
        [(kind, reason)] = judged(relative, factor * f)
        assert kind == "rejected" and words in reason
    turned = geometry() + np.zeros((7, 1, 1))  # the hydroxyl hydrogen about C-O
    axis, arm = turned[0, 1] - turned[0, 0], turned[0, 5] - turned[0, 1]
    along = axis * (axis @ arm) / (axis @ axis)
    for n, angle in enumerate(np.linspace(-1, 1, 7)):
        across = np.cross(axis, arm) / np.linalg.norm(axis)
        turned[n, 5] = turned[n, 1] + along + np.cos(angle) * (arm - along) + np.sin(angle) * across
    [(kind, reason)] = judged(0.01 * np.arange(7.0), None, turned)
    assert kind == "outlier" and "is their unit right" in reason


def test_energies_are_judged_by_the_work_of_forces(frames):
    """Springs between all atoms, so that turning the molecule costs nothing."""
    x = frames[0]
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    x = np.concatenate([x[:4], x[4:] @ (turn * np.linalg.det(turn)) + 1.0])
    apart = x[:, :, None] - x[:, None]
    length = np.linalg.norm(apart, axis=-1)
    stretch = length - np.linalg.norm(geometry()[:, None] - geometry()[None], axis=-1)
    k = 5e4
    e = 0.25 * k * np.sum(stretch**2, axis=(1, 2))
    f = -k * np.sum((stretch / (length + np.eye(6)))[..., None] * apart, axis=2)

    def judged(energies, forces):
        found = energy_units.checked([Record("m", SMILES, "", x[: len(energies)], energies, forces, "here")])
        return [p.reason for p in found if isinstance(p, Problem)]

    assert judged(e, f) == judged(e * 1.5, f) == judged(e / 1.5, f) == []
    for factor in (4.184, 1 / 4.184, 23.06, 1 / 23.06):
        [reason] = judged(e * factor, f)
        found = re.search("changes by (.*) times the work of the forces: the unit of energies or forces is", reason)
        assert found and float(found[1]) == pytest.approx(factor, rel=0.1)
        assert judged(e[:3] * factor, f[:3]) == []  # too few to tell
        assert judged(e * factor, 0 * f + 3.0) == []  # the same force on all atoms does no work
        assert judged(np.random.default_rng(1).permutation(e) * factor, f) == []


def test_damage_within_a_record_costs_that_record(frames, tmp_path):
    """Flipped bytes and values of another type, where a library underneath would crash or raise errors of its own."""
    import h5py

    pa = pytest.importorskip("pyarrow")
    x, e, f = frames
    coords, forces = x / constants.ANGSTROM, f / (constants.KCAL / constants.ANGSTROM)
    row = {"smiles": SMILES, "coords": coords.ravel().tolist(), "energy": (e / constants.KCAL).tolist()}
    rows = [{**row, "forces": (forces + n).ravel().tolist()} for n in range(3)]
    table, path = pa.Table.from_pylist(rows), tmp_path / "t.arrow"
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)
    content = path.read_bytes()
    first = content.index(SMILES.encode())
    second = content.index(SMILES.encode(), first + 1)
    path.write_bytes(content[: second + 2] + b"\xff" + content[second + 3 :])
    found = read(path, strict=False)
    assert [r.name for r in found.records] == ["row-0", "row-2"]
    assert [(p.record, "damaged" in p.reason) for p in found.rejected] == [("row-1", True)]
    one = content.index(len(row["coords"]).to_bytes(4, "little"), first)  # the end of the list of coordinates
    path.write_bytes(content[:one] + (2**31 - 9).to_bytes(4, "little") + content[one + 4 :])
    found = read(path, strict=False)
    assert [r.name for r in found.records] == ["row-1", "row-2"] and len(found.rejected) == 1

    whole = [result(*frame) for frame in zip(*frames, strict=True)]
    for wrong in ([SMILES], None, 3):
        bad = [*whole[:2], result(*(v[2] for v in frames), smiles=wrong), *whole[3:]]
        (tmp_path / "r.json").write_text(json.dumps(bad))
        found = read(tmp_path / "r.json", strict=False)
        assert [r.n_conformers for r in found.records] == [7] and [p.record for p in found.rejected] == ["result 2"]
    drive = {"id": 5, "keywords": {"dihedrals": []}, "final_energies": {"0": e[0] / constants.HARTREE}}
    drive["final_molecules"] = {"0": whole[0]["molecule"]}
    for dihedrals in ([], [[0, 1, 2]], [[0, 1, 2, float("inf")]], 7):
        drive["keywords"]["dihedrals"] = dihedrals
        (tmp_path / "d.json").write_text(json.dumps([drive, *whole]))
        found = read(tmp_path / "d.json", strict=False, forces=False)
        assert [p.record for p in found.rejected] == ["result 0, angle 0"] and len(found.records) == 1

    record = {"smiles": SMILES, "numbers": np.array([6, 8, 1, 1, 1, 1]), "positions": x, "energies": e, "forces": f}
    write_spice(tmp_path / "s.h5", {"a": record, "b": record})
    for key in ("smiles", "atomic_numbers", "conformations"):
        write_spice(tmp_path / "s.h5", {"a": record, "b": record})
        with h5py.File(tmp_path / "s.h5", "a") as file:
            del file["a"][key]
            file["a"].create_group(key)
        found = read(tmp_path / "s.h5", strict=False)
        assert [r.name for r in found.records] == ["b"]
        assert [p.reason for p in found.rejected] == [
            f"{tmp_path / 's.h5'}, group 'a', {key}: expected a dataset, found a group"
        ]
