"""Bond, angle, torsion and pair coordinates with the vectors that turn a slope dU/ds into forces.

Points are tuples (x, y, z) of arrays of one shape, so that every operation below is elementwise over terms x
conformers and nothing is transposed. A coordinate function returns the coordinate s and a few *weights*; a
rows function makes of the weights the *rows*: vectors g with ds = sum g . db over the difference vectors b of
the term, from which both the forces (-dU/ds g) and the change of s along a displacement of the atoms follow
without automatic differentiation. All arithmetic is written without division and without transcendental
functions, which a CPU does not vectorise; singular geometries have rows of zero (see :mod:`offjax.geometry`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ARCSINE = (
    1.0,
    0.16666666666664987,
    0.07500000000401816,
    0.044642856762615,
    0.030381963396751827,
    0.022371584779320355,
    0.017364281439103527,
    0.01380344589589198,
    0.013191002571753905,
    -0.0026015378482996962,
    0.07871611357002131,
    -0.2968705430689826,
    1.0082016650534191,
    -2.4908808126226125,
    4.642068909988845,
    -6.229299875397987,
    5.7579408313147,
    -3.278933156739813,
    0.8892904367638689,
)
"""arcsin(t)/t as a polynomial in t^2, interpolated at Chebyshev nodes of 0 <= t^2 <= 1/2; error below 3e-16."""


_SEED = {"float64": (jnp.int64, 0x5FE6EB50C7B537A9, 4), "float32": (jnp.int32, 0x5F375A86, 3)}
"""The integer whose difference to half the bits of x is a first guess of x^(-1/2), and the Newton steps it needs."""


@jax.custom_jvp
def inverse_sqrt(x):
    """x^(-1/2), x > 0, within two units in the last place, differentiated as -x^(-3/2)/2 without a division.

    XLA's rsqrt is a square root and a division, which a CPU does one after the other or, with some of XLA's emitters,
    one number at a time. From a guess by shifting bits (C. Lomont, "Fast Inverse Square Root", 2003) Newton's steps
    need products only.
    """
    integer, magic, steps = _SEED[x.dtype.name]
    bits = jax.lax.bitcast_convert_type(x, integer)
    y = jax.lax.bitcast_convert_type(magic - jax.lax.shift_right_logical(bits, integer(1)), x.dtype)
    half = 0.5 * x
    for _ in range(steps):
        y = y * (1.5 - half * y * y)
    return jnp.where(x > 0, y, jnp.where(x == 0, jnp.inf, jnp.nan))


@inverse_sqrt.defjvp
def _inverse_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    r = inverse_sqrt(x)
    return r, (-0.5 * r * r * r) * dx


def safe_inverse_sqrt(x):
    """x^(-1/2), and 0 with derivative 0 where x is not positive."""
    positive = x > 0
    return jnp.where(positive, inverse_sqrt(jnp.where(positive, x, 1.0)), 0.0)


class Weights(NamedTuple):
    """What a rows function needs besides the vectors: the rows are proportional to ``scale``, ``ratio`` are numbers
    without unit.
    """

    scale: tuple[Any, ...]
    ratio: tuple[Any, ...] = ()


def difference(a, b):
    """b - a by component."""
    return tuple(q - p for p, q in zip(a, b, strict=True))


def dot(a, b):
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a, b):
    """Vector product."""
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def scale(c, a):
    """c a."""
    return tuple(c * component for component in a)


def distance(b):
    """r = |b|, with weight 1/r."""
    r2 = dot(b, b)
    inverse = safe_inverse_sqrt(r2)
    return r2 * inverse, Weights((inverse,))


def inverse_distance(b):
    """1/r, with weight -1/r^3. Infinite at r = 0, as the energies that use it are."""
    inverse = inverse_sqrt(dot(b, b))
    return inverse, Weights((-(inverse * inverse * inverse),))


def along(vectors, weights):
    """Row of a function of |b|: weight b."""
    return (scale(weights.scale[0], vectors[0]),)


def angle(u, v):
    """The angle of u and v in [0, pi], with weights 1/(|u|^2 |u x v|) and -1/(|v|^2 |u x v|).

    From sin and cos, each where it is the smaller: exact to rounding also near 0 and pi, where arccos is not.
    Zero where u or v is zero, as in :func:`offjax.geometry.angle`.
    """
    u2, v2 = dot(u, u), dot(v, v)
    w = cross(u, v)
    w2 = dot(w, w)
    lengths = safe_inverse_sqrt(u2 * v2)
    inverse_w = safe_inverse_sqrt(w2)
    sine, cosine = w2 * inverse_w * lengths, dot(u, v) * lengths
    near_axis = sine * sine < 0.5
    t = jnp.where(near_axis, sine, cosine)
    small = t * polynomial(ARCSINE, t * t)
    theta = jnp.where(near_axis, jnp.where(cosine >= 0, small, math.pi - small), 0.5 * math.pi - small)
    factor = inverse_w * lengths * lengths
    return theta, Weights((factor * v2, -factor * u2))


def angle_rows(vectors, weights):
    """Rows for u and v: weight_u u x (u x v) and weight_v v x (u x v)."""
    u, v = vectors
    w = cross(u, v)
    return scale(weights.scale[0], cross(u, w)), scale(weights.scale[1], cross(v, w))


def dihedral(b1, b2, b3):
    """(cos phi, sin phi) of phi = atan2(|b2| b1.(b2 x b3), (b1 x b2).(b2 x b3)), with four weights for the rows.

    phi = 0, and rows are zero, where three atoms are collinear.
    """
    m, n = cross(b1, b2), cross(b2, b3)
    m2, n2, g2 = dot(m, m), dot(n, n), dot(b2, b2)
    product = m2 * n2
    defined = product > 0
    inverse = inverse_sqrt(jnp.where(defined, product, 1.0))
    inverse_g = inverse_sqrt(jnp.where(defined, g2, 1.0))
    g, inverse_g2 = g2 * inverse_g, inverse_g * inverse_g
    cosine = jnp.where(defined, dot(m, n) * inverse, 1.0)
    sine = jnp.where(defined, g * dot(b1, n) * inverse, 0.0)
    factor = jnp.where(defined, g * inverse * inverse, 0.0)
    ratio = (dot(b1, b2) * inverse_g2, dot(b3, b2) * inverse_g2)
    return (cosine, sine), Weights((factor * n2, factor * m2), ratio)


def dihedral_rows(vectors, weights):
    """Rows of phi: |b2|/m^2 m, -(b1.b2/b2^2) row_1 - (b3.b2/b2^2) row_3 and |b2|/n^2 n; m = b1 x b2, n = b2 x b3.

    A. Blondel and M. Karplus, J. Comput. Chem. 17, 1132 (1996): no singularity at phi = 0 or pi.
    """
    b1, b2, b3 = vectors
    (of_m, of_n), (along_1, along_3) = weights
    row_1, row_3 = scale(of_m, cross(b1, b2)), scale(of_n, cross(b2, b3))
    row_2 = tuple(-(along_1 * p + along_3 * q) for p, q in zip(row_1, row_3, strict=True))
    return row_1, row_2, row_3


def polynomial(coefficients, x):
    """sum_k coefficients[k] x^k by Horner's rule."""
    result = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * x + c
    return result
