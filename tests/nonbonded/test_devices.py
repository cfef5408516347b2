"""What is written for other devices than CPUs: more at once, and the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import devices, md
from offjax.nonbonded import blocks, neighbors, pme
from offjax.nonbonded.neighbors import CHUNK, neighbor_list
from tests import liquids
from tests.nonbonded.test_neighbors import BOXES, CAPACITY, PAIRS, all_pairs, assert_close, example, potential


@pytest.fixture
def elsewhere(monkeypatch):
    """As on another device, with steps so small that the few atoms of a test need several."""
    monkeypatch.setattr(devices, "on_cpu", lambda: False)
    monkeypatch.setattr(neighbors, "_TOGETHER", 3)
    monkeypatch.setattr(blocks, "_ROWS", 2 * CHUNK)
    monkeypatch.setattr(blocks, "_PLAIN_ROWS", 3 * CHUNK)
    monkeypatch.setattr(pme, "_TOGETHER_ON_GPU", 7)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("plain", [False, True])
def test_sums_over_a_list(rng, elsewhere, plain):
    x, h, parameters = example(rng, BOXES["octahedron"], 0.8)
    listed = neighbor_list(x, h, cutoff=0.8, skin=0.05, exclusions=PAIRS, capacity=CAPACITY)
    assert blocks._steps(listed, blocks._ROWS) == (2 * CHUNK, 3)  # the last step has rows that are not in the list

    def of_list(x, h, parameters):
        return blocks.pair_energy(potential, listed, x, h, parameters, plain=plain)

    got = jax.jit(jax.value_and_grad(of_list, (0, 1, 2)))(x, h, parameters)
    assert_close(got, jax.value_and_grad(all_pairs, (0, 1, 2))(x, h, parameters, 0.8))
    assert_close(of_list(x, h, parameters), got[0])


def test_charges_on_a_grid(rng, elsewhere):
    x, charge = jnp.asarray(rng.uniform(-1.0, 2.0, (20, 3))), jnp.asarray(rng.normal(size=20))
    box = jnp.diag(jnp.array([1.5, 1.6, 1.7]))
    got = pme.spread(x, charge, box, (8, 9, 10))
    one_by_one = sum(pme.spread(x[k : k + 1], charge[k : k + 1], box, (8, 9, 10)) for k in range(20))
    np.testing.assert_allclose(got, one_by_one, atol=1e-14)


def products(jaxpr):
    """The precision of every product of matrices of float32 numbers in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and equation.invars[0].aval.dtype == np.float32:
            yield equation.params["precision"]
    for inner in subprograms(jaxpr):
        yield from products(inner)


def subprograms(jaxpr):
    """The programs inside a program."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield getattr(value, "jaxpr", value)


def test_products_of_float32_are_not_rounded_further():
    """GPUs would round their factors to 10 bits."""
    molecules, x = liquids.liquid({"water": 40}, np.eye(3) * 1.1)
    system = offjax.System.from_smirnoff("tip4p_fb.offxml", molecules, box=np.eye(3) * 1.1)
    energy, x = system.to_jax(cutoff=0.4), jnp.asarray(x, "float32")
    box, p = jnp.asarray(system.box, "float32"), system.parameters
    listed = energy.neighbor_list(energy.place_sites(p, x), box, skin=0.05)
    every = jax.make_jaxpr(jax.value_and_grad(energy, (0, 1, 2)))(p, x, box, listed)
    rebuild = jax.make_jaxpr(lambda x, box: listed.update(energy.place_sites(p, x), box, rebuild=True))(x, box)
    pair = md.distance_constraints(np.array([[0, 1], [1, 2]]), np.array([0.1, 0.1]))
    shake = jax.make_jaxpr(lambda x: pair.velocities(pair.positions(x, x + 0.01, 1.0), x, 1.0))(x[:3])
    for program in (every, rebuild, shake):
        found = list(products(program.jaxpr))
        assert found and all(one == (jax.lax.Precision.HIGHEST,) * 2 for one in found)
