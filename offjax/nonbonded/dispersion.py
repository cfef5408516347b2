"""The long-range dispersion correction: what a cutoff and a switching function take from the Lennard-Jones energy."""

from __future__ import annotations

import math
from math import comb
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from offjax.devices import matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def long_range_energy(
    sigma: Float[Array, " particle"],
    sqrt_epsilon: Float[Array, " particle"],
    volume,
    cutoff: float,
    switch: float | None,
) -> Float[Array, ""]:
    """Lennard-Jones energy beyond the cutoff and inside the switching range, kJ/mol, at uniform density.

    U = 8 pi N^2 / V (<epsilon sigma^12> I_10 - <epsilon sigma^6> I_4), where I_n is the integral of (1 - S(r)) r^-n dr
    from 0, with the switching function S, and the means are over all N (N + 1) / 2 pairs of particles, each with itself
    included, as OpenMM counts them. Source: OpenMM User Guide, "Lennard-Jones Interaction"; M. R. Shirts et al.,
    J. Phys. Chem. B 111, 13052 (2007).

    sigma: nm; sqrt_epsilon: square root of epsilon, kJ/mol; volume: nm^3.
    """
    n = len(sigma)
    twelve, six = (_mean(sigma, sqrt_epsilon, power) for power in (12, 6))
    i10, i4 = (_tail(power, cutoff, switch) for power in (10, 4))
    return (8.0 * np.pi * n**2) * (twelve * i10 - six * i4) / volume


def _mean(sigma, sqrt_epsilon, power: int):
    """Mean of epsilon_ij sigma_ij^power over all pairs i <= j with Lorentz-Berthelot rules, by powers of a binomial.

    sigma_ij^p = 2^-p sum_k C(p, k) sigma_i^k sigma_j^(p-k): a sum over pairs is a sum of products of sums over
    particles, all of one sign.
    """
    n = len(sigma)
    moments = [jnp.sum(sqrt_epsilon * sigma**k) for k in range(power + 1)]
    ordered = sum(comb(power, k) / 2.0**power * moments[k] * moments[power - k] for k in range(power + 1))
    own = jnp.sum(sqrt_epsilon * sqrt_epsilon * sigma**power)
    return (ordered + own) / (n * (n + 1))


def _tail(power: int, cutoff: float, switch: float | None) -> float:
    """Integral of (1 - S(r)) r^-power dr, nm^(1-power): closed form beyond the cutoff, quadrature before it."""
    beyond = cutoff ** (1 - power) / (power - 1)
    if switch is None:
        return beyond
    nodes, weights = np.polynomial.legendre.leggauss(64)
    x = 0.5 * (nodes + 1.0)
    r = switch + (cutoff - switch) * x
    lost = x**3 * (10.0 - x * (15.0 - 6.0 * x))
    return beyond + float(np.sum(0.5 * (cutoff - switch) * weights * lost * r**-power))


POINTS = 64
"""Gauss-Legendre points from the cutoff to infinity; half as many in the range of the switching function."""


def numerical_long_range_energy(potential, counts, n_particles: int, volume, cutoff: float, switch: float | None):
    """The mean energy of pairs beyond the cutoff of any potential, kJ/mol, as OpenMM's CustomNonbondedForce has it.

    U = 2 pi N^2/V <I>, with I_st the integral of r^2 u_st (1 - S) from the switching distance (without switching: the
    cutoff) to infinity, and its mean over the N (N + 1)/2 pairs of particles, itself included. ``potential(r2)`` gives
    u_st (class, class); ``counts`` (class,) particles have it; N is ``n_particles``, others do not interact.
    Source: OpenMM User Guide, "CustomNonbondedForce". With r = cutoff / t the integral is that of a smooth function of
    t from 0 to 1.
    """
    t, weight = _gauss_legendre(POINTS)
    r, weight = cutoff / t, weight * cutoff**3 / t**4
    if switch is not None:
        s, w = _gauss_legendre(POINTS // 2)
        inner = switch + (cutoff - switch) * s
        fading = s**3 * (10.0 - s * (15.0 - 6.0 * s))
        r = np.concatenate([r, inner])
        weight = np.concatenate([weight, w * (cutoff - switch) * inner**2 * fading])

    @jax.checkpoint
    def add(integral, point):
        return integral + point[1] * potential(point[0] ** 2), None

    points = jnp.asarray(np.stack([r, weight], axis=1), counts.dtype)
    integral, _ = jax.lax.scan(add, jnp.zeros((len(counts), len(counts)), counts.dtype), points)
    pairs = 0.5 * (matmul(counts, integral, counts) + matmul(jnp.diagonal(integral), counts))
    return 4.0 * math.pi * n_particles / (n_particles + 1) * pairs / volume


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights on 0 to 1."""
    x, w = np.polynomial.legendre.leggauss(n)
    return 0.5 * (x + 1.0), 0.5 * w
