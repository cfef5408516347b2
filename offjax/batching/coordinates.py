"""Bond, angle, torsion and pair coordinates with the vectors that turn a slope dU/ds into forces.

Points are tuples (x, y, z) of arrays of one shape, so that every operation below is elementwise over terms x conformers
and nothing is transposed. A coordinate function returns the coordinate and its *rows*: vectors g with ds = sum g . db over
the difference vectors b of the term, from which both the forces (-dU/ds g) and the change of s along a displacement of the
atoms follow without automatic differentiation. All arithmetic is written without division and without transcendental
functions, which a CPU does not vectorise; singular geometries have rows of zero (see :mod:`offjax.geometry`).
"""

from __future__ import annotations

import math

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


@jax.custom_jvp
def inverse_sqrt(x):
    """x^(-1/2), differentiated as -x^(-3/2)/2 without a division."""
    return jax.lax.rsqrt(x)


@inverse_sqrt.defjvp
def _inverse_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    r = inverse_sqrt(x)
    return r, (-0.5 * r * r * r) * dx


def safe_inverse_sqrt(x):
    """x^(-1/2), and 0 with derivative 0 where x is not positive."""
    positive = x > 0
    return jnp.where(positive, inverse_sqrt(jnp.where(positive, x, 1.0)), 0.0)


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
    """r = |b| and the row b/r."""
    r2 = dot(b, b)
    inverse = safe_inverse_sqrt(r2)
    return r2 * inverse, (scale(inverse, b),)


def inverse_distance(b):
    """1/r and its row -b/r^3. Infinite at r = 0, as the energies that use it are."""
    inverse = inverse_sqrt(dot(b, b))
    return inverse, (scale(-(inverse * inverse * inverse), b),)


def angle(u, v):
    """The angle of u and v in [0, pi] and its rows for u and v.

    From sin and cos, each where it is the smaller: exact to rounding also near 0 and pi, where arccos is not.
    """
    w = cross(u, v)
    u2, v2 = dot(u, u), dot(v, v)
    w2 = dot(w, w)
    lengths = safe_inverse_sqrt(u2 * v2)
    inverse_w = safe_inverse_sqrt(w2)
    sine, cosine = w2 * inverse_w * lengths, dot(u, v) * lengths
    near_axis = sine * sine < 0.5
    t = jnp.where(near_axis, sine, cosine)
    small = t * polynomial(ARCSINE, t * t)
    theta = jnp.where(near_axis, jnp.where(cosine > 0, small, math.pi - small), 0.5 * math.pi - small)
    inverse2 = lengths * lengths
    row_u = scale(inverse_w * inverse2 * v2, cross(u, w))
    row_v = scale(-inverse_w * inverse2 * u2, cross(v, w))
    return theta, (row_u, row_v)


def dihedral(b1, b2, b3):
    """(cos phi, sin phi) and the rows of phi for b1, b2, b3; phi = 0 with rows of zero where three atoms are collinear.

    A. Blondel and M. Karplus, J. Comput. Chem. 17, 1132 (1996): no singularity at phi = 0 or pi.
    """
    m, n = cross(b1, b2), cross(b2, b3)
    m2, n2, g2 = dot(m, m), dot(n, n), dot(b2, b2)
    product = m2 * n2
    defined = product > 0
    inverse = inverse_sqrt(jnp.where(defined, product, 1.0))
    inverse_g = inverse_sqrt(jnp.where(defined, g2, 1.0))
    g = g2 * inverse_g
    cosine = jnp.where(defined, dot(m, n) * inverse, 1.0)
    sine = jnp.where(defined, g * dot(b1, n) * inverse, 0.0)
    factor = jnp.where(defined, g * inverse * inverse, 0.0)
    row_1 = scale(factor * n2, m)
    row_3 = scale(factor * m2, n)
    inverse_g2 = inverse_g * inverse_g
    row_2 = difference(scale(dot(b3, b2) * inverse_g2, row_3), scale(-dot(b1, b2) * inverse_g2, row_1))
    return (cosine, sine), (row_1, row_2, row_3)


def polynomial(coefficients, x):
    """sum_k coefficients[k] x^k by Horner's rule."""
    result = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * x + c
    return result
