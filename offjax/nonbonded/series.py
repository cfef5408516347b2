"""Polynomials in place of special functions, and roots and inverses, for the inner loop over pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError

MAX_DEGREE = 45

RELATIVE_ERROR = 1e-13
"""Of the largest value: what monomials of a high degree can reach in float64."""


def polynomial(function: Callable, upper: float, t):
    """``function(t)`` on 0 <= t <= ``upper`` as a polynomial, exact to half a rounding error or 1e-13 of its maximum.

    ``function`` takes and returns float64 NumPy arrays and is entire: interpolation at Chebyshev points then converges
    faster than exponentially. The derivative is that of the polynomial, to any order.
    """
    target = max(0.5 * float(jnp.finfo(t.dtype).eps), RELATIVE_ERROR)
    return _horner(_coefficients(function, upper, target), t * (2.0 / upper) - 1.0)


@functools.cache
def _coefficients(function, upper, target) -> tuple[float, ...]:
    """Monomial coefficients in 2 t / upper - 1 of the lowest degree with an error below ``target`` x maximum."""
    points = np.linspace(0.0, upper, 1000)
    exact = function(points)
    for degree in range(2, MAX_DEGREE):
        fit = np.polynomial.Chebyshev.interpolate(function, degree, domain=[0.0, upper])
        if np.max(np.abs(fit(points) - exact)) < target * np.max(np.abs(exact)):
            break
    else:
        raise InputError(f"no polynomial of degree {MAX_DEGREE} follows {function.__name__} from 0 to {upper:g}")
    return tuple(float(c) for c in np.polynomial.chebyshev.cheb2poly(fit.coef))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _horner(coefficients, s):
    value = jnp.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * s + c
    return value


@_horner.defjvp
def _horner_rule(coefficients, primals, tangents):
    derivative = tuple(k * c for k, c in enumerate(coefficients))[1:] or (0.0,)
    return _horner(coefficients, primals[0]), _horner(derivative, primals[0]) * tangents[0]


@jax.custom_jvp
def inverse_root(t):
    """t^(-1/2), t > 0, differentiated as -t^(-3/2)/2 without a division."""
    return jax.lax.rsqrt(t)


@inverse_root.defjvp
def _inverse_root_rule(primals, tangents):
    value = inverse_root(primals[0])
    return value, (-0.5 * value * value * value) * tangents[0]


@jax.custom_jvp
def distance(r2):
    """sqrt(r2), differentiated as :func:`inverse` of itself, a division that potentials in 1/r share.

    At r2 = 0 the derivative is 0.
    """
    return jnp.sqrt(r2)


@distance.defjvp
def _distance_rule(primals, tangents):
    r = distance(primals[0])
    apart = r > 0
    return r, jnp.where(apart, 0.5 * inverse(jnp.where(apart, r, 1.0)), 0.0) * tangents[0]


@jax.custom_jvp
def inverse(r):
    """1/r, differentiated as -(1/r)^2 without another division."""
    return 1.0 / r


@inverse.defjvp
def _inverse_rule(primals, tangents):
    value = inverse(primals[0])
    return value, (-value * value) * tangents[0]
