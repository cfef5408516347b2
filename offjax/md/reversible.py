"""Trajectories whose reverse mode runs them backwards: constant memory, whatever the number of steps.

Velocity Verlet and BAOAB are maps that can be inverted step by step, with the same noise. The adjoint goes back along
the trajectory, recovers each State from the next, and adds what the step contributes to the derivatives (the discrete
adjoint method; for molecular dynamics J. G. Greener, Reversible molecular simulation for training classical and machine
learning force fields, 2024). In exact arithmetic the result is that of plain differentiation. Rounding grows with the
trajectory's own instability, and with friction as exp(friction t): compare a short run with :func:`advance
<offjax.md.integrators.advance>`, which stores States instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offjax.errors import DifferentiationError, InputError
from offjax.md.dynamics import points, scalar


def reversible_trajectory(
    energy: Callable,
    positions: Float[Array, "n dimension"],
    velocities: Float[Array, "n dimension"],
    *args: Any,
    dt,
    steps: int,
    masses=1.0,
    kT=None,
    friction=None,
    key=None,
) -> tuple[Float[Array, "n dimension"], Float[Array, "n dimension"]]:
    """Positions and velocities after ``steps`` steps, differentiable in reverse mode with constant memory.

    The derivatives are those in ``positions``, ``velocities``, ``args``, values that ``energy`` closes over, ``dt``,
    ``masses``, ``kT`` and ``friction``. Every step backwards costs about four force evaluations. There is no forward
    mode, and there are no constraints: use ``advance``. Second derivatives are reverse over reverse
    (``jax.jacrev(jax.grad(f))``), and their memory grows with the number of steps.

    Parameters
    ----------
    energy
        ``energy(x, *args) -> scalar``. Positions are not wrapped; a periodic energy takes its nearest images.
    masses
        A number or (n,).
    kT, friction, key
        All three for Langevin dynamics by BAOAB, none for velocity Verlet.

    Raises
    ------
    InputError
        Wrong shapes, no steps, or some of ``kT``, ``friction`` and ``key`` without the others.
    DifferentiationError
        Forward mode.
    """
    x, v = points("positions", positions), points("velocities", velocities)
    if x.shape != v.shape:
        raise InputError(f"positions and velocities must both be (n, dimension), got {x.shape} and {v.shape}")
    if steps < 1:
        raise InputError(f"reversible_trajectory needs at least one step, got {steps}")
    thermostat = [kT is not None, friction is not None, key is not None]
    if any(thermostat) != all(thermostat):
        raise InputError("Langevin dynamics needs kT, friction and key, constant energy none of them")
    converted, hidden = jax.closure_convert(energy, x, *args)
    m = jnp.asarray(masses, x.dtype)
    m = m[:, None] if m.ndim else m
    numbers = tuple(jnp.asarray(0.0 if value is None else value, x.dtype) for value in (dt, kT, friction))
    theta = (args, hidden, m, *numbers)
    key = jax.random.key(0) if key is None else key
    try:
        return _trajectory(converted, steps, all(thermostat), theta, (x, v), key)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise DifferentiationError(
            "reversible_trajectory has no forward mode (jvp, jacfwd, hessian): use offjax.md.advance"
        ) from error


def _kick(converted, theta, x, sign):
    """sign dt/2 f/m."""
    args, hidden, m, dt, *_ = theta
    return -sign * 0.5 * dt * jax.grad(lambda x: scalar(converted(x, *args, *hidden)))(x) / m


def _noise(theta, key, k, shape):
    """The factor and the random part of friction over dt."""
    _, _, m, dt, kT, friction = theta
    spread = jnp.sqrt(-jnp.expm1(-2.0 * friction * dt) * kT / m)
    return jnp.exp(-friction * dt), spread * jax.random.normal(jax.random.fold_in(key, k), shape, dt.dtype)


def _step(converted, stochastic, theta, state, key, k):
    """Half kick, half drift, friction and noise, half drift, half kick."""
    (x, v), dt = state, theta[3]
    v = v + _kick(converted, theta, x, 1.0)
    x = x + 0.5 * dt * v
    if stochastic:
        damp, random = _noise(theta, key, k, v.shape)
        v = damp * v + random
    x = x + 0.5 * dt * v
    return x, v + _kick(converted, theta, x, 1.0)


def _back(converted, stochastic, theta, state, key, k):
    """The State before step k."""
    (x, v), dt = state, theta[3]
    v = v + _kick(converted, theta, x, -1.0)
    x = x - 0.5 * dt * v
    if stochastic:
        damp, random = _noise(theta, key, k, v.shape)
        v = (v - random) / damp
    x = x - 0.5 * dt * v
    return x, v + _kick(converted, theta, x, -1.0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _trajectory(converted, steps, stochastic, theta, state, key):
    return jax.lax.fori_loop(0, steps, lambda k, s: _step(converted, stochastic, theta, s, key, k), state)


def _forward(converted, steps, stochastic, theta, state, key):
    last = _trajectory(converted, steps, stochastic, theta, state, key)
    return last, (theta, last, key)


def _backward(converted, steps, stochastic, residuals, cotangent):
    theta, last, key = residuals

    def one(number, carry):
        state, cotangent, of_theta = carry
        k = steps - 1 - number
        before = _back(converted, stochastic, theta, state, key, k)
        _, pull = jax.vjp(lambda t, s: _step(converted, stochastic, t, s, key, k), theta, before)
        more, cotangent = pull(cotangent)
        return before, cotangent, jax.tree.map(_added, of_theta, more)

    zero = jax.tree.map(_zero, theta)
    _, cotangent, of_theta = jax.lax.fori_loop(0, steps, one, (last, cotangent, zero))
    of_theta = jax.tree.map(lambda value, g: g if _real(value) else None, theta, of_theta)
    return of_theta, cotangent, None


def _real(value) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def _zero(value):
    """A cotangent of zero; integers have none, and carry a number that is not used."""
    return jnp.zeros_like(value) if _real(value) else jnp.zeros(())


def _added(total, more):
    return total if more.dtype == jax.dtypes.float0 else total + more


_trajectory.defvjp(_forward, _backward)
