"""``<Electrostatics>``: Coulomb interaction of point charges, plain or with OpenMM's reaction field."""

import jax.numpy as jnp

from offjax.constants import COULOMB


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
