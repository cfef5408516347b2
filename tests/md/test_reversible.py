"""Reverse mode by running backwards: against plain differentiation and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import md
from offjax.errors import DifferentiationError, InputError

X = jnp.array([[0.0, 0.1], [1.1, 0.0], [0.4, 1.0]])
V = 0.3 * jnp.array([[0.2, 1.0], [-0.5, 0.1], [0.7, -0.4]])
KINDS = {
    "velocity Verlet": {},
    "Langevin": {"kT": 0.4, "friction": 0.5, "key": jax.random.key(2)},
}


def observable(kind, run):
    """A function of (sigma, epsilon, positions, masses, dt): sigma is an argument of the energy, epsilon is not."""

    def of(sigma, epsilon, x, masses, dt):
        pair = md.pair_energy(md.lennard_jones, md.free().displacement)
        last, v = run(
            lambda x, sigma: pair(x, sigma=sigma, epsilon=epsilon), x, V, sigma, masses=masses, dt=dt, **KINDS[kind]
        )
        return jnp.sum(last[0] * last[1]) + jnp.sum(v[2] ** 2)

    return of


def unrolled(energy, x, v, *args, masses, dt, kT=None, friction=0.0, key=None, steps):
    """The same steps, differentiated as they are written."""
    m = masses[:, None]

    def force(x):
        return -jax.grad(energy)(x, *args)

    for k in range(steps):
        v = v + 0.5 * dt * force(x) / m
        x = x + 0.5 * dt * v
        if key is not None:
            c = jnp.exp(-friction * dt)
            noise = jax.random.normal(jax.random.fold_in(key, k), v.shape, v.dtype)
            v = c * v + jnp.sqrt((1 - c**2) * kT / m) * noise
        x = x + 0.5 * dt * v
        v = v + 0.5 * dt * force(x) / m
    return x, v


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_trajectory_are_those_of_its_steps_and_of_differences(kind):
    arguments = (jnp.asarray(1.0), jnp.asarray(0.8), X, jnp.array([1.0, 2.0, 0.7]), jnp.asarray(0.02))

    def short(*a, **options):
        return unrolled(*a, steps=4, **options)

    def same(*a, **options):
        return md.reversible_trajectory(*a, steps=4, **options)

    every = tuple(range(5))
    expected = jax.jit(jax.value_and_grad(observable(kind, short), every))(*arguments)
    found = jax.jit(jax.value_and_grad(observable(kind, same), every))(*arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)

    def long(*a, **options):
        return md.reversible_trajectory(*a, steps=100, **options)

    of = jax.jit(jax.value_and_grad(observable(kind, long)))
    exact, h = of(*arguments)[1], 2e-5
    slopes = [(of(1 + s, *arguments[1:])[0] - of(1 - s, *arguments[1:])[0]) / (2 * s) for s in (h, h / 2)]
    np.testing.assert_allclose(exact, (4 * slopes[1] - slopes[0]) / 3, rtol=1e-6)


PAIRS, LENGTHS = np.array([[0, 1], [0, 2], [1, 2], [3, 4]]), jnp.array([0.8, 0.8, 1.1, 0.9])
RIGID_MASSES = jnp.array([2.0, 0.5, 0.5, 0.7, 1.5])
RIGID = md.distance_constraints(PAIRS, LENGTHS, RIGID_MASSES)  # one solved analytically, one by iteration


def soft(x, sigma):
    pair = md.pair_energy(lambda r: 3.0 * jnp.exp(-((r / sigma) ** 2)), md.free().displacement)
    return pair(x) + 0.5 * jnp.sum(x**2)


def rigid_start():
    x = jnp.array([[0.0, 0, 0], [0.78, 0.1, 0.1], [-0.2, 0.75, 0.1], [1.2, 1.3, 0.4], [1.9, 1.0, 0.9]])
    x = RIGID.positions(x, x, RIGID_MASSES[:, None])
    return x, 0.4 * jax.random.normal(jax.random.key(3), x.shape)


def rigid(constraints, kind, sigma, x, v, masses, dt):
    known = {"masses": masses, "dt": dt, "steps": 60, "constraints": constraints, **KINDS[kind]}
    return md.reversible_trajectory(soft, x, v, sigma, **known)


def test_steps_with_constraints_are_those_of_velocity_verlet():
    x, v = rigid_start()
    last, speeds = jax.jit(partial(rigid, RIGID, "velocity Verlet"))(1.7, x, v, RIGID_MASSES, 0.03)
    integrator = md.velocity_verlet(lambda x: soft(x, 1.7), 0.03, masses=RIGID_MASSES, constraints=RIGID)
    state = integrator.init(jax.random.key(0), x, v)
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 60, lambda _, s: integrator.step(s)[0], s))(state)
    np.testing.assert_allclose(last, state.positions, atol=1e-11)
    np.testing.assert_allclose(speeds, state.velocities, atol=1e-11)


def test_langevin_dynamics_with_constraints_runs_backwards():
    constraints = md.distance_constraints(PAIRS[:2], LENGTHS[:2])

    def observable(*arguments):
        x, v = rigid(constraints, "Langevin", *arguments)
        return jnp.sum(x[0] * x[3]) + jnp.sum(v[1] * v[4]), (x, v)

    of = jax.jit(jax.value_and_grad(observable, tuple(range(5)), has_aux=True))
    x, v = rigid_start()
    arguments = (jnp.asarray(1.7), x, v, RIGID_MASSES, jnp.asarray(0.03))
    (_, (last, speeds)), found = of(*arguments)
    assert constraints.deviation(last) < 1e-13 and jnp.max(jnp.abs(last - x)) > 0.3
    bonds, rates = (y[PAIRS[:2, 0]] - y[PAIRS[:2, 1]] for y in (last, speeds))
    np.testing.assert_allclose(jnp.sum(bonds * rates, 1), 0, atol=1e-13)
    h = 1e-4
    for k, gradient in enumerate(found):
        direction = jax.random.normal(jax.random.key(k), gradient.shape)
        moved = [[a + s * direction if n == k else a for n, a in enumerate(arguments)] for s in (h, -h, h / 2, -h / 2)]
        a, b, c, d = (of(*m)[0][0] for m in moved)
        slope = (4 * (c - d) / h - (a - b) / (2 * h)) / 3
        assert jnp.sum(gradient * direction) == pytest.approx(float(slope), rel=1e-6), k


def test_second_derivatives_are_reverse_over_reverse_and_forward_mode_is_refused():
    def last(sigma, run):
        energy = md.pair_energy(md.lennard_jones, md.free().displacement)
        masses = jnp.array([1.0, 2.0, 0.7])
        x, _ = run(lambda x: energy(x, sigma=sigma), X, V, masses=masses, dt=0.02, steps=4, **KINDS["Langevin"])
        return jnp.sum(x[0] * x[1])

    twice = lambda run: jax.jit(jax.grad(jax.grad(lambda s: last(s, run))))(1.0)  # noqa: E731
    assert twice(md.reversible_trajectory) == pytest.approx(float(twice(unrolled)), rel=1e-8)
    for forward in (jax.jacfwd, jax.hessian):
        with pytest.raises(DifferentiationError, match="reversible_trajectory has no forward mode"):
            forward(lambda s: last(s, md.reversible_trajectory))(1.0)


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="kT, friction and key"):
        md.reversible_trajectory(jnp.sum, X, V, dt=0.1, steps=2, kT=1.0)
    with pytest.raises(InputError, match="step"):
        md.reversible_trajectory(jnp.sum, X, V, dt=0.1, steps=0)
    with pytest.raises(InputError, match="dimension"):
        md.reversible_trajectory(jnp.sum, X, V[0], dt=0.1, steps=1)
    x, v = rigid_start()
    with pytest.raises(InputError, match="do not obey the constraints: a distance is off by 5 %"):
        md.reversible_trajectory(jnp.sum, 1.05 * x, v, dt=0.1, steps=1, constraints=RIGID)
