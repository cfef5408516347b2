"""Virtual sites of a batch's conformers: placed in the flat rows of positions, before any term is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from offjax import virtual_sites
from offjax.batching.instances import Affine, MoleculeTerms

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

GEOMETRY = ("distance", "outOfPlaneAngle", "inPlaneAngle")


def placed(
    x: Float[Array, "row 3"], atoms: Int[Array, "site 5"], kind: Int[Array, " site"], **geometry: Float[Array, " site"]
) -> Float[Array, "row 3"]:
    """The rows ``x``, nm, with every site where its geometry puts it; ``atoms`` are its own row and those of its frame.

    What stood in the rows of sites is ignored, so the transpose of the derivative moves their forces to the atoms. A
    site whose row is beyond the last is left out.
    """
    found = virtual_sites.positions(x, atoms[:, 1:], kind, **geometry)
    return x.at[atoms[:, 0]].set(found, mode="drop")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sites:
    """All virtual sites of all conformers: see :func:`placed`; the geometry as affine functions of theta."""

    atoms: Int[Array, "site 5"]
    kind: Int[Array, " site"]
    geometry: dict[str, Affine]

    @classmethod
    def of(cls, molecules: Sequence[MoleculeTerms], molecule: np.ndarray, n_rows: int, n_sites: int) -> Sites:
        """Sites of conformers, ``molecule`` (n_conformers,) being their molecules; padded to ``n_sites``."""
        parts, first = [], 0
        for m in molecule:
            own = molecules[m].sections.get("VirtualSites")
            if own is not None:
                parts.append((own.atoms + first, own))
            first += molecules[m].n_atoms
        empty = n_sites - sum(len(atoms) for atoms, _ in parts)
        beyond = np.column_stack([np.full(empty, n_rows), np.zeros((empty, 4), int)])
        kinds = [one.kind for _, one in parts if one.kind is not None]
        return cls(
            np.concatenate([*(atoms for atoms, _ in parts), beyond]).astype(np.int32),
            np.concatenate([*kinds, np.zeros(empty)]).astype(np.int32),
            {a: Affine.concatenate([*(one.values[a] for _, one in parts), Affine.zero(empty)]) for a in GEOMETRY},
        )

    def place(self, theta, x: Float[Array, "row 3"]) -> Float[Array, "row 3"]:
        """:func:`placed` with the geometry that the force-field vector ``theta`` gives."""
        theta = theta.astype(x.dtype)
        geometry = {a: v.at(theta, x.dtype) for a, v in self.geometry.items()}
        return placed(x, self.atoms, self.kind, **geometry)
