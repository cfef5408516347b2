"""``<Angles>``: harmonic angle bending."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

from offjax import geometry

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


_LINEAR = 0.03
"""rad; closer to pi than this, the square is expanded so that it has no cusp (sin^2 below 1e-3)."""


def potential(theta, k, angle):
    """U = k/2 (theta - angle)^2, kJ/mol.

    theta, angle in rad; k in kJ/mol/rad^2. Source: SMIRNOFF specification, section Angles, ``potential="harmonic"``.
    """
    return 0.5 * k * (theta - angle) ** 2


def energies(
    positions: Float[Array, "atom 3"],
    atoms: Int[Array, "angle 3"],
    k: Float[Array, " angle"],
    angle: Float[Array, " angle"],
) -> Float[Array, " angle"]:
    """Energy of every angle, kJ/mol.

    At a linear geometry U has a cusp unless ``angle`` is pi; the derivative of the cusp is zero by convention. So that
    a linear term at ``angle`` = pi keeps its true curvature there, U is written near pi in eta = pi - theta as
    k/2 [eta^2 - 2 eta (pi - angle) + (pi - angle)^2], where eta^2 is smooth in the positions.
    """
    a, b, c = positions[atoms[:, 0]], positions[atoms[:, 1]], positions[atoms[:, 2]]
    theta = geometry.angle(a, b, c)
    eta2 = geometry.squared_deviation_from_linear(a, b, c)
    rest = math.pi - angle
    near_linear = 0.5 * k * (eta2 - 2.0 * geometry.safe_sqrt(eta2) * rest + rest**2)
    return jnp.where(theta > math.pi - _LINEAR, near_linear, potential(theta, k, angle))
