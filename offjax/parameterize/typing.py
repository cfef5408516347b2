"""SMIRNOFF typing of molecules: which parameter applies to which atoms (the last matching parameter wins)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offjax.errors import InputError, UnassignedParameterError, UnsupportedError
from offjax.nonbonded import bonded_paths
from offjax.parameterize.charges import chemistry, describe
from offjax.terms.user import KINDS

if TYPE_CHECKING:
    from openff.toolkit import ForceField, Molecule

    from offjax.terms.user import UserTerm

BODY = {"Bonds": 2, "Angles": 3, "ProperTorsions": 4, "ImproperTorsions": 4, "vdW": 1, "Constraints": 2, "GBSA": 1}


MAX_MATCHES = 2**32 - 1
"""RDKit's largest number, instead of its default of 1,000 matches."""


class Merged(NamedTuple):
    """Several molecules as one of RDKit: its ``parts``, the (n + 1,) first atoms of each, and the (m, 2) bonds."""

    whole: Any
    parts: list
    start: np.ndarray
    bonds: np.ndarray


def merged(molecules: Sequence[Molecule], keys: Sequence[tuple] | None = None) -> Merged:
    """All molecules as one of RDKit, perceived as the toolkit does it; ``keys`` are their :func:`chemistry`."""
    from rdkit import Chem

    keys = [chemistry(molecule) for molecule in molecules] if keys is None else keys
    parts = [to_rdkit(*pair) for pair in zip(molecules, keys, strict=True)]
    whole = Chem.RWMol()
    for part in parts:
        whole.InsertMol(part)
    Chem.GetSSSR(whole)
    start = np.cumsum([0, *(len(atoms) for atoms, _ in keys)])
    bonds = [(i + first, j + first) for first, (_, own) in zip(start.tolist(), keys, strict=False) for i, j, *_ in own]
    return Merged(whole.GetMol(), parts, start, np.array(bonds, dtype=np.int64).reshape(-1, 2))


def to_rdkit(molecule: Molecule, key: tuple):
    """The molecule, whose :func:`chemistry` is ``key``, as the toolkit gives it to RDKit for a search."""
    from rdkit import Chem

    atoms, bonds = key
    if any(atom[-1] for atom in atoms) or any(bond[-1] for bond in bonds):  # stereochemistry is the toolkit's business
        from openff.toolkit.utils import RDKitToolkitWrapper

        return RDKitToolkitWrapper()._connection_table_to_rdkit(molecule, aromaticity_model="OEAroModel_MDL")
    made = Chem.RWMol()
    for number, charge, aromatic, _ in atoms:
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetIsAromatic(aromatic)
        atom.SetNoImplicit(True)
        made.AddAtom(atom)
    kinds = Chem.BondType.values
    for i, j, order, aromatic, _ in bonds:
        n = made.AddBond(i, j, Chem.BondType.AROMATIC if aromatic else kinds[order])
        made.GetBondWithIdx(n - 1).SetIsAromatic(aromatic)
    Chem.SanitizeMol(made, Chem.SANITIZE_ALL ^ Chem.SANITIZE_ADJUSTHS ^ Chem.SANITIZE_SETAROMATICITY)
    Chem.SetAromaticity(made, Chem.AromaticityModel.AROMATICITY_MDL)
    made.UpdatePropertyCache(strict=False)
    Chem.GetSSSR(made)
    return made


def mapped_smiles(part) -> str:
    """SMILES of a molecule of RDKit with the number of every atom, from 1: it carries the chemistry and the order."""
    from rdkit import Chem

    numbered = Chem.Mol(part)
    for atom in numbered.GetAtoms():
        atom.SetAtomMapNum(atom.GetIdx() + 1)
    return Chem.MolToSmiles(numbered, isomericSmiles=True, allHsExplicit=True)


def assign(
    force_field: ForceField, molecules: Sequence[Molecule], merged: Merged, user_terms: Sequence[UserTerm] = ()
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each section the atoms (n, body) of the merged molecule and the row (n,) of their parameter, sorted.

    Improper atoms are (outer, central, outer, outer) with ascending outer atoms, others the way round that begins with
    the smaller index, as the toolkit has them. ``VirtualSites`` has one row a site, in the toolkit's order: the atoms
    of its frame from the parent on, filled up with the parent to four.

    Every SMIRKS is matched once, in one RDKit molecule that holds all of them: a call costs more than a match.

    Raises
    ------
    InputError
        SMIRKS that cannot be read, or a match that is no bond, angle or torsion; the message names the parameter.
    UnassignedParameterError
        A bond, angle, proper torsion or atom without parameter; the message names molecule and atoms.
    UnsupportedError
        A virtual site at atoms whose number of neighbours the toolkit does not take for its kind.
    """
    found = {}
    chains = _Chains(merged)
    for section, body in {**BODY, **{term.section: KINDS[term.kind].body for term in user_terms}}.items():
        if section in force_field.registered_parameter_handlers:
            parameters = force_field.get_parameter_handler(section).parameters
            found[section] = _matches(section, body, parameters, merged, chains)
    if "VirtualSites" in force_field.registered_parameter_handlers:
        handler = force_field.get_parameter_handler("VirtualSites")
        found["VirtualSites"] = _virtual_sites(handler, molecules, merged)
    _check_coverage(molecules, merged, found, user_terms)
    return found


def _matches(section: str, body: int, parameters, merged: Merged, chains: _Chains) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (n, body) of the merged molecule, ascending, and the row of the last parameter that matches them."""
    atoms, rows = [np.zeros((0, body), np.int32)], [np.zeros(0, np.int32)]
    for row, parameter in enumerate(parameters):
        match = chains.matches(parameter.smirks, body)
        if match is None:
            query, tagged = _query(section, body, parameter)
            match = np.array(_search(merged.whole, query), dtype=np.int32).reshape(-1, query.GetNumAtoms())[:, tagged]
        if len(match):
            atoms.append(match)
            rows.append(np.full(len(match), row, dtype=np.int32))
    found, of = np.concatenate(atoms), np.concatenate(rows)
    owner = np.searchsorted(merged.start, found, side="right")
    together = np.all(owner == owner[:, :1], axis=1)  # SMIRKS of several parts would reach from molecule to molecule
    found, of = found[together], of[together]
    if section == "ImproperTorsions":
        found[:, [0, 2, 3]] = np.sort(found[:, [0, 2, 3]], axis=1)
    else:
        found = np.where(found[:, :1] > found[:, -1:], found[:, ::-1], found)
    order = np.lexsort((of, *found.T[::-1]))  # by atoms, then by row
    found, of = found[order], of[order]
    last = np.append(np.any(found[1:] != found[:-1], axis=1), True)[: len(found)]
    return found[last], of[last]


def _search(whole, query) -> tuple[tuple[int, ...], ...]:
    return whole.GetSubstructMatches(query, uniquify=False, maxMatches=MAX_MATCHES, useChirality=True)


class _Chains:
    """A faster search for SMIRKS that are a chain of tagged atoms, ``[#1:1]-[#6X4:2]~[*:3]``, which most are.

    Whether one atom, or one bond, is what a chain asks for is found once for all chains; the rest is array logic over
    the paths of the molecule. Any other SMIRKS, and chirality, is left to RDKit.
    """

    def __init__(self, merged: Merged) -> None:
        self.merged = merged
        self.keys = np.sort(self._key(merged.bonds))
        self.known_atoms: dict[str, np.ndarray] = {}
        self.known_bonds: dict[str, np.ndarray] = {}
        self.known_places: dict[tuple[str, int, int], np.ndarray] = {}
        self.known_paths: dict[int, tuple[np.ndarray, np.ndarray, list[np.ndarray]]] = {}

    def matches(self, smirks: str, body: int) -> np.ndarray | None:
        """(n, body) atoms in the order of the tags, each match from both ends that it has; None if it is no chain."""
        atoms, bonds = _chain(smirks, body)
        if not atoms or any(_smarts(text) is None for text in (*atoms, *(f"*{text}*" for text in bonds))):
            return None
        paths, _, steps = self._paths(body)
        middle = sorted(range(body), key=lambda n: abs(2 * n - body + 1))  # the ends are the least selective
        left = np.flatnonzero(np.logical_and.reduce([self._place(atoms[n], n, body) for n in middle[:2]]))
        for n in middle[2:]:
            left = left[self._place(atoms[n], n, body)[left]]
        for step, text in zip(steps, bonds, strict=True):
            left = left[self._bonds(text)[step[left]]]
        return paths[left]

    def _place(self, text: str, n: int, body: int) -> np.ndarray:
        """For every path, whether its atom ``n`` is what is asked for."""
        key = text, n, body
        if key not in self.known_places:
            self.known_places[key] = self._atoms(text)[self._paths(body)[1][n]]
        return self.known_places[key]

    def _paths(self, body: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Paths of ``body`` atoms, from both ends; the same by place; and for each step the number of the bond."""
        if body not in self.known_paths:
            if body == 1:
                paths = np.arange(self.merged.start[-1], dtype=np.int32)[:, None]
            else:
                paths = bonded_paths(int(self.merged.start[-1]), self.merged.bonds, body - 1)
                paths = np.concatenate([paths, paths[:, ::-1]])
            places = np.ascontiguousarray(paths.T.astype(np.intp))
            steps = [self._numbers(places[n : n + 2].T) for n in range(body - 1)]
            self.known_paths[body] = paths, places, steps
        return self.known_paths[body]

    def _numbers(self, pairs: np.ndarray) -> np.ndarray:
        """The numbers of the bonds between atoms (n, 2), in an order of this object's own."""
        return np.searchsorted(self.keys, self._key(pairs))

    def _key(self, pairs: np.ndarray) -> np.ndarray:
        a, b = pairs.T.astype(np.int64)
        return np.minimum(a, b) * self.merged.start[-1] + np.maximum(a, b)

    def _atoms(self, text: str) -> np.ndarray:
        """Which atoms match ``[#6X4]``."""
        if text not in self.known_atoms:
            self.known_atoms[text] = found = np.zeros(self.merged.start[-1], dtype=bool)
            found[[atom for (atom,) in _search(self.merged.whole, _smarts(text))]] = True
        return self.known_atoms[text]

    def _bonds(self, text: str) -> np.ndarray:
        """Which bonds match ``-`` between any atoms."""
        if text not in self.known_bonds:
            self.known_bonds[text] = found = np.zeros(len(self.merged.bonds), dtype=bool)
            pairs = np.array(_search(self.merged.whole, _smarts(f"*{text}*")), dtype=np.int64).reshape(-1, 2)
            found[self._numbers(pairs)] = True
        return self.known_bonds[text]


_ATOM = re.compile(r"(\[[^\[\]@]*(?:\[[^\[\]@]*\][^\[\]@]*)*):(\d)\]([-=#:~@!&,;]*)")
"""``[...:n]`` without chirality, and the bond behind it; brackets may stand in it, as in ``[#6;$(*~[#8]):2]``."""


def _chain(smirks: str, body: int) -> tuple[list[str], list[str]]:
    """The atoms, without their tags, and the bonds between them; nothing if it is no chain tagged 1 to ``body``.

    >>> _chain("[#1:1]-[#6X4;$(*~[#8]):2]", 2)
    (['[#1]', '[#6X4;$(*~[#8])]'], ['-'])
    """
    atoms, bonds, rest = [], [], smirks
    for n in range(1, body + 1):
        found = _ATOM.match(rest)
        if found is None or found[2] != str(n):
            return [], []
        atoms.append(found[1] + "]")
        bonds.append(found[3])
        rest = rest[found.end() :]
    return ([], []) if bonds.pop() or rest else (atoms, bonds)


@functools.lru_cache(maxsize=4096)
def _smarts(text: str):
    """An RDKit query, or None if the text cannot be read."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        return Chem.MolFromSmarts(text)


def _read(section: str, parameter):
    """The SMIRKS of a parameter as an RDKit query."""
    query = _smarts(parameter.smirks)
    if query is None:
        raise InputError(f"<{section}> parameter {parameter.id or ''}: bad SMIRKS {parameter.smirks!r}: unreadable")
    return query


def _query(section: str, body: int, parameter):
    """The same with the places of its tagged atoms, of which there are ``body``."""
    query = _read(section, parameter)
    places = {atom.GetAtomMapNum(): atom.GetIdx() for atom in query.GetAtoms() if atom.GetAtomMapNum()}
    if sorted(places) != list(range(1, body + 1)):
        raise InputError(
            f"<{section}> parameter {parameter.id or ''}: bad SMIRKS {parameter.smirks!r}: its tagged atoms must be "
            f"numbered 1 to {body}"
        )
    return query, [places[n] for n in range(1, body + 1)]


def _virtual_sites(handler, molecules: Sequence[Molecule], merged: Merged) -> tuple[np.ndarray, np.ndarray]:
    """On each parent the last matching parameter of each ``name`` makes one site, or one a permutation."""
    queries = [_read("VirtualSites", parameter) for parameter in handler.parameters]
    rows = {id(parameter): row for row, parameter in enumerate(handler.parameters)}
    atoms, of = [], []
    for molecule, part, first in zip(molecules, merged.parts, merged.start.tolist(), strict=False):
        if not any(part.HasSubstructMatch(query, useChirality=True) for query in queries):
            continue
        try:
            matches = [match for found in handler.find_matches(molecule.to_topology()).values() for match in found]
        except NotImplementedError as error:  # the toolkit's answer to a connectivity that it does not support
            raise UnsupportedError(f"{describe(molecule)}: <VirtualSites>: {error}") from error
        for match in matches:
            frame = [first + int(n) for n in match.environment_match.topology_atom_indices]
            atoms.append(frame + frame[:1] * (4 - len(frame)))
            of.append(rows[id(match.parameter_type)])
    return np.array(atoms, dtype=np.int32).reshape(-1, 4), np.array(of, dtype=np.int32)


def _check_coverage(
    molecules: Sequence[Molecule], merged: Merged, found: dict[str, tuple[np.ndarray, np.ndarray]], user_terms
) -> None:
    """Every atom, bond, angle and proper torsion has a parameter, and nothing else has one."""
    n_atoms = int(merged.start[-1])
    like = {"pair": "vdW", "bond": "Bonds", "urey-bradley": "Angles", "angle": "Angles", "torsion": "ProperTorsions"}
    same = {"GBSA": "vdW", **{term.section: like[term.kind] for term in user_terms if term.complete}}
    wanted = {
        section: bonded_paths(n_atoms, merged.bonds, n)
        for n, section in enumerate(("Bonds", "Angles", "ProperTorsions"), start=1)
        if section in found or section in same.values()
    }
    wanted["vdW"] = np.arange(n_atoms, dtype=np.int32)[:, None]
    wanted.update({section: wanted[other] for section, other in same.items()})
    for section, expected in wanted.items():
        if section not in found or np.array_equal(found[section][0], expected):
            continue
        have, want = set(map(tuple, found[section][0].tolist())), set(map(tuple, expected.tolist()))
        # what constraints hold needs no energy: a rigid water model may have neither bonds nor angles
        held = set(map(tuple, found["Constraints"][0].tolist())) if "Constraints" in found else set()
        missing = sorted(w for w in want - have if len(w) not in (2, 3) or (w[0], w[-1]) not in held)
        if missing:
            u = int(np.searchsorted(merged.start, missing[0][0], side="right")) - 1
            own = range(merged.start[u], merged.start[u + 1])
            lacking, of = (sum(atoms[0] in own for atoms in some) for some in (missing, want))
            raise UnassignedParameterError(
                f"{describe(molecules[u])}: no parameter in <{section}> for {lacking} of {of}, first "
                f"{_name(molecules[u], missing[0], own[0])}. Add a parameter that matches, for example with a general "
                "SMIRKS" + ("; or define the term with complete=False" if section not in BODY else "")
            )
        if extra := sorted(have - want):
            u = int(np.searchsorted(merged.start, extra[0][0], side="right")) - 1
            raise InputError(
                f"{describe(molecules[u])}: <{section}> matches {_name(molecules[u], extra[0], merged.start[u])}, "
                f"which is not a {section.lower().rstrip('s')} of the molecule: check the SMIRKS"
            )


def _name(molecule: Molecule, atoms: Sequence[int], first: int) -> str:
    local = [int(atom - first) for atom in atoms]
    return "-".join(f"{molecule.atom(i).symbol}{i}" for i in local) + f" (atom indices {local})"
