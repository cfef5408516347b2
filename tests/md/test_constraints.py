"""Constraints: the analytic and the iterative solution agree, obey the lengths and conserve what they must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import md
from offjax.errors import InputError
from offjax.md import distance_constraints

OH, HH = 0.09572, 0.15139
MASSES = np.array([15.999, 1.008, 1.008])
WATER = np.array([[0.0, 0.0, 0.0], [HH / 2, np.sqrt(OH**2 - HH**2 / 4), 0], [-HH / 2, np.sqrt(OH**2 - HH**2 / 4), 0]])


def waters(n, rng):
    """Rigid waters anywhere, their pairs, lengths and masses."""
    from scipy.spatial.transform import Rotation

    x = np.concatenate([Rotation.random(rng=rng).apply(WATER) + rng.normal(size=3) for _ in range(n)])
    pairs = np.concatenate([3 * k + np.array([[0, 1], [0, 2], [1, 2]]) for k in range(n)])
    return jnp.asarray(x), pairs, np.tile([OH, OH, HH], n), np.tile(MASSES, n)


def test_settle_equals_shake(rng):
    x, pairs, lengths, masses = waters(5, rng)
    moved = x + rng.normal(scale=0.005, size=x.shape)
    analytic, iterative = distance_constraints(pairs, lengths, masses), distance_constraints(pairs, lengths)
    assert len(analytic.triangles) == 5 and not analytic.clusters
    assert not len(iterative.triangles) and iterative.clusters
    m = masses[:, None]
    a, b = analytic.positions(moved, x, m), iterative.positions(moved, x, m)
    np.testing.assert_allclose(a, b, atol=1e-13)
    assert analytic.deviation(a) < 1e-13 and iterative.deviation(b) < 1e-13
    # each water keeps its centre of mass and, about it, its angular momentum
    for k in range(5):
        w = slice(3 * k, 3 * k + 3)
        force = m[w] * (a[w] - moved[w])
        np.testing.assert_allclose(jnp.sum(force, 0), 0, atol=1e-14)
        np.testing.assert_allclose(jnp.sum(jnp.cross(x[w], force), 0), 0, atol=1e-13)
    v = jnp.asarray(rng.normal(size=x.shape))
    np.testing.assert_allclose(analytic.velocities(v, a, m), iterative.velocities(v, a, m), atol=1e-12)


CHAINS = {
    "bond": (2, [[0, 1]]),
    "methyl": (4, [[0, 1], [0, 2], [0, 3]]),
    "long chain": (7, [[i, i + 1] for i in range(6)]),
    "ring": (5, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]),
}


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize(("n", "pairs"), CHAINS.values(), ids=CHAINS)
def test_clusters_of_every_shape_are_solved(n, pairs, dimension, rng):
    # two copies with numbers interleaved, beside a free particle
    pairs = np.concatenate([2 * np.array(pairs), 2 * np.array(pairs) + 1])
    angle = 2 * np.pi * np.arange(n) / n
    shape = np.stack([np.cos(angle), np.sin(angle), 0.3 * np.sin(2 * angle)], 1)[:, :dimension]
    x = jnp.asarray(np.concatenate([np.repeat(shape, 2, 0), np.zeros((1, dimension))]))
    lengths = np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1)
    masses = rng.uniform(1, 16, size=(2 * n + 1, 1))
    constraints = distance_constraints(pairs, lengths)
    moved = x + rng.normal(scale=0.03, size=x.shape)
    found = constraints.positions(moved, x, masses)
    assert constraints.deviation(moved) > 1e-3
    assert constraints.deviation(found) < 1e-13
    assert np.array_equal(found[-1], moved[-1])
    v = constraints.velocities(jnp.asarray(rng.normal(size=x.shape)), found, masses)
    d, dv = (y[pairs[:, 0]] - y[pairs[:, 1]] for y in (found, v))
    np.testing.assert_allclose(jnp.sum(d * dv, -1), 0, atol=1e-13)
    assert constraints.count == len(pairs)


@pytest.mark.parametrize("with_masses", [True, False])
def test_the_correction_is_differentiable(with_masses, rng):
    x, pairs, lengths, masses = waters(1, rng)
    constraints = distance_constraints(pairs, lengths, masses if with_masses else None)
    moved = x + rng.normal(scale=0.004, size=x.shape)
    weight = jnp.asarray(rng.normal(size=x.shape))

    def of(moved):
        return jnp.sum(weight * constraints.positions(moved, x, masses[:, None]))

    gradient = jax.grad(of)(moved)
    np.testing.assert_allclose(jax.jacfwd(of)(moved), gradient, atol=1e-12)
    direction, h = rng.normal(size=x.shape), 1e-6
    difference = (of(moved + h * direction) - of(moved - h * direction)) / (2 * h)
    assert jnp.sum(gradient * direction) == pytest.approx(float(difference), rel=1e-7)


def test_wrong_constraints_are_refused():
    for pairs, message in (([[0, 0]], "two different"), ([[0, 1], [1, 0]], "once"), ([[-1, 1]], "numbers from 0")):
        with pytest.raises(InputError, match=message):
            distance_constraints(pairs, 1.0)
    with pytest.raises(InputError, match="positive"):
        distance_constraints([[0, 1]], 0.0)
    flat = distance_constraints([[0, 1], [0, 2], [1, 2]], [OH, OH, HH], MASSES)
    with pytest.raises(InputError, match="three dimensions"):
        flat.positions(jnp.zeros((3, 2)), jnp.zeros((3, 2)), 1.0)


def test_a_start_that_does_not_obey_the_constraints_is_refused(rng):
    x, pairs, lengths, masses = waters(1, rng)
    constraints = distance_constraints(pairs, lengths, masses)
    integrator = md.velocity_verlet(lambda x: 0.0 * jnp.sum(x), 0.002, masses=masses, constraints=constraints)
    with pytest.raises(InputError, match=r"off by 2 %. Start from constraints.positions"):
        integrator.init(jax.random.key(0), 1.02 * x)
    start = constraints.positions(1.02 * x, 1.02 * x, masses[:, None])
    moving = jax.jit(lambda speed: integrator.init(jax.random.key(0), start, speed * start))(1.0)
    assert np.array_equal(moving.positions, start)


def test_no_constraints_change_nothing(rng):
    x = jnp.asarray(rng.normal(size=(3, 3)))
    none = distance_constraints(np.zeros((0, 2)), np.zeros(0))
    assert np.array_equal(none.positions(x, x, 1.0), x) and none.deviation(x) == 0 and none.count == 0


@pytest.mark.parametrize("with_masses", [True, False])
def test_observables_have_derivatives_in_the_lengths(with_masses, rng):
    x, pairs, lengths, masses = waters(2, rng)
    pairs, lengths = np.concatenate([pairs, [[6, 7], [7, 8]]]), np.append(lengths, [0.11, 0.12])
    x = jnp.concatenate([x, x[:1] + jnp.array([[0.3, 0, 0], [0.41, 0, 0], [0.45, 0.11, 0]])])
    masses = np.append(masses, [12.0, 14.0, 16.0])
    known = distance_constraints(pairs, lengths, masses if with_masses else None)
    assert (len(known.triangles), len(known.clusters)) == ((2, 1) if with_masses else (0, 2))
    m, charges = masses[:, None], jnp.asarray(rng.normal(size=len(x)))
    v = jnp.asarray(rng.normal(size=x.shape)) / jnp.sqrt(m)

    def energy(x):
        return jnp.sum(charges[:, None] * x**2) + jnp.sum(jnp.sin(3.0 * x))

    def observable(side, other, constraints=None):
        every = jnp.asarray(lengths).at[jnp.array([0, 1, 3, 4])].set(side).at[-1].set(other)
        rigid = known.with_lengths(every) if constraints is None else constraints(np.asarray(every))
        verlet = md.velocity_verlet(energy, 0.02, masses=masses, constraints=rigid)
        state = verlet.init(jax.random.key(0), rigid.positions(x, x, m), velocities=v)
        return jnp.sum(jnp.cos(2.0 * md.advance(verlet, state, 30).positions))

    of_lengths = jax.jit(jax.value_and_grad(observable, (0, 1)))
    value, gradient = of_lengths(OH, 0.12)
    anew = observable(OH, 0.12, lambda every: distance_constraints(pairs, every, masses if with_masses else None))
    np.testing.assert_allclose(value, anew, rtol=1e-12)
    for k, step in enumerate(np.eye(2) * 1e-7):
        up, down = (of_lengths(OH + s * step[0], 0.12 + s * step[1])[0] for s in (1, -1))
        np.testing.assert_allclose(gradient[k], (up - down) / 2e-7, rtol=1e-6)
        assert abs(gradient[k]) > 1e-2


def test_wrong_lengths_are_refused(rng):
    _, pairs, lengths, masses = waters(1, rng)
    known = distance_constraints(pairs, lengths, masses)
    with pytest.raises(InputError, match="one length for each of 3"):
        known.with_lengths(lengths[:2])
    with pytest.raises(InputError, match="positive"):
        known.with_lengths(-lengths)
    with pytest.raises(InputError, match="with_lengths"):
        jax.jit(lambda r: distance_constraints(pairs, r, masses).deviation(jnp.zeros((3, 3))))(lengths)
