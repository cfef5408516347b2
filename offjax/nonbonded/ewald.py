"""Ewald sums: the choice of parameters as OpenMM makes it, and the energies that no pair and no wave vector has.

Source: OpenMM User Guide, "Coulomb Interaction with Ewald Summation" and "Particle Mesh Ewald"; U. Essmann et al.,
J. Chem. Phys. 103, 8577 (1995).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from offjax.constants import COULOMB

if TYPE_CHECKING:
    from jaxtyping import Array, Float


MIN_GRID = 6
"""The smallest number of grid points along a box vector."""


class Ewald(NamedTuple):
    """Parameters of one particle-mesh sum: the splitting ``alpha``, 1/nm, and the grid points along a, b, c."""

    alpha: float
    grid: tuple[int, int, int]


def splitting(tolerance: float, cutoff: float) -> float:
    """alpha = sqrt(-ln(2 tolerance)) / cutoff, 1/nm."""
    return math.sqrt(-math.log(2.0 * tolerance)) / cutoff


def grid_size(alpha: float, edges, tolerance: float, dispersion: bool = False) -> tuple[int, int, int]:
    """Grid points along box vectors whose diagonal elements are ``edges`` (3,), nm.

    2 alpha L / (3 tolerance^(1/5)), half of it for dispersion, rounded up to a number without prime factors above 7
    but one factor of 11: OpenMM's rule, and the sizes that its CPU platform takes. (Its Reference platform rounds up
    to any integer; a Fourier transform of 41 or 43 points takes two to five times as long as one of 42 or 44.)
    """
    scale = (1.0 if dispersion else 2.0) * alpha / (3.0 * tolerance**0.2)
    x, y, z = (_legal(max(math.ceil(scale * float(edge)), MIN_GRID)) for edge in np.asarray(edges))
    return x, y, z


def _legal(minimum: int) -> int:
    size = minimum
    while _rest(size) not in (1, 11):
        size += 1
    return size


def _rest(n: int) -> int:
    for factor in (2, 3, 5, 7):
        while n % factor == 0:
            n //= factor
    return n


def self_energies(charges: Float[Array, " particle"], alpha: float) -> Float[Array, " particle"]:
    """-q^2 alpha / (4 pi epsilon_0 sqrt(pi)), kJ/mol: each charge with its own screening cloud, taken back."""
    return (-COULOMB * alpha / math.sqrt(math.pi)) * charges * charges


def background_energy(charges: Float[Array, " particle"], alpha: float, volume) -> Float[Array, ""]:
    """-pi Q^2 / (4 pi epsilon_0 2 V alpha^2), kJ/mol, Q the total charge: the uniform background that neutralises it.

    Source: G. Hummer, L. R. Pratt and A. E. Garcia, J. Phys. Chem. 100, 1206 (1996).
    """
    total = jnp.sum(charges)
    return (-0.5 * math.pi * COULOMB / alpha**2) * total * total / volume


def dispersion_self_energies(c6: Float[Array, " particle"], alpha: float) -> Float[Array, " particle"]:
    """c^2 alpha^6 / 12, kJ/mol, with c = 2 sigma^3 sqrt(epsilon), c_i c_j the coefficient of -1/r^6.

    Source: OpenMM User Guide, "Lennard-Jones Interaction with Particle Mesh Ewald"; Essmann et al., section V.
    """
    return (alpha**6 / 12.0) * c6 * c6
