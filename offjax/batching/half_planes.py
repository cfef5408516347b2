"""Torsions as pairs of half-planes, which the angles of a molecule span already.

The torsion angle i-j-k-l is the angle between two half-planes whose common edge is the line jk: one holds i, the other
l. The arms of the angle i-j-k span the first, of j-k-l the second. What a half-plane needs (its normal, how the normal
turns as atoms move) is computed once an angle and used by all torsions that share it: nine torsions about a bond of
two sp3 atoms have six half-planes, and only the sum of their slopes acts on a half-plane's atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SIDES = 3
"""Half-planes of one triangle."""


class HalfPlanes(NamedTuple):
    """The two half-planes of every torsion, each (n, 2).

    ``angle`` i-j-k is the one whose plane it is; ``side`` the edge and the atom off it: the line jk and i (0), the line
    ij and k (1), or the line ik and j (2), which impropers need; ``sign`` (+1, -1) makes of the angle's normal (arm to
    i) x (arm to k) the normal (arm x edge), with the edge in the direction of the torsion's two middle atoms.
    """

    angle: np.ndarray
    side: np.ndarray
    sign: np.ndarray


NO_PLANES = HalfPlanes(*np.zeros((3, 0, 2), int))
"""Of terms that are not torsions."""


def half_planes(torsions: Sequence[np.ndarray], angles: np.ndarray) -> tuple[list[HalfPlanes], np.ndarray]:
    """Half-planes of some sets of torsions (n, 4) of one molecule, and the atoms (m, 3) of angles that are missing
    among ``angles`` (n, 3): they follow those in the numbering.
    """
    known = {_key(*atoms): (row, *atoms) for row, atoms in enumerate(angles.tolist())}
    missing: list[tuple[int, int, int]] = []

    def one(outer: int, near: int, far: int, start: int):
        """Angle, side and sign of the half-plane of ``outer`` and the line of ``near`` and ``far``, one of which the
        edge starts from.
        """
        triangle = ((outer, near, far), (outer, far, near), (near, outer, far))
        row, first, middle, _ = next((known[_key(*t)] for t in triangle if _key(*t) in known), (-1, *triangle[0]))
        if row < 0:
            row = len(angles) + len(missing)
            known[_key(*triangle[0])] = (row, *triangle[0])
            missing.append(triangle[0])
        if middle == outer:
            return row, 2, -1 if first == start else 1
        side = int(first != outer)
        return row, side, (1 - 2 * side) * (1 if middle == start else -1)

    found = [
        np.array([(one(i, j, k, j), one(m, k, j, j)) for i, j, k, m in atoms.tolist()], dtype=int).reshape(-1, 2, 3)
        for atoms in torsions
    ]
    return [HalfPlanes(*np.moveaxis(f, 2, 0)) for f in found], np.array(missing, dtype=int).reshape(-1, 3)


def _key(first: int, middle: int, last: int) -> tuple[int, int, int]:
    """An angle's name in either order of its ends."""
    return min(first, last), middle, max(first, last)
