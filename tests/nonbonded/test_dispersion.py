"""The long-range dispersion correction, against a sum over pairs and quadrature, and against OpenMM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from offjax.nonbonded import dispersion

SIGMA = np.array([0.3, 0.35, 0.25, 0.35, 0.3, 0.1])
EPSILON = np.array([0.5, 0.8, 0.1, 0.8, 0.5, 0.0])
VOLUME, CUTOFF = 8.0, 0.9


def by_pairs(sigma, epsilon, volume, switch):
    """Mean over all pairs i <= j of 2 pi N^2 / V times the integral of 4 eps (s^12/r^12 - s^6/r^6) (1 - S) r^2 dr."""

    def lost(r, s, e):
        x = np.clip((r - switch) / (CUTOFF - switch), 0, 1) if switch else float(r >= CUTOFF)
        return 4 * e * ((s / r) ** 12 - (s / r) ** 6) * x**3 * (10 - 15 * x + 6 * x * x) * r * r

    n, total = len(sigma), 0.0
    for i in range(n):
        for j in range(i + 1):
            s, e = (sigma[i] + sigma[j]) / 2, np.sqrt(epsilon[i] * epsilon[j])
            inner = quad(lost, switch, CUTOFF, args=(s, e), epsabs=1e-15)[0] if switch else 0.0
            total += inner + quad(lost, CUTOFF, np.inf, args=(s, e), epsabs=1e-15)[0]
    return 2 * np.pi * n * n / volume * total / (n * (n + 1) / 2)


@pytest.mark.parametrize("switch", [None, 0.7])
def test_equals_the_sum_over_pairs(switch):
    mine = dispersion.long_range_energy(SIGMA, np.sqrt(EPSILON), VOLUME, CUTOFF, switch)
    assert mine == pytest.approx(by_pairs(SIGMA, EPSILON, VOLUME, switch), rel=1e-9)


def openmm_energy(switch, corrected: bool) -> float:
    import openmm

    made, force = openmm.System(), openmm.NonbondedForce()
    made.setDefaultPeriodicBoxVectors(*(2.0 * np.eye(3)).tolist())
    for s, e in zip(SIGMA, EPSILON, strict=True):
        made.addParticle(1.0)
        force.addParticle(0.0, s, e)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(CUTOFF)
    force.setUseSwitchingFunction(switch is not None)
    force.setSwitchingDistance(switch or 0.0)
    force.setUseDispersionCorrection(corrected)
    made.addForce(force)
    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.arange(3 * len(SIGMA)).reshape(-1, 3) * [0.31, 0.17, 0.23])
    return context.getState(getEnergy=True).getPotentialEnergy()._value


@pytest.mark.parametrize("switch", [None, 0.7, 0.8])
def test_equals_openmm(switch):
    mine = dispersion.long_range_energy(SIGMA, np.sqrt(EPSILON), VOLUME, CUTOFF, switch)
    # OpenMM's closed form of the switching integral loses digits as the range shrinks: 3e-4 at a range of 0.01 nm
    assert mine == pytest.approx(openmm_energy(switch, True) - openmm_energy(switch, False), rel=1e-6)


def test_gradients_agree_with_differences_of_the_sum_over_pairs():
    arguments = [SIGMA, EPSILON[:5], np.array([VOLUME])]

    def mine(sigma, epsilon, volume):
        root = jnp.sqrt(jnp.append(epsilon, 0.0))
        return dispersion.long_range_energy(sigma, root, volume[0], CUTOFF, 0.7)

    def theirs(sigma, epsilon, volume):
        return by_pairs(sigma, np.append(epsilon, 0.0), volume[0], 0.7)

    for n, g in enumerate(jax.grad(mine, (0, 1, 2))(*map(jnp.asarray, arguments))):
        for i in range(len(g)):
            h = 1e-3 * np.eye(len(g))[i] * arguments[n]
            up, down = (theirs(*arguments[:n], arguments[n] + f * h, *arguments[n + 1 :]) for f in (1, -1))
            assert g[i] == pytest.approx((up - down) / (2 * h.sum()), rel=1e-4)
