"""What all integrators share: the particles, the State that is carried, the Info that is reported, and velocities.

An integrator is a pair of pure functions (init, step). Everything that a step needs is in the State, the random key
included, so that equal States have equal futures; what is only looked at is in the Info.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.constants import GAS_CONSTANT
from offjax.errors import InputError
from offjax.geometry import safe_sqrt
from offjax.md.constraints import Constraints


class State(NamedTuple):
    """What is carried from step to step; ``extra`` belongs to the thermostat or barostat.

    ``box`` and ``neighbors`` are None, or what the energy takes by these names. A neighbour list is brought up to
    date before each evaluation.
    """

    positions: Float[Array, "n dimension"]
    velocities: Float[Array, "n dimension"]
    forces: Float[Array, "n dimension"]
    energy: Float[Array, ""]
    key: Array
    box: Any = None
    neighbors: Any = None
    extra: Any = ()


class Info(NamedTuple):
    """What is reported of a step, in the energy's units.

    ``conserved_energy`` is the quantity that the exact dynamics conserves: total energy (NVE), the extended energy
    (Nose-Hoover), or total energy minus the heat that a stochastic thermostat gave (G. Bussi and M. Parrinello, Phys.
    Rev. E 75, 056707 (2007)). Its drift measures the error of the time step. Not a number where there is none. ``kT``
    is twice the kinetic energy a degree of freedom.
    """

    potential_energy: Float[Array, ""]
    kinetic_energy: Float[Array, ""]
    conserved_energy: Float[Array, ""]
    kT: Float[Array, ""]


class Integrator(NamedTuple):
    """A pair of pure functions.

    ``init(key, positions, velocities=None, *, box=None, neighbors=None) -> State`` and ``step(state) -> (State,
    Info)``. ``has_energy`` is False where forces were given without an energy: energies are not a number then.
    ``constraints`` are those that the steps keep, or None.
    """

    init: Callable
    step: Callable
    has_energy: bool = True
    constraints: Constraints | None = None


@dataclass(frozen=True, eq=False)
class Forces:
    """A function of positions, and where it has them of ``box`` and ``neighbors``, that returns forces (n, dimension).

    Integrators take it in place of an energy. Forces are minus the gradient of an energy: with the wrong sign particles
    fall into each other.
    """

    function: Callable


@dataclass(frozen=True, eq=False)
class Particles:
    """An energy with the masses, the space and the constraints of what moves in it."""

    energy: Callable | Forces
    masses: Any = 1.0
    shift: Callable | None = None
    constraints: Constraints | None = None
    degrees_of_freedom: float | None = None
    accumulate: Any = None

    def evaluate(self, x, box, neighbors):
        """Energy, forces and the neighbour list that they were computed with."""
        neighbors = current(neighbors, x, box)
        if isinstance(self.energy, Forces):
            forces = bound(self.energy.function, box, neighbors)(x)
            if jnp.shape(forces) != x.shape:
                raise InputError(f"Forces must return the shape of the positions, {x.shape}, not {jnp.shape(forces)}")
            return jnp.full((), jnp.nan, x.dtype), forces, neighbors
        of = bound(self.energy, box, neighbors)
        value, gradient = jax.value_and_grad(lambda x: scalar(of(x)))(x)
        return value, -gradient, neighbors

    @property
    def has_energy(self) -> bool:
        """Whether there is an energy, or forces only."""
        return not isinstance(self.energy, Forces)

    def mass(self, x):
        """Masses as a column (n, 1), or a number."""
        masses = jnp.asarray(self.masses, x.dtype)
        if masses.ndim and masses.shape != (x.shape[0],):
            raise InputError(f"masses must be a number or have shape ({x.shape[0]},), got {masses.shape}")
        return masses[:, None] if masses.ndim else masses

    def move(self, x, dx, box):
        """Positions after a displacement, through the space's shift if there is one."""
        if self.shift is None:
            return x + dx
        return self.shift(x, dx) if box is None else self.shift(x, dx, box=box)

    def drift(self, x, v, dt, box):
        """x + dt v with constraints: new positions, and the velocities that lead there (RATTLE's first half)."""
        if self.constraints is None:
            return self.move(x, dt * v, box), v
        free = x + dt * v
        moved = self.constraints.positions(free, x, self.mass(x))
        return self.move(x, moved - x, box), v + (moved - free) / dt  # (moved - x)/dt would carry x's rounding error

    def project(self, x, v):
        """Velocities without a component along the constraints."""
        return v if self.constraints is None else self.constraints.velocities(v, x, self.mass(x))

    def kinetic(self, v):
        """Kinetic energy; summed in the type ``accumulate`` if it is given."""
        return 0.5 * jnp.sum(self.mass(v) * v * v, dtype=self.accumulate)

    def check_constraints(self, x) -> None:
        """Refuse positions that do not obey the constraints, where they are known.

        Raises
        ------
        InputError
            A distance is off by more than a thousandth: the first step would pull it straight, with great speed.
        """
        if self.constraints is None:
            return
        if any(isinstance(v, jax.core.Tracer) for v in (x, *jax.tree.leaves(self.constraints))):
            return
        with jax.ensure_compile_time_eval():  # known values, even if all that is computed here is traced
            deviation = float(self.constraints.deviation(x))
        if not deviation < 1e-3:
            raise InputError(
                f"the positions do not obey the constraints: a distance is off by {100 * deviation:.3g} %. Start from "
                "constraints.positions(x, x, masses[:, None]), with molecules that are not split by the box"
            )

    def dof(self, x, conserved_momentum: bool):
        """Degrees of freedom: coordinates, less constraints, less the total momentum if it is conserved."""
        if self.degrees_of_freedom is not None:
            return self.degrees_of_freedom
        n, d = x.shape
        count = n * d - (0 if self.constraints is None else self.constraints.count)
        return count - d if conserved_momentum and n > 1 else count

    def start(self, key, positions, velocities, kT, box, neighbors, drift_free: bool, extra=()) -> State:
        """The first State; velocities that are not given are drawn at ``kT`` (zero if that is None)."""
        x = points("positions", positions)
        masses = self.mass(x)
        if not isinstance(masses, jax.core.Tracer) and not np.all(np.asarray(masses) > 0):
            raise InputError("masses must be positive: a particle without mass, a virtual site, cannot be moved")
        if not isinstance(key, jax.Array):
            raise InputError(f"key must be a random key, jax.random.key(seed), got {key!r}")
        if not isinstance(kT, jax.core.Tracer | None) and np.any(np.asarray(kT) < 0):
            raise InputError(f"kT must not be negative, got {kT}")
        self.check_constraints(x)
        box = None if box is None else jnp.asarray(box, x.dtype)
        key, mine = jax.random.split(key)
        if velocities is not None:
            v = jnp.asarray(velocities, x.dtype)
            if v.shape != x.shape:
                raise InputError(f"velocities must have the shape of the positions, {x.shape}, got {v.shape}")
        elif kT is None:
            v = jnp.zeros_like(x)
        else:
            v = maxwell_boltzmann(
                mine, kT, self.masses, x.shape, drift_free=drift_free and x.shape[0] > 1, dtype=x.dtype
            )
        energy, forces, neighbors = self.evaluate(x, box, neighbors)
        return State(x, self.project(x, v), forces, energy, key, box, neighbors, extra)

    def info(self, state: State, dof, added=0.0) -> Info:
        """The report of a state; ``added`` is what the conserved energy has beside the total energy."""
        kinetic = self.kinetic(state.velocities)
        return Info(state.energy, kinetic, state.energy + kinetic + added, 2.0 * kinetic / dof)


def points(name: str, x):
    """``x`` as an array, if it is one of points.

    Raises
    ------
    InputError
        Not floating-point numbers of shape (n, dimension).
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise InputError(f"{name} must have shape (n, dimension), got {x.shape}; use jax.vmap for replicas")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"{name} must be floating-point numbers, got {x.dtype}")
    return x


def scalar(energy):
    """``energy``, what a function of the user's returned, as an array if it is one number.

    Raises
    ------
    InputError
        Not one real floating-point number.
    """
    number = isinstance(energy, jax.Array | np.ndarray | np.generic | float | int | complex)
    if number and jnp.shape(energy) == () and jnp.issubdtype(jnp.result_type(energy), jnp.floating):
        return jnp.asarray(energy)
    found = f"an array {jnp.result_type(energy)} {jnp.shape(energy)}" if number else f"a {type(energy).__name__}"
    raise InputError(
        f"the energy must be a floating-point scalar, not {found}; dynamics take a function that returns forces as "
        "md.Forces(function)"
    )


def bound(energy: Callable, box, neighbors) -> Callable:
    """The energy as a function of positions alone: ``box`` and ``neighbors`` are passed on where there are any."""
    extra = {k: v for k, v in (("box", box), ("neighbors", neighbors)) if v is not None}

    def of(x):
        try:
            return energy(x, **extra)
        except TypeError as error:
            _check_call(energy, extra, error)
            raise

    return of


def _check_call(energy, extra, error: TypeError) -> None:
    """Say how an energy is called, where that is what was wrong.

    Raises
    ------
    InputError
        ``energy`` is no function, or does not take these arguments.
    """
    if not callable(energy):
        raise InputError(f"the energy must be a function of positions, not a {type(energy).__name__}") from error
    call = ", ".join(["positions", *(f"{name}={name}" for name in extra)])
    try:
        inspect.signature(energy).bind(None, **extra)
    except TypeError as found:
        raise InputError(
            f"the energy cannot be called as energy({call}): {found}. Bind parameters before, as in "
            "functools.partial(energy, parameters); box and neighbors are passed on if init was given them"
        ) from error
    except ValueError:  # a function without a signature
        return


def mixed_precision(energy: Callable, dtype="float32") -> Callable:
    """``energy`` at positions and box that are rounded to ``dtype``: single forces, while time steps are double.

    What is cheap in single precision is, and what must not be rounded at every step, positions, velocities and
    constraints, stays in the type of the positions that the dynamics is started with. Make neighbour lists with
    positions of ``dtype``. OpenMM calls the same so.
    """

    def rounded(x, box=None, neighbors=None):
        box = None if box is None else jnp.asarray(box, dtype)
        return bound(energy, box, neighbors)(x.astype(dtype))

    return rounded


def current(neighbors, x, box):
    """The neighbour list, rebuilt if it does not serve these positions; None stays None."""
    return None if neighbors is None else neighbors.update(x, box)


def molecules(groups, masses, x):
    """Number of molecules, and the function that gives each particle the mean of its molecule, weighted by mass.

    ``groups`` (n,) is the molecule of each particle, from 0; None: every particle by itself.

    Raises
    ------
    InputError
        Groups that are not (n,) integers 0, 1, 2, ..., or masses of another shape.
    """
    n = x.shape[0]
    if groups is None:
        return n, lambda v: v
    of, m = np.asarray(groups), jnp.asarray(masses, x.dtype)
    if of.shape != (n,) or not np.issubdtype(of.dtype, np.integer):
        raise InputError(f"groups must be the molecule of each particle, ({n},) integers, got {of.dtype} {of.shape}")
    if not np.array_equal(np.unique(of), np.arange(of.max() + 1)):  # their number weighs the volume
        raise InputError("groups must number the molecules 0, 1, 2, ... without a gap")
    if m.shape not in ((), (n,)):
        raise InputError(f"masses must be a number or have shape ({n},), got {m.shape}")
    count, m = int(of.max()) + 1, jnp.broadcast_to(m, (n,))[:, None]
    total = jnp.zeros((count, 1), x.dtype).at[of].add(m)
    return count, lambda v: (jnp.zeros((count, v.shape[1]), v.dtype).at[of].add(m * v) / total)[of]


def thermal_energy(temperature):
    """kT in kJ/mol of a temperature in K, for the energies of molecules."""
    return GAS_CONSTANT * temperature


def maxwell_boltzmann(key, kT, masses, shape, *, drift_free: bool = False, dtype=float):
    """Velocities of the Maxwell-Boltzmann distribution: normal with variance kT/m in each component.

    ``drift_free`` subtracts the motion of the centre of mass. ``shape`` is (n, dimension); ``masses`` (n,) or a
    number.
    """
    m = jnp.broadcast_to(jnp.asarray(masses, dtype), shape[:1])[:, None]
    v = safe_sqrt(kT / m) * jax.random.normal(key, shape, dtype)
    return v - jnp.sum(m * v, axis=0) / jnp.sum(m) if drift_free else v
