"""``<Electrostatics>``: Coulomb interaction of point charges, plain, with OpenMM's reaction field, or Ewald's split."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from offjax.constants import COULOMB
from offjax.nonbonded.series import inverse_root, polynomial


def potential(r2, charge_product):
    """U = q_i q_j / (4 pi epsilon_0 r), kJ/mol. r2: squared distance, nm^2; charge_product in e^2."""
    return COULOMB * charge_product / jnp.sqrt(r2)


def reaction_field_potential(r2, charge_product, cutoff, dielectric):
    """U = q_i q_j / (4 pi epsilon_0) (1/r + k_rf r^2 - c_rf), kJ/mol.

    k_rf = (eps - 1)/((2 eps + 1) cutoff^3), c_rf = 3 eps/((2 eps + 1) cutoff). Source: OpenMM User Guide,
    "Coulomb Interaction With Cutoff" (I. G. Tironi et al., J. Chem. Phys. 102, 5451 (1995)).
    """
    k_rf = (dielectric - 1.0) / ((2.0 * dielectric + 1.0) * cutoff**3)
    c_rf = 3.0 * dielectric / ((2.0 * dielectric + 1.0) * cutoff)
    return COULOMB * charge_product * (1.0 / jnp.sqrt(r2) + k_rf * r2 - c_rf)


def ewald_direct_potential(r2, charge_product, alpha):
    """U = q_i q_j / (4 pi epsilon_0) erfc(alpha r)/r, kJ/mol: the direct-space part of an Ewald sum; alpha in 1/nm.

    Source: U. Essmann et al., J. Chem. Phys. 103, 8577 (1995), section II.
    """
    r = jnp.sqrt(r2)
    return COULOMB * charge_product * jax.lax.erfc(alpha * r) / r


def ewald_direct_polynomial(r2, charge_product, alpha, cutoff):
    """The same, for r <= cutoff (nm), without the error function: 1/r - alpha h((alpha r)^2), h a polynomial."""
    screened = polynomial(_erf_over_root_host, (alpha * cutoff) ** 2, alpha * alpha * r2)
    return COULOMB * charge_product * (inverse_root(r2) - alpha * screened)


def _erf_over_root_host(t):
    """erf(sqrt(t))/sqrt(t) of a NumPy array."""
    import scipy.special  # here: it doubles the time that importing offjax takes

    root = np.sqrt(np.maximum(t, 1e-30))
    return scipy.special.erf(root) / root


def ewald_excluded_potential(r2, charge_product, alpha):
    """U = -q_i q_j / (4 pi epsilon_0) erf(alpha r)/r, kJ/mol: an excluded pair taken back from the reciprocal sum.

    It is smooth in r2, also at r2 = 0. Source: Essmann et al., section II.
    """
    return -COULOMB * charge_product * alpha * _erf_over_root(alpha * alpha * r2)


def _erf_over_root(t):
    """erf(sqrt(t))/sqrt(t), an entire function; 2/sqrt(pi) sum_n (-t)^n / (n! (2n + 1)) for small t."""
    small = t < 0.25
    near, far = jnp.where(small, t, 0.0), jnp.where(small, 1.0, t)
    series = jnp.zeros_like(t)
    for n in reversed(range(13)):
        series = series * near + (-1.0) ** n * 2.0 / (math.sqrt(math.pi) * math.factorial(n) * (2 * n + 1))
    root = jnp.sqrt(far)
    return jnp.where(small, series, jax.lax.erf(root) / root)
