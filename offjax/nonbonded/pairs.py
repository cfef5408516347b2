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
    nearer, found = np.zeros(0, np.int64), {}
    for separation in (1, 2, 3):
        ends = bonded_paths(n_atoms, bonds, separation)[:, [0, -1]].astype(np.int64)
        pairs = np.setdiff1d(ends[:, 0] * n_atoms + ends[:, 1], nearer)
        nearer = np.concatenate([nearer, pairs])
        found[separation] = np.stack([pairs // n_atoms, pairs % n_atoms], axis=1).astype(np.int32)
    return found


def bonded_paths(n_atoms: int, bonds: np.ndarray, n_bonds: int) -> np.ndarray:
    """Every path along ``n_bonds`` bonds through different atoms, (n, n_bonds + 1), once: from its smaller end, sorted.

    One bond makes the bonds, two the angles, three the proper torsions.
    """
    bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    source, target = np.concatenate([bonds, bonds[:, ::-1]]).T
    neighbors = target[np.argsort(source * n_atoms + target)]
    degree = np.bincount(source, minlength=n_atoms)
    first = np.cumsum(degree) - degree
    path = [np.arange(n_atoms)]  # one array for each place of the path
    for _ in range(n_bonds):
        many = degree[path[-1]]
        step = np.arange(many.sum()) + np.repeat(first[path[-1]] - np.cumsum(many) + many, many)
        path = [*(np.repeat(atoms, many) for atoms in path), neighbors[step]]
        new = np.logical_and.reduce([atoms != path[-1] for atoms in path[:-1]])
        path = [atoms[new] for atoms in path]
    once = path[0] < path[-1]
    return np.stack([atoms[once] for atoms in path], axis=1).astype(np.int32)


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
