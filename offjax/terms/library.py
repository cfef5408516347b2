"""Definitions of user-defined terms to use as they are, or to take as examples.

The sections and attributes of UREY_BRADLEY, DOUBLE_EXPONENTIAL and DAMPED_BUCKINGHAM_68 are those of the package
smirnoff-plugins, so that force fields written for it can be read.
"""

import jax.numpy as jnp

from offjax.geometry import safe_sqrt
from offjax.terms.user import UserTerm


def morse(r, depth, a, length):
    """U = depth (1 - exp(-a (r - length)))^2. Source: P. M. Morse, Phys. Rev. 34, 57 (1929)."""
    return depth * (1.0 - jnp.exp(-a * (r - length))) ** 2


def urey_bradley(r, k, length):
    """U = k/2 (r - length)^2 of the distance of the outer atoms of an angle."""
    return 0.5 * k * (r - length) ** 2


def double_exponential(r, i, j, alpha, beta):
    """U = eps [beta e^(alpha (1 - r/r_m)) - alpha e^(beta (1 - r/r_m))]/(alpha - beta), with its minimum -eps at r_m.

    eps = sqrt(eps_i eps_j), r_m = (r_min_i + r_min_j)/2. Source: J. T. Horton et al., Digital Discovery 2, 1178 (2023).
    """
    x = 1.0 - 2.0 * r / (i.r_min + j.r_min)
    depth = safe_sqrt(i.epsilon * j.epsilon)
    return depth * (beta * jnp.exp(alpha * x) - alpha * jnp.exp(beta * x)) / (alpha - beta)


def damped_buckingham_68(r, i, j, gamma):
    """U = A e^(-B r) - f_6 C_6/r^6 - f_8 C_8/r^8, f_n = 1 - e^(-x) sum_(k <= n) x^k/k!, x = gamma r.

    All attributes combine by the geometric rule. Source: K. T. Tang and J. P. Toennies, J. Chem. Phys. 80, 3726 (1984).
    """
    x = gamma * r
    term = total = jnp.exp(-x)
    damping = []
    for k in range(1, 9):
        term = term * x / k
        total = total + term
        damping.append(1.0 - total)
    repulsion = safe_sqrt(i.a * j.a) * jnp.exp(-safe_sqrt(i.b * j.b) * r)
    return repulsion - damping[5] * safe_sqrt(i.c6 * j.c6) / r**6 - damping[7] * safe_sqrt(i.c8 * j.c8) / r**8


MORSE = UserTerm(
    "MorseBonds", "bond", morse, {"depth": "kJ/mol", "a": "1/nm", "length": "nm"},
    openmm="depth*(1-exp(-a*(r-length)))^2",
)  # fmt: skip

UREY_BRADLEY = UserTerm(
    "UreyBradleys", "urey-bradley", urey_bradley, {"k": "kJ/mol/nm**2", "length": "nm"}, complete=False,
    openmm="0.5*k*(r-length)^2",
)  # fmt: skip

DOUBLE_EXPONENTIAL = UserTerm(
    "DoubleExponential", "pair", double_exponential, {"r_min": "nm", "epsilon": "kJ/mol"},
    {"alpha": "dimensionless", "beta": "dimensionless"},
    openmm="sqrt(epsilon1*epsilon2)*(beta*exp(alpha*x)-alpha*exp(beta*x))/(alpha-beta);x=1-2*r/(r_min1+r_min2)",
)  # fmt: skip

DAMPED_BUCKINGHAM_68 = UserTerm(
    "DampedBuckingham68", "pair", damped_buckingham_68,
    {"a": "kJ/mol", "b": "1/nm", "c6": "kJ/mol*nm**6", "c8": "kJ/mol*nm**8"}, {"gamma": "1/nm"},
    openmm="sqrt(a1*a2)*exp(-sqrt(b1*b2)*r)-(1-e*s6)*sqrt(c61*c62)/r^6-(1-e*s8)*sqrt(c81*c82)/r^8;"
    "s8=s6+x^7/5040+x^8/40320;s6=1+x+x^2/2+x^3/6+x^4/24+x^5/120+x^6/720;e=exp(-x);x=gamma*r",
)  # fmt: skip
