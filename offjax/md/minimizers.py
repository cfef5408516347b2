"""Minimisation of any energy function, and the derivative of the minimum in everything that the energy depends on.

Each algorithm is a :class:`Descent`: pure functions ``init(evaluate, x)`` and ``step(evaluate, state)``, one
evaluation of energy and forces a step, so that it runs in a ``while_loop`` (:func:`minimize`), in a ``scan``
(:func:`descend`) and under ``vmap``.

The derivative comes from the condition that the forces vanish, not from the steps: at a minimum
``grad U(x*(theta), theta) = 0``, so ``dx* = -H^+ d_theta(grad U)`` with the Hessian H (S. G. Krantz and H. R. Parks,
The Implicit Function Theorem, 2002). Its memory does not grow with the number of steps. H is singular for every free
molecule (translations, rotations) and wherever a particle touches nothing; the pseudo-inverse leaves those directions
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offjax import geometry
from offjax.errors import InputError

DENSE_LIMIT = 600
"""Up to this many coordinates the Hessian is built and decomposed; beyond, conjugate residuals use products with it."""


class Descent(NamedTuple):
    """A minimisation algorithm: ``init(evaluate, x) -> state`` and ``step(evaluate, state) -> state``.

    ``evaluate(x)`` returns the energy and the forces; every state has ``positions``, ``energy`` and ``forces``.
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
        ``x0`` is not (n, dimension), or there is no such ``hessian``.
    """
    x0 = jnp.asarray(x0)
    if x0.ndim != 2:
        raise InputError(f"x0 must have shape (n, dimension), got {x0.shape}; use jax.vmap for many starts")
    if hessian not in (None, "dense", "iterative"):
        raise InputError(f'hessian must be None, "dense" or "iterative", got {hessian!r}')
    method = lbfgs() if method is None else method
    solve = _solve_dense if hessian == "dense" or (hessian is None and x0.size <= DENSE_LIMIT) else _solve_iteratively
    # Values that the energy closes over become arguments, so that they have derivatives like the others.
    converted, hidden = jax.closure_convert(energy, x0, *args)

    def run(x0, theta):
        evaluate = _evaluation(lambda x: converted(x, *theta[0], *theta[1]))
        state = method.init(evaluate, x0)

        def unfinished(carry):
            state, steps = carry
            return (_largest(state.forces) > tolerance) & (steps < max_steps)

        state, steps = jax.lax.while_loop(
            unfinished, lambda carry: (method.step(evaluate, carry[0]), carry[1] + 1), (state, jnp.zeros((), int))
        )
        largest = _largest(state.forces)
        return Minimum(state.positions, state.energy, largest, steps, largest <= tolerance)

    @jax.custom_jvp
    def minimum(x0, theta):
        return run(x0, theta)

    @minimum.defjvp
    def _(primals, tangents):
        x0, theta = primals
        found = minimum(x0, theta)
        x = found.positions

        def gradient(x, theta):
            return jax.grad(lambda y: converted(y, *theta[0], *theta[1]))(x)

        _, change = jax.jvp(partial(gradient, x), (theta,), (tangents[1],))
        _, energy_tangent = jax.jvp(lambda t: converted(x, *t[0], *t[1]), (theta,), (tangents[1],))
        response = jax.lax.custom_linear_solve(
            lambda v: jax.jvp(lambda y: gradient(y, theta), (x,), (v,))[1], -change, solve, symmetric=True
        )
        zero = jax.tree.map(_zero_tangent, found)
        return found, zero._replace(positions=response, energy=energy_tangent)

    return minimum(jax.lax.stop_gradient(x0), (args, hidden))


def descend(energy: Callable, x0, *args: Any, method: Descent | None = None, steps: int) -> Minimum:
    """A fixed number of steps in a ``scan``, differentiable by unrolling them, also in ``x0``.

    Its memory grows with ``steps``. Steps along F/|F| (FIRE, steepest descent) are singular where the force vanishes:
    only the energy's derivative is then that of the minimum, not that of the positions. Wherever the end is a
    minimum, :func:`minimize` gives the same derivatives for less. ``converged`` is always False: nothing is tested.
    """
    method = lbfgs() if method is None else method
    evaluate = _evaluation(lambda x: energy(x, *args))
    state = method.init(evaluate, jnp.asarray(x0))
    state, _ = jax.lax.scan(lambda state, _: (method.step(evaluate, state), None), state, length=steps)
    return Minimum(state.positions, state.energy, _largest(state.forces), jnp.asarray(steps), jnp.asarray(False))


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
    ``max_step`` is the farthest that a particle moves in a step. ``dt_max`` must be below 2/sqrt(k) with k the
    largest curvature: the default suits model systems in reduced units; molecules in nm and kJ/mol need 0.002.
    Source: E. Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """

    def init(evaluate, x):
        energy, forces = evaluate(x)
        number = partial(jnp.asarray, dtype=x.dtype)
        return FireState(x, energy, forces, jnp.zeros_like(x), number(dt), number(alpha_start), jnp.zeros((), int))

    def step(evaluate, state):
        move = state.dt * state.velocities + state.dt**2 * state.forces
        x = state.positions + _capped(move, max_step)
        energy, forces = evaluate(x)
        v = state.velocities + 0.5 * state.dt * (state.forces + forces)
        power = jnp.sum(forces * v)
        scale = _size(v) / jnp.maximum(_size(forces), jnp.finfo(x.dtype).tiny)
        v = v + state.mixing * (scale * forces - v)
        uphill = power < 0
        count = jnp.where(uphill, 0, state.downhill_steps + 1)
        going = (power > 0) & (count > n_min)
        step_size = jnp.where(going, jnp.minimum(state.dt * f_inc, dt_max), state.dt)
        mixing = jnp.where(going, state.mixing * f_alpha, state.mixing)
        return FireState(
            x,
            energy,
            forces,
            jnp.where(uphill, 0.0, v),
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


def steepest_descent(max_step: float = 0.1) -> Descent:
    """Along the forces, as far as it goes downhill: the step grows by 1.2 if the energy falls, else shrinks by 0.2.

    ``max_step`` is the farthest that a particle moves in a step.
    """

    def init(evaluate, x):
        energy, forces = evaluate(x)
        return SteepestState(x, energy, forces, jnp.asarray(0.1 * max_step, x.dtype))

    def step(evaluate, state):
        largest = jnp.maximum(_largest(state.forces), jnp.finfo(state.positions.dtype).tiny)
        x = state.positions + state.step_size * state.forces / largest
        energy, forces = evaluate(x)
        better = energy < state.energy
        smaller, larger = 0.2 * state.step_size, jnp.minimum(1.2 * state.step_size, max_step)
        return jax.tree.map(
            partial(jnp.where, better),
            SteepestState(x, energy, forces, larger),
            state._replace(step_size=smaller),
        )

    return Descent(init, step)


class LbfgsState(NamedTuple):
    """State of :func:`lbfgs`: where it is, the search direction with the trial step length, and the memory."""

    positions: Array
    energy: Array
    forces: Array
    direction: Array
    length: Array
    moves: Array
    changes: Array
    weights: Array


def lbfgs(history: int = 20, max_step: float = 0.1) -> Descent:
    """Limited-memory BFGS with a backtracking line search, one trial a step.

    A trial is accepted on the Armijo condition, or, where rounding hides the change of the energy, on the approximate
    Wolfe condition of W. W. Hager and H. Zhang, SIAM J. Optim. 16, 170 (2005), eq. 4.1; otherwise the step length
    shrinks by 0.3. Pairs of negative curvature are not remembered. ``max_step`` is the farthest that a particle moves
    in a step. Two-loop recursion: J. Nocedal and S. J. Wright, Numerical Optimization, algorithm 7.4.
    """

    def init(evaluate, x):
        energy, forces = evaluate(x)
        empty = jnp.zeros((history, *x.shape), x.dtype)
        direction = _capped(forces, 0.1 * max_step)
        return LbfgsState(
            x, energy, forces, direction, jnp.ones((), x.dtype), empty, empty, jnp.zeros(history, x.dtype)
        )

    def step(evaluate, state):
        dtype = state.positions.dtype
        x = state.positions + state.length * state.direction
        energy, forces = evaluate(x)
        slope, new_slope = -jnp.sum(state.forces * state.direction), -jnp.sum(forces * state.direction)
        noise = 1e3 * jnp.finfo(dtype).eps * jnp.abs(state.energy)
        armijo = energy <= state.energy + 1e-4 * state.length * slope
        flat = (energy <= state.energy + noise) & (new_slope <= -0.8 * slope)
        accepted = armijo | flat
        # Twelve failures in a row: forget the curvature and go down the forces.
        failed = ~accepted & (state.length < 1e-6)

        move, change = x - state.positions, state.forces - forces
        curvature = jnp.sum(move * change)
        positive = curvature > jnp.finfo(dtype).eps * jnp.sum(change * change)
        remember = accepted & positive

        def pushed(memory, value):
            return jnp.where(remember, jnp.concatenate([memory[1:], value[None]]), memory)

        moves, changes = pushed(state.moves, move), pushed(state.changes, change)
        weights = pushed(state.weights, 1.0 / jnp.where(positive, curvature, 1.0))
        weights = jnp.where(failed, 0.0, weights)
        x, energy, forces = jax.tree.map(
            partial(jnp.where, accepted), (x, energy, forces), (state.positions, state.energy, state.forces)
        )
        direction = _two_loop(forces, moves, changes, weights)
        downhill = jnp.sum(direction * forces) > 0
        direction = _capped(jnp.where(downhill, direction, forces), max_step)
        direction = jnp.where(failed, _capped(forces, 1e-3 * max_step), direction)
        new = accepted | failed
        return LbfgsState(
            x,
            energy,
            forces,
            jnp.where(new, direction, state.direction),
            jnp.where(new, 1.0, 0.3 * state.length),
            moves,
            changes,
            weights,
        )

    return Descent(init, step)


def _two_loop(forces, moves, changes, weights):
    """The product of the approximate inverse Hessian with the forces; memory with weight zero does not count."""

    def first(q, memory):
        s, y, weight = memory
        a = weight * jnp.sum(s * q)
        return q - a * y, a

    def second(q, memory):
        s, y, weight, a = memory
        return q + s * (a - weight * jnp.sum(y * q)), None

    q, a = jax.lax.scan(first, forces, (moves, changes, weights), reverse=True)
    last = jnp.sum(changes[-1] ** 2)
    known = (weights[-1] > 0) & (last > 0)
    gamma = jnp.where(known, 1.0 / jnp.where(known, weights[-1] * last, 1.0), 1.0)
    return jax.lax.scan(second, gamma * q, (moves, changes, weights, a))[0]


# --- pieces ---------------------------------------------------------------------------------------------------------


def _evaluation(energy):
    def evaluate(x):
        value, gradient = jax.value_and_grad(energy)(x)
        return value, -gradient

    return evaluate


def _largest(forces):
    """The largest Euclidean norm of a row."""
    return geometry.safe_sqrt(jnp.max(jnp.sum(forces * forces, axis=-1), initial=0.0))


def _size(v):
    return geometry.safe_sqrt(jnp.sum(v * v))


def _capped(move, longest):
    """The move, shortened as a whole so that no row is longer than ``longest``."""
    size = _largest(move)
    return move * jnp.where(size > longest, longest / jnp.where(size > 0, size, 1.0), 1.0)


def _zero_tangent(value):
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return jnp.zeros(value.shape, jax.dtypes.float0)


def _zero_level(dtype):
    """Eigenvalues below this fraction of the largest are zero modes."""
    return 1e-10 if dtype == jnp.float64 else 1e-5


def _solve_dense(product, b):
    """H^+ b from the eigenvalues of the whole Hessian."""
    unit = jnp.eye(b.size, dtype=b.dtype).reshape(b.size, *b.shape)
    matrix = jax.vmap(lambda v: product(v).ravel())(unit)
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    size = jnp.abs(values)
    used = size > _zero_level(b.dtype) * jnp.max(size, initial=0.0)
    inverse = jnp.where(used, 1.0 / jnp.where(used, values, 1.0), 0.0)
    return (vectors @ (inverse * (vectors.T @ b.ravel()))).reshape(b.shape)


def _solve_iteratively(product, b):
    """H^+ b by conjugate residuals (Y. Saad, Iterative Methods for Sparse Linear Systems, algorithm 6.20).

    Only products H r enter the step lengths, so a part of b in the null space of H does no harm, unlike with
    conjugate gradients. It stops when |H r| <= 1e-12 |H b| (1e-6 in single precision): a component of the residual
    along a mode that is zero but for rounding is below that, and left alone.
    """
    level = 1e-12 if b.dtype == jnp.float64 else 1e-6

    def inner(a, b):
        return jnp.sum(a * b)

    def unfinished(carry):
        _, _, _, hr, _, _, k = carry
        return (inner(hr, hr) > goal) & (k < 20 * b.size)

    def step(carry):
        x, r, p, hr, hp, rhr, k = carry
        length = rhr / inner(hp, hp)
        x, r = x + length * p, r - length * hp
        hr = product(r)
        new = inner(r, hr)
        ratio = new / rhr
        return x, r, r + ratio * p, hr, hr + ratio * hp, new, k + 1

    hb = product(b)
    goal = level**2 * inner(hb, hb)
    return jax.lax.while_loop(unfinished, step, (jnp.zeros_like(b), b, b, hb, hb, inner(b, hb), 0))[0]
