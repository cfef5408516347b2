"""Does this force field behave on these molecules? Parity with OpenMM, and every parameter's gradient.

Two independent checks of one System at given conformers:

* *parity*: energy of every term and the forces against OpenMM's Reference platform (``system.to_openmm``);
* *gradients*: dU/dtheta of every parameter that the molecules use against central differences of the energy,
  Richardson-extrapolated over two steps: ``D = (4 D(h/2) - D(h)) / 3`` with ``D(h) = (U(t+h) - U(t-h)) / 2h``.

Tolerances are those of the architecture page: energies 1e-6 max(|U|, 1 kJ/mol) for valence terms, 1e-5 kJ/mol for
nonbonded ones, forces 1e-6 of their RMS, gradients 1e-6 max(|g|, RMS of that section's attribute) plus the rounding of
the difference itself. A parameter whose true derivative is infinite or one-sided (``epsilon`` = 0: the mixed
sqrt(epsilon_i epsilon_j) has no derivative there; offjax's is 0 by convention) is listed and not differenced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import PrecisionError

if TYPE_CHECKING:
    from offjax.parameters import Label
    from offjax.system import System

VALENCE_TOLERANCE = 1e-6
"""relative to max(|U|, 1 kJ/mol)"""
NONBONDED_TOLERANCE = 1e-5
"""kJ/mol"""
FORCE_TOLERANCE = 1e-6
"""relative to the RMS of the forces"""
GRADIENT_TOLERANCE = 1e-6
"""relative to max(|g|, RMS of g over the section's attribute)"""
SECTIONS = ("Bonds", "Angles", "ProperTorsions", "ImproperTorsions", "vdW", "Electrostatics", "GBSA")
NONBONDED = ("vdW", "Electrostatics")

ABSOLUTE_STEPS = {
    "phase": 5e-3,
    "angle": 1e-2,
    "outOfPlaneAngle": 1e-2,
    "inPlaneAngle": 1e-2,
    "charge": 1e-2,
    "charge_increment": 1e-2,
    "radius": 2e-5,
    "scale": 1e-4,
}
"""Steps in MD units (rad, e, nm) of attributes whose natural scale is not their value. Those of GBSA are short because
its second derivatives jump where the sphere of one atom begins to reach another."""
RELATIVE_STEP = 2e-3


@dataclass(frozen=True)
class Comparison:
    """One number of one conformer beside OpenMM's: an energy (kJ/mol), or the largest force deviation (kJ/mol/nm)."""

    conformer: int
    term: str
    offjax: float
    openmm: float
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Derivative:
    """dU/dtheta of one parameter at the conformer where it agrees least, MD units."""

    label: Label
    index: int
    conformer: int
    gradient: float
    difference: float
    tolerance: float

    @property
    def deviation(self) -> float:
        """|gradient - difference| in units of the tolerance: a failure above 1."""
        deviation = abs(self.gradient - self.difference)
        if not np.isfinite(deviation):
            return float("inf")
        return deviation / self.tolerance if self.tolerance else (0.0 if deviation == 0 else float("inf"))

    @property
    def passed(self) -> bool:
        return self.deviation <= 1.0


@dataclass(frozen=True)
class Audit:
    """What was compared. ``singular`` are used parameters without a two-sided derivative; ``unused`` is a count."""

    comparisons: tuple[Comparison, ...]
    derivatives: tuple[Derivative, ...]
    singular: tuple[Label, ...]
    unused: int
    n_conformers: int

    @property
    def failures(self) -> list[Comparison | Derivative]:
        everything: list[Comparison | Derivative] = [*self.comparisons, *self.derivatives]
        return [item for item in everything if not item.passed]

    @property
    def passed(self) -> bool:
        return not self.failures


def audit(system: System, conformers: np.ndarray, *, openmm: bool = True) -> Audit:
    """Check a System, in its box if it has one, at ``conformers`` (n_conformers, n_atoms, 3), nm.

    ``openmm=False`` leaves out the parity with OpenMM. Two programs are compiled for the System, none a parameter.

    Raises
    ------
    PrecisionError
        JAX's x64 mode is off: differences of float32 energies say nothing.
    """
    if not jax.config.jax_enable_x64:
        raise PrecisionError('the audit runs in float64: jax.config.update("jax_enable_x64", True) first')
    conformers = np.asarray(conformers, dtype=np.float64)
    tested, singular = parameters_to_test(system)
    ours = evaluate(system, conformers)
    flat = system.parameters.schema.flat
    return Audit(
        comparisons=tuple(parity(system, conformers, ours)) if openmm else (),
        derivatives=tuple(derivatives(system, conformers, tested, ours)),
        singular=tuple(flat[i] for i in singular),
        unused=int(np.count_nonzero(system.used.to_vector() == 0)),
        n_conformers=len(conformers),
    )


def parameters_to_test(system: System) -> tuple[np.ndarray, np.ndarray]:
    """Vector indices of the used parameters with a two-sided derivative, and of those without (``epsilon`` <= 0)."""
    used = np.nonzero(np.asarray(system.used.to_vector()))[0]
    theta, flat = np.asarray(system.parameters.to_vector()), system.parameters.schema.flat
    one_sided = np.array([flat[i].attribute == "epsilon" and theta[i] <= 0 for i in used], dtype=bool)
    return used[~one_sided], used[one_sided]


# --- parity ---------------------------------------------------------------------------------------------------------


def parity(system: System, conformers: np.ndarray, ours: Evaluation) -> Iterator[Comparison]:
    """Energies by term and forces against OpenMM's Reference platform."""
    theirs, their_forces = openmm_energies_and_forces(system, conformers)
    for n in range(len(conformers)):
        for term, values in theirs.items():
            a, b = float(ours.terms[term][n]), float(values[n])
            valence = VALENCE_TOLERANCE * max(abs(b), 1.0)
            yield Comparison(n, term, a, b, a - b, NONBONDED_TOLERANCE if term in NONBONDED else valence)
        rms = float(np.sqrt(np.mean(their_forces[n] ** 2)))
        worst = float(np.max(np.abs(ours.forces[n] - their_forces[n]), initial=0.0))
        ours_rms = float(np.sqrt(np.mean(ours.forces[n] ** 2)))
        # forces of rounding size, as those of a single atom, are compared on the scale of 1 kJ/mol/nm
        yield Comparison(n, "forces", ours_rms, rms, worst, FORCE_TOLERANCE * max(rms, 1.0))


def openmm_energies_and_forces(system: System, conformers: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """OpenMM's Reference platform: ``{term: (n_conformers,)}`` kJ/mol, forces (n_conformers, n_atoms, 3) kJ/mol/nm."""
    import openmm

    from offjax.interop.openmm import force_groups

    exported = system.to_openmm(split_terms=True)
    for force in exported.getForces():
        if isinstance(force, openmm.NonbondedForce):
            _same_ewald(force, system.to_jax().static.treatment)
    groups = force_groups(exported)
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(exported, openmm.VerletIntegrator(0.001), platform)
    terms: dict[str, list[float]] = {groups[g]: [] for g in sorted(groups)}
    forces = []
    n = system.topology.n_atoms
    sites = np.zeros((system.n_particles - n, 3))
    for x in conformers:
        context.setPositions(np.concatenate([x, sites]))
        context.computeVirtualSites()
        for group, term in groups.items():
            terms[term].append(context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value)
        forces.append(context.getState(getForces=True).getForces(asNumpy=True)._value[:n])
    return {term: np.array(values) for term, values in terms.items()}, np.array(forces)


def _same_ewald(force, treatment) -> None:
    """On the grid that is used here: OpenMM leaves its size to the platform."""
    if treatment.coulomb is not None:
        force.setPMEParameters(treatment.coulomb.alpha, *treatment.coulomb.grid)
    if treatment.dispersion is not None:
        force.setLJPMEParameters(treatment.dispersion.alpha, *treatment.dispersion.grid)


# --- evaluation -----------------------------------------------------------------------------------------------------

# One evaluation a program: quick compilation matters more than fast code.
_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@_once
def _terms(energy, p, x):
    return jax.vmap(lambda one: energy.by_term(p, one))(x)


@_once
def _everything(energy, p, x):
    def total(q, one):
        terms = energy.by_term(q, one)
        return jnp.sum(jnp.stack(list(terms.values()))), terms

    return jax.vmap(jax.grad(total, argnums=(0, 1), has_aux=True), (None, 0))(p, x)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Energies ``{term: (n_conformers,)}`` kJ/mol, ``forces`` (n_conformers, n_atoms, 3) kJ/mol/nm, and ``gradient``
    dU/dtheta (n_conformers, n_parameters) in MD units."""

    terms: dict[str, np.ndarray]
    forces: np.ndarray
    gradient: np.ndarray


def energies_by_term(system: System, conformers: np.ndarray) -> dict[str, np.ndarray]:
    """``{term: (n_conformers,)}``, kJ/mol, of the System, in its box if it has one."""
    terms = _terms(system.to_jax(), system.parameters, jnp.asarray(conformers))
    return {term: np.asarray(terms[term]) for term in (*SECTIONS, *system.user_terms) if term in terms}


def evaluate(system: System, conformers: np.ndarray) -> Evaluation:
    """Energies, forces and dU/dtheta at every conformer, in one program by reverse mode."""
    (gradient, dx), terms = _everything(system.to_jax(), system.parameters, jnp.asarray(conformers))
    columns = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(gradient)]
    n = len(conformers)
    return Evaluation(
        {term: np.asarray(terms[term]) for term in (*SECTIONS, *system.user_terms) if term in terms},
        -np.asarray(dx),
        np.concatenate([np.zeros((n, 0)), *columns], axis=1),
    )


# --- gradients ------------------------------------------------------------------------------------------------------


def derivatives(system: System, conformers: np.ndarray, indices: np.ndarray, ours: Evaluation) -> Iterator[Derivative]:
    """The gradient of each parameter beside its differences, at the conformer where they agree least."""
    if not len(indices):
        return
    flat = system.parameters.schema.flat
    g = ours.gradient[:, indices]
    fd, rounding = differences(system, conformers, indices)
    groups: dict[tuple[str, str], list[int]] = {}
    for n, i in enumerate(indices):
        groups.setdefault((flat[i].section, flat[i].attribute), []).append(n)
    size = np.abs(g)
    for members in groups.values():
        rms = np.sqrt(np.mean(g[:, members] ** 2, axis=1, keepdims=True))
        size[:, members] = np.maximum(size[:, members], rms)
    tolerance = GRADIENT_TOLERANCE * size + rounding
    badness = np.abs(g - fd) / np.where(tolerance > 0, tolerance, 1e-300)
    worst = np.argmax(np.where(np.isfinite(badness), badness, np.inf), axis=0)
    for n, i in enumerate(indices):
        c = int(worst[n])
        yield Derivative(flat[i], int(i), c, float(g[c, n]), float(fd[c, n]), float(tolerance[c, n]))


def step(label: Label, value: float) -> float:
    """The larger step h, MD units: short enough for h^4 errors below 1e-9, long enough against rounding."""
    if label.attribute in ABSOLUTE_STEPS:
        return ABSOLUTE_STEPS[label.attribute]
    return RELATIVE_STEP * (abs(value) if value else 1.0)


def differences(system: System, conformers: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dU/dtheta, rounding error), each (n_conformers, n_indices): energies only, no automatic differentiation.

    All shifted parameter vectors go through one compiled program in chunks. Terms are differenced one by one, so that
    a term that does not change with the parameter adds nothing, not even rounding.
    """
    energy = system.to_jax()
    theta, flat = np.asarray(system.parameters.to_vector()), system.parameters.schema.flat
    h = np.array([step(flat[i], theta[i]) for i in indices])
    shifted = theta[indices] + np.array([1.0, -1.0, 0.5, -0.5])[:, None] * h
    columns = np.broadcast_to(indices, shifted.shape)
    chunk = chunk_size(system, shifted.size)
    fd, rounding = [], []
    for x in conformers:
        u = _shifted_energies(energy, system, columns.ravel(), shifted.ravel(), x, chunk).reshape(*shifted.shape, -1)
        outer = (u[0] - u[1]) / (shifted[0] - shifted[1])[:, None]
        inner = (u[2] - u[3]) / (shifted[2] - shifted[3])[:, None]
        fd.append(np.sum((4.0 * inner - outer) / 3.0, axis=1))
        changed = np.any(u != u[0], axis=0)
        magnitude = np.sum(np.where(changed, np.max(np.abs(u), axis=0), 0.0), axis=1)
        # a few units in the last place of every energy that enters the difference
        rounding.append(16.0 * np.finfo(np.float64).eps * magnitude / h)
    return np.array(fd), np.array(rounding)


def chunk_size(system: System, total: int) -> int:
    """How many shifted parameter vectors go through the program at once: about 200 MB of temporaries."""
    n = system.n_particles
    return int(np.clip(1_000_000 // (n * (n - 1) // 2 + 10 * n + system.parameters.schema.size), 1, min(total, 512)))


@_once
def _energies_at(energy, p, columns, values, x):
    theta = p.to_vector()

    def one(column, value):
        terms = energy.by_term(p.from_vector(theta.at[column].set(value)), x)
        return jnp.stack(list(terms.values()))

    return jax.vmap(one)(columns, values)


def _shifted_energies(energy, system: System, columns, values, x, chunk: int) -> np.ndarray:
    """(n, n_terms): the energies with one parameter replaced, in chunks of one shape."""
    pad = -len(columns) % chunk
    columns = np.concatenate([columns, np.repeat(columns[:1], pad)])
    values = np.concatenate([values, np.repeat(values[:1], pad)])
    p = jax.tree_util.tree_map(jnp.asarray, system.parameters)
    parts = [
        np.asarray(_energies_at(energy, p, columns[i : i + chunk], values[i : i + chunk], jnp.asarray(x)))
        for i in range(0, len(columns), chunk)
    ]
    return np.concatenate(parts)[: len(columns) - pad]
