"""Neighbour lists and sums over them beside all pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax.errors import InputError, NeighborListError
from offjax.nonbonded.blocks import pair_energy
from offjax.nonbonded.neighbors import CHUNK, Capacity, neighbor_list

N = 70
CAPACITY = Capacity(groups=27, parts=27 * 3, blocks=27 * 9, block_rows=15, rows=5 * CHUNK)
PAIRS = np.random.default_rng(7).choice(N, size=(40, 2), replace=True)
PAIRS = PAIRS[PAIRS[:, 0] != PAIRS[:, 1]]
BOXES = {
    "open": None,
    "cube": np.eye(3),
    "brick": np.diag([1.0, 1.7, 1.2]),
    "dodecahedron": np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, np.sqrt(0.5)]]) * np.sqrt(2),
    "octahedron": np.array([[1, 0, 0], [1 / 3, np.sqrt(8) / 3, 0], [-1 / 3, np.sqrt(2) / 3, np.sqrt(6) / 3]]) * 1.3,
}


def potential(r2, first, second):
    """Smooth at the cutoff only by chance: pairs that are missed or counted twice show."""
    charge = first[0] * second[0]
    return charge / jnp.sqrt(r2 + 0.01) + (first[1] + second[1]) ** 2 * jnp.exp(-3.0 * r2)


def all_pairs(x, h, parameters, cutoff):
    """The definition: every pair and every image, one after the other."""
    keep = np.ones((N, N, 1), bool)
    keep[np.arange(N), np.arange(N)] = keep[PAIRS[:, 0], PAIRS[:, 1]] = keep[PAIRS[:, 1], PAIRS[:, 0]] = False
    difference = (x[None, :] - x[:, None])[:, :, None, :]
    if h is not None:
        fractional = x @ jnp.linalg.inv(h)
        x = x - jnp.floor(fractional) @ h
        images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
        difference = (x[None, :] - x[:, None])[:, :, None, :] + jnp.asarray(images, x.dtype) @ h
    r2 = jnp.sum(difference**2, axis=-1)
    inside = keep & (r2 < cutoff**2)
    first, second = (tuple(p.reshape(shape) for p in parameters) for shape in ((-1, 1, 1), (1, -1, 1)))
    return 0.5 * jnp.sum(jnp.where(inside, potential(jnp.where(inside, r2, 1.0), first, second), 0.0))


def example(rng, box, cutoff, n=N, spread=1.0):
    """Random atoms, some outside the cell, in a box 2.05 to 4 times the cutoff wide, and their parameters."""
    h = None if box is None else jnp.asarray(box * cutoff * rng.uniform(2.05, 4.0) / np.min(np.diag(box)))
    s = rng.uniform(-1.5, 1.5, size=(n, 3)) * spread
    x = jnp.asarray(s * cutoff * 1.5 if h is None else s @ h)
    parameters = (jnp.asarray(rng.normal(size=n)), jnp.asarray(rng.uniform(size=n)))
    return x, h, parameters


@partial(jax.jit, static_argnums=3)
def both(x, h, parameters, cutoff, neighbors):
    """(energy, gradients in positions, parameters and box) of the list and of all pairs."""
    argnums = (0, 2) if h is None else (0, 1, 2)

    def listed(x, h, parameters):
        return pair_energy(potential, neighbors, x, h, parameters)

    def definition(x, h, parameters):
        return all_pairs(x, h, parameters, cutoff)

    return [jax.value_and_grad(f, argnums)(x, h, parameters) for f in (listed, definition)]


def assert_close(got, want, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, float(jnp.max(jnp.abs(b)))))


@pytest.mark.parametrize("skin", [0.0, 0.3])
@pytest.mark.parametrize("shape", BOXES)
def test_listed_pairs_give_the_energy_and_the_gradients_of_all_pairs(rng, shape, skin):
    cutoff = 0.8
    for _ in range(10):
        x, h, parameters = example(rng, BOXES[shape], cutoff, spread=rng.choice([0.2, 1.0]))
        if h is not None and cutoff + skin > 1 / np.linalg.norm(np.linalg.inv(h), axis=0).max():
            continue
        neighbors = neighbor_list(x, h, cutoff=cutoff, skin=skin, exclusions=PAIRS, capacity=CAPACITY)
        assert_close(*both(x, h, parameters, cutoff, neighbors))


@pytest.mark.parametrize("shape", ["open", "octahedron"])
def test_a_list_is_valid_until_an_atom_has_moved_half_the_skin(rng, shape):
    cutoff, skin = 0.8, 0.2
    x, h, parameters = example(rng, BOXES[shape], cutoff)
    neighbors = neighbor_list(x, h, cutoff=cutoff, skin=skin, exclusions=PAIRS, capacity=CAPACITY)
    step = rng.normal(size=x.shape)
    step *= 0.5 * skin / np.linalg.norm(step, axis=1, keepdims=True)
    near, far = x + 0.999 * step, x.at[3].add(1.001 * step[3])
    if h is not None:  # an image of an atom is where the atom is
        near, far = near + rng.integers(-2, 3, size=x.shape) @ h, far + rng.integers(-2, 3, size=x.shape) @ h
    assert not neighbors.stale(near, h) and neighbors.stale(far, h)
    assert_close(*both(near, h, parameters, cutoff, neighbors))
    kept, built = neighbors.update(near, h), neighbors.update(far, h)
    assert_close(kept.positions, neighbors.positions)
    assert not built.stale(far, h)
    assert_close(*both(far, h, parameters, cutoff, built))
    assert not jnp.array_equal(neighbors.update(near, h, rebuild=True).positions, neighbors.positions)


def test_a_list_follows_a_box_that_changes_each_step(rng):
    cutoff, skin = 0.8, 0.2
    x, h, parameters = example(rng, BOXES["dodecahedron"], cutoff)
    h = h * 2.3 / jnp.min(jnp.diag(h)) * cutoff
    neighbors = neighbor_list(x, h, cutoff=cutoff, skin=skin, exclusions=PAIRS, capacity=CAPACITY)
    rebuilt = 0
    for _ in range(12):
        strain = jnp.asarray(np.tril(rng.normal(scale=0.02, size=(3, 3))))
        h, x = h + h @ strain, x + x @ strain + rng.normal(scale=0.01, size=x.shape)
        h = h * jnp.maximum(1.0, 2.1 * cutoff / jnp.min(jnp.diag(h)))
        updated = neighbors.update(x, h)
        rebuilt += not jnp.array_equal(updated.box, neighbors.box)
        neighbors = updated
        assert not neighbors.overflow
        assert_close(*both(x, h, parameters, cutoff, neighbors))
    assert 1 < rebuilt < 12


def test_lists_of_replicas_under_vmap(rng):
    cutoff, skin = 0.8, 0.2
    examples = [example(rng, BOXES["brick"], cutoff) for _ in range(3)]
    lists = [neighbor_list(x, h, cutoff=cutoff, skin=skin, exclusions=PAIRS, capacity=CAPACITY) for x, h, _ in examples]
    x, h, parameters = jax.tree.map(lambda *v: jnp.stack(v), *examples)
    neighbors = jax.tree.map(lambda *v: jnp.stack(v), *lists)
    moved = x.at[1].add(0.3 * rng.normal(size=x[1].shape))
    updated = jax.jit(jax.vmap(lambda n, x, h: n.update(x, h)))(neighbors, moved, h)
    np.testing.assert_array_equal(jnp.any(updated.positions != neighbors.positions, axis=(1, 2)), [False, True, False])
    got, want = jax.vmap(lambda x, h, p, n: both(x, h, p, cutoff, n))(moved, h, parameters, updated)
    assert_close(got, want)


def test_what_a_list_cannot_hold_is_never_silent(rng):
    cutoff, skin = 0.8, 0.2
    x, h, parameters = example(rng, BOXES["cube"], cutoff)
    h = 3.5 * cutoff * jnp.eye(3)
    energy = jax.jit(lambda n, x: jax.value_and_grad(partial(pair_energy, potential, n))(x, h, parameters))
    neighbors = neighbor_list(x, h, cutoff=cutoff, skin=skin, exclusions=PAIRS)
    crowd = x.at[:].multiply(0.2)
    full = neighbors.update(crowd, h)
    assert full.overflow
    assert all(bool(jnp.all(jnp.isnan(v))) for v in energy(full, crowd))
    with pytest.raises(NeighborListError, match="overflowed"):
        pair_energy(potential, full, crowd, h, parameters)
    larger = full.reallocated(crowd, h)
    assert not larger.overflow
    assert_close(*both(crowd, h, parameters, cutoff, larger))
    with pytest.raises(NeighborListError, match="fit"):
        neighbor_list(crowd, h, cutoff=cutoff, skin=skin, capacity=Capacity(27, 81, 243, 1, CHUNK))

    assert all(bool(jnp.all(jnp.isnan(v))) for v in energy(neighbors, crowd))  # stale
    with pytest.raises(NeighborListError, match="out of date"):
        pair_energy(potential, neighbors, crowd, h, parameters)

    broken = x.at[5, 1].set(jnp.nan)
    assert neighbors.stale(broken, h)
    lost = neighbors.update(broken, h)
    assert lost.overflow and bool(jnp.isnan(energy(lost, broken)[0]))
    with pytest.raises(NeighborListError, match="atom 5"):
        neighbor_list(broken, h, cutoff=cutoff, skin=skin)
    assert not lost.update(x, h).overflow  # and a list recovers

    tight = jnp.eye(3) * 1.9 * cutoff
    assert neighbors.update(x, tight).overflow
    with pytest.raises(InputError, match="half"):
        neighbor_list(x, tight, cutoff=cutoff, skin=skin)
    with pytest.raises(InputError, match="height"):
        neighbor_list(x, jnp.eye(3) * 2 * cutoff, cutoff=cutoff, skin=1.1 * cutoff)
    with pytest.raises(InputError, match="reduced"):
        neighbor_list(x, jnp.ones((3, 3)), cutoff=cutoff, skin=skin)


@pytest.mark.slow
def test_each_level_of_the_search_reports_its_overflow(rng):
    x = jnp.asarray(rng.uniform(size=(700, 3)) * 3.0)
    good = neighbor_list(x, 3.0 * jnp.eye(3), cutoff=1.0, skin=0.1, headroom=1.0).capacity
    assert min(good) > 1
    for name in Capacity._fields:
        less = getattr(good, name) - (CHUNK if name == "rows" else 1)
        with pytest.raises(NeighborListError, match="fit"):
            neighbor_list(x, 3.0 * jnp.eye(3), cutoff=1.0, skin=0.1, capacity=good._replace(**{name: less}))


def test_two_dimensions_are_three_with_z_zero(rng):
    x = jnp.asarray(np.pad(rng.uniform(size=(N, 2)) * 4.0, ((0, 0), (0, 1))))
    h = jnp.diag(jnp.array([4.0, 4.0, 2.5]))
    parameters = (jnp.ones(N), jnp.ones(N))
    neighbors = neighbor_list(x, h, cutoff=1.1, skin=0.2, exclusions=PAIRS)
    got, want = both(x, h, parameters, 1.1, neighbors)
    assert_close(got, want)
    assert jnp.all(got[1][0][:, 2] == 0)


def test_second_derivatives_fall_back_to_plain_differentiation(rng):
    cutoff = 0.8
    x, h, parameters = example(rng, BOXES["octahedron"], cutoff)
    neighbors = neighbor_list(x, h, cutoff=cutoff, skin=0.05, exclusions=PAIRS, capacity=CAPACITY)
    v = jnp.asarray(rng.normal(size=x.shape))
    w = jnp.asarray(np.tril(rng.normal(size=(3, 3))))

    def forces_along(f):
        def along(x, h, p):  # a number made of forces and the derivative in the box
            dx, dh = jax.grad(f, (0, 1))(x, h, p)
            return jnp.sum(dx * v) + jnp.sum(dh * w)

        return jax.jit(jax.value_and_grad(along, (0, 1, 2)))(x, h, parameters)

    got = forces_along(lambda x, h, p: pair_energy(potential, neighbors, x, h, p))
    assert_close(got, forces_along(lambda x, h, p: all_pairs(x, h, p, cutoff)), rtol=1e-8)
    forward = jax.jit(jax.jacfwd(lambda s: pair_energy(potential, neighbors, x + s * v, h + s * w, parameters)))(0.0)
    gradient = jax.jit(jax.grad(lambda s: all_pairs(x + s * v, h + s * w, parameters, cutoff)))(0.0)
    assert_close(forward, gradient)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_few_atoms(n):
    x = jnp.asarray(np.arange(3 * n, dtype=float).reshape(n, 3) * 0.1 / 3)
    neighbors = neighbor_list(x, None, cutoff=0.4, skin=0.1)
    energy = pair_energy(potential, neighbors, x, None, (jnp.ones(n), jnp.ones(n)))
    r2 = 0.03 * np.array([(i - j) ** 2 for i in range(n) for j in range(i)])
    r2 = r2[r2 < 0.16]
    assert_close(energy, jnp.sum(potential(r2, (1.0, 1.0), (1.0, 1.0))))


def test_float32_pairs_are_summed_in_float64(rng):
    x, h, parameters = example(rng, BOXES["brick"], 0.8)
    exact = pair_energy(potential, neighbor_list(x, h, cutoff=0.8, skin=0.1, capacity=CAPACITY), x, h, parameters)
    x, h, parameters = jax.tree.map(lambda v: v.astype("float32"), (x, h, parameters))
    neighbors = neighbor_list(x, h, cutoff=0.8, skin=0.1, capacity=CAPACITY)
    value, gradient = jax.value_and_grad(
        lambda x: pair_energy(potential, neighbors, x, h, parameters, accumulate="float64")
    )(x)
    assert value.dtype == np.float64 and gradient.dtype == np.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    double = x.astype("float64")
    assert neighbors.update(double, h, rebuild=True).positions.dtype == np.float32  # a list may follow such positions,
    with pytest.raises(InputError, match="float32"):  # but energies are not rounded unasked
        pair_energy(potential, neighbors, double, h, parameters)
