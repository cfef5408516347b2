"""OpenFF Interchange and OpenMM's Reference platform as the independent answer, term by term.

Interchange's own export with ONE NonbondedForce is taken apart: propers from impropers, and the NonbondedForce once
with all charges zero and once with all epsilons zero. (Its split export uses
another Coulomb constant for 1-4 pairs.)
"""

from __future__ import annotations

import copy
from dataclasses import replace

import jax
import numpy as np

from offjax.assignment import AssignmentMatrix
from offjax.nonbonded import PairList
from offjax.parameters import ParameterSet, Schema
from offjax.system import Term
from offjax.topology import Molecule, Topology

TERMS = ("Bonds", "Angles", "ProperTorsions", "ImproperTorsions", "vdW", "Electrostatics")
VALENCE = TERMS[:4]


def interchange_system(force_field, topology, charge_from_molecules=None, box=None):
    """(Interchange, its openmm.System with one NonbondedForce)."""
    made = force_field.create_interchange(topology, charge_from_molecules=charge_from_molecules)
    if box is not None:
        from openff.units import unit

        made.box = unit.Quantity(box, "nanometer")
    return made, made.to_openmm_system(combine_nonbonded_forces=True)


def by_term(openmm_system, n_propers: int | None = None):
    """A System with one force group a term, from one with a single torsion force and a single NonbondedForce.

    ``n_propers``: how many terms of the torsion force, from the first, are proper.
    """
    import openmm

    split = copy.deepcopy(openmm_system)
    forces = [split.getForce(i) for i in range(split.getNumForces())]
    groups: dict[str, list[openmm.Force]] = {}
    for force in forces:
        clone = copy.deepcopy(force)
        if isinstance(force, openmm.HarmonicBondForce):
            groups.setdefault("Bonds", []).append(clone)
        elif isinstance(force, openmm.HarmonicAngleForce):
            groups.setdefault("Angles", []).append(clone)
        elif isinstance(force, openmm.PeriodicTorsionForce):
            propers, impropers = openmm.PeriodicTorsionForce(), openmm.PeriodicTorsionForce()
            for n in range(force.getNumTorsions()):
                chosen = propers if n_propers is None or n < n_propers else impropers
                chosen.addTorsion(*force.getTorsionParameters(n))
            groups.setdefault("ProperTorsions", []).append(propers)
            groups.setdefault("ImproperTorsions", []).append(impropers)
        elif isinstance(force, openmm.NonbondedForce):
            coulomb = copy.deepcopy(force)
            for n in range(clone.getNumParticles()):
                charge, sigma, epsilon = clone.getParticleParameters(n)
                clone.setParticleParameters(n, 0.0, sigma, epsilon)
                coulomb.setParticleParameters(n, charge, 1.0, 0.0)
            for n in range(clone.getNumExceptions()):
                i, j, product, sigma, epsilon = clone.getExceptionParameters(n)
                clone.setExceptionParameters(n, i, j, 0.0, sigma, epsilon)
                coulomb.setExceptionParameters(n, i, j, product, 1.0, 0.0)
            groups.setdefault("vdW", []).append(clone)
            groups.setdefault("Electrostatics", []).append(coulomb)
    for n in reversed(range(split.getNumForces())):
        split.removeForce(n)
    for group, term in enumerate(TERMS):
        for force in groups.get(term, []):
            force.setForceGroup(group)
            split.addForce(force)
    return split


def evaluate(openmm_system, positions, groups: dict[str, int] | None = None):
    """{term: (energy kJ/mol, forces (n, 3) kJ/mol/nm)} on the Reference platform; constraints do not act.

    ``positions`` (n, 3) are those of the atoms; OpenMM places virtual sites and moves their forces to atoms.
    """
    import openmm
    from openmm import unit

    context = openmm.Context(
        openmm_system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    n = len(positions)
    context.setPositions(np.concatenate([positions, np.zeros((openmm_system.getNumParticles() - n, 3))]))
    context.computeVirtualSites()
    result = {}
    for term, group in (groups or {t: g for g, t in enumerate(TERMS)}).items():
        state = context.getState(getEnergy=True, getForces=True, groups={group})
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        result[term] = (energy, np.array(forces[:n]))
    return result


def reference(force_field, topology, positions, charge_from_molecules=None, box=None):
    """Interchange's answer: (openmm.System with one NonbondedForce, {term: (energy, forces)})."""
    made, system = interchange_system(force_field, topology, charge_from_molecules, box)
    n_propers = len(made["ProperTorsions"].key_map) if "ProperTorsions" in made.collections else 0
    return system, evaluate(by_term(system, n_propers), positions)


@jax.jit
def _weighted(energy, p, x, weights):
    def total(y):
        terms = energy.by_term(p, y)
        return sum(weights[t] * terms[t] for t in terms), terms

    return jax.value_and_grad(total, has_aux=True)(x)


def offjax_terms(system, positions, p=None):
    """offjax's answer in the same form, from the slots of ``p``; one compilation a rounded size."""
    n = system.n_particles
    larger = padded(system, system.slots(p))
    far = 100.0 + np.arange(larger.n_particles - n)[:, None] * np.array([1.0, 0.3, 0.1])
    far[::2, 1] += 0.4
    x = np.concatenate([np.asarray(positions), far])
    energy = larger.to_jax()
    result = {}
    for term in TERMS:
        weights = {t: float(t == term) for t in TERMS}
        (_, energies), gradient = jax.device_get(_weighted(energy, larger.parameters, x, weights))
        result[term] = (float(energies.get(term, 0.0)), -gradient[:n])
    return result


NOTHING = ParameterSet.loaded(Schema({"Constraints": {}}))
"""Parameters of an empty force field."""


def padded(system, slots):
    """A System of rounded shapes with the same energy, whose slots are constants.

    Slots that constraints replace are left out; an inert molecule (no charge, epsilon = 0, k = 0) is added that has
    as many slots, excluded and scaled pairs as are missing to the round numbers. For Systems of unique molecules.
    """
    n = system.n_particles
    room = next(s for s in (32, 64, 128, 256, 512) if s >= n)
    extra = next(m for m in range(8, 200) if m * (m - 1) // 2 >= 11 * room)
    size = room + extra
    blank = np.zeros(size - n)
    filler = Molecule("", "padding", blank, blank, blank, np.zeros((0, 2), np.int32), np.zeros(0), ())
    u = len(system.topology.molecules)
    assert list(system.topology.copies) == list(range(u))
    topology = Topology((*system.topology.molecules, filler), np.arange(u + 1))

    none = np.zeros(0, np.int64)
    counts = {"Bonds": 2 * room, "Angles": 4 * room, "ProperTorsions": 16 * room, "ImproperTorsions": 8 * room}
    terms, assignment = {}, {}
    for section, term in system.terms.items():
        if section == "Constraints":
            continue
        on = np.nonzero(system.active[section])[0]
        body = term.slot_atoms.shape[1]
        missing = counts.get(section, size) - len(on)
        assert missing > 0, f"{len(on)} slots of {section}"
        local = np.arange(size - n)[:, None] if body == 1 else np.tile(np.arange(body), (missing, 1))
        periodicity = term.periodicity
        if periodicity is not None:
            periodicity = np.concatenate([periodicity[on], np.ones(missing, np.int32)])
        terms[section] = Term.build(
            section,
            np.concatenate([term.slot_atoms[on], local]),
            np.concatenate([term.slot_molecule[on], np.full(missing, u)]),
            topology,
            periodicity,
        )
        assignment[section] = {
            a: AssignmentMatrix(NOTHING.schema, none, none, np.zeros(0), np.concatenate([v[on], np.zeros(missing)]))
            for a, v in slots[section].items()
        }

    n_scaled = sum(np.count_nonzero((e.vdw_scale != 0) | (e.coulomb_scale != 0)) for e in system.exceptions)
    n_excluded = sum(len(e.atoms) for e in system.exceptions) - n_scaled
    pairs = np.stack(np.triu_indices(size - n, 1), axis=1)[: 11 * room - n_scaled - n_excluded].astype(np.int32)
    scale = np.where(np.arange(len(pairs)) < 7 * room - n_scaled, 1.0, 0.0)
    return replace(
        system,
        parameters=NOTHING,
        topology=topology,
        terms=terms,
        assignment=assignment,
        exceptions=(*system.exceptions, PairList(pairs, scale, scale)),
    )


def disagreements(ours, theirs) -> list[str]:
    """What exceeds the tolerances of the contract, as text; empty when all agree.

    Valence energies 1e-6 max(|U|, 1 kJ/mol), nonbonded energies 1e-5 kJ/mol, forces 1e-6 of their RMS.
    """
    wrong = []
    for term in TERMS:
        (u, f), (v, g) = ours[term], theirs[term]
        allowed = 1e-6 * max(abs(v), 1.0) if term in VALENCE else 1e-5
        if not abs(u - v) <= allowed:
            wrong.append(f"{term} energy {u!r} against {v!r}, difference {u - v:.3e}, allowed {allowed:.1e}")
        rms = np.sqrt(np.mean(np.sum(g * g, axis=1)))
        worst = np.max(np.abs(f - g), initial=0.0)
        if not worst <= 1e-6 * max(rms, 1.0):
            wrong.append(f"{term} forces differ by {worst:.3e}, RMS {rms:.3e}")
    return wrong


def constraints(openmm_system) -> dict[tuple[int, int], float]:
    """{(i, j): distance in nm}, i < j."""
    from openmm import unit

    found = {}
    for n in range(openmm_system.getNumConstraints()):
        i, j, distance = openmm_system.getConstraintParameters(n)
        found[min(i, j), max(i, j)] = distance.value_in_unit(unit.nanometer)
    assert len(found) == openmm_system.getNumConstraints()
    return found
