"""Time steps: Newton's equations, Langevin and Brownian dynamics, thermostats and barostats.

Each function makes an :class:`~offjax.md.dynamics.Integrator`. All take the same description of what moves:

``energy``
    A function of positions, and where it has them of ``box=`` and ``neighbors=``; or :class:`Forces
    <offjax.md.dynamics.Forces>`, where only forces are known.
``masses``
    A number or (n,); amu for molecules.
``shift``
    How points move: that of a :class:`~offjax.md.space.Space`; None adds, which leaves paths continuous.
``constraints``
    :class:`~offjax.md.constraints.Constraints`, or None.
``degrees_of_freedom``
    None counts them: coordinates less constraints, less the total momentum where the dynamics conserves it. Give it
    where an external field acts. Velocities that are given to ``init`` there should have no total momentum: a
    thermostat would count its energy as heat.
``accumulate``
    A wider type for kinetic energies, such as ``"float64"`` with float32 positions.

One force evaluation a step. Units are those of the energy: kJ/mol, nm, amu give ps. Time steps (but that of velocity
Verlet, which may go back), periods and frictions that are not positive raise InputError.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError, UnsupportedError
from offjax.geometry import safe_sqrt
from offjax.md.dynamics import Info, Integrator, Particles, State, bound, current, molecules
from offjax.md.space import volume


def _check(or_zero: bool = False, **values) -> None:
    """Refuse numbers that are known and not positive."""
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        if not np.all(np.asarray(value) >= 0 if or_zero else np.asarray(value) > 0):
            raise InputError(f"{name} must {'not be negative' if or_zero else 'be positive'}, got {value}")


def _check_finite(**values) -> None:
    """Refuse numbers that are known and not finite; they may be negative."""
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
            raise InputError(f"{name} must be finite, got {value}")


def velocity_verlet(energy: Callable, dt, **system) -> Integrator:
    """Newton's equations by velocity Verlet, with RATTLE for constraints: constant energy.

    v += dt/2 f/m; x += dt v; f = f(x); v += dt/2 f/m. ``init`` takes ``kT`` besides, to draw velocities (without a
    total momentum); without it and without velocities the start is at rest. Source: W. C. Swope et al., J. Chem.
    Phys. 76, 637 (1982); H. C. Andersen, J. Comput. Phys. 52, 24 (1983).
    """
    _check_finite(dt=dt)
    system = Particles(energy, **system)

    def init(key, positions, velocities=None, *, kT=None, box=None, neighbors=None):
        return system.start(key, positions, velocities, kT, box, neighbors, drift_free=True)

    def step(state):
        state = verlet(system, state, dt)
        return state, system.info(state, system.dof(state.positions, True))

    return Integrator(init, step, system.has_energy, system.constraints)


def verlet(system: Particles, state: State, dt) -> State:
    """One velocity-Verlet step."""
    m = system.mass(state.positions)
    v = state.velocities + 0.5 * dt * state.forces / m
    x, v = system.drift(state.positions, v, dt, state.box)
    energy, forces, neighbors = system.evaluate(x, state.box, state.neighbors)
    v = system.project(x, v + 0.5 * dt * forces / m)
    return state._replace(positions=x, velocities=v, forces=forces, energy=energy, neighbors=neighbors)


def langevin(energy: Callable, dt, kT, friction, **system) -> Integrator:
    """Langevin dynamics by BAOAB: half kick, half drift, friction and noise, half drift, half kick.

    ``friction`` in 1/time. Constraints by RATTLE in each part (g-BAOAB). Source: B. Leimkuhler and C. Matthews, J.
    Chem. Phys. 138, 174102 (2013); Proc. R. Soc. A 472, 20160138 (2016).
    """
    _check(dt=dt)
    _check(or_zero=True, kT=kT, friction=friction)
    system = Particles(energy, **system)

    def init(key, positions, velocities=None, *, box=None, neighbors=None):
        return system.start(key, positions, velocities, kT, box, neighbors, drift_free=False, extra=jnp.zeros(()))

    def step(state):
        key, noise = jax.random.split(state.key)
        m = system.mass(state.positions)
        v = system.project(state.positions, state.velocities + 0.5 * dt * state.forces / m)
        x, v = system.drift(state.positions, v, 0.5 * dt, state.box)
        v = system.project(x, v)
        before = system.kinetic(v)
        v = system.project(x, ornstein_uhlenbeck(noise, v, dt, kT, friction, m))
        heat = state.extra + system.kinetic(v) - before
        x, v = system.drift(x, v, 0.5 * dt, state.box)
        energy, forces, neighbors = system.evaluate(x, state.box, state.neighbors)
        v = system.project(x, v + 0.5 * dt * forces / m)
        state = State(x, v, forces, energy, key, state.box, neighbors, heat)
        return state, system.info(state, system.dof(x, False), -heat)

    return Integrator(init, step, system.has_energy, system.constraints)


def langevin_middle(energy: Callable, dt, kT, friction, **system) -> Integrator:
    """Langevin dynamics as OpenMM's LangevinMiddleIntegrator: kick, half drift, friction and noise, half drift.

    Velocities are those of half steps. Source: Z. Zhang et al., J. Phys. Chem. A 123, 6056 (2019) and OpenMM's
    Reference platform.
    """
    _check(dt=dt)
    _check(or_zero=True, kT=kT, friction=friction)
    system = Particles(energy, **system)

    def init(key, positions, velocities=None, *, box=None, neighbors=None):
        return system.start(key, positions, velocities, kT, box, neighbors, drift_free=False, extra=jnp.zeros(()))

    def step(state):
        key, noise = jax.random.split(state.key)
        m = system.mass(state.positions)
        v = system.project(state.positions, state.velocities + dt * state.forces / m)
        new = ornstein_uhlenbeck(noise, v, dt, kT, friction, m)
        heat = state.extra + system.kinetic(new) - system.kinetic(v)
        mean = 0.5 * (v + new)
        x, constrained = system.drift(state.positions, mean, dt, state.box)
        v = new + (constrained - mean)
        energy, forces, neighbors = system.evaluate(x, state.box, state.neighbors)
        state = State(x, v, forces, energy, key, state.box, neighbors, heat)
        return state, system.info(state, system.dof(x, False), -heat)

    return Integrator(init, step, system.has_energy, system.constraints)


def ornstein_uhlenbeck(key, v, dt, kT, friction, masses):
    """Friction and noise over dt, exactly: c v + sqrt((1 - c^2) kT/m) R with c = exp(-friction dt).

    Without noise, at kT or friction 0, its root has derivative 0: those in masses and dt stay finite, and those in
    kT or friction itself, which are infinite there, leave it out.
    """
    c = jnp.exp(-friction * dt)
    spread = safe_sqrt(-jnp.expm1(-2.0 * friction * dt) * kT / masses)
    return c * v + spread * jax.random.normal(key, v.shape, v.dtype)


def brownian(energy: Callable, dt, kT, friction, **system) -> Integrator:
    """Overdamped Langevin dynamics: dx = dt f/(m friction) + sqrt(2 kT dt/(m friction)) R (Euler-Maruyama).

    Velocities play no part (they stay as they are) and there is no conserved energy. Constraints: the step is projected
    back along their directions at its start, with the masses as weights, which samples what constrained Langevin
    dynamics does (T. Lelievre, M. Rousset and G. Stoltz, Math. Comp. 81, 2071 (2012)). Source: D. L. Ermak and J. A.
    McCammon, J. Chem. Phys. 69, 1352 (1978).
    """
    _check(dt=dt, friction=friction)
    _check(or_zero=True, kT=kT)
    system = Particles(energy, **system)

    def init(key, positions, velocities=None, *, box=None, neighbors=None):
        return system.start(key, positions, velocities, None, box, neighbors, drift_free=False)

    def step(state):
        key, noise = jax.random.split(state.key)
        mobility = 1.0 / (system.mass(state.positions) * friction)
        random = jax.random.normal(noise, state.positions.shape, state.positions.dtype)
        dx = dt * mobility * state.forces + safe_sqrt(2.0 * kT * dt * mobility) * random
        x, _ = system.drift(state.positions, dx, 1.0, state.box)
        energy, forces, neighbors = system.evaluate(x, state.box, state.neighbors)
        zero = jnp.zeros_like(energy)
        state = State(x, state.velocities, forces, energy, key, state.box, neighbors)
        return state, Info(energy, zero, jnp.full_like(energy, jnp.nan), zero)

    return Integrator(init, step, system.has_energy, system.constraints)


def stochastic_velocity_rescaling(energy: Callable, dt, kT, time, **system) -> Integrator:
    """Velocity Verlet with all velocities scaled by one random factor: canonical, and gentle on the dynamics.

    ``time`` is the relaxation time of the kinetic energy. Source: G. Bussi, D. Donadio and M. Parrinello, J. Chem.
    Phys. 126, 014101 (2007), eq. A7.
    """
    _check(dt=dt, kT=kT, time=time)
    system = Particles(energy, **system)

    def init(key, positions, velocities=None, *, box=None, neighbors=None):
        return system.start(key, positions, velocities, kT, box, neighbors, drift_free=True, extra=jnp.zeros(()))

    def step(state):
        key, noise = jax.random.split(state.key)
        dof = system.dof(state.positions, True)
        state = verlet(system, state, dt)
        kinetic = system.kinetic(state.velocities)
        scale = rescaling_factor(noise, kinetic, dof, kT, dt / time).astype(state.positions.dtype)
        heat = state.extra + (scale**2 - 1.0) * kinetic
        state = state._replace(velocities=scale * state.velocities, key=key, extra=heat)
        return state, system.info(state, dof, -heat)

    return Integrator(init, step, system.has_energy, system.constraints)


def rescaling_factor(key, kinetic, dof, kT, steps):
    """alpha of Bussi, Donadio and Parrinello; ``steps`` is dt/tau. 1 at rest, where no factor gives heat."""
    one, rest = jax.random.split(key)
    c = jnp.exp(-steps)
    r = jax.random.normal(one, (), kinetic.dtype)
    others = 2.0 * jax.random.gamma(rest, 0.5 * (dof - 1), dtype=kinetic.dtype) if dof > 1 else 0.0
    moving = kinetic > 0
    ratio = (1.0 - c) * kT / (2.0 * jnp.where(moving, kinetic, 1.0))
    square = c + ratio * (r * r + others) + 2.0 * r * jnp.sqrt(c * ratio)
    sign = jnp.where(r + jnp.sqrt(c / ratio) < 0, -1.0, 1.0)
    return jnp.where(moving, sign * jnp.sqrt(square), 1.0)


# --- Nose-Hoover chains
# -----------------------------------------------------------------------------------------------

# Fourth order, three parts: M. Suzuki, J. Math. Phys. 32, 400 (1991); H. Yoshida, Phys. Lett. A 150, 262 (1990).
_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
_WEIGHTS = (_OUTER, 1.0 - 2.0 * _OUTER, _OUTER)


def nose_hoover(energy: Callable, dt, kT, time, *, chain: int = 5, substeps: int = 1, **system) -> Integrator:
    """Velocity Verlet with a chain of Nose-Hoover thermostats: deterministic, canonical, with a conserved energy.

    ``time`` is the thermostat's period: the masses are Q_1 = dof kT time^2 and Q_k = kT time^2. Source: G. J. Martyna
    et al., Mol. Phys. 87, 1117 (1996), section 4.
    """
    _check(dt=dt, kT=kT, time=time, chain=chain, substeps=substeps)
    system = Particles(energy, **system)

    def init(key, positions, velocities=None, *, box=None, neighbors=None):
        extra = (jnp.zeros(chain, jnp.asarray(positions).dtype), jnp.zeros(chain, jnp.asarray(positions).dtype))
        return system.start(key, positions, velocities, kT, box, neighbors, drift_free=True, extra=extra)

    def step(state):
        dof = system.dof(state.positions, True)
        inertia = _inertia(dof, kT, time, chain, state.positions.dtype)

        def half(state):
            kinetic = system.kinetic(state.velocities).astype(state.positions.dtype)
            links, scale = chain_step(2.0 * kinetic, state.extra, inertia, dof, kT, 0.5 * dt, substeps)
            return state._replace(velocities=scale * state.velocities, extra=links)

        state = half(verlet(system, half(state), dt))
        return state, system.info(state, dof, chain_energy(state.extra, inertia, dof, kT))

    return Integrator(init, step, system.has_energy, system.constraints)


def _inertia(dof, kT, time, chain, dtype):
    return jnp.full(chain, kT * time**2, dtype).at[0].multiply(dof)


def chain_energy(links, inertia, dof, kT):
    """The chain's part of the conserved energy: sum Q v^2/2 + dof kT eta_1 + kT (eta_2 + ...)."""
    eta, rate = links
    return 0.5 * jnp.sum(inertia * rate**2) + kT * (dof * eta[0] + jnp.sum(eta[1:]))


def chain_step(twice_kinetic, links, inertia, dof, kT, dt, substeps):
    """The thermostats over ``dt``: their new positions and rates, and the factor of the velocities."""
    eta, rate = links
    n = len(inertia)
    scale = jnp.ones((), eta.dtype)

    def force(k, rate, twice_kinetic):
        driven = twice_kinetic - dof * kT if k == 0 else inertia[k - 1] * rate[k - 1] ** 2 - kT
        return driven / inertia[k]

    for _ in range(substeps):
        for weight in _WEIGHTS:
            h = weight * dt / substeps
            rate = rate.at[n - 1].add(0.5 * h * force(n - 1, rate, twice_kinetic))
            for k in reversed(range(n - 1)):
                damp = jnp.exp(-0.25 * h * rate[k + 1])
                rate = rate.at[k].set((rate[k] * damp + 0.5 * h * force(k, rate, twice_kinetic)) * damp)
            factor = jnp.exp(-h * rate[0])
            scale, twice_kinetic = scale * factor, twice_kinetic * factor**2
            eta = eta + h * rate
            for k in range(n - 1):
                damp = jnp.exp(-0.25 * h * rate[k + 1])
                rate = rate.at[k].set((rate[k] * damp + 0.5 * h * force(k, rate, twice_kinetic)) * damp)
            rate = rate.at[n - 1].add(0.5 * h * force(n - 1, rate, twice_kinetic))
    return (eta, rate), scale


# --- constant pressure
# ------------------------------------------------------------------------------------------------


def monte_carlo_barostat(
    integrator: Integrator, energy: Callable, pressure, kT, *, groups=None, masses=1.0, frequency: int = 25
) -> Integrator:
    """Any integrator with random changes of the volume, accepted by Metropolis' rule: constant pressure.

    Every ``frequency`` steps the box is scaled in all directions by a factor uniform in ln V, and with it the centres
    of the molecules, whose shape stays. The largest change starts at 1 % of V and adapts itself, by 10 % after ten
    attempts, to accept between a quarter and three quarters, as in OpenMM's MonteCarloBarostat: few particles, whose
    volume varies much, need some 350 attempts until it fits. Positions must be unwrapped within a molecule. The box
    is in the State: ``init`` needs ``box``, the energy takes it.

    Source: D. Frenkel and B. Smit, Understanding Molecular Simulation, section 5.4.2; with N molecules a trial is
    accepted with probability min(1, exp(-(dU + P dV - (N + 1) kT ln(V'/V))/kT)).

    Parameters
    ----------
    pressure
        Energy/volume: ``offjax.constants.BAR`` times bar for molecules.
    groups
        (n,) molecule of each particle, from 0; None scales every particle.
    masses
        For the centres of the molecules.

    Raises
    ------
    InputError
        Constraints between molecules, or without groups; groups with gaps; a pressure that is not finite; no box.
    UnsupportedError
        An integrator that was given forces without an energy.
    """
    _check(kT=kT, frequency=frequency)
    _check_finite(pressure=pressure)
    if not isinstance(frequency, int | np.integer):
        raise InputError(f"frequency is a whole number of steps, got {frequency!r}")
    _check_groups("monte_carlo_barostat", integrator.constraints, groups)
    if not integrator.has_energy:
        raise UnsupportedError("monte_carlo_barostat() needs an integrator with an energy, not with Forces")

    def init(key, positions, velocities=None, *, box, neighbors=None):
        _check_has_box("monte_carlo_barostat", box)
        key, mine = jax.random.split(key)
        state = integrator.init(key, positions, velocities, box=box, neighbors=neighbors)
        size = jnp.asarray(0.01, state.positions.dtype)
        return state._replace(extra=(state.extra, mine, size, jnp.zeros(3, jnp.int32)))

    def attempt(state, key, size):
        x, box = state.positions, state.box
        d = x.shape[1]
        count, centre = molecules(groups, masses, x)
        old = volume(box, d)
        change, uniform = jax.random.uniform(key, (2,), old.dtype)
        new = old * jnp.exp(size * (2.0 * change - 1.0))
        scale = (new / old) ** (1.0 / d)
        moved = x + (scale - 1.0) * centre(x)
        neighbors = current(state.neighbors, moved, scale * box)
        trial, gradient = jax.value_and_grad(bound(energy, scale * box, neighbors))(moved)
        work = trial - state.energy + pressure * (new - old) - (count + 1) * kT * jnp.log(new / old)
        # Not a number, where a list has overflowed or a box is too small, is no reason to reject: it must be seen.
        accepted = (jnp.log(uniform) * kT < -work) | jnp.isnan(trial)
        changed = state._replace(positions=moved, box=scale * box, forces=-gradient, energy=trial, neighbors=neighbors)
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), changed, state), accepted

    def step(state):
        inner, key, size, counts = state.extra
        state, info = integrator.step(state._replace(extra=inner))
        key, mine = jax.random.split(key)
        due = (counts[0] + 1) % frequency == 0

        def tried(state):
            state, accepted = attempt(state, mine, size)
            return state, jnp.array([1, 1, 0]) + jnp.array([0, 0, 1]) * accepted

        state, more = jax.lax.cond(due, tried, lambda state: (state, jnp.array([1, 0, 0])), state)
        counts = counts + more.astype(counts.dtype)
        # adapt after every ten attempts
        adapt = due & (counts[1] >= 10)
        factor = jnp.where(counts[2] < 0.25 * counts[1], 1 / 1.1, jnp.where(counts[2] > 0.75 * counts[1], 1.1, 1.0))
        size = jnp.where(adapt, jnp.minimum(size * factor, 0.3), size)
        counts = jnp.where(adapt, counts.at[1:].set(0), counts)
        return state._replace(extra=(state.extra, key, size, counts)), info

    return Integrator(init, step, constraints=integrator.constraints)


def nose_hoover_npt(
    energy: Callable, dt, kT, pressure, time, barostat_time, *, groups=None, chain: int = 3, **system
) -> Integrator:
    """Isotropic constant pressure and temperature by an extended system: the equations of Martyna, Tobias and Klein.

    The centres of the molecules scale with the box about the origin, and their shape does not; all particles and the
    box each have a Nose-Hoover chain. The pressure comes from the energy's derivative in a uniform strain of box and
    centres, so the energy must take ``box=`` and be differentiable in it. The box is in the State: ``init`` needs
    ``box``. Constraints must join particles of one molecule.

    Without total momentum the centre of all masses scales with the box, so that N molecules weigh a volume with
    V^(N - 1) where the Monte Carlo barostat has V^N: the mean volume is smaller by kT times the compressibility, for
    a liquid much less than a part in N.

    Source: M. E. Tuckerman et al., J. Phys. A 39, 5629 (2006), the integrator of section 4; for molecules E.
    Kalibaeva, M. Ferrario and G. Ciccotti, Mol. Phys. 101, 765 (2003).

    Parameters
    ----------
    groups
        (n,) molecule of each particle, from 0; None: every particle by itself.

    Raises
    ------
    InputError
        Constraints between molecules, or without groups; groups with gaps; a pressure that is not finite; no box.
    UnsupportedError
        With ``shift`` or ``Forces``: use monte_carlo_barostat().
    """
    _check(dt=dt, kT=kT, time=time, barostat_time=barostat_time, chain=chain)
    _check_finite(pressure=pressure)
    system = Particles(energy, **system)
    if system.shift is not None or not system.has_energy:
        raise UnsupportedError("nose_hoover_npt() takes no shift and no Forces; use monte_carlo_barostat()")
    _check_groups("nose_hoover_npt", system.constraints, groups)

    def strained(x, box, neighbors, centre):
        """Energy, forces and -dU/d(strain) of the centres, the virial."""

        def of(x, strain):
            return bound(energy, (1.0 + strain) * box, neighbors)(x + strain * centre(x))

        value, (gradient, virial) = jax.value_and_grad(of, argnums=(0, 1))(x, jnp.zeros((), x.dtype))
        return value, -gradient, -virial

    def init(key, positions, velocities=None, *, box, neighbors=None):
        _check_has_box("nose_hoover_npt", box)
        state = system.start(key, positions, velocities, kT, box, neighbors, drift_free=True)
        x = state.positions
        _, _, virial = strained(x, state.box, state.neighbors, molecules(groups, system.masses, x)[1])
        empty = (jnp.zeros(chain, x.dtype), jnp.zeros(chain, x.dtype))
        return state._replace(extra=(virial, jnp.zeros((), x.dtype), empty, empty))

    def step(state):
        x, d = state.positions, state.positions.shape[1]
        dof = system.dof(x, True)
        m = system.mass(x)
        dtype = x.dtype
        count, centre = molecules(groups, system.masses, x)
        inertia = _inertia(dof, kT, time, chain, dtype)
        box_mass = jnp.asarray((dof + d) * kT * barostat_time**2, dtype)
        box_inertia = _inertia(1.0, kT, barostat_time, chain, dtype)
        alpha = 1.0 + 1.0 / max(count - 1, 1)  # 1 + d/(degrees of freedom of the centres)

        def thermostats(v, rate, links, box_links):
            kinetic = system.kinetic(v).astype(dtype)
            links, scale = chain_step(2.0 * kinetic, links, inertia, dof, kT, 0.5 * dt, 1)
            box_links, box_scale = chain_step(box_mass * rate**2, box_links, box_inertia, 1.0, kT, 0.5 * dt, 1)
            return scale * v, box_scale * rate, links, box_links

        def kick_box(v, rate, virial, box):
            twice = 2.0 * system.kinetic(centre(v)).astype(dtype)
            drive = alpha * twice + virial - d * pressure * volume(box, d)
            return rate + 0.5 * dt * drive / box_mass

        def kick(x, v, rate, forces):
            a = 0.25 * dt * alpha * rate
            push = forces / m
            whole, push_whole = centre(v), centre(push)
            moved = whole * jnp.exp(-2.0 * a) + 0.5 * dt * push_whole * jnp.exp(-a) * _sinhc(a)
            return system.project(x, moved + (v - whole) + 0.5 * dt * (push - push_whole))

        virial, rate, links, box_links = state.extra
        v, rate, links, box_links = thermostats(state.velocities, rate, links, box_links)
        rate = kick_box(v, rate, virial, state.box)
        v = kick(x, v, rate, state.forces)
        half = 0.5 * dt * rate
        middle, whole = centre(x), centre(v)
        inner, turning = system.drift(x - middle, v - whole, dt, None)
        x = middle * jnp.exp(2.0 * half) + dt * whole * jnp.exp(half) * _sinhc(half) + inner
        v = whole + turning
        box = state.box * jnp.exp(2.0 * half)
        neighbors = current(state.neighbors, x, box)
        energy, forces, virial = strained(x, box, neighbors, centre)
        v = kick(x, v, rate, forces)
        rate = kick_box(v, rate, virial, box)
        v, rate, links, box_links = thermostats(v, rate, links, box_links)
        state = State(x, v, forces, energy, state.key, box, neighbors, (virial, rate, links, box_links))
        added = (
            0.5 * box_mass * rate**2
            + pressure * volume(box, d)
            + chain_energy(links, inertia, dof, kT)
            + chain_energy(box_links, box_inertia, 1.0, kT)
        )
        return state, system.info(state, dof, added)

    return Integrator(init, step, constraints=system.constraints)


def _check_has_box(name: str, box) -> None:
    if box is None:
        raise InputError(f"{name}() changes the volume of a box: give init one, box=...")


def _check_groups(name: str, constraints, groups) -> None:
    if constraints is not None and (groups is None or not constraints.within(groups)):
        raise InputError(f"constraints in {name}() need groups=, and must join particles of one molecule")


def _sinhc(x):
    """sinh(x)/x, by its series: |x| is small."""
    x2 = x * x
    return 1.0 + x2 / 6.0 * (1.0 + x2 / 20.0 * (1.0 + x2 / 42.0))


def advance(integrator: Integrator, state: State, steps: int, *, levels: int = 2) -> State:
    """The State after ``steps`` steps, made for reverse mode: memory grows as levels * steps^(1/levels).

    The steps are a nest of ``levels`` scans of about equal lengths, and every scan recomputes its body backwards
    (``jax.checkpoint``), so each step is computed about ``levels + 1`` times. ``levels=2`` keeps the square root of
    the number of steps, more levels less, down to the logarithm. Source: A. Griewank, Optim. Methods Softw. 1, 35
    (1992). Forward mode needs none of this. ``neighbors`` stay as they are.

    Raises
    ------
    InputError
        ``steps`` or ``levels`` are not positive.
    """
    if steps < 1 or levels < 1:
        raise InputError(f"advance needs at least one step and one level, got {steps} and {levels}")
    base = max(2, math.ceil(steps ** (1.0 / levels) - 1e-9)) if levels > 1 else steps

    def repeated(block, times):
        return lambda state: jax.lax.scan(lambda s, _: (block(s), None), state, length=times)[0]

    blocks = [jax.checkpoint(lambda state: integrator.step(state)[0])]
    while len(blocks) < levels and base ** len(blocks) < steps:
        blocks.append(jax.checkpoint(repeated(blocks[-1], base)))
    for power, block in reversed(list(enumerate(blocks))):
        times, steps = divmod(steps, base**power)
        if times:
            state = repeated(block, times)(state)
    return state
