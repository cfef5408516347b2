"""Internal coordinates of a molecule: every bond, angle, proper torsion and improper that its bonds define.

An improper is the torsion (a, c, b, d) of an atom c with exactly three bonded partners a < b < d: 180 degrees where c
is planar. Torsions about bonds that end in a straight angle have no value and are left out.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from offjax import constants
from offjax.system import System

STRAIGHT = 175.0 * constants.DEGREE
"""Angles above this have no torsions."""


def coordinates(system: System, positions: np.ndarray) -> dict[str, np.ndarray]:
    """``bond`` (n, 2), ``angle`` (n, 3), ``torsion`` (n, 4) and ``improper`` (n, 4) as atom indices.

    ``positions`` (conformer, atom, 3) in nm tell which angles are straight, in any conformer.
    """
    bonds = [tuple(map(int, sorted(bond))) for bond in system.topology.bonds]
    partners: dict[int, list[int]] = {}
    for i, j in bonds:
        partners.setdefault(i, []).append(j)
        partners.setdefault(j, []).append(i)
    angles = [(a, c, b) for c in sorted(partners) for a, b in combinations(sorted(partners[c]), 2)]
    straight = {atoms for atoms in angles if np.any(_angles(positions, atoms) > STRAIGHT)}
    torsions = [
        (i, j, k, m)
        for j, k in bonds
        for i in sorted(partners[j])
        for m in sorted(partners[k])
        if i != k
        and m != j
        and i != m
        # the outer atoms of an angle stand in ascending order
        and not straight & {(min(i, k), j, max(i, k)), (min(j, m), k, max(j, m))}
    ]
    impropers = [
        (a, c, b, d)
        for c in sorted(partners)
        if len(partners[c]) == 3
        for a, b, d in [sorted(partners[c])]
        if not straight & {(a, c, b), (a, c, d), (b, c, d)}
    ]
    found = {"bond": bonds, "angle": angles, "torsion": torsions, "improper": impropers}
    width = {"bond": 2, "angle": 3, "torsion": 4, "improper": 4}
    return {name: np.array(found[name], np.int64).reshape(-1, width[name]) for name in found}


def _angles(positions: np.ndarray, atoms: tuple[int, int, int]) -> np.ndarray:
    a, b, c = (positions[:, i] for i in atoms)
    u, v = a - b, c - b
    return np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), np.sum(u * v, axis=-1))
