"""Energies and forces, term by term, equal those of OpenFF Interchange's export on OpenMM's Reference platform."""

import tarfile

import jax
import numpy as np
import pytest

import offjax
from tests.interop import oracle
from tests.parameterize.molecules import FORCE_FIELDS, MOLECULES, force_field, give_charges, molecule, shaken

pytest.importorskip("openff.interchange", reason="needs OpenFF Interchange: pip install 'offjax[interchange]'")

CASES = [
    (name, FORCE_FIELDS[n]) for i, name in enumerate(MOLECULES) for n in ({i % 8} if i % 4 else {i % 8, (i + 3) % 8})
]


def check(made, positions, name):
    openmm_system, theirs = oracle.reference(force_field(name), made.to_topology(), positions, [made])
    system = offjax.System.from_smirnoff(force_field(name), made, charge_from_molecules=[made])
    assert oracle.disagreements(oracle.offjax_terms(system, positions), theirs) == []
    return system, openmm_system


@pytest.mark.parametrize(("name", "file"), CASES)
def test_terms_equal_interchange(name, file):
    made = molecule(MOLECULES[name])
    system, openmm_system = check(made, shaken(made), file)
    ours = system.to_openmm()
    assert oracle.constraints(ours) == pytest.approx(oracle.constraints(openmm_system), rel=1e-12)


def test_every_force_field_is_tried_on_several_molecules():
    assert {file for _, file in CASES} == set(FORCE_FIELDS)


def test_the_energy_object_itself_equals_interchange():
    """Without the padding of the oracle: parameters in, energy and forces out, with constraints."""
    made = molecule(MOLECULES["sulfonamide"])
    x = shaken(made)
    chosen = force_field("openff-2.2.1.offxml")
    _, theirs = oracle.reference(chosen, made.to_topology(), x, [made])
    system = offjax.System.from_smirnoff(chosen, made, charge_from_molecules=[made])
    energy, gradient = jax.jit(jax.value_and_grad(system.to_jax(), argnums=1))(system.parameters, x)
    assert float(energy) == pytest.approx(sum(u for u, _ in theirs.values()), abs=1e-7)
    np.testing.assert_allclose(-gradient, sum(f for _, f in theirs.values()), atol=1e-6)


def test_nearly_linear_and_strained_geometries():
    """Displaced by 0.02 nm an atom: far from every equilibrium, still equal."""
    for smiles in ("CC#CC#CC", "C1C2C1C2", "CC(=O)Nc1ccc(O)cc1"):
        made = molecule(smiles)
        check(made, shaken(made, 0.02), "openff_unconstrained-2.2.1.offxml")


# --- several hundred molecules ----------------------------------------------------------------------------------------


def data(name):
    from openff.toolkit.utils import get_data_file_path

    return get_data_file_path(f"molecules/{name}")


def many(made, index):
    give_charges(made)
    x = made.conformers[0].m_as("nanometer")
    x = x + np.random.default_rng(index).normal(0.0, 0.004, x.shape)
    wrong = {}
    for name in (FORCE_FIELDS[index % 8], FORCE_FIELDS[(index // 8 + 3 * index + 5) % 8]):
        try:
            _, theirs = oracle.reference(force_field(name), made.to_topology(), x, [made])
        except Exception as error:
            # what Interchange refuses (no parameter, an element it does not know), offjax must refuse too
            with pytest.raises(offjax.OffjaxError):
                offjax.System.from_smirnoff(force_field(name), made, charge_from_molecules=[made])
            print(f"{made.name}: {type(error).__name__}")
            continue
        system = offjax.System.from_smirnoff(force_field(name), made, charge_from_molecules=[made])
        if found := oracle.disagreements(oracle.offjax_terms(system, x), theirs):
            wrong[made.name, name] = found
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_drug_like_molecules(part):
    from openff.toolkit import Molecule

    molecules = Molecule.from_file(data("MiniDrugBank.sdf"), allow_undefined_stereo=True)
    assert len(molecules) > 300
    wrong = {}
    for index, made in list(enumerate(molecules))[part::4]:
        wrong.update(many(made, index))
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_freesolv_molecules(part, tmp_path):
    from openff.toolkit import Molecule
    from rdkit import Chem

    with tarfile.open(data("FreeSolv.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    files = sorted(tmp_path.rglob("*.mol2"))
    assert len(files) > 600
    wrong, read = {}, 0
    for index, file in list(enumerate(files))[part::4]:
        if (loaded := Chem.MolFromMol2File(str(file), removeHs=False)) is not None:
            read += 1
            wrong.update(many(Molecule.from_rdkit(loaded, allow_undefined_stereo=True), index))
    assert wrong == {}
    assert read > 100
