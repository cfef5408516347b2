"""Virtual sites beside OpenFF Interchange on OpenMM's Reference platform, and their way into files and back."""

import functools

import h5py
import jax
import numpy as np
import pytest
from openff.toolkit import ForceField, Molecule, Topology

import offjax
from offjax import audit
from tests import sites
from tests.interop import oracle

CASES = {
    "all kinds": (None, ("N", "CC=O", "c1ccncc1", "CCl", "C", "COC", "CN(C)C(=O)CCl")),
    "tip4p_fb": (("openff-2.2.1.offxml", "tip4p_fb.offxml"), ("[Na+]", "O", "CO", "O", "[Cl-]", "O")),
    "tip5p": (("openff-2.2.1.offxml", "tip5p.offxml"), ("O", "[Na+]", "CO", "O")),
}


@functools.cache
def case(name):
    """(force field, molecules, molecules with charges, System, positions of the atoms)."""
    files, smiles = CASES[name]
    chosen = sites.force_field() if files is None else ForceField(*files)
    molecules = [sites.molecule(s) for s in smiles]
    given = [sites.molecule(s) for s in dict.fromkeys(smiles) if s not in ("O", "[Na+]", "[Cl-]")]
    system = offjax.System.from_smirnoff(chosen, molecules, charge_from_molecules=given)
    return chosen, molecules, given, system, sites.arranged(molecules)


@functools.cache
def ours(name):
    """offjax's {term: (energy, forces)}."""
    *_, system, x = case(name)
    energy, p = system.to_jax(), system.parameters
    result = {}
    for term in oracle.TERMS:
        weights = {t: float(t == term) for t in oracle.TERMS}
        (_, terms), gradient = jax.device_get(oracle._weighted(energy, p, x, weights))
        result[term] = (float(terms[term]), -gradient)
    return result


@functools.cache
def exported(name):
    chosen, molecules, given, _, _ = case(name)
    interchange = chosen.create_interchange(Topology.from_molecules(molecules), charge_from_molecules=given)
    return interchange, interchange.to_openmm_system(combine_nonbonded_forces=True)


@pytest.mark.parametrize("name", CASES)
def test_energies_and_forces_equal_interchange(name):
    _, _, _, system, x = case(name)
    interchange, theirs = exported(name)
    assert system.n_particles == theirs.getNumParticles() > system.topology.n_atoms
    n_propers = len(interchange["ProperTorsions"].key_map)
    assert oracle.disagreements(ours(name), oracle.evaluate(oracle.by_term(theirs, n_propers), x)) == []


@pytest.mark.parametrize("name", CASES)
def test_the_exported_system_equals_the_energy_and_interchange(name):
    import openmm

    _, _, _, system, x = case(name)
    theirs, made = exported(name)[1], system.to_openmm()
    n = system.topology.n_atoms
    assert [made.getParticleMass(i)._value for i in range(n, system.n_particles)] == [0.0] * (system.n_particles - n)
    assert system.masses.tolist() == pytest.approx(
        [theirs.getParticleMass(i)._value for i in range(system.n_particles)]
    )
    assert oracle.constraints(made) == pytest.approx(oracle.constraints(theirs))
    answers = [oracle.evaluate(s, x, groups={"all": 0})["all"] for s in (made, theirs)]
    assert answers[0][0] == pytest.approx(answers[1][0], abs=1e-6)
    rms = np.sqrt(np.mean(answers[1][1] ** 2))
    assert np.abs(answers[0][1] - answers[1][1]).max() <= 1e-6 * rms
    split = system.to_openmm(split_terms=True)
    assert oracle.disagreements(ours(name), oracle.evaluate(split, x)) == []
    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(np.concatenate([x, np.zeros((system.n_particles - n, 3))]))
    context.computeVirtualSites()
    placed = context.getState(getPositions=True).getPositions(asNumpy=True)._value
    assert np.allclose(system.to_jax().place_sites(system.parameters, x), placed, rtol=0, atol=1e-14)
    assert np.allclose(system.place_sites(x), placed, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_exceptions_are_those_of_interchange(name):
    def exceptions(made):
        force = next(f for f in made.getForces() if "Nonbonded" in type(f).__name__)
        rows = (force.getExceptionParameters(i) for i in range(force.getNumExceptions()))
        return {tuple(sorted((i, j))): (q._value, e._value) for i, j, q, _, e in rows}

    mine, theirs = exceptions(case(name)[3].to_openmm()), exceptions(exported(name)[1])
    assert mine.keys() == theirs.keys()
    for pair in mine:
        assert mine[pair] == pytest.approx(theirs[pair], rel=1e-12), pair


@pytest.mark.parametrize("name", ["all kinds", pytest.param("tip5p", marks=pytest.mark.slow)])
def test_every_parameter_gradient_agrees_with_differences_geometry_included(name):
    _, _, _, system, x = case(name)
    result = audit.audit(system, x[None], openmm=False)
    assert not result.failures
    tested = {d.label.attribute for d in result.derivatives if d.label.section == "VirtualSites"}
    assert {"distance", "charge_increment"} <= tested
    if name == "all kinds":
        assert {"outOfPlaneAngle", "inPlaneAngle", "sigma", "rmin_half", "epsilon"} <= tested
        nonzero = [d for d in result.derivatives if d.label.attribute in ("distance", "inPlaneAngle")]
        assert all(abs(d.gradient) > 1e-3 for d in nonzero)


def test_rows_of_sites_are_ignored_and_their_forces_act_on_the_atoms():
    _, _, _, system, x = case("tip5p")
    energy, p = system.to_jax(), system.parameters
    n = len(x)
    everything = np.asarray(energy.place_sites(p, x))
    moved = everything.copy()
    moved[n:] += 1.0
    assert energy(p, moved) == energy(p, everything) == energy(p, x)
    gradient = jax.grad(energy, 1)(p, moved)
    assert np.array_equal(gradient[:n], jax.grad(energy, 1)(p, x)) and not np.any(gradient[n:])
    assert np.allclose(gradient.sum(0), 0, atol=1e-9 * np.abs(gradient).max())
    assert energy.at_slots(system.slots(p), x) == pytest.approx(float(energy(p, x)), rel=1e-13)
    assert energy.at_instances(system.instances(p), moved) == pytest.approx(float(energy(p, x)), rel=1e-13)
    by_slot, by_instance = (
        jax.jit(jax.grad(f))(v, x)
        for f, v in ((energy.at_slots, system.slots(p)), (energy.at_instances, system.instances(p)))
    )
    expected = jax.grad(energy)(p, x).to_vector()
    for cotangents in (by_slot, by_instance):
        assert np.allclose(system.vjp(cotangents).to_vector(), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(offjax.InputError, match=rf"\({n}, 3\) or \({n + 4}, 3\) with virtual sites"):
        energy(p, moved[:-1])


@pytest.mark.slow
def test_a_cutoff_acts_between_sites_as_in_openmm():
    import openmm

    _, _, _, system, x = case("tip4p_fb")
    exported = system.to_openmm()
    force = next(f for f in exported.getForces() if isinstance(f, openmm.NonbondedForce))
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
    force.setCutoffDistance(0.6)
    theirs = oracle.evaluate(exported, x, groups={"all": 0})["all"]
    energy = system.to_jax(nonbonded_method="CutoffNonPeriodic", cutoff=0.6)
    u, gradient = jax.value_and_grad(energy, 1)(system.parameters, x)
    assert u == pytest.approx(theirs[0], abs=1e-5)
    assert np.abs(gradient + theirs[1]).max() <= 1e-6 * np.sqrt(np.mean(theirs[1] ** 2))


def test_the_openmm_topology_has_the_sites_after_all_atoms():
    _, _, _, system, _ = case("tip5p")
    made = system.to_openmm_topology()
    assert made.getNumAtoms() == system.n_particles
    atoms = list(made.atoms())
    assert [a.index for a in atoms] == list(range(system.n_particles))
    extra = atoms[system.topology.n_atoms :]
    assert [a.name for a in extra] == ["EP", "EP2"] * 2 and all(a.element is None for a in extra)
    assert [a.residue.name for a in extra] == ["HOH"] * 4
    assert extra[0].residue is extra[1].residue is not extra[2].residue is extra[3].residue


def test_hydrogen_masses_leave_sites_without_mass():
    _, _, _, system, _ = case("tip4p_fb")
    made = system.to_openmm(hydrogen_mass=3.0)
    masses = np.array([made.getParticleMass(i)._value for i in range(system.n_particles)])
    assert not np.any(masses[system.topology.n_atoms :])
    assert masses.sum() == pytest.approx(system.masses.sum())


def test_a_saved_system_keeps_its_sites(tmp_path):
    _, _, _, system, x = case("all kinds")
    system.save(tmp_path / "sites.h5")
    loaded = offjax.System.load(tmp_path / "sites.h5")
    assert loaded.digest == system.digest and repr(loaded) == repr(system)
    assert loaded.topology.molecules[3].site_names == ("EP1", "EP2")
    assert np.array_equal(loaded.terms["VirtualSites"].kind, system.terms["VirtualSites"].kind)
    assert float(loaded.to_jax()(loaded.parameters, x)) == float(system.to_jax()(system.parameters, x))


def test_files_of_version_1_still_load(tmp_path):
    made = sites.molecule("C")
    system = offjax.System.from_smirnoff("openff-2.2.1.offxml", made, charge_from_molecules=[made])
    path = tmp_path / "old.h5"
    system.save(path)
    with h5py.File(path, "r+") as file:
        del file["molecules/sites"], file["molecules/site_start"]
        file.attrs["version"] = 1
    assert offjax.System.load(path).digest == system.digest


def test_changed_site_parameters_come_back_from_offxml(tmp_path):
    _, molecules, given, system, _ = case("all kinds")
    p = system.parameters
    for path in ("distance", "inPlaneAngle", "charge_increment", "rmin_half", "epsilon"):
        chosen = p.select(f"VirtualSites/{path}")
        p = chosen.insert(chosen.to_vector() * 1.0625)
    path = tmp_path / "changed.offxml"
    system.to_offxml(path, p)
    again = offjax.System.from_smirnoff(path, molecules, charge_from_molecules=given)
    assert np.allclose(again.parameters.to_vector(), p.to_vector(), rtol=1e-15, atol=0)
    assert [label.smirks for label in again.parameters.labels["VirtualSites"]["distance"]] == [
        label.smirks for label in system.parameters.labels["VirtualSites"]["distance"]
    ]


def test_a_site_that_must_lie_in_the_plane_is_not_written_out_of_it():
    system = case("tip4p_fb")[3]
    p = system.parameters.replace("VirtualSites", "outOfPlaneAngle", [0.1])
    with pytest.raises(offjax.InputError, match='outOfPlaneAngle.*match="once"'):
        system.to_force_field(p)


def test_water_of_four_sites_has_its_dipole():
    """OPC's dipole moment is 2.48 D (S. Izadi et al., J. Phys. Chem. Lett. 5, 3863 (2014))."""
    water = Molecule.from_mapped_smiles("[H:2][O:1][H:3]")
    system = offjax.System.from_smirnoff("opc.offxml", water)
    r, half = 0.087243313, 0.13712051 / 2
    x = np.array([[0, 0, 0], [half, np.sqrt(r**2 - half**2), 0], [-half, np.sqrt(r**2 - half**2), 0]])
    charge = np.asarray(system.instances()["Electrostatics"]["charge"])
    dipole = charge @ np.asarray(system.to_jax().place_sites(system.parameters, x))
    assert np.linalg.norm(dipole) / 0.0208194 == pytest.approx(2.48, abs=0.01)
