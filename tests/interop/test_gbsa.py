"""Implicit solvent beside OpenMM's Reference platform: OpenFF Interchange's forces and offjax's own export."""

import functools

import jax
import numpy as np
import pytest
from openff.toolkit import ForceField
from openff.toolkit.utils import get_data_file_path

import offjax
from offjax import audit
from offjax.interop.openmm import FORCE_GROUPS
from tests import sites
from tests.interop import oracle

MODELS = ("HCT", "OBC1", "OBC2")
SMILES = ("CC(=O)NCCO", "c1ccncc1")


@functools.cache
def case(model, surface="ACE", scale=""):
    """(force field, molecules, System, positions); ``scale`` replaces that of carbon."""
    with open(get_data_file_path(f"test_forcefields/GBSA_{model}-1.0.offxml")) as file:
        text = file.read().replace('sa_model="ACE"', f'sa_model="{surface}"')
    text = text.replace('scale="0.72"', f'scale="{scale or 0.72}"')
    chosen = ForceField("openff_unconstrained-2.2.1.offxml", text)
    molecules = [sites.molecule(s) for s in SMILES]
    system = offjax.System.from_smirnoff(chosen, molecules, charge_from_molecules=molecules)
    return chosen, molecules, system, sites.arranged(molecules, spacing=0.7)


@jax.jit
def term_and_gradient(energy, p, x):
    return jax.value_and_grad(lambda y: energy.by_term(p, y)["GBSA"])(x)


def ours(system, x, **options):
    u, gradient = term_and_gradient(system.to_jax(**options), system.parameters, x)
    return float(u), -np.asarray(gradient)


def agree(mine, theirs):
    (u, f), (v, g) = mine, theirs
    assert u == pytest.approx(v, abs=1e-6 * max(abs(v), 1.0))
    assert np.abs(f - g).max() <= 1e-6 * max(np.sqrt(np.mean(np.sum(g * g, axis=1))), 1.0)


@pytest.mark.parametrize("surface", ["ACE", "None"])
@pytest.mark.parametrize("model", MODELS)
def test_energies_and_forces_equal_interchange_and_the_export(model, surface):
    from openff.toolkit import Topology

    chosen, molecules, system, x = case(model, surface)
    mine = ours(system, x)
    made = chosen.create_interchange(Topology.from_molecules(molecules), charge_from_molecules=molecules)
    theirs = made.to_openmm_system(combine_nonbonded_forces=True)
    for force in theirs.getForces():
        force.setForceGroup(1 if "GB" in type(force).__name__ else 0)
    agree(mine, oracle.evaluate(theirs, x, groups={"GBSA": 1})["GBSA"])
    exported = system.to_openmm(split_terms=True)
    agree(mine, oracle.evaluate(exported, x, groups={"GBSA": FORCE_GROUPS.index("GBSA")})["GBSA"])


@pytest.mark.parametrize("model", ["OBC1", "OBC2"])
def test_atoms_inside_others_are_treated_as_openmm_does(model):
    """A screened radius of carbon of 0.27 nm holds whole hydrogens; OpenMM's OBC2 has a term of its own for them."""
    _, _, system, x = case(model, scale="1.7")
    exported = system.to_openmm(split_terms=True)
    agree(ours(system, x), oracle.evaluate(exported, x, groups={"GBSA": FORCE_GROUPS.index("GBSA")})["GBSA"])


@pytest.mark.parametrize("model", MODELS)
def test_a_cutoff_acts_as_in_openmm(model):
    import openmm
    from openmm.app.internal import customgbforces

    _, _, system, x = case(model)
    exported = system.to_openmm(split_terms=True)
    [force] = [f for f in exported.getForces() if f.getName() == "GBSA"]
    if model != "OBC2":
        charge = system.instances()["Electrostatics"]["charge"]
        values = system.instances()["GBSA"]
        old, force = force, getattr(customgbforces, f"GBSA{model}Force")(cutoff=0.5, SA="ACE")
        exported.removeForce([f.getName() for f in exported.getForces()].index(old.getName()))
        for row in zip(charge.tolist(), values["radius"].tolist(), values["scale"].tolist(), strict=True):
            force.addParticle(list(row))
        force.finalize()
        force.setForceGroup(FORCE_GROUPS.index("GBSA"))
        index = exported.addForce(force)
        force = exported.getForce(index)
    force.setNonbondedMethod(force.CutoffNonPeriodic)
    force.setCutoffDistance(0.5)
    groups = {"GBSA": FORCE_GROUPS.index("GBSA"), "Electrostatics": FORCE_GROUPS.index("Electrostatics")}
    [coulomb] = [f for f in exported.getForces() if f.getName() == "Electrostatics"]
    coulomb.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
    coulomb.setCutoffDistance(0.5)
    coulomb.setReactionFieldDielectric(1.0)
    theirs = oracle.evaluate(exported, x, groups=groups)
    agree(ours(system, x, nonbonded_method="CutoffNonPeriodic", cutoff=0.5), theirs["GBSA"])
    energy = system.to_jax(nonbonded_method="CutoffNonPeriodic", cutoff=0.5)
    u = energy.by_term(system.parameters, x)["Electrostatics"]
    assert u == pytest.approx(theirs["Electrostatics"][0], abs=1e-5)


def test_another_solvent_radius_is_exported_too():
    from dataclasses import replace

    _, _, system, x = case("OBC2")
    changed = replace(system, gbsa=replace(system.gbsa, solvent_radius=0.2))
    exported = changed.to_openmm(split_terms=True)
    mine = ours(changed, x)
    agree(mine, oracle.evaluate(exported, x, groups={"GBSA": FORCE_GROUPS.index("GBSA")})["GBSA"])
    assert mine[0] > ours(system, x)[0] + 1.0


def test_every_parameter_gradient_agrees_with_differences_and_every_term_with_openmm():
    _, _, system, x = case("OBC2")
    result = audit.audit(system, x[None])
    assert not result.failures
    tested = {(d.label.section, d.label.attribute) for d in result.derivatives}
    assert {("GBSA", "radius"), ("GBSA", "scale")} <= tested
    assert any(c.term == "GBSA" and abs(c.offjax) > 1 for c in result.comparisons)
