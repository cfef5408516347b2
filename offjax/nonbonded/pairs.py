"""Exclusions from the bond graph, and the list of all interacting pairs of a set of molecules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PairList(NamedTuple):
    """Pairs of atoms (n, 2) with the scale of their vdW and Coulomb interaction, each (n,)."""

    atoms: np.ndarray
    vdw_scale: np.ndarray
    coulomb_scale: np.ndarray


def bonded_pairs(n_atoms: int, bonds: np.ndarray) -> dict[int, np.ndarray]:
    """Pairs whose shortest path has 1, 2 and 3 bonds: {1: (n, 2), 2: (n, 2), 3: (n, 2)}, i < j, sorted.

    The separation is the shortest path in the bond graph, so in a four-ring opposite atoms are 1-3, never 1-4.
    """
    neighbors: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in bonds:
        neighbors[i].append(int(j))
        neighbors[j].append(int(i))
    found: dict[int, list[tuple[int, int]]] = {1: [], 2: [], 3: []}
    for start in range(n_atoms):
        seen, shell = {start}, {start}
        for separation in (1, 2, 3):
            shell = {b for a in shell for b in neighbors[a]} - seen
            seen |= shell
            found[separation].extend((start, end) for end in shell if start < end)
    return {s: np.array(sorted(pairs), dtype=np.int32).reshape(-1, 2) for s, pairs in found.items()}


def molecule_pairs(
    n_atoms: int, exceptions: np.ndarray, vdw_scale: np.ndarray, coulomb_scale: np.ndarray
) -> tuple[PairList, PairList]:
    """All pairs i < j of ``n_atoms`` atoms, split in (full, scaled).

    ``exceptions`` (n, 2) are the pairs that do not interact fully, with their scales. Full pairs have scale one;
    scaled pairs are the exceptions of which at least one scale is not zero.
    """
    i, j = np.triu_indices(n_atoms, 1)
    exceptions = np.sort(exceptions, axis=1)
    keep = np.ones(len(i), dtype=bool)
    # position of pair (i, j), i < j, in the row-major upper triangle
    a, b = exceptions[:, 0].astype(np.int64), exceptions[:, 1].astype(np.int64)
    keep[a * n_atoms - a * (a + 1) // 2 + b - a - 1] = False
    full = np.stack([i[keep], j[keep]], axis=1).astype(np.int32)
    ones = np.ones(len(full))
    return PairList(full, ones, ones), scaled_pairs(exceptions, vdw_scale, coulomb_scale)


def scaled_pairs(exceptions: np.ndarray, vdw_scale: np.ndarray, coulomb_scale: np.ndarray) -> PairList:
    """The exceptions of which at least one scale is not zero."""
    used = (vdw_scale != 0) | (coulomb_scale != 0)
    return PairList(np.sort(exceptions, axis=1)[used], vdw_scale[used], coulomb_scale[used])
