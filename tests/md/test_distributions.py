"""Thermostats and barostats against whole distributions that are known exactly (Kolmogorov-Smirnov tests).

Particles in quartic wells, U = sum of x^4 over m coordinates: U/kT has the gamma distribution of shape m/4, the kinetic
energy that of shape m/2, and the two are independent. An ideal gas of N at pressure P: P V/kT has shape N + 1. In a
ring of anharmonic springs under pressure all gaps are independent, but for the weight of the length that they make.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from offjax import md

M, KT, REPLICAS = 6, 1.3, 2000
START = jnp.zeros((3, 2))


def wells(x):
    return jnp.sum(x**4)


THERMOSTATS = {
    "Langevin": md.langevin(wells, 0.04, KT, 2.0, masses=0.8),
    "Langevin middle": md.langevin_middle(wells, 0.04, KT, 2.0, masses=0.8),
    "Nose-Hoover chains": md.nose_hoover(wells, 0.04, KT, 0.7, masses=0.8, degrees_of_freedom=M),
    "stochastic velocity rescaling": md.stochastic_velocity_rescaling(
        wells, 0.04, KT, 0.5, masses=0.8, degrees_of_freedom=M
    ),
}


@pytest.mark.parametrize("name", THERMOSTATS)
def test_potential_and_kinetic_energies_have_their_exact_distributions(name):
    integrator = THERMOSTATS[name]

    def last(key):
        where, speed, key = jax.random.split(key, 3)
        x = 0.7 * jax.random.normal(where, START.shape)
        v = jax.random.normal(speed, START.shape)  # neither is the distribution to be found
        state = integrator.init(key, x, v)
        return jax.lax.fori_loop(0, 700, lambda _, s: integrator.step(s)[0], state)

    states = jax.jit(jax.vmap(last))(jax.random.split(jax.random.key(4), REPLICAS))
    potential = np.asarray(states.energy) / KT
    kinetic = 0.4 * np.sum(np.asarray(states.velocities) ** 2, axis=(1, 2)) / KT
    assert stats.kstest(potential, stats.gamma(M / 4).cdf).pvalue > 1e-4
    assert stats.kstest(kinetic, stats.gamma(M / 2).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(potential, kinetic)[0, 1]) < 5 / np.sqrt(REPLICAS)
    # the tests see a temperature that is 8 % too high
    assert stats.kstest(1.08 * potential, stats.gamma(M / 4).cdf).pvalue < 1e-2


def test_the_volume_of_an_ideal_gas_has_its_exact_distribution():
    n, pressure = 4, 0.7

    def energy(x, box):
        return 0.0 * jnp.sum(x) + 0.0 * jnp.sum(box)

    integrator = md.monte_carlo_barostat(md.velocity_verlet(energy, 0.01), energy, pressure, KT, frequency=1)

    def last(key):
        state = integrator.init(key, jnp.ones((n, 3)), box=jnp.full(3, 2.0))
        return md.volume(jax.lax.fori_loop(0, 500, lambda _, s: integrator.step(s)[0], state).box)

    volumes = np.asarray(jax.jit(jax.vmap(last))(jax.random.split(jax.random.key(5), REPLICAS)))
    assert stats.kstest(pressure * volumes / KT, stats.gamma(n + 1).cdf).pvalue > 1e-4


def spring(gap):
    return 2.0 * (gap - 1.2) ** 2 + 0.7 * (gap - 1.2) ** 4


def ring(x, box):
    return jnp.sum(spring(jnp.diff(x[:, 0], append=x[:1, 0] + box)))


RING = 6, 0.8  # particles, pressure
BAROSTATS = {
    "Monte Carlo": (md.monte_carlo_barostat(md.langevin(ring, 0.04, KT, 0.5), ring, RING[1], KT, frequency=5), 1),
    "extended system": (md.nose_hoover_npt(ring, 0.04, KT, RING[1], 1.0, 3.0), 0),
}


@pytest.mark.parametrize("name", BAROSTATS)
def test_the_length_of_a_ring_of_springs_has_its_exact_mean(name):
    integrator, power = BAROSTATS[name]
    n, pressure = RING
    gaps = np.linspace(-6.0, 9.0, 20001)
    weights = np.exp(-(spring(gaps) + pressure * gaps) / KT)
    mean = np.average(gaps, weights=weights)
    variance = np.average((gaps - mean) ** 2, weights=weights)
    # the length of n gaps, weighted by its own power: that of the centre of mass, which the extended system fixes
    exact = n * mean + power * variance / mean

    def lengths(key):
        x = 1.2 * jnp.arange(n)[:, None] + 0.2 * jax.random.normal(key, (n, 1))
        state = integrator.init(key, x, box=jnp.full(1, 1.2 * n))

        def step(state, _):
            state, _ = integrator.step(state)
            return state, state.box[0]

        return jnp.mean(jax.lax.scan(step, state, length=9000)[1][1000:])

    found = np.asarray(jax.jit(jax.vmap(lengths))(jax.random.split(jax.random.key(6), 200)))
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert error < 0.01
    assert abs(found.mean() - exact) < 4 * error + 0.01
