"""Implicit solvent of many molecules: the kernel of :mod:`offjax.terms.gbsa`, molecule by molecule."""

from __future__ import annotations

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax.settings import GBSASettings
from offjax.terms import gbsa

PAIRS_AT_ONCE = 2**17
"""Pairs of atoms of the molecules that are computed together: what bounds the memory, whatever their number."""


def energies(
    settings: GBSASettings,
    members: Int[Array, "molecule width"],
    x: Float[Array, "row 3"],
    charge: Float[Array, " row"],
    radius: Float[Array, " row"],
    scale: Float[Array, " row"],
) -> Float[Array, " molecule"]:
    """Solvation energy of each molecule, kJ/mol; ``members`` are the rows of its atoms, -1 for none.

    charge in e, x and radius in nm: see :func:`offjax.terms.gbsa.energies`.
    """

    def one(rows):
        present = rows >= 0
        at = jnp.where(present, rows, 0)
        own = (
            jnp.where(present[:, None], x[at], 0.0),
            *(jnp.where(present, v[at], 1.0) for v in (charge, radius, scale)),
        )
        return jnp.sum(gbsa.energies(*own, present=present, **asdict(settings)))

    n, width = members.shape
    if n * width**2 <= PAIRS_AT_ONCE:
        return jax.vmap(one)(members)
    return jax.lax.map(jax.checkpoint(one), members, batch_size=max(1, PAIRS_AT_ONCE // width**2))


def members(sizes: np.ndarray, first: np.ndarray, width: int) -> np.ndarray:
    """(molecule, width) rows of molecules that begin at the rows ``first`` and have ``sizes`` atoms; -1 for none."""
    within = np.arange(width)
    rows = first[:, None] + within
    return np.where(within < sizes[:, None], rows, -1).astype(np.int32)
