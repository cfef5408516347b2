"""The double exponential potential in place of Lennard-Jones: a term that `offjax fit` and every command can load.

J. T. Horton et al., Digital Discovery 2, 1178 (2023). ``offjax.terms.library`` has the same definition.
"""

import jax.numpy as jnp

import offjax
from offjax.geometry import safe_sqrt


def double_exponential(r, i, j, alpha, beta):
    """eps [beta exp(alpha x) - alpha exp(beta x)]/(alpha - beta) with x = 1 - r/r_m: the minimum -eps is at r_m."""
    x = 1 - 2 * r / (i.r_min + j.r_min)
    depth = safe_sqrt(i.epsilon * j.epsilon)
    return depth * (beta * jnp.exp(alpha * x) - alpha * jnp.exp(beta * x)) / (alpha - beta)


DOUBLE_EXPONENTIAL = offjax.UserTerm(
    "DoubleExponential",
    "pair",
    double_exponential,
    {"r_min": "nm", "epsilon": "kJ/mol"},
    constants={"alpha": "dimensionless", "beta": "dimensionless"},
    openmm="sqrt(epsilon1*epsilon2)*(beta*exp(alpha*x)-alpha*exp(beta*x))/(alpha-beta);x=1-2*r/(r_min1+r_min2)",
)
