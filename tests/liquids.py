"""Small liquids for tests: molecules turned at random on a shaken lattice, and OpenMM's Reference answer by part."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

KINDS = {
    "water": "[O:1]([H:2])[H:3]",
    "sodium": "[Na+:1]",
    "chloride": "[Cl-:1]",
    "ethanol": "[C:1]([C:2]([O:3][H:4])([H:5])[H:6])([H:7])([H:8])[H:9]",
    "dichloromethane": "[C:1]([Cl:2])([Cl:3])([H:4])[H:5]",
}


@functools.cache
def molecule(kind: str):
    """A molecule with one conformer and Gasteiger charges."""
    from openff.toolkit import Molecule

    made = Molecule.from_mapped_smiles(KINDS[kind], allow_undefined_stereo=True)
    made.generate_conformers(n_conformers=1)
    made.assign_partial_charges("gasteiger")
    return made


def liquid(counts: dict[str, int], box, seed: int = 0, jitter: float = 0.02) -> tuple[list, np.ndarray]:
    """(molecules in random order, positions (n_atoms, 3) nm) in a box of (3, 3) rows: evenly spaced, all whole."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    kinds = rng.permutation([kind for kind, n in counts.items() for _ in range(n)])
    parts = []
    for kind, point in zip(kinds, points(len(kinds), box, seed, jitter), strict=True):
        x = molecule(kind).conformers[0].m_as("nanometer")
        turned = Rotation.random(random_state=int(rng.integers(1 << 30))).apply(x - x.mean(axis=0))
        parts.append(turned + point)
    return [molecule(kind) for kind in kinds], np.concatenate(parts)


def points(n: int, box, seed: int = 0, jitter: float = 0.02) -> np.ndarray:
    """(n, 3) nm: points of a shaken lattice in random order."""
    rng = np.random.default_rng(seed)
    edge = int(np.ceil(n ** (1 / 3) - 1e-9))
    lattice = rng.permutation(np.array(list(np.ndindex(edge, edge, edge))))[:n]
    return (lattice + 0.5) / edge @ np.asarray(box) + rng.normal(scale=jitter, size=(n, 3))


def openmm_system(system, energy):
    """The System with one force a term, its nonbonded forces treated as ``energy`` does.

    What belongs to vdW is in group 4, its wave vectors and self energies in 14; to Electrostatics in 5 and 15.
    """
    import openmm

    treatment, made = energy.static.treatment, system.to_openmm(split_terms=True)
    for force in made.getForces():
        if not isinstance(force, openmm.NonbondedForce):
            continue
        vdw = force.getName() == "vdW"
        method = "CutoffPeriodic" if vdw and treatment.method == "PME" else treatment.method
        method = "PME" if not vdw and treatment.method == "LJPME" else method
        force.setNonbondedMethod(getattr(openmm.NonbondedForce, method))
        force.setCutoffDistance(treatment.cutoff)
        force.setUseSwitchingFunction(vdw and treatment.switch is not None)
        force.setSwitchingDistance(treatment.switch or 0.0)
        force.setReciprocalSpaceForceGroup(10 + force.getForceGroup())
        if treatment.coulomb is not None:
            force.setPMEParameters(treatment.coulomb.alpha, *treatment.coulomb.grid)
        if treatment.dispersion is not None:
            force.setLJPMEParameters(treatment.dispersion.alpha, *treatment.dispersion.grid)
    return made


def reference(made, positions, box, groups) -> tuple[float, np.ndarray]:
    """(energy kJ/mol, forces kJ/mol/nm) of force groups on the Reference platform."""
    import openmm

    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPeriodicBoxVectors(*np.asarray(box).tolist())
    context.setPositions(positions)
    state = context.getState(getEnergy=True, getForces=True, groups=set(groups))
    return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)


@jax.jit
def nonbonded(energy, p, x, box):
    """({section: {part: energy}}, forces on vdW and Electrostatics (2, n, 3))."""

    def sections(y):
        parts = energy.components(p, y, box)
        return jnp.stack([sum(parts[s].values()) for s in ("vdW", "Electrostatics")]), parts

    slope, parts = jax.jacrev(sections, has_aux=True)(x)
    return parts, -slope
