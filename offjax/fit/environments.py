"""Chemical environments that separate the places where one SMIRKS acts, written as SMARTS.

A *child* of a parameter is its SMIRKS with one more condition on one tagged atom, ``[#6X4:1]`` becoming
``[#6X4;H3:1]``: it matches a part of what the parent matches. Placed right after the parent it takes over these places,
and only these, because the last match wins. The conditions that are tried are those that the molecules show: element,
aromaticity, number of neighbours and hydrogens, charge, ring, neighbours up to two bonds away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from offjax.errors import InputError
from offjax.parameterize import typing

if TYPE_CHECKING:
    from openff.toolkit import Molecule

SECTIONS = {
    section: typing.BODY[section] for section in ("Bonds", "Angles", "ProperTorsions", "ImproperTorsions", "vdW")
}

Place = tuple[int, tuple[int, ...]]
"""A molecule's index and the atoms of a term in a fixed order, the same for every way of writing the term."""

BONDS = {1.0: "-", 1.5: ":", 2.0: "=", 3.0: "#"}


def place(section: str, molecule: int, atoms: Sequence[int]) -> Place:
    """The Place of a term; ``atoms`` as SMIRNOFF tags them, but the central atom of an improper first."""
    atoms = tuple(map(int, atoms))
    if section == "ImproperTorsions":
        return molecule, (atoms[0], *sorted(atoms[1:]))
    return molecule, min(atoms, atoms[::-1])


def query(section: str, smirks: str):
    """A SMIRKS as an RDKit query, and where its tagged atoms are in it, in the order of the tags.

    Raises
    ------
    InputError
        SMIRKS that cannot be read, or whose tags are not 1 to the number of atoms of the section's terms.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(smirks)
    if pattern is None:
        raise InputError(f"<{section}>: SMIRKS {smirks!r} cannot be read")
    tags = {atom.GetAtomMapNum(): atom.GetIdx() for atom in pattern.GetAtoms() if atom.GetAtomMapNum()}
    if sorted(tags) != list(range(1, SECTIONS[section] + 1)):
        raise InputError(f"<{section}>: the tags of SMIRKS {smirks!r} must be 1 to {SECTIONS[section]}")
    return pattern, [tags[n] for n in sorted(tags)]


class Environments:
    """Molecules in which SMIRKS are looked up, all at once."""

    def __init__(self, molecules: Sequence[Molecule]):
        merged = typing.merged(molecules)
        self._whole, self._start = merged.whole, merged.start

    def matches(self, section: str, smirks: str) -> list[tuple[Place, tuple[int, ...]]]:
        """Every match of a SMIRKS: its Place, and the atoms of the merged molecule in the order of the tags.

        Raises
        ------
        InputError
            See :func:`query`.
        """
        pattern, tags = query(section, smirks)
        found = []
        for match in self._whole.GetSubstructMatches(
            pattern, uniquify=False, maxMatches=typing.MAX_MATCHES, useChirality=True
        ):
            atoms = tuple(match[n] for n in tags)
            molecule = int(np.searchsorted(self._start, atoms[0], side="right")) - 1
            local = tuple(a - int(self._start[molecule]) for a in atoms)
            if section == "ImproperTorsions":  # SMIRNOFF tags the central atom second
                local = (local[1], local[0], *local[2:])
            found.append((place(section, molecule, local), atoms))
        return found

    def children(self, section: str, smirks: str, places: set[Place]) -> dict[str, frozenset[Place]]:
        """Child SMIRKS of a parameter that acts at ``places``, each with the places that it takes over.

        Simple conditions come first; of children that make the same split, or its complement, the first is kept.
        """
        matches = [(p, atoms) for p, atoms in self.matches(section, smirks) if p in places]
        conditions = []
        for tag in range(1, SECTIONS[section] + 1):
            seen: dict[str, int] = {}
            for atom in {atoms[tag - 1] for _, atoms in matches}:
                for level, condition in _conditions(self._whole.GetAtomWithIdx(atom)):
                    seen[condition] = level
            conditions += [(level, condition, tag) for condition, level in seen.items()]
        found: dict[str, frozenset[Place]] = {}
        known = set()
        for _, condition, tag in sorted(conditions):
            child = specialised(smirks, tag, condition)
            taken = frozenset(p for p, _ in self.matches(section, child)) & places
            if taken and taken != places and taken not in known:
                known |= {taken, frozenset(places - taken)}
                found[child] = taken
        return found


def specialised(smirks: str, tag: int, condition: str) -> str:
    """The SMIRKS with one more condition on a tagged atom.

    >>> specialised("[#6X4,#7:1]-[*:2]", 1, "H3")
    '[#6X4,#7;H3:1]-[*:2]'
    """
    return re.sub(rf":{tag}\]", f";{condition}:{tag}]", smirks, count=1)


def _conditions(atom) -> Iterator[tuple[int, str]]:
    """What is true of an atom, as SMARTS with a level: the lower the simpler."""
    yield 0, f"#{atom.GetAtomicNum()}"
    yield 0, "a" if atom.GetIsAromatic() else "A"
    yield 1, f"X{atom.GetDegree()}"
    yield 1, f"H{atom.GetTotalNumHs(includeNeighbors=True)}"
    yield 1, f"{atom.GetFormalCharge():+d}"
    sizes = [n for n in range(3, 9) if atom.IsInRingSize(n)]
    yield 1, "r" if atom.IsInRing() else "!r"
    for size in sizes[:1]:
        yield 2, f"r{size}"
    count: dict[str, int] = {}
    for bond in atom.GetBonds():
        other = bond.GetOtherAtom(atom)
        kind = BONDS[bond.GetBondTypeAsDouble()]
        count[f"~[#{other.GetAtomicNum()}]"] = count.get(f"~[#{other.GetAtomicNum()}]", 0) + 1
        yield 3, f"$(*{kind}[#{other.GetAtomicNum()}])"
        yield 3, f"$(*~[#{other.GetAtomicNum()}X{other.GetDegree()}])"
        for second in other.GetBonds():
            third = second.GetOtherAtom(other)
            if third.GetIdx() != atom.GetIdx():
                yield 4, f"$(*~[#{other.GetAtomicNum()}]~[#{third.GetAtomicNum()}])"
                yield 4, f"$(*~*{BONDS[second.GetBondTypeAsDouble()]}[#{third.GetAtomicNum()}])"
    for neighbor, n in count.items():
        yield 2, f"$(*{neighbor})"
        for k in range(2, n + 1):
            yield 3, f"$(*{f'({neighbor})' * (k - 1)}{neighbor})"
