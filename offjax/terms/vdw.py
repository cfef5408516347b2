"""``<vdW>``: Lennard-Jones 12-6 with Lorentz-Berthelot combining rules; its dispersion by an Ewald sum."""

import math

import jax.numpy as jnp
import numpy as np

from offjax import geometry
from offjax.nonbonded.series import polynomial


def combine(sigma_i, sigma_j, epsilon_i, epsilon_j):
    """Lorentz-Berthelot: sigma_ij = (sigma_i + sigma_j)/2 (nm), epsilon_ij = sqrt(epsilon_i epsilon_j) (kJ/mol).

    The derivative of sqrt(epsilon_i epsilon_j) is infinite at zero; it is zero by convention.
    """
    return 0.5 * (sigma_i + sigma_j), geometry.safe_sqrt(epsilon_i * epsilon_j)


def potential(r2, sigma, epsilon):
    """U = 4 epsilon [(sigma/r)^12 - (sigma/r)^6], kJ/mol.

    r2: squared distance, nm^2; sigma in nm; epsilon in kJ/mol. Source: SMIRNOFF specification, section vdW.
    """
    s6 = (sigma * sigma / r2) ** 3
    return 4.0 * epsilon * s6 * (s6 - 1.0)


def coefficients(sigma, epsilon):
    """A = 4 epsilon sigma^12, kJ/mol nm^12, and B = 4 epsilon sigma^6, kJ/mol nm^6: the potential is linear in both."""
    s6 = sigma**6
    return 4.0 * epsilon * s6 * s6, 4.0 * epsilon * s6


def potential_of_coefficients(inverse_r2, repulsion, dispersion):
    """U = A/r^12 - B/r^6, kJ/mol, of 1/r^2 (nm^-2): :func:`potential` in terms of its :func:`coefficients`."""
    s6 = inverse_r2**3
    return (repulsion * s6 - dispersion) * s6


def switching(r, start, cutoff):
    """OpenMM's switching polynomial S = 1 - 10 x^3 + 15 x^4 - 6 x^5 with x = (r - start)/(cutoff - start), clipped.

    Source: OpenMM User Guide, "Lennard-Jones Interaction". S = 1 below ``start`` and 0 beyond ``cutoff``.
    """
    x = jnp.clip((r - start) / (cutoff - start), 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))


def dispersion_coefficient(sigma, epsilon):
    """c = 2 sigma^3 sqrt(epsilon) of one atom, so that c_i c_j is the coefficient of -1/r^6 by the geometric rule.

    In (kJ/mol)^(1/2) nm^3. The derivative in epsilon is infinite at zero; it is zero by convention.
    """
    return 2.0 * sigma**3 * geometry.safe_sqrt(epsilon)


def ewald_direct_potential(r2, sigma, epsilon, c6, alpha, cutoff):
    """Direct-space part of Lennard-Jones with an Ewald sum of the dispersion, kJ/mol.

    U = U_LJ(r) + c_i c_j g(r) - [U_LJ(r_c) + c_i c_j g(r_c)], with g(r) = (1 - e^(-x) (1 + x + x^2/2)) / r^6 and
    x = (alpha r)^2. sigma (nm), epsilon (kJ/mol) are those of the pair by Lorentz-Berthelot; c6 is c_i c_j, the
    geometric rule, which the reciprocal sum uses for all pairs. The shift makes the difference of both rules vanish at
    the cutoff, nm.
    Source: OpenMM User Guide, "Lennard-Jones Interaction with Particle Mesh Ewald"; C. L. Wennberg et al., J. Chem.
    Theory Comput. 11, 5737 (2015).
    """

    def unshifted(r2):
        return potential(r2, sigma, epsilon) + ewald_excluded_potential(r2, c6, alpha)

    return unshifted(r2) - unshifted(jnp.asarray(cutoff * cutoff, r2.dtype))


def ewald_direct_polynomial(r2, sigma, epsilon, c6, alpha, cutoff):
    """The same, for r <= cutoff (nm), without exponentials: a polynomial for the damping."""

    def damped(r2):
        return c6 * alpha**6 * polynomial(_damping_host, (alpha * cutoff) ** 2, alpha * alpha * r2)

    edge = jnp.asarray(cutoff * cutoff, r2.dtype)
    return potential(r2, sigma, epsilon) + damped(r2) - potential(edge, sigma, epsilon) - damped(edge)


def _damping_host(x):
    """(1 - e^(-x) (1 + x + x^2/2)) / x^3 of a NumPy array: the incomplete gamma function P(3, x) / x^3."""
    import scipy.special  # here: it doubles the time that importing offjax takes

    safe = np.maximum(x, 1e-3)  # below, 1/6 - x/8 + x^2/20 is exact to 1e-10 of x^3
    return np.where(x < 1e-3, 1 / 6 - x / 8 + x * x / 20 - x**3 / 72, scipy.special.gammainc(3, safe) / safe**3)


def ewald_excluded_potential(r2, c6, alpha):
    """U = c_i c_j (1 - e^(-x) (1 + x + x^2/2)) / r^6, kJ/mol, x = (alpha r)^2: the reciprocal sum's pair, taken back.

    It is smooth in r2, also at r2 = 0. Source: U. Essmann et al., J. Chem. Phys. 103, 8577 (1995), section V.
    """
    return c6 * alpha**6 * _damping(alpha * alpha * r2)


def _damping(x):
    """(1 - e^(-x) (1 + x + x^2/2)) / x^3, an entire function: e^(-x) sum_n x^n / (n + 3)! for small x."""
    small = x < 1.0
    near, far = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
    series = jnp.zeros_like(x)
    for n in reversed(range(18)):
        series = series * near + 1.0 / math.factorial(n + 3)
    closed = (1.0 - jnp.exp(-far) * (1.0 + far + 0.5 * far * far)) / far**3
    return jnp.where(small, jnp.exp(-near) * series, closed)
