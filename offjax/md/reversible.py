"""Trajectories whose reverse mode runs them backwards: constant memory, whatever the number of steps.

Velocity Verlet and BAOAB are maps that can be inverted step by step, with the same noise. So are they with constraints:
every part of a step takes positions that obey them, and velocities that have no component along them, to others of that
kind, and with dt reversed takes them back (B. Leimkuhler and R. D. Skeel, J. Comput. Phys. 112, 117 (1994)). The
adjoint goes back along the trajectory, recovers each State from the next, and adds what the step contributes to the
derivatives (the discrete adjoint method; for molecular dynamics J. G. Greener, Reversible molecular simulation for
training classical and machine learning force fields, 2024). In exact arithmetic the result is that of plain
differentiation. Rounding grows with the trajectory's own instability, and with friction as exp(friction t): compare a
short run with :func:`advance <offjax.md.integrators.advance>`, which stores States instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offjax.errors import DifferentiationError, InputError
from offjax.geometry import safe_sqrt
from offjax.md.constraints import Constraints
from offjax.md.dynamics import Particles, points, scalar


def reversible_trajectory(
    energy: Callable,
    positions: Float[Array, "n dimension"],
    velocities: Float[Array, "n dimension"],
    *args: Any,
    dt,
    steps: int,
    masses=1.0,
    constraints: Constraints | None = None,
    kT=None,
    friction=None,
    key=None,
) -> tuple[Float[Array, "n dimension"], Float[Array, "n dimension"]]:
    """Positions and velocities after ``steps`` steps, differentiable in reverse mode with constant memory.

    The derivatives are those in ``positions``, ``velocities``, ``args``, values that ``energy`` closes over, ``dt``,
    ``masses``, ``kT`` and ``friction``. Every step backwards costs about four force evaluations. There is no forward
    mode: use ``advance``. Second derivatives are reverse over reverse (``jax.jacrev(jax.grad(f))``), and their memory
    grows with the number of steps.

    Parameters
    ----------
    energy
        ``energy(x, *args) -> scalar``. Positions are not wrapped; a periodic energy takes its nearest images.
    masses
        A number or (n,).
    constraints
        Distances that stay as they are (RATTLE). The start must obey them to rounding; from the start's velocities,
        components along them are taken out.
    kT, friction, key
        All three for Langevin dynamics by BAOAB, none for velocity Verlet.

    Raises
    ------
    InputError
        Wrong shapes, no steps, a start that does not obey the constraints, or some of ``kT``, ``friction`` and ``key``
        without the others.
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
    converted, hidden = jax.closure_convert(lambda *values: scalar(energy(*values)), x, *args)
    system = Particles(energy, masses, constraints=constraints)
    system.check_constraints(x)
    m = system.mass(x)
    if constraints is not None:
        x = constraints.positions(x, x, m)
    numbers = tuple(jnp.asarray(0.0 if value is None else value, x.dtype) for value in (dt, kT, friction))
    theta = (args, hidden, jnp.broadcast_to(m, (len(x), 1)), constraints, *numbers)
    key = jax.random.key(0) if key is None else key
    try:
        return _trajectory(converted, steps, all(thermostat), theta, (x, system.project(x, v)), key)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise DifferentiationError(
            "reversible_trajectory has no forward mode (jvp, jacfwd, hessian): use offjax.md.advance"
        ) from error


def _system(converted, theta) -> Particles:
    args, hidden, m, constraints, *_ = theta
    return Particles(lambda x: converted(x, *args, *hidden), m[:, 0], constraints=constraints)


def _kick(system, state, dt):
    """v + dt f/m."""
    x, v = state
    _, forces, _ = system.evaluate(x, None, None)
    return x, v + dt * forces / system.mass(x)


def _noise(system, theta, key, k, x):
    """The factor of the velocities, and what is added to them, by friction over dt."""
    *_, dt, kT, friction = theta
    spread = safe_sqrt(-jnp.expm1(-2.0 * friction * dt) * kT / system.mass(x))
    return jnp.exp(-friction * dt), spread * jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)


def _step(converted, stochastic, theta, state, key, k):
    """Half kick, half drift, friction and noise, half drift, half kick; without noise the drifts are one.

    Components of velocities along the constraints are absorbed by each drift, so they are taken out at the end only.
    """
    system, dt = _system(converted, theta), theta[4]
    x, v = _kick(system, state, 0.5 * dt)
    if stochastic:
        x, v = system.drift(x, v, 0.5 * dt, None)
        damp, random = _noise(system, theta, key, k, x)
        x, v = system.drift(x, damp * v + random, 0.5 * dt, None)
    else:
        x, v = system.drift(x, v, dt, None)
    x, v = _kick(system, (x, v), 0.5 * dt)
    return x, system.project(x, v)


def _back(converted, stochastic, theta, state, key, k):
    """The State before step k."""
    system, dt = _system(converted, theta), theta[4]
    x, v = _kick(system, state, -0.5 * dt)
    if stochastic:
        x, v = system.drift(x, v, -0.5 * dt, None)
        damp, random = _noise(system, theta, key, k, x)
        x, v = system.drift(x, (v - random) / damp, -0.5 * dt, None)
    else:
        x, v = system.drift(x, v, -dt, None)
    x, v = _kick(system, (x, v), -0.5 * dt)
    return x, system.project(x, v)


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
