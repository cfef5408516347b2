"""Readers keep every record, its order and its coordinates in nm, or say which one they cannot use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openff.toolkit
import pytest
from openff.toolkit import Molecule

from offjax.errors import InputError
from offjax.interop.molecules import read

TOOLKIT = Path(openff.toolkit.__file__).parent / "data"


@pytest.mark.parametrize(
    "name", ["toluene.sdf", "butane_multi.sdf", "CID20742535_anion.sdf", "ruxolitinib_conformers.sdf"]
)
def test_records_of_one_molecule_are_the_conformers_that_the_toolkit_reads(name):
    path = TOOLKIT / "molecules" / name
    expected = Molecule.from_file(str(path), allow_undefined_stereo=True)
    expected = expected if isinstance(expected, list) else [expected]
    [structure] = read([path], allow_undefined_stereo=True)
    assert structure.molecules[0].to_smiles(mapped=True) == expected[0].to_smiles(mapped=True)
    x = np.array([m.conformers[0].m_as("nanometer") for m in expected])
    np.testing.assert_array_equal(structure.conformers, x)
    assert structure.records == tuple(f"record {n + 1}" for n in range(len(expected)))
    assert not structure.generated


def test_different_molecules_of_one_file_are_separate(tmp_path):
    blocks = []
    for smiles in ("C", "CO", "C"):
        molecule = Molecule.from_smiles(smiles)
        molecule.generate_conformers(n_conformers=1)
        molecule.to_file(str(tmp_path / "one.sdf"), "sdf")
        blocks.append((tmp_path / "one.sdf").read_text())
    (tmp_path / "all.sdf").write_text("".join(blocks))
    first, second = read([tmp_path / "all.sdf"])
    assert (len(first.conformers), len(second.conformers)) == (2, 1)
    assert first.records == ("record 1", "record 3") and second.n_atoms == 6


def test_a_record_that_the_toolkit_would_drop_is_an_error():
    path = TOOLKIT / "molecules" / "MiniDrugBank.sdf"
    with pytest.raises(InputError, match=r"MiniDrugBank.sdf, record 4 \(DrugBank_2799\): Explicit valence"):
        read([path], allow_undefined_stereo=True)


def test_charges_that_differ_between_records_of_one_molecule_are_an_error():
    path = TOOLKIT / "molecules" / "methane_multiconformer_properties.sdf"
    with pytest.raises(InputError, match="record 2.*partial charges differ"):
        read([path])


def test_a_protein_is_read_from_pdb_without_template():
    [structure] = read([TOOLKIT / "proteins" / "MainChain_ALA_ALA.pdb"])
    assert structure.conformers.shape == (1, 32, 3)
    assert structure.molecules[0].n_bonds == 31


def test_models_of_a_pdb_file_are_conformers(tmp_path):
    text = (TOOLKIT / "molecules" / "toluene.pdb").read_text()
    atoms = "".join(line + "\n" for line in text.splitlines() if line.startswith(("ATOM", "HETATM")))
    bonds = "".join(line + "\n" for line in text.splitlines() if line.startswith("CONECT"))
    models = "".join(f"MODEL     {n:4d}\n{atoms}ENDMDL\n" for n in (1, 2))
    (tmp_path / "two.pdb").write_text(models + bonds + "END\n")
    [structure] = read([tmp_path / "two.pdb"], templates=["Cc1ccccc1"])
    assert structure.records == ("model 1", "model 2")
    np.testing.assert_array_equal(structure.conformers[0], structure.conformers[1])
    assert 0.1 < np.linalg.norm(np.diff(structure.conformers[0][:2], axis=0)) < 1.0  # nm, not angstrom


def test_a_smiles_gets_conformers_and_says_so():
    [structure] = read(["CCCCO"], n_conformers=3)
    assert structure.generated and len(structure.conformers) == len(structure.records) > 1


def test_a_smiles_with_slashes_is_not_taken_for_a_path():
    [structure] = read(["C/C=C/C"])
    assert structure.n_atoms == 12


def test_an_empty_text_is_neither_file_nor_smiles():
    with pytest.raises(InputError, match="empty text"):
        read([" "])
