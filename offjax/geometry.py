"""Internal coordinates of molecules with derivatives that stay finite everywhere.

All functions take Cartesian points of shape (..., 3) in nm and broadcast over leading axes. Where the true derivative
does not exist (a zero distance, the cusp of an angle at 0 or pi, a torsion with three collinear atoms) the
derivative is zero by convention, in forward and reverse mode, to any order: the double-``where`` device, in which the
argument of the singular function is replaced before it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Points = Float[Array, "*batch 3"]


def dot(a: Points, b: Points) -> Float[Array, "*batch"]:
    """Scalar product over the last axis."""
    return jnp.sum(a * b, axis=-1)


def safe_sqrt(x):
    """Square root with value and derivative zero at x <= 0; not-a-number stays what it is."""
    zero = x <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def norm(a: Points) -> Float[Array, "*batch"]:
    """Euclidean length, nm; the derivative at zero length is zero."""
    return safe_sqrt(dot(a, a))


def safe_arctan2(y, x):
    """arctan2 with value and derivatives zero at the origin."""
    defined = (x != 0) | (y != 0)
    y, x = jnp.where(defined, y, 0.0), jnp.where(defined, x, 1.0)
    # the angle does not depend on the scale, but (x^2 + y^2)^2 in its second derivative underflows without it
    scale = jax.lax.stop_gradient(1.0 / jnp.maximum(jnp.abs(x), jnp.abs(y)))
    return jnp.where(defined, jnp.arctan2(y * scale, x * scale), 0.0)


def angle(a: Points, b: Points, c: Points) -> Float[Array, "*batch"]:
    """Angle a-b-c in [0, pi] rad, from atan2(|u x v|, u.v): exact to rounding also near 0 and pi, unlike arccos."""
    u, v = a - b, c - b
    return safe_arctan2(norm(jnp.cross(u, v)), dot(u, v))


def squared_deviation_from_linear(a: Points, b: Points, c: Points) -> Float[Array, "*batch"]:
    """(pi - angle)^2 in rad^2 near linearity, smooth in the positions at the linear geometry itself.

    With s2 = |u x v|^2 / (|u|^2 |v|^2) = sin^2: (arcsin s)^2 = s2 (1 + s2/3 + 8 s2^2/45 + 4 s2^3/35 + ...), a power
    series in s2 without a cusp. Meant for s2 < 1e-3, where the terms kept give full double precision.
    """
    u, v = a - b, c - b
    cross = jnp.cross(u, v)
    lengths = dot(u, u) * dot(v, v)
    defined = lengths > 0
    s2 = jnp.where(defined, dot(cross, cross) / jnp.where(defined, lengths, 1.0), 0.0)
    series = 1.0 + s2 * (1 / 3 + s2 * (8 / 45 + s2 * (4 / 35 + s2 * (128 / 1575 + s2 * (128 / 2079)))))
    return s2 * series


def dihedral(a: Points, b: Points, c: Points, d: Points) -> Float[Array, "*batch"]:
    """Torsion angle a-b-c-d in (-pi, pi] rad, IUPAC sign, by atan2; zero where three atoms are collinear.

    phi = atan2(|b2| b1.(b2 x b3), (b1 x b2).(b2 x b3)) with b1 = b - a, b2 = c - b, b3 = d - c
    (A. Blondel and M. Karplus, J. Comput. Chem. 17, 1132 (1996)).
    """
    b1, b2, b3 = b - a, c - b, d - c
    n2 = jnp.cross(b2, b3)
    return safe_arctan2(norm(b2) * dot(b1, n2), dot(jnp.cross(b1, b2), n2))
