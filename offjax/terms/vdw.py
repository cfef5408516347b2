"""``<vdW>``: Lennard-Jones 12-6 with Lorentz-Berthelot combining rules."""

import jax.numpy as jnp

from offjax import geometry


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


def switching(r, start, cutoff):
    """OpenMM's switching polynomial S = 1 - 10 x^3 + 15 x^4 - 6 x^5 with x = (r - start)/(cutoff - start), clipped.

    Source: OpenMM User Guide, "Lennard-Jones Interaction". S = 1 below ``start`` and 0 beyond ``cutoff``.
    """
    x = jnp.clip((r - start) / (cutoff - start), 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))
