"""Behler-Parrinello networks: symmetry functions by their definition, invariances, lists, and corrected Systems."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offjax import md
from offjax.errors import InputError, UnsupportedError
from offjax.md.neural import BehlerParrinello, Corrected, SymmetryFunctions
from offjax.nonbonded.neighbors import neighbor_list

KEY = jax.random.key(3)
RADIAL, ANGULAR = ((2.0, 0.0), (8.0, 0.9)), ((0.3, 1, 1), (0.7, 2, -1))
SYMMETRY = SymmetryFunctions(1.5, RADIAL, ANGULAR, most_neighbors=11)
SIDE = 4.0
BOX = jnp.array([[SIDE, 0, 0], [0.7, SIDE, 0], [-0.3, 0.5, SIDE]])
SPECIES = (0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0)
NETWORK = BehlerParrinello(SYMMETRY, md.periodic().displacement, key=KEY, hidden=(5,), species=SPECIES)
X = np.random.default_rng(5).uniform(size=(12, 3)) * [2.5, 2.5, SIDE]

features = jax.jit(NETWORK.features)
derivatives = jax.jit(jax.value_and_grad(NETWORK, argnums=(0, 1)))


def defined(x, species, kinds=2):
    """The symmetry functions as the equations say, in loops."""
    found = []
    for i in range(len(x)):
        d = np.asarray(md.periodic(BOX).displacement(x, x[i]))
        r = np.linalg.norm(d, axis=1)
        near = [j for j in range(len(x)) if j != i and r[j] < 1.5]
        fc = 0.5 * (np.cos(np.pi * r / 1.5) + 1)
        row = [
            sum(np.exp(-eta * (r[j] - c) ** 2) * fc[j] for j in near if species[j] == s)
            for s in range(kinds)
            for eta, c in RADIAL
        ]
        for a in range(kinds):
            for b in range(a, kinds):
                for eta, zeta, sign in ANGULAR:
                    row.append(
                        sum(
                            2.0 ** (1 - zeta)
                            * (1 + sign * (d[j] @ d[k]) / r[j] / r[k]) ** zeta
                            * np.exp(-eta * (r[j] ** 2 + r[k] ** 2))
                            * fc[j]
                            * fc[k]
                            for j in near
                            for k in near
                            if j < k and sorted((species[j], species[k])) == [a, b]
                        )
                    )
        found.append(row)
    return np.array(found)


@pytest.fixture(scope="module")
def listed():
    return neighbor_list(X, BOX, cutoff=1.6, skin=0.3)


def test_symmetry_functions_are_those_of_the_equations():
    found = features(X, BOX)
    assert found.shape == (12, SYMMETRY.count(2)) and np.max(found) > 0.5
    np.testing.assert_allclose(found, defined(X, SPECIES), atol=1e-12)


def test_energy_forces_and_stress_with_a_neighbour_list_are_those_without(listed):
    dense, lists = derivatives(X, BOX), derivatives(X, BOX, listed)
    assert abs(dense[0]) > 0.1
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(lists), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-12)
    moved = X + np.linspace(0, 1, 12)[:, None]
    assert np.isnan(derivatives(moved, BOX, listed)[0])  # stale


def test_the_energy_does_not_change_under_rotation_and_permutation_of_equals():
    free = BehlerParrinello(SYMMETRY, md.free().displacement, key=KEY, hidden=(5,), species=SPECIES)
    energy = jax.jit(lambda x: free(x))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    swapped = X[[2, 1, 0, *range(3, 12)]]
    for y in (X @ turn + 3.0, swapped):
        np.testing.assert_allclose(energy(y), energy(X), atol=1e-12)
    assert abs(energy(X[[1, 0, *range(2, 12)]]) - energy(X)) > 1e-3


def test_derivatives_are_right_and_finite_for_coinciding_atoms():
    v = np.random.default_rng(0).normal(size=X.shape)
    exact = np.sum(derivatives(X, BOX)[1][0] * v)
    h = 1e-4
    slopes = [(derivatives(X + s * v, BOX)[0] - derivatives(X - s * v, BOX)[0]) / (2 * s) for s in (h, h / 2)]
    np.testing.assert_allclose(exact, (4 * slopes[1] - slopes[0]) / 3, rtol=1e-8)
    together = np.concatenate([X[:1], X[:1], X[2:]])
    assert all(np.isfinite(g).all() for g in derivatives(together, BOX)[1])
    forward = jax.jit(lambda x, v: jax.jvp(lambda x: NETWORK(x, BOX), (x,), (v,)))
    assert np.isfinite(forward(together, v)[1])
    np.testing.assert_allclose(forward(X, v)[1], exact, rtol=1e-10)


def test_too_many_neighbours_and_wrong_input_are_not_silent(listed):
    few = SymmetryFunctions(1.5, RADIAL, most_neighbors=2)
    crowded = jax.jit(BehlerParrinello(few, md.periodic().displacement, key=KEY, hidden=()).features)
    assert np.isnan(crowded(X, BOX)).all()
    assert np.isnan(crowded(X, BOX, listed)).all()
    with pytest.raises(InputError, match="shorter"):
        NETWORK(X, BOX, replace(listed, cutoff=1.4))
    with pytest.raises(InputError, match="leaves out pairs"):
        NETWORK(X, BOX, replace(listed, exclusions=jnp.zeros((12, 2), jnp.int32)))
    with pytest.raises(InputError, match="12 species"):
        NETWORK(X[:5], BOX)
    with pytest.raises(InputError, match="zeta"):
        SymmetryFunctions(1.5, RADIAL, ((0.1, 1.5, 1),))


def test_a_network_learns_and_runs():
    """Its parameters are an ordinary pytree; the energy of a pair potential is learned from eight cells."""
    target = md.pair_energy(partial(md.morse, epsilon=1.0, alpha=2.0), md.periodic().displacement)
    symmetry = SymmetryFunctions(1.9, ((1.0, 0.0), (4.0, 1.0)), most_neighbors=11)
    network = BehlerParrinello(symmetry, md.periodic().displacement, key=KEY, hidden=(6,))

    @jax.jit
    def prepared(keys):
        x = jax.vmap(lambda k: X + 0.2 * jax.random.normal(k, X.shape))(keys)
        return jax.vmap(lambda x: target(x, BOX))(x), jax.vmap(lambda x: network.features(x, BOX))(x)

    energies, features = prepared(jax.random.split(KEY, 8))
    network = network.standardized(features, energies)

    def loss(network):
        found = jnp.sum(jax.vmap(network.atomic)(features), axis=1)
        return jnp.mean((found - energies) ** 2) / jnp.var(energies)

    optimizer = optax.adam(0.02)

    def step(carry, _):
        network, state = carry
        value, gradient = jax.value_and_grad(loss)(network)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(network, updates), state), value

    (learned, _), losses = jax.jit(lambda n: jax.lax.scan(step, (n, optimizer.init(n)), length=200))(network)
    assert losses[-1] < 0.01 < 0.2 * losses[0]
    np.testing.assert_array_equal(learned.mean, network.mean)

    newton = md.velocity_verlet(learned, 0.002)
    state, info = jax.jit(lambda x: newton.step(newton.init(KEY, x, kT=0.1, box=BOX)))(X)
    energy = jax.jit(BehlerParrinello.__call__)(learned, state.positions, BOX)
    np.testing.assert_allclose(info.potential_energy, energy, rtol=1e-12)


def test_a_network_corrects_a_system_and_is_fitted_with_it():
    """Gradients in force-field parameters and weights from one call; OpenMM is refused by name."""
    import offjax
    from tests.samples import molecule

    one = molecule("CCO")
    system = offjax.System.from_smirnoff("openff_unconstrained-2.2.1.offxml", [one], charge_from_molecules=[one])
    energy, p = system.to_jax(), system.parameters
    x = jnp.asarray(one.conformers[0].m_as("nanometer"))
    symmetry = SymmetryFunctions(0.4, ((100.0, 0.1), (100.0, 0.2)))
    network = BehlerParrinello(symmetry, md.free().displacement, key=KEY, hidden=(4,), species=[0, 0, 1] + [2] * 6)
    corrected = Corrected(energy)
    terms = jax.jit(corrected.by_term)((p, network), x)
    assert set(terms) == {"network", *energy.by_term(p, x)} and terms["network"] != 0

    def loss(fitted, corrected, x):
        return (corrected(fitted, x) - 1.02 * sum(terms.values())) ** 2

    of = jax.jit(jax.value_and_grad(loss))
    value, (of_p, of_network) = of((p, network), corrected, x)
    assert np.any(of_p["Bonds"]["k"] != 0) and any(np.any(g != 0) for g in jax.tree.leaves(of_network.layers))
    np.testing.assert_allclose(value, (0.02 * sum(terms.values())) ** 2, rtol=1e-9)
    lower = jax.tree.map(lambda v, g: v - 1e-9 * g, network, of_network)
    assert of((p, lower), corrected, x)[0] < value
    with pytest.raises(UnsupportedError, match="Behler-Parrinello"):
        corrected.to_openmm()
