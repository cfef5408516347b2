"""User-defined terms as OpenMM's custom forces.

A valence term is a CustomBondForce, CustomAngleForce or CustomTorsionForce. A pair term is a CustomNonbondedForce, with
the exclusions, cutoff and switching function of the NonbondedForce, and a CustomBondForce for its 1-4 pairs. Before
anything is exported, the expression is compared with the JAX function at the parameters of the System.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from offjax.energy import exceptions, separated_pairs
from offjax.errors import InputError
from offjax.settings import OpenMMMethods
from offjax.terms.user import KINDS, UserTerm

if TYPE_CHECKING:
    import openmm

    from offjax.system import System

DISTANCES = (0.08, 0.12, 0.2, 0.35, 0.6, 0.9)
"""nm, at which a potential of a distance is compared."""

ANGLES = (0.4, 1.3, 2.0, 2.9)
"""rad, for a potential of an angle; a torsion takes their negatives too."""

SAMPLES = 16
"""How many sets of parameters are compared at most."""

TOLERANCE = 1e-7
"""Of the comparison: kJ/mol, and relative."""


def user_forces(system: System, values, method: OpenMMMethods) -> Iterator[tuple[str, openmm.Force]]:
    """(section, force) of every user-defined term; ``values`` are the slots.

    Raises
    ------
    InputError
        No OpenMM expression, one that OpenMM cannot read, or one that differs from the function.
    """
    for section, term in system.user_terms.items():
        own, instances = values[section], system.terms[section]
        expression = check_expression(term, own)
        constants = {name: float(own[name][0]) if instances.n_slots else 0.0 for name in term.constants}
        rows = np.stack([own[name][instances.slot] for name in term.attributes], axis=1)
        if not term.is_pair:
            force, add = _bonded_force(len(KINDS[term.kind].takes), expression, list(term.attributes), constants)
            atoms = instances.atoms[:, list(KINDS[term.kind].takes)]
            for one, parameters in zip(atoms.tolist(), rows.tolist(), strict=True):
                add(*one, parameters)
            yield section, force
            continue
        yield section, _pair_force(system, term, rows, constants, method)
        if system.scale14[section]:
            scaled = f"{system.scale14[section]!r}*offjaxPair;offjaxPair={expression}"
            force, add = _bonded_force(2, scaled, _of_both(term), constants)
            row_of = dict(zip(instances.atoms[:, 0].tolist(), rows.tolist(), strict=True))
            for i, j in separated_pairs(system).tolist():
                if i in row_of and j in row_of:
                    add(i, j, [*row_of[i], *row_of[j]])
            yield section, force


def _of_both(term: UserTerm) -> list[str]:
    return [f"{name}{n}" for n in (1, 2) for name in term.attributes]


def _bonded_force(body: int, expression: str, parameters: Sequence[str], constants: dict[str, float]):
    """A custom force on tuples of ``body`` atoms, and its method that adds one: add(*atoms, parameters)."""
    import openmm

    kind = {2: "Bond", 3: "Angle", 4: "Torsion"}[body]
    force = getattr(openmm, f"Custom{kind}Force")(expression)
    for name in parameters:
        getattr(force, f"addPer{kind}Parameter")(name)
    for name, value in constants.items():
        force.addGlobalParameter(name, value)
    return force, getattr(force, f"add{kind}")


def _pair_force(system: System, term: UserTerm, rows, constants, method: OpenMMMethods) -> openmm.CustomNonbondedForce:
    import openmm

    part = system.terms[term.section].atoms[:, 0]
    everybody = len(part) == system.n_particles
    force = openmm.CustomNonbondedForce(
        term.openmm if everybody else f"offjaxPart1*offjaxPart2*offjaxPair;offjaxPair={term.openmm}"
    )
    for name in [*term.attributes] if everybody else [*term.attributes, "offjaxPart"]:
        force.addPerParticleParameter(name)
    for name, value in constants.items():
        force.addGlobalParameter(name, value)
    table = np.zeros((system.n_particles, force.getNumPerParticleParameters()))
    table[:, : rows.shape[1]] = rows[0] if len(rows) else 1.0
    table[part, : rows.shape[1]] = rows
    table[part, rows.shape[1] :] = 1.0
    for row in table.tolist():
        force.addParticle(row)
    for i, j in exceptions(system)[0].tolist():
        force.addExclusion(i, j)
    if system.box is not None and method.cutoff is not None:
        force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
        force.setCutoffDistance(method.cutoff)
        force.setUseLongRangeCorrection(term.long_range_correction)
        if method.switch is not None:
            force.setUseSwitchingFunction(True)
            force.setSwitchingDistance(method.switch)
    return force


def check_expression(term: UserTerm, values) -> str:
    """The OpenMM expression of a definition, after a comparison with its function at some of the slots ``values``.

    Raises
    ------
    InputError
        See :func:`user_forces`; the message has the parameters and both energies.
    """
    import openmm

    if term.openmm is None:
        raise InputError(
            f"{term!r} has no OpenMM expression: define it with UserTerm(..., openmm=...) to export <{term.section}>"
        )
    samples = np.unique(np.stack([values[name] for name in term.names], axis=1), axis=0)[:SAMPLES]
    if not len(samples):
        return term.openmm
    names = list(term.names)
    if term.is_pair:
        n = len(term.attributes)
        samples = np.concatenate([samples[:, :n], np.roll(samples, 1, axis=0)], axis=1)
        names = [*_of_both(term), *term.constants]
    body = 2 if term.is_pair else len(KINDS[term.kind].takes)
    coordinates = DISTANCES if body == 2 else ANGLES if body == 3 else (*ANGLES, *(-a for a in ANGLES))
    grid = [(s, row) for row in samples for s in coordinates]
    with jax.enable_x64(True):
        columns = np.array([[s, *row] for s, row in grid]).T
        ours = np.broadcast_to(np.asarray(term.of_flat(*map(jax.numpy.asarray, columns))), len(grid))
    try:
        force, add = _bonded_force(
            body, f"select(offjaxWhich-offjaxThis,0,offjaxTerm);offjaxTerm={term.openmm}",
            [*names, "offjaxThis"], {"offjaxWhich": 0.0},
        )  # fmt: skip
        made, points = openmm.System(), []
        for n, (s, row) in enumerate(grid):
            add(*(made.addParticle(1.0) for _ in range(body)), [*row.tolist(), float(n)])
            points.extend(_points(body, s))
        made.addForce(force)
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(made, openmm.VerletIntegrator(0.001), platform)
    except openmm.OpenMMException as error:
        raise InputError(f"{term!r}: OpenMM cannot use the expression {term.openmm!r}: {error}") from error
    context.setPositions(points)
    for n, (s, row) in enumerate(grid):
        context.setParameter("offjaxWhich", float(n))
        theirs = context.getState(getEnergy=True).getPotentialEnergy()._value
        if not np.isclose(theirs, ours[n], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            at = ", ".join(f"{name}={value:.6g}" for name, value in zip(names, row, strict=True))
            raise InputError(
                f"{term!r}: the OpenMM expression {term.openmm!r} gives {theirs:.10g} kJ/mol and the function "
                f"{ours[n]:.10g} at {'r' if body == 2 else 'theta'}={s:g}, {at}: correct one of them"
            )
    return term.openmm


def _points(body: int, s: float) -> list[list[float]]:
    """Two to four points, nm, at the distance, angle or torsion ``s``."""
    if body == 2:
        return [[0.0, 0.0, 0.0], [s, 0.0, 0.0]]
    arm = [0.1 * np.cos(s), 0.1 * np.sin(s), 0.0]
    if body == 3:
        return [[0.1, 0.0, 0.0], [0.0, 0.0, 0.0], arm]
    return [[0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.1], [arm[0], arm[1], 0.1]]
