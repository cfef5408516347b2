"""``<ProperTorsions>`` and ``<ImproperTorsions>``: one cosine a term."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from offjax import geometry

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def potential(phi, k, phase, periodicity):
    """U = k (1 + cos(periodicity phi - phase)), kJ/mol.

    phi, phase in rad; k in kJ/mol, already divided by ``idivf``. Source: SMIRNOFF specification, sections
    ProperTorsions and ImproperTorsions, ``potential="k*(1+cos(periodicity*theta-phase))"``.
    """
    return k * (1.0 + jnp.cos(periodicity * phi - phase))


def energies(
    positions: Float[Array, "atom 3"],
    atoms: Int[Array, "torsion 4"],
    k: Float[Array, " torsion"],
    phase: Float[Array, " torsion"],
    periodicity: Int[Array, " torsion"],
) -> Float[Array, " torsion"]:
    """Energy of every torsion term, kJ/mol; phi is taken as zero, with zero derivative, where atoms are collinear."""
    phi = geometry.dihedral(*(positions[atoms[:, m]] for m in range(4)))
    return potential(phi, k, phase, periodicity)
