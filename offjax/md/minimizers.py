"""Minimisation of any energy function, and the derivative of the minimum in everything that the energy depends on.

Each algorithm is a :class:`Descent`: pure functions ``init(evaluate, x)`` and ``step(evaluate, state)``, one
evaluation of energy and forces a step, so that it runs in a ``while_loop`` (:func:`minimize`), in a ``scan``
(:func:`descend`) and under ``vmap``. Many systems whose rows share one array are minimised side by side, each with
its own line search and its own end, when their :class:`Systems` says how rows belong to systems
(:mod:`offjax.relaxation` does so for thousands of molecules).

The derivative comes from the condition that the forces vanish, not from the steps: at a minimum
``grad U(x*(theta), theta) = 0``, so ``dx* = -H^+ d_theta(grad U)`` with the Hessian H (S. G. Krantz and H. R. Parks,
The Implicit Function Theorem, 2002). Its memory does not grow with the number of steps. H is singular for every free
molecule (translations, rotations) and wherever a particle touches nothing; the pseudo-inverse leaves those directions
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offjax import geometry
from offjax.devices import matmul
from offjax.errors import InputError
from offjax.md.dynamics import points, scalar

DENSE_LIMIT = 600
"""Up to this many coordinates the Hessian is built and decomposed; beyond, conjugate residuals use products with it."""


class Systems(NamedTuple):
    """How the rows of an array of positions belong to systems; for one system every value of a system is a scalar.

    ``total(v)`` sums the elements of each system, ``largest(v)`` is the largest Euclidean norm of a row of each, and
    ``spread(s)`` brings a value of each system to a shape that broadcasts against the positions.
    """

    total: Callable
    largest: Callable
    spread: Callable


class Descent(NamedTuple):
    """A minimisation algorithm: ``init(evaluate, x, systems)`` and ``step(evaluate, state, systems)``, both -> state.

    ``evaluate(x)`` returns the energy and the forces; every state has ``positions``, ``energy`` and ``forces``.
    ``systems`` is that of one system if it is left out.
    """

    init: Callable
    step: Callable


class Minimum(NamedTuple):
    """What :func:`minimize` found; only ``positions`` and ``energy`` have derivatives."""

    positions: Float[Array, "n dimension"]
    energy: Float[Array, ""]
    largest_force: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def minimize(
    energy: Callable,
    x0: Float[Array, "n dimension"],
    *args: Any,
    method: Descent | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 100_000,
    hessian: str | None = None,
) -> Minimum:
    """The minimum of ``energy(x, *args)`` that is reached from ``x0``, differentiable in everything but ``x0``.

    Derivatives, in forward and reverse mode and to any order, exist in ``args`` AND in values that ``energy`` closes
    over: parameters, a box, a diameter that the box depends on. Any function of the minimum can be differentiated,
    not only its energy. Directions in which the minimum is free (translations, rotations, particles without contact)
    do not respond: dx* has no component there, so the derivative of an observable that depends on them is that of its
    projection. The derivative is that of a true minimum: check ``converged``.

    Outside ``jax.jit``, an energy whose parameters are ``args``, or bound by ``functools.partial``, is compiled once
    for all parameters and starts of one shape; as with ``jax.jit``, what else the function refers to must not change.
    An energy that only closes over its parameters is compiled at every call.

    Parameters
    ----------
    energy
        ``energy(x, *args) -> scalar``.
    x0
        Start, (n, dimension). ``jax.vmap`` takes many starts or parameter sets.
    method
        :func:`lbfgs` (the default), :func:`fire` or :func:`steepest_descent`.
    tolerance
        The largest force on a particle, in units of energy/length, at which it stops. In single precision the default
        is out of reach of most energies: ask for less.
    max_steps
        Evaluations after which it stops, unconverged.
    hessian
        How ``H^+`` is applied: ``"dense"`` (eigenvalues of the whole matrix), ``"iterative"`` (conjugate residuals
        with Hessian-vector products: constant memory), or None, by size.

    Returns
    -------
    Minimum
        positions, energy, largest_force, steps, converged. Not-a-number ends the loop with ``converged`` False.

    Raises
    ------
    InputError
        ``x0`` is not (n, dimension) or not finite, or there is no such ``hessian``.
    """
    x0 = points("x0", x0)
    if not isinstance(x0, jax.core.Tracer) and not np.all(finite := np.isfinite(x0).all(axis=1)):
        raise InputError(f"x0 of particle {np.argmin(finite)} is not finite: {np.asarray(x0[np.argmin(finite)])}")
    method = lbfgs() if method is None else method
    if hessian not in (None, "dense", "iterative"):
        raise InputError(f'hessian must be None, "dense" or "iterative", got {hessian!r}')
    dense = hessian == "dense" or (hessian is None and x0.size <= DENSE_LIMIT)
    options = method, tolerance, max_steps, dense
    if args or isinstance(energy, partial):
        parts = _Parts.of(energy, args)
        known = _hashable((parts.fixed, parts.structure, options))
        if known and parts.can_be_compiled(x0):
            return _compiled(parts.fixed, parts.structure, options, x0, parts.varied)
    return _minimum(energy, x0, args, *options)


class _Parts(NamedTuple):
    """An energy and its arguments as what a program is compiled for, and the numbers that are given to it."""

    fixed: tuple
    structure: Any
    varied: list

    @classmethod
    def of(cls, energy, args):
        function, before, keywords = energy, (), {}
        if isinstance(energy, partial):
            function, before, keywords = energy.func, energy.args, energy.keywords
        leaves, structure = jax.tree.flatten((function, before, keywords, args))
        numbers = [isinstance(leaf, jax.Array | np.ndarray | float) for leaf in leaves]
        fixed = tuple(None if number else leaf for leaf, number in zip(leaves, numbers, strict=True))
        return cls(fixed, structure, [leaf if number else None for leaf, number in zip(leaves, numbers, strict=True)])

    def energy(self, x, varied):
        """The energy with these numbers."""
        leaves = [v if leaf is None else leaf for leaf, v in zip(self.fixed, varied, strict=True)]
        function, before, keywords, args = jax.tree.unflatten(self.structure, leaves)
        return scalar(function(*before, x, *args, **keywords))

    def can_be_compiled(self, x0) -> bool:
        """Whether the energy takes traced numbers and closes over none. A cutoff that it compares stays a number."""
        try:
            return not jax.closure_convert(self.energy, x0, self.varied)[1]
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            return False


def _hashable(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(fixed, structure, options, x0, varied):
    return _minimum(_Parts(fixed, structure, varied).energy, x0, (varied,), *options)


def _minimum(energy, x0, args, method, tolerance, max_steps, dense) -> Minimum:
    # Values that the energy closes over become arguments, so that they have derivatives like the others.
    converted, hidden = jax.closure_convert(lambda *values: scalar(energy(*values)), x0, *args)

    def evaluate(x, theta):
        return _evaluation(lambda x: converted(x, *theta[0], *theta[1]))(x)

    def find(x0, theta):
        return run(lambda x: evaluate(x, theta), x0, method, tolerance, max_steps)

    def solve(product, b, x, theta):
        return solve_dense(product, b) if dense else solve_iteratively(product, b)

    return implicit(find, evaluate, solve)(jax.lax.stop_gradient(x0), (args, hidden))


def run(evaluate: Callable, x0, method: Descent, tolerance, max_steps, systems: Systems | None = None) -> Minimum:
    """Steps from ``x0`` until no system has a force above ``tolerance``; a system that is there stays as it is.

    ``steps``, ``largest_force``, ``converged`` and ``energy`` have one entry a system. Not-a-number ends a system
    with ``converged`` False. Not differentiable: see :func:`implicit`.
    """
    systems = ALONE if systems is None else systems
    state = method.init(evaluate, x0, systems)

    def moving(state, steps):
        return (systems.largest(state.forces) > tolerance) & (steps < max_steps) & ~jnp.isnan(state.energy)

    def advance(carry):
        state, steps = carry
        going = moving(state, steps)
        new = method.step(evaluate, state, systems)
        here = systems.spread(going)
        new = new._replace(
            positions=jnp.where(here, new.positions, state.positions),
            energy=jnp.where(going, new.energy, state.energy),
            forces=jnp.where(here, new.forces, state.forces),
        )
        return new, steps + going

    steps = jnp.zeros(state.energy.shape, int)
    state, steps = jax.lax.while_loop(lambda carry: jnp.any(moving(*carry)), advance, (state, steps))
    largest = systems.largest(state.forces)
    return Minimum(state.positions, state.energy, largest, steps, (largest <= tolerance) & ~jnp.isnan(state.energy))


def implicit(find: Callable, evaluate: Callable, solve: Callable) -> Callable:
    """``minimum(x0, theta)``: what ``find(x0, theta)`` finds, with the derivatives in ``theta`` of a true minimum.

    ``evaluate(x, theta)`` gives the energy and the forces of what was minimised; ``solve(product, b, x, theta)``
    applies H^+ to b, where ``product`` is that with the Hessian at x. Forward and reverse mode; there is no derivative
    in ``x0``.
    """

    @jax.custom_jvp
    def minimum(x0, theta):
        return find(x0, theta)

    @minimum.defjvp
    def _(primals, tangents):
        x0, theta = primals
        found = minimum(x0, theta)
        x = found.positions
        _, (energy_tangent, change) = jax.jvp(partial(evaluate, x), (theta,), (tangents[1],))
        response = jax.lax.custom_linear_solve(
            lambda v: -jax.jvp(lambda y: evaluate(y, theta)[1], (x,), (v,))[1],
            change,
            lambda product, b: solve(product, b, x, theta),
            symmetric=True,
        )
        zero = jax.tree.map(_zero_tangent, found)
        return found, zero._replace(positions=response, energy=energy_tangent)

    return minimum


def descend(energy: Callable, x0, *args: Any, method: Descent | None = None, steps: int) -> Minimum:
    """A fixed number of steps in a ``scan``, differentiable by unrolling them, also in ``x0``.

    Its memory grows with ``steps``. Steps along F/|F| (FIRE, steepest descent) are singular where the force vanishes:
    only the energy's derivative is then that of the minimum, not that of the positions. Wherever the end is a
    minimum, :func:`minimize` gives the same derivatives for less. ``converged`` is always False: nothing is tested.
    """
    method = lbfgs() if method is None else method
    evaluate = _evaluation(lambda x: energy(x, *args))
    state = method.init(evaluate, points("x0", x0))
    state, _ = jax.lax.scan(lambda state, _: (method.step(evaluate, state), None), state, length=steps)
    largest = ALONE.largest(state.forces)
    return Minimum(state.positions, state.energy, largest, jnp.asarray(steps), jnp.asarray(False))


def _longest_row(v):
    return geometry.safe_sqrt(jnp.max(jnp.sum(v * v, axis=-1), initial=0.0))


ALONE = Systems(jnp.sum, _longest_row, lambda value: value)
"""One system: every row is its own."""


# --- algorithms -----------------------------------------------------------------------------------------------------


class FireState(NamedTuple):
    """State of :func:`fire`."""

    positions: Array
    energy: Array
    forces: Array
    velocities: Array
    dt: Array
    mixing: Array
    downhill_steps: Array


@cache
def fire(
    dt: float = 0.001,
    dt_max: float = 0.1,
    max_step: float = 0.1,
    n_min: int = 5,
    f_inc: float = 1.1,
    f_dec: float = 0.5,
    alpha_start: float = 0.1,
    f_alpha: float = 0.99,
) -> Descent:
    """FIRE: dynamics of particles of mass 1 whose velocities turn towards the forces and stop when going uphill.

    ``dt`` grows by ``f_inc`` after ``n_min`` downhill steps, to ``dt_max``, and shrinks by ``f_dec`` uphill;
    ``max_step`` is the farthest that a particle moves in a step. A particle moves by dt v + dt^2 f, which is stable if
    ``dt_max`` is below sqrt(2/k) with k the largest curvature: the default suits model systems in reduced units;
    molecules in nm and kJ/mol need 0.001. Beyond that bound the search goes on without end.
    Source: E. Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """

    def init(evaluate, x, systems=ALONE):
        energy, forces = evaluate(x)

        def number(value):
            return jnp.full(energy.shape, value, x.dtype)

        return FireState(
            x, energy, forces, jnp.zeros_like(x), number(dt), number(alpha_start), jnp.zeros(energy.shape, int)
        )

    def step(evaluate, state, systems=ALONE):
        total, spread = systems.total, systems.spread
        time = spread(state.dt)
        x = state.positions + _capped(time * state.velocities + time**2 * state.forces, max_step, systems)
        energy, forces = evaluate(x)
        v = state.velocities + 0.5 * time * (state.forces + forces)
        power = total(forces * v)
        speed, size = geometry.safe_sqrt(total(v * v)), geometry.safe_sqrt(total(forces * forces))
        scale = speed / jnp.maximum(size, jnp.finfo(x.dtype).tiny)
        v = v + spread(state.mixing) * (spread(scale) * forces - v)
        uphill = power < 0
        count = jnp.where(uphill, 0, state.downhill_steps + 1)
        going = (power > 0) & (count > n_min)
        step_size = jnp.where(going, jnp.minimum(state.dt * f_inc, dt_max), state.dt)
        mixing = jnp.where(going, state.mixing * f_alpha, state.mixing)
        return FireState(
            x,
            energy,
            forces,
            jnp.where(spread(uphill), 0.0, v),
            jnp.where(uphill, state.dt * f_dec, step_size),
            jnp.where(uphill, alpha_start, mixing),
            count,
        )

    return Descent(init, step)


class SteepestState(NamedTuple):
    """State of :func:`steepest_descent`."""

    positions: Array
    energy: Array
    forces: Array
    step_size: Array


@cache
def steepest_descent(max_step: float = 0.1) -> Descent:
    """Along the forces, as far as it goes downhill: the step grows by 1.2 if the energy falls, else shrinks by 0.2.

    ``max_step`` is the farthest that a particle moves in a step.
    """

    def init(evaluate, x, systems=ALONE):
        energy, forces = evaluate(x)
        return SteepestState(x, energy, forces, jnp.full(energy.shape, 0.1 * max_step, x.dtype))

    def step(evaluate, state, systems=ALONE):
        longest = jnp.maximum(systems.largest(state.forces), jnp.finfo(state.positions.dtype).tiny)
        x = state.positions + systems.spread(state.step_size / longest) * state.forces
        energy, forces = evaluate(x)
        # Where rounding hides the change of the energy, the slope tells, as in lbfgs.
        noise = 1e3 * jnp.finfo(x.dtype).eps * jnp.abs(state.energy)
        slope, new_slope = -systems.total(state.forces**2), -systems.total(forces * state.forces)
        flat = (energy <= state.energy + noise) & (new_slope <= -0.8 * slope)
        better = (energy < state.energy) | flat
        here = systems.spread(better)
        smaller, larger = 0.2 * state.step_size, jnp.minimum(1.2 * state.step_size, max_step)
        return SteepestState(
            jnp.where(here, x, state.positions),
            jnp.where(better, energy, state.energy),
            jnp.where(here, forces, state.forces),
            jnp.where(better, larger, smaller),
        )

    return Descent(init, step)


class LbfgsState(NamedTuple):
    """State of :func:`lbfgs`: where it is, the search direction with the trial step length, and the memory.

    ``moves``, ``changes`` and ``weights`` are a ring in which ``next`` is overwritten next; a pair of weight 0 is
    none. ``curvature`` is the scale of the inverse Hessian, from the last pair.
    """

    positions: Array
    energy: Array
    forces: Array
    direction: Array
    length: Array
    moves: Array
    changes: Array
    weights: Array
    curvature: Array
    next: Array


@cache
def lbfgs(history: int = 20, max_step: float = 0.1) -> Descent:
    """Limited-memory BFGS with a backtracking line search, one trial a step.

    A trial is accepted on the Armijo condition, or, where rounding hides the change of the energy, on the approximate
    Wolfe condition of W. W. Hager and H. Zhang, SIAM J. Optim. 16, 170 (2005), eq. 4.1; otherwise the step length
    shrinks by 0.3. Pairs of negative curvature are not remembered. ``max_step`` is the farthest that a particle moves
    in a step. Two-loop recursion: J. Nocedal and S. J. Wright, Numerical Optimization, algorithm 7.4.
    """

    def init(evaluate, x, systems=ALONE):
        energy, forces = evaluate(x)
        empty = jnp.zeros((history, *x.shape), x.dtype)
        one = jnp.ones(energy.shape, x.dtype)
        direction = _capped(forces, 0.1 * max_step, systems)
        return LbfgsState(
            x,
            energy,
            forces,
            direction,
            one,
            empty,
            empty,
            jnp.zeros((history, *one.shape), x.dtype),
            one,
            jnp.array(0),
        )

    def step(evaluate, state, systems=ALONE):
        total, spread = systems.total, systems.spread
        dtype = state.positions.dtype
        x = state.positions + spread(state.length) * state.direction
        energy, forces = evaluate(x)
        slope, new_slope = -total(state.forces * state.direction), -total(forces * state.direction)
        noise = 1e3 * jnp.finfo(dtype).eps * jnp.abs(state.energy)
        armijo = energy <= state.energy + 1e-4 * state.length * slope
        flat = (energy <= state.energy + noise) & (new_slope <= -0.8 * slope)
        accepted = armijo | flat
        # Twelve failures in a row: forget the curvature and go down the forces.
        failed = ~accepted & (state.length < 1e-6)

        move, change = x - state.positions, state.forces - forces
        product, square = total(move * change), total(change * change)
        positive = accepted & (product > jnp.finfo(dtype).eps * square)
        # The slot of a trial that is not remembered counts nothing.
        weight = jnp.where(positive, 1.0 / jnp.where(positive, product, 1.0), 0.0)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=state.next, axis=0)
        moves, changes, weights = put(state.moves, move), put(state.changes, change), put(state.weights, weight)
        weights = jnp.where(failed, 0.0, weights)
        curvature = jnp.where(positive, product / jnp.where(positive, square, 1.0), state.curvature)
        curvature = jnp.where(failed, 1.0, curvature)
        following = (state.next + 1) % history

        energy = jnp.where(accepted, energy, state.energy)
        here = spread(accepted)
        x, forces = jnp.where(here, x, state.positions), jnp.where(here, forces, state.forces)
        order = (following + jnp.arange(history)) % history
        direction = _two_loop(forces, moves, changes, weights, curvature, order, systems)
        downhill = spread(total(direction * forces) > 0)
        direction = _capped(jnp.where(downhill, direction, forces), max_step, systems)
        direction = jnp.where(spread(failed), _capped(forces, 1e-3 * max_step, systems), direction)
        new = accepted | failed
        return LbfgsState(
            x,
            energy,
            forces,
            jnp.where(spread(new), direction, state.direction),
            jnp.where(new, 1.0, 0.3 * state.length),
            moves,
            changes,
            weights,
            curvature,
            following,
        )

    return Descent(init, step)


def _two_loop(forces, moves, changes, weights, curvature, order, systems):
    """The product of the approximate inverse Hessian with the forces; memory with weight zero does not count.

    ``order`` lists the pairs, oldest first.
    """
    total, spread = systems.total, systems.spread

    def first(q, i):
        a = weights[i] * total(moves[i] * q)
        return q - spread(a) * changes[i], a

    def second(q, ia):
        i, a = ia
        return q + moves[i] * spread(a - weights[i] * total(changes[i] * q)), None

    q, a = jax.lax.scan(first, forces, order, reverse=True)
    return jax.lax.scan(second, spread(curvature) * q, (order, a))[0]


# --- pieces ---------------------------------------------------------------------------------------------------------


def _evaluation(energy):
    def evaluate(x):
        value, gradient = jax.value_and_grad(lambda x: scalar(energy(x)))(x)
        return value, -gradient

    return evaluate


def _capped(move, longest, systems):
    """The move of each system, shortened as a whole so that no row is longer than ``longest``."""
    size = systems.largest(move)
    factor = jnp.where(size > longest, longest / jnp.where(size > 0, size, 1.0), 1.0)
    return move * systems.spread(factor)


def _zero_tangent(value):
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return jnp.zeros(value.shape, jax.dtypes.float0)


def _zero_level(dtype):
    """Eigenvalues below this fraction of the largest are zero modes."""
    return 1e-10 if dtype == jnp.float64 else 1e-5


def solve_dense(product, b):
    """H^+ b from the eigenvalues of the whole Hessian; ``product`` is that with H."""
    unit = jnp.eye(b.size, dtype=b.dtype).reshape(b.size, *b.shape)
    matrix = jax.vmap(lambda v: product(v).ravel())(unit)
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    size = jnp.abs(values)
    used = size > _zero_level(b.dtype) * jnp.max(size, initial=0.0)
    inverse = jnp.where(used, 1.0 / jnp.where(used, values, 1.0), 0.0)
    return matmul(vectors, inverse * matmul(vectors.T, b.ravel())).reshape(b.shape)


def solve_iteratively(product: Callable, b, systems: Systems | None = None, level: float | None = None):
    """H^+ b by conjugate residuals (Y. Saad, Iterative Methods for Sparse Linear Systems, algorithm 6.20).

    Only products H r enter the step lengths, so a part of b in the null space of H does no harm, unlike with
    conjugate gradients. A system stops when |r| <= level |b|, or, as such a part keeps r from that, when
    |H r| <= level |H b|: a component of the residual along a mode that is zero but for rounding is below that, and
    left alone. ``level`` is 1e-12 (1e-6 in single precision) if not given. Rounding may keep a nearly singular system
    from either: it ends after 20 steps for each of its coordinates.
    """
    total, _, spread = ALONE if systems is None else systems
    if level is None:
        level = 1e-12 if b.dtype == jnp.float64 else 1e-6

    def moving(r, hr, k):
        return (total(hr * hr) > goal) & (total(r * r) > level**2 * total(b * b)) & (k < most)

    def unfinished(carry):
        _, r, _, hr, _, _, k = carry
        return jnp.any(moving(r, hr, k))

    def step(carry):
        x, r, p, hr, hp, rhr, k = carry
        going = moving(r, hr, k)
        size = total(hp * hp)
        length = spread(jnp.where(going, rhr / jnp.where(going, size, 1.0), 0.0))
        x, r = x + length * p, r - length * hp
        hr = product(r)
        new = total(r * hr)
        ratio = spread(jnp.where(going, new / jnp.where(going, rhr, 1.0), 0.0))
        return x, r, r + ratio * p, hr, hr + ratio * hp, new, k + 1

    hb = product(b)
    goal, most = level**2 * total(hb * hb), 20 * total(jnp.ones_like(b))
    return jax.lax.while_loop(unfinished, step, (jnp.zeros_like(b), b, b, hb, hb, total(b * hb), 0))[0]
