"""Torsion drives whose driven dihedral is not recorded: found again from the coordinates.

A relaxed scan holds one dihedral at multiples of some angle and lets everything else go, so that at each of its points
one proper torsion of the molecule sits on the grid to many digits, and others do by chance only. Files may put the
scans of one molecule, about the same or different dihedrals, one after the other: a scan ends where the held dihedral
changes or a grid value comes back.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offjax.errors import InputError
from offjax.interop.records import Record

SPACING = 5.0
"""Degrees: held dihedrals are multiples of it (scans step by 5, 10, 15 or 30 degrees)."""

TOLERANCE = 2e-3
"""Degrees: how far from a multiple a held dihedral may be. A free one is as near once in 1,250 points."""

FEWEST = 4
"""Points that make a scan."""


def dihedrals(positions: np.ndarray, atoms) -> np.ndarray:
    """Dihedral angles, degrees in (-180, 180], of ``positions`` (n, atoms, 3) for four atom indices: (n,)."""
    a, b, c, d = (positions[:, i] for i in atoms)
    b1, b2, b3 = b - a, c - b, d - c
    m, n = np.cross(b1, b2), np.cross(b2, b3)
    sine = np.linalg.norm(b2, axis=-1) * np.sum(b1 * n, axis=-1)
    return np.degrees(np.arctan2(sine, np.sum(m * n, axis=-1)))


def drives(record: Record) -> list[Record]:
    """The scans in a record, each with its ``driven`` dihedral and, if there are several, a numbered name.

    Raises
    ------
    InputError
        A point where no torsion is on the grid, or a scan of fewer than four points.
    """
    torsions = [tuple(atom.molecule_atom_index for atom in torsion) for torsion in record.molecule().propers]
    if not torsions:
        raise InputError(f"{record.source}, {record.name!r}: the molecule has no torsion to drive")
    angles = np.stack([dihedrals(record.positions, t) for t in torsions])
    step = np.round(angles / SPACING).astype(int)
    held = np.abs(angles - SPACING * step) < TOLERANCE
    step %= round(360 / SPACING)
    found, start = [], 0
    while start < record.n_conformers:
        length, best = max((_run(h[start:], s[start:]), -i) for i, (h, s) in enumerate(zip(held, step, strict=True)))
        if length < FEWEST:
            raise InputError(
                f"{record.source}, {record.name!r}: points {start} to {start + length} are no torsion drive: no "
                f"dihedral is held at multiples of {SPACING:g} degrees for {FEWEST} different angles"
            )
        found.append((slice(start, start + length), torsions[-best]))
        start += length
    return [_part(record, points, torsion, n, len(found)) for n, (points, torsion) in enumerate(found)]


def _run(held: np.ndarray, step: np.ndarray) -> int:
    """How many points from the first on are held, at values that are all different."""
    seen: set[int] = set()
    for on_grid, value in zip(held, step.tolist(), strict=True):
        if not on_grid or value in seen:
            break
        seen.add(value)
    return len(seen)


def _part(record: Record, points: slice, torsion, n: int, total: int) -> Record:
    name = record.name if total == 1 else f"{record.name}-{n + 1}"
    return replace(record.take(points), name=name, driven=(torsion,))
