"""``<Bonds>``: harmonic bond stretching."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offjax import geometry

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def potential(r, k, length):
    """U = k/2 (r - length)^2, kJ/mol.

    r, length in nm; k in kJ/mol/nm^2. Source: SMIRNOFF specification, section Bonds, ``potential="harmonic"``.
    """
    return 0.5 * k * (r - length) ** 2


def energies(
    positions: Float[Array, "atom 3"],
    atoms: Int[Array, "bond 2"],
    k: Float[Array, " bond"],
    length: Float[Array, " bond"],
) -> Float[Array, " bond"]:
    """Energy of every bond, kJ/mol. The derivative at r = 0, where U has a cusp, is zero by convention."""
    return potential(geometry.norm(positions[atoms[:, 1]] - positions[atoms[:, 0]]), k, length)
