"""Bond, angle, torsion and pair coordinates with the vectors that turn a slope dU/ds into forces.

Points are tuples (x, y, z) of arrays of one shape, so that every operation below is elementwise over terms x
conformers and nothing is transposed. A coordinate function takes the difference vectors b of a term and their inverse
lengths, and returns the coordinate s and a few *weights*; a rows function makes of these the *rows*: vectors g with
ds = sum g . b' for changes b' of the vectors, from which both the forces (-dU/ds g) and the change of s along a
displacement of the atoms follow without automatic differentiation. Torsions have no rows: the angles' *levers* tell how
half-planes turn. All arithmetic is written without division and without transcendental
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


_SEED = {"float64": (jnp.int64, 0x5FE6EB50C7B537A9, (4, 4)), "float32": (jnp.int32, 0x5F375A86, (4, 2))}
"""The integer whose difference to half the bits of x is a first guess of x^(-1/2), within 3.5 %, and the orders of the
steps it needs."""

_SERIES = (0.5, 0.375, 0.3125)
"""(1 - e)^(-1/2) = 1 + e/2 + 3/8 e^2 + 5/16 e^3 + ..."""


@jax.custom_jvp
def inverse_sqrt(x):
    """x^(-1/2), x > 0, within two units in the last place, differentiated as -x^(-3/2)/2 without a division.

    XLA's rsqrt is a square root and a division, which a CPU does one after the other or, with some of XLA's emitters,
    one number at a time. From a guess y by shifting bits (C. Lomont, "Fast Inverse Square Root", 2003) the steps
    y (1 - e)^(-1/2), e = 1 - x y^2, need products only; those of order 4 take four terms of the series.
    """
    integer, magic, orders = _SEED[x.dtype.name]
    bits = jax.lax.bitcast_convert_type(x, integer)
    y = jax.lax.bitcast_convert_type(magic - jax.lax.shift_right_logical(bits, integer(1)), x.dtype)
    for order in orders:
        e = 1.0 - x * y * y
        y = y + y * (e * polynomial(_SERIES[: order - 1], e))
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
    """What a rows function needs besides the vectors: numbers ``scale`` that the rows are proportional to and, of
    angles, the unit ``normal`` of their plane.
    """

    scale: tuple[Any, ...]
    normal: tuple[Any, ...] = ()


class Levers(NamedTuple):
    """How half-planes that hold an angle's arms u and v turn as these move along the normal n of their plane.

    Each side of the triangle is the edge of a half-plane that holds the third atom: the line of v and the end of u, the
    line of u and the end of v, the line between both ends and the middle atom. Each turns by first n.du
    + last n.dv. ``reach`` is 1/distance of the atom from the edge (of the third: minus that, since u points away from
    the middle atom).
    """

    first: tuple[Any, Any, Any]
    last: tuple[Any, Any, Any]
    reach: tuple[Any, Any, Any]


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


def inverse_length(b):
    """1/|b|, 0 at zero."""
    return (safe_inverse_sqrt(dot(b, b)),)


def distance(vectors, inverse):
    """r = |b|, with weight 1/r."""
    return dot(vectors[0], vectors[0]) * inverse[0], Weights(inverse)


def inverse_lengths_of_pair(b):
    """1/|b|, infinite at zero, as the energies that use it are."""
    return (inverse_sqrt(dot(b, b)),)


def inverse_distance(vectors, inverse):
    """1/r, with weight -1/r^3."""
    r = inverse[0]
    return r, Weights((-(r * r * r),))


def along(vectors, weights):
    """Row of a function of |b|: weight b."""
    return (scale(weights.scale[0], vectors[0]),)


def inverse_lengths_of_angle(u, v):
    """1/|u|, 1/|v|, 1/|u x v| and 1/|v - u|; 0 where one is zero."""
    return tuple(safe_inverse_sqrt(dot(a, a)) for a in (u, v, cross(u, v), difference(u, v)))


def angle(vectors, inverse):
    """The angle of u and v in [0, pi], with weights 1/|u|^2 and -1/|v|^2 and the normal u x v/|u x v|.

    From sin and cos, each where it is the smaller: exact to rounding also near 0 and pi, where arccos is not.
    Zero where u or v is zero, as in :func:`offjax.geometry.angle`; the normal is zero where they are parallel.
    """
    (u, v), (inverse_u, inverse_v, inverse_w, _) = vectors, inverse
    w = cross(u, v)
    lengths = inverse_u * inverse_v
    sine, cosine = dot(w, w) * inverse_w * lengths, dot(u, v) * lengths
    near_axis = sine * sine < 0.5
    t = jnp.where(near_axis, sine, cosine)
    small = t * polynomial(ARCSINE, t * t)
    theta = jnp.where(near_axis, jnp.where(cosine >= 0, small, math.pi - small), 0.5 * math.pi - small)
    return theta, Weights((inverse_u * inverse_u, -inverse_v * inverse_v), scale(inverse_w, w))


def angle_rows(vectors, weights):
    """Rows for u and v: weight_u u x n and weight_v v x n."""
    u, v = vectors
    return scale(weights.scale[0], cross(u, weights.normal)), scale(weights.scale[1], cross(v, weights.normal))


def levers(vectors, inverse):
    """The levers of an angle's arms; zero where these are parallel and span no plane."""
    (u, v), (inverse_u, inverse_v, inverse_w, inverse_e) = vectors, inverse
    e = difference(u, v)
    reach_u, reach_v = (dot(a, a) * i * inverse_w for a, i in ((v, inverse_v), (u, inverse_u)))
    cotangent, third = dot(u, v) * inverse_w, inverse_e * inverse_w
    return Levers(
        (reach_u, -cotangent * inverse_u, -dot(v, e) * third),
        (-cotangent * inverse_v, reach_v, dot(u, e) * third),
        (reach_u, reach_v, -dot(e, e) * third),
    )


def dihedral(normal_1, normal_2, arm_1, reach_1, sign_1, sign_2):
    """(cos phi, sin phi) of the angle from one half-plane to another about the edge that they share.

    Of half-plane 1 its unit normal, an arm to an atom in it from a point of the edge, and 1/distance of the atom from
    the edge (or both with the other sign: see :class:`Levers`); the signs tell whether the normal is (arm x direction
    of the edge), or its opposite. Both numbers are zero where three atoms are collinear, a half-plane without normal.
    """
    return (sign_1 * sign_2) * dot(normal_1, normal_2), sign_2 * reach_1 * dot(arm_1, normal_2)


def polynomial(coefficients, x):
    """sum_k coefficients[k] x^k by Horner's rule."""
    result = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * x + c
    return result
