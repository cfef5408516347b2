"""The exported openmm.System has the energies of to_jax() term by term, and those of Interchange's export."""

import copy

import numpy as np
import openmm
import pytest
from openmm import unit

import offjax
from offjax.interop.openmm import FORCE_GROUPS, force_groups
from tests.interop import oracle
from tests.parameterize import small
from tests.parameterize.molecules import molecule, shaken

KJ = unit.kilojoule_per_mole
BOX = np.diag([2.4, 2.5, 2.6])


def total(openmm_system, positions):
    context = openmm.Context(
        openmm_system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(positions)
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy().value_in_unit(KJ), np.array(state.getForces(asNumpy=True)._value)


def force(openmm_system, kind):
    [found] = [f for f in openmm_system.getForces() if isinstance(f, kind)]
    return copy.deepcopy(found)  # which outlives the System


def system(*smiles, file="openff-2.2.1.offxml", copies=None, box=None):
    made = [molecule(s) for s in smiles]
    names = [file] if isinstance(file, str) else list(file)
    order = [made[i] for i in copies] if copies else made
    return offjax.System.from_smirnoff(names, order, charge_from_molecules=made, box=box)


def mixture(spacing=0.8, seed=3):
    """(molecules, positions) on a lattice: ions before water, two atom orders of ethanol, several copies."""
    from openff.toolkit import Molecule

    ethanol = molecule("CCO")
    other = Molecule(ethanol).remap(dict(zip(range(9), (4, 8, 1, 0, 2, 3, 7, 6, 5), strict=True)))
    kinds = [molecule("[Na+]"), molecule("[Cl-]"), molecule("O"), ethanol, molecule("CC(=O)Nc1ccc(O)cc1")]
    chosen = [[*kinds, other][i] for i in (0, 2, 1, 3, 2, 5, 4, 2, 5, 0, 2, 1)]
    rng = np.random.default_rng(seed)
    parts = []
    for n, made in enumerate(chosen):
        x = made.conformers[0].m_as("nanometer")
        parts.append(x - x.mean(axis=0) + spacing * np.array([n % 3, n // 3 % 3, n // 9]) + 0.3)
    x = np.concatenate(parts)
    return kinds, chosen, x + rng.normal(0.0, 0.003, x.shape)


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["openff-2.2.1.offxml", "openff_unconstrained-1.3.1.offxml"])
def test_split_terms_are_those_of_to_jax(file):
    made = system("CC(=O)Nc1ccc(O)cc1", file=file)
    x = shaken(molecule("CC(=O)Nc1ccc(O)cc1"))
    exported = made.to_openmm(split_terms=True)
    groups = force_groups(exported)
    assert groups == dict(enumerate(t for t in FORCE_GROUPS if t != "GBSA"))
    theirs = oracle.evaluate(exported, x, {section: group for group, section in groups.items()})
    assert oracle.disagreements(oracle.offjax_terms(made, x), theirs) == []


def test_split_terms_add_up_to_the_single_nonbonded_force():
    made = system("CC(=O)Nc1ccc(O)cc1")
    x = shaken(molecule("CC(=O)Nc1ccc(O)cc1"))
    one, split = made.to_openmm(), made.to_openmm(split_terms=True)
    assert [f.getName() for f in one.getForces()] == ["Bonds", "Angles", "Torsions", "Nonbonded"]
    (u, f), (v, g) = total(one, x), total(split, x)
    assert u == pytest.approx(v, abs=1e-9)
    np.testing.assert_allclose(f, g, atol=1e-7)


def test_the_public_methods_of_openmm_give_the_same(monkeypatch):
    made = system("CC(=O)Nc1ccc(O)cc1")
    fast = openmm.XmlSerializer.serialize(made.to_openmm())
    monkeypatch.delattr(openmm, "_openmm")
    assert openmm.XmlSerializer.serialize(made.to_openmm()) == fast


def test_changed_parameters_are_exported(rng):
    made = system("CC(=O)NC(C)C(=O)NC", file="openff_unconstrained-2.2.1.offxml")
    x = shaken(molecule("CC(=O)NC(C)C(=O)NC"))
    vector = made.parameters.to_vector()
    p = made.parameters.from_vector(vector * (1.0 + 0.05 * rng.normal(size=vector.shape)))
    exported = made.to_openmm(p, split_terms=True)
    groups = {section: group for group, section in force_groups(exported).items()}
    theirs = oracle.evaluate(exported, x, groups)
    assert oracle.disagreements(oracle.offjax_terms(made, x, p), theirs) == []


def test_exceptions_are_exact():
    made = system("CC#CC#CC", file="openff-2.0.0.offxml")
    ours = force(made.to_openmm(), openmm.NonbondedForce)
    built = openmm.NonbondedForce()
    for n in range(ours.getNumParticles()):
        built.addParticle(*ours.getParticleParameters(n))
    built.createExceptionsFromBonds([tuple(b) for b in made.topology.bonds.tolist()], 0.8333333333, 0.5)

    def exceptions(nonbonded):
        found = {}
        for n in range(nonbonded.getNumExceptions()):
            i, j, *rest = nonbonded.getExceptionParameters(n)
            found[min(i, j), max(i, j)] = [v._value for v in rest]
        return found

    expected = exceptions(built)
    assert exceptions(ours).keys() == expected.keys()
    for pair, values in exceptions(ours).items():
        assert values == pytest.approx(expected[pair], rel=1e-14)


# --- systems of several molecules -------------------------------------------------------------------------------------


def test_mixture_with_ions_before_water_equals_interchange():
    kinds, chosen, x = mixture()
    files = ("openff-2.2.1.offxml", "opc3.offxml")
    from openff.toolkit import ForceField, Topology

    made = offjax.System.from_smirnoff(files, chosen, charge_from_molecules=kinds)
    topology = Topology.from_molecules(chosen)
    reference, theirs = oracle.reference(ForceField(*files), topology, x, kinds)
    exported = made.to_openmm()
    assert oracle.constraints(exported) == pytest.approx(oracle.constraints(reference), rel=1e-12)
    split = made.to_openmm(split_terms=True)
    ours = oracle.evaluate(split, x, {section: group for group, section in force_groups(split).items()})
    assert oracle.disagreements(ours, theirs) == []
    (u, f), (v, g) = total(exported, x), total(reference, x)
    assert u == pytest.approx(v, abs=1e-7)
    np.testing.assert_allclose(f, g, atol=1e-6)
    masses = [reference.getParticleMass(n)._value for n in range(reference.getNumParticles())]
    assert [exported.getParticleMass(n)._value for n in range(exported.getNumParticles())] == masses


def test_periodic_mixture_equals_interchange():
    kinds, chosen, x = mixture()
    files = ("openff-2.2.1.offxml", "tip3p.offxml")
    from openff.toolkit import ForceField, Topology

    made = offjax.System.from_smirnoff(files, chosen, charge_from_molecules=kinds, box=BOX)
    reference, theirs = oracle.reference(ForceField(*files), Topology.from_molecules(chosen), x, kinds, box=BOX)
    exported = made.to_openmm()
    ours, reference_force = force(exported, openmm.NonbondedForce), force(reference, openmm.NonbondedForce)
    assert ours.getNonbondedMethod() == openmm.NonbondedForce.PME
    for option in (
        "getNonbondedMethod",
        "getCutoffDistance",
        "getUseSwitchingFunction",
        "getSwitchingDistance",
        "getUseDispersionCorrection",
        "getEwaldErrorTolerance",
    ):
        assert getattr(ours, option)() == getattr(reference_force, option)(), option
    assert exported.getDefaultPeriodicBoxVectors() == reference.getDefaultPeriodicBoxVectors()
    (u, f), (v, g) = total(exported, x), total(reference, x)
    assert u == pytest.approx(v, rel=1e-9)
    np.testing.assert_allclose(f, g, atol=1e-5)
    split = made.to_openmm(split_terms=True)
    groups = {section: group for group, section in force_groups(split).items()}
    assert sum(u for u, _ in oracle.evaluate(split, x, groups).values()) == pytest.approx(v, rel=1e-6)


def test_ten_thousand_waters_are_exported_in_seconds():
    import time

    made = offjax.System.from_smirnoff("tip3p.offxml", [molecule("O")] * 10_000, box=[7.0, 7.0, 7.0])
    start = time.process_time()
    exported = made.to_openmm()
    assert time.process_time() - start < 15.0
    assert exported.getNumParticles() == exported.getNumConstraints() == 30_000
    assert force(exported, openmm.NonbondedForce).getNumExceptions() == 30_000


def test_two_atom_orders_have_the_same_energy():
    from openff.toolkit import Molecule

    ethanol = molecule("CCO")
    order = (4, 8, 1, 0, 2, 3, 7, 6, 5)
    other = Molecule(ethanol).remap(dict(zip(range(9), order, strict=True)))
    x = shaken(ethanol)
    y = np.empty_like(x)
    y[list(order)] = x
    energies = []
    for made, positions in ((ethanol, x), (other, y)):
        one = offjax.System.from_smirnoff("openff-2.2.1.offxml", made, charge_from_molecules=[ethanol])
        energies.append(total(one.to_openmm(), positions)[0])
    # charges of topologically equivalent atoms are equal, so the map between the orders does not matter
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)


def test_without_constraints_it_is_the_unconstrained_force_field():
    x = shaken(molecule("CC(=O)Nc1ccc(O)cc1"))
    made = system("CC(=O)Nc1ccc(O)cc1").without_constraints().to_openmm()
    other = system("CC(=O)Nc1ccc(O)cc1", file="openff_unconstrained-2.2.1.offxml").to_openmm()
    assert made.getNumConstraints() == 0
    assert total(made, x)[0] == pytest.approx(total(other, x)[0], abs=1e-9)


# --- nonbonded treatment ----------------------------------------------------------------------------------------------

METHODS = [
    ({}, {}, False, "NoCutoff"),
    ({}, {}, True, "PME"),
    ({"periodic_method": "Ewald3D"}, {}, True, "LJPME"),
    ({}, {"periodic_potential": "reaction-field"}, True, "CutoffPeriodic"),
]


def variant(vdw, electrostatics):
    from openff.toolkit import ForceField

    made = ForceField("openff-2.2.1.offxml")
    for section, options in (("vdW", vdw), ("Electrostatics", electrostatics)):
        for name, value in options.items():
            setattr(made.get_parameter_handler(section), name, value)
    return made


@pytest.mark.parametrize(("vdw", "electrostatics", "periodic", "expected"), METHODS)
def test_method_follows_the_force_field(vdw, electrostatics, periodic, expected):
    made = offjax.System.from_smirnoff(variant(vdw, electrostatics), molecule("O"), box=BOX if periodic else None)
    nonbonded = force(made.to_openmm(), openmm.NonbondedForce)
    assert nonbonded.getNonbondedMethod() == getattr(openmm.NonbondedForce, expected)
    assert nonbonded.getUseSwitchingFunction() == (expected in ("PME", "CutoffPeriodic"))
    if periodic:
        assert nonbonded.getCutoffDistance()._value == pytest.approx(0.9)
    x = shaken(molecule("O"))
    u = total(made.to_openmm(), x)[0]
    assert u == pytest.approx(total(made.to_openmm(split_terms=True), x)[0], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("box", [None, BOX])
def test_force_fields_without_some_sections_are_exported(box):
    argon = offjax.System.from_smirnoff(small.force_field(), [small.smiles("[Ar]")] * 2, box=box)
    nonbonded = force(argon.to_openmm(), openmm.NonbondedForce)
    expected = openmm.NonbondedForce.NoCutoff if box is None else openmm.NonbondedForce.CutoffPeriodic
    assert nonbonded.getNonbondedMethod() == expected
    x = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.4]])
    one, split = total(argon.to_openmm(), x)[0], total(argon.to_openmm(split_terms=True), x)[0]
    assert one == pytest.approx(split, abs=1e-12) and one < -0.1
    bonds = offjax.System.from_smirnoff(
        '<SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL"><Bonds version="0.4"><Bond smirks="[*:1]~[*:2]" '
        'k="100 * kilojoules_per_mole/nanometer**2" length="1 * angstrom"/></Bonds></SMIRNOFF>',
        small.smiles("[H][H]"),
        box=box,
    )
    assert [f.getName() for f in bonds.to_openmm().getForces()] == ["Bonds"]
    assert total(bonds.to_openmm(), 0.5 * x)[0] == pytest.approx(50 * 0.1**2)


@pytest.mark.parametrize(
    ("vdw", "electrostatics", "periodic", "message"),
    [
        ({"cutoff": "8 * angstrom"}, {}, True, "one cutoff"),
        ({"nonperiodic_method": "cutoff"}, {}, False, "nonperiodic_method"),
        ({"periodic_method": "no-cutoff"}, {}, True, 'periodic_method="no-cutoff"'),
        ({}, {"periodic_potential": "Coulomb"}, True, 'periodic_potential="Coulomb"'),
        ({"periodic_method": "Ewald3D"}, {"periodic_potential": "reaction-field"}, True, "Ewald3D"),
    ],
)
def test_what_one_nonbonded_force_cannot_express_raises_by_name(vdw, electrostatics, periodic, message):
    made = offjax.System.from_smirnoff(variant(vdw, electrostatics), molecule("O"), box=BOX if periodic else None)
    with pytest.raises(offjax.UnsupportedError, match=message):
        made.to_openmm()


def test_a_box_smaller_than_twice_the_cutoff_is_refused():
    made = system("O", box=[1.7, 3.0, 3.0])
    with pytest.raises(offjax.InputError, match="half of the box"):
        made.to_openmm()


def test_values_that_openmm_cannot_take_are_refused():
    made = system("CCO")
    k = np.array(made.parameters["Bonds"]["k"])
    k[:] = np.nan
    with pytest.raises(offjax.InputError, match="Bonds/k is nan"):
        made.to_openmm(made.parameters.replace("Bonds", "k", k))
    epsilon = -np.array(made.parameters["vdW"]["epsilon"])
    with pytest.raises(offjax.InputError, match="negative"):
        made.to_openmm(made.parameters.replace("vdW", "epsilon", epsilon))


# --- masses -----------------------------------------------------------------------------------------------------------


def test_hydrogen_masses_are_repartitioned_as_interchange_does_it():
    kinds, chosen, _ = mixture()
    from openff.toolkit import ForceField, Topology

    files = ("openff-2.2.1.offxml", "tip3p.offxml")
    made = offjax.System.from_smirnoff(files, chosen, charge_from_molecules=kinds)
    reference = (
        ForceField(*files)
        .create_interchange(Topology.from_molecules(chosen), charge_from_molecules=kinds)
        .to_openmm_system(combine_nonbonded_forces=True, hydrogen_mass=3.0)
    )
    exported = made.to_openmm(hydrogen_mass=3.0 * unit.dalton)
    for n in range(exported.getNumParticles()):
        assert exported.getParticleMass(n)._value == pytest.approx(reference.getParticleMass(n)._value, abs=1e-9)
    assert sum(exported.getParticleMass(n)._value for n in range(exported.getNumParticles())) == pytest.approx(
        made.masses.sum()
    )


def test_flexible_water_is_repartitioned_and_rigid_water_is_not():
    for file, mass in (("tip3p.offxml", 1.007947), ("openff_unconstrained-1.3.1.offxml", 2.0)):
        made = system("O", file=file)
        found = made.to_openmm(hydrogen_mass=2.0).getParticleMass(1)._value
        assert found == pytest.approx(mass, abs=1e-4), file


@pytest.mark.parametrize("mass", [0.0, -1.0, np.nan, 8.0])
def test_impossible_hydrogen_masses_are_refused(mass):
    with pytest.raises(offjax.InputError, match="hydrogen_mass"):
        system("C").to_openmm(hydrogen_mass=mass)


# --- topology ---------------------------------------------------------------------------------------------------------


def test_topology_has_atoms_bonds_residues_and_box():
    _, chosen, _ = mixture()
    made = offjax.System.from_smirnoff(
        ("openff-2.2.1.offxml", "tip3p.offxml"), chosen, charge_from_molecules=chosen, box=BOX
    )
    topology = made.to_openmm_topology()
    atoms = list(topology.atoms())
    assert [a.element.atomic_number for a in atoms] == made.topology.atomic_numbers.tolist()
    assert [(b.atom1.index, b.atom2.index) for b in topology.bonds()] == [
        tuple(b) for b in made.topology.bonds.tolist()
    ]
    assert topology.getNumResidues() == len(chosen)
    assert [r.name for r in topology.residues()].count("HOH") == 4
    assert {b.order for b in topology.bonds()} == {1, 2}
    np.testing.assert_allclose(topology.getPeriodicBoxVectors()._value, BOX)


def test_topology_keeps_known_residues():
    from openff.toolkit import Molecule, Topology
    from openff.toolkit.utils import get_data_file_path

    peptide = Topology.from_pdb(get_data_file_path("proteins/MainChain_ALA_ALA.pdb")).molecule(0)
    give = Molecule(peptide)
    give.assign_partial_charges("zeros")
    give.partial_charges += (peptide.total_charge / peptide.n_atoms).to("elementary_charge")
    made = offjax.System.from_smirnoff("openff-2.2.1.offxml", [give, molecule("O")], charge_from_molecules=[give])
    names = [r.name for r in made.to_openmm_topology().residues()]
    assert names == ["ACE", "ALA", "ALA", "NME", "HOH"]
