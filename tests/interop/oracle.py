"""OpenFF Interchange and OpenMM's Reference platform as the independent answer, term by term.

Interchange's own export with ONE NonbondedForce is taken apart: propers from impropers, and the NonbondedForce once
with all charges zero and once with all epsilons zero. (Its split export writes another Coulomb constant in the 1-4 terms.)
"""

from __future__ import annotations

import copy

import jax
import numpy as np

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
    """{term: (energy kJ/mol, forces (n, 3) kJ/mol/nm)} on the Reference platform; constraints do not act."""
    import openmm
    from openmm import unit

    context = openmm.Context(
        openmm_system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(np.asarray(positions))
    result = {}
    for term, group in (groups or {t: g for g, t in enumerate(TERMS)}).items():
        state = context.getState(getEnergy=True, getForces=True, groups={group})
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        result[term] = (energy, np.array(forces))
    return result


def reference(force_field, topology, positions, charge_from_molecules=None, box=None):
    """Interchange's answer: (openmm.System with one NonbondedForce, {term: (energy, forces)})."""
    made, system = interchange_system(force_field, topology, charge_from_molecules, box)
    n_propers = len(made["ProperTorsions"].key_map) if "ProperTorsions" in made.collections else 0
    return system, evaluate(by_term(system, n_propers), positions)


@jax.jit
def _terms(energy, p, x):
    return energy.by_term(p, x), jax.jacrev(lambda y: energy.by_term(p, y))(x)


def offjax_terms(system, positions, p=None):
    """offjax's answer in the same form; programs are shared by Systems that fit the same padded shape."""
    energy, x, n = padded(system.to_jax(), np.asarray(positions))
    values, gradients = jax.device_get(_terms(energy, system.parameters if p is None else p, x))
    found = {t: (float(values[t]), -np.asarray(gradients[t])[:n]) for t in values}
    return {t: found.get(t, (0.0, np.zeros((n, 3)))) for t in TERMS}


def padded(energy, positions):
    """The same PotentialEnergy with all arrays padded to round sizes, so that many molecules need few compilations.

    The padding is inert: atoms without charge and epsilon, valence terms with k = 0.
    """
    from dataclasses import replace

    from offjax.energy import PotentialEnergy

    n = energy.static.n_atoms
    size = next(s for s in (16, 32, 64, 128, 256, 512) if s >= n + 2)
    far = 100.0 + np.arange(size - n)[:, None] * np.array([1.0, 0.3, 0.1])
    x = np.concatenate([positions, far])

    def grow(array, length, fill=0):
        array = np.asarray(array)
        if len(array) > length:
            raise ValueError(f"{len(array)} > {length}")
        return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), fill, array.dtype)])

    factor = {"Bonds": 1.5, "Angles": 3, "ProperTorsions": 14, "ImproperTorsions": 6, "vdW": 1, "Electrostatics": 1}
    sections = {}
    for name, s in energy.sections.items():
        instances = slots = int(factor[name] * size)
        width = 2 if name != "Electrostatics" else 6
        wide = {a: np.pad(np.asarray(c), ((0, 0), (0, width - np.shape(c)[1]))) for a, c in s.columns.items()}
        heavy = {a: np.pad(np.asarray(c), ((0, 0), (0, width - np.shape(c)[1]))) for a, c in s.weights.items()}
        sections[name] = replace(
            s,
            columns={a: grow(c, slots) for a, c in wide.items()},
            weights={a: grow(c, slots) for a, c in heavy.items()},
            offset={a: grow(c, slots) for a, c in s.offset.items()},
            slot=grow(s.slot, instances, slots - 1),
            active=grow(s.active, instances, instances - 1),
            atoms=grow(s.atoms, instances),
            periodicity=None if s.periodicity is None else grow(s.periodicity, instances, 1),
        )
        if len(s.slot) == instances and name not in ("vdW", "Electrostatics"):
            raise ValueError(f"no room for padding in {name}")

    def grow_pairs(pairs, length):
        room = length - len(pairs.atoms)
        atoms = np.concatenate([np.asarray(pairs.atoms), np.tile([[n, n + 1]], (room, 1))]).astype(np.int32)
        return replace(
            pairs,
            atoms=atoms,
            vdw_scale=grow(pairs.vdw_scale, length),
            coulomb_scale=grow(pairs.coulomb_scale, length),
        )

    full, scaled = grow_pairs(energy.full, size * (size - 1) // 2), grow_pairs(energy.scaled, 5 * size)
    static = replace(energy.static, n_atoms=size)
    return PotentialEnergy(sections, full, scaled, static), x, n


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
