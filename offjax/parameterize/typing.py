"""SMIRNOFF typing of molecules: which parameter applies to which atoms (the last matching parameter wins)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from offjax.errors import InputError, UnassignedParameterError, UnsupportedError
from offjax.parameterize.charges import describe
from offjax.terms.user import KINDS

if TYPE_CHECKING:
    from openff.toolkit import ForceField, Molecule

    from offjax.terms.user import UserTerm

BODY = {"Bonds": 2, "Angles": 3, "ProperTorsions": 4, "ImproperTorsions": 4, "vdW": 1, "Constraints": 2, "GBSA": 1}


MAX_MATCHES = 2**32 - 1
"""RDKit's largest number, instead of its default of 1,000 matches."""


def assign(
    force_field: ForceField, molecules: Sequence[Molecule], user_terms: Sequence[UserTerm] = ()
) -> list[dict[str, np.ndarray]]:
    """For each molecule ``{section + ".atoms": (n, body), section + ".rows": (n,)}``: local atoms and the parameter's
    row, sorted.

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
    found: list[dict[str, np.ndarray]] = [{} for _ in molecules]
    whole, start = merged(molecules)
    for section, body in {**BODY, **{term.section: KINDS[term.kind].body for term in user_terms}}.items():
        if section not in force_field.registered_parameter_handlers:
            continue
        atoms, rows = _matches(section, body, force_field.get_parameter_handler(section).parameters, whole, start)
        bounds = np.searchsorted(atoms[:, 0], start)
        for u, one in enumerate(found):
            own = slice(bounds[u], bounds[u + 1])
            one[f"{section}.atoms"], one[f"{section}.rows"] = atoms[own] - start[u].astype(np.int32), rows[own]
    for molecule, one in zip(molecules, found, strict=True):
        if "VirtualSites" in force_field.registered_parameter_handlers:
            one.update(_virtual_sites(force_field.get_parameter_handler("VirtualSites"), molecule))
        _check_coverage(molecule, one, user_terms)
    return found


def merged(molecules: Sequence[Molecule]):
    """All molecules as one of RDKit, perceived as the toolkit does it, and the (n + 1,) first atoms of each."""
    from openff.toolkit.utils import RDKitToolkitWrapper
    from rdkit import Chem

    wrapper = RDKitToolkitWrapper()
    whole = Chem.RWMol()
    for molecule in molecules:
        whole.InsertMol(wrapper._connection_table_to_rdkit(molecule, aromaticity_model="OEAroModel_MDL"))
    Chem.GetSSSR(whole)
    return whole.GetMol(), np.cumsum([0, *(m.n_atoms for m in molecules)])


def _matches(section: str, body: int, parameters, whole, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (n, body) of the merged molecule, ascending, and the row of the last parameter that matches them."""
    atoms, rows = [np.zeros((0, body), np.int32)], [np.zeros(0, np.int32)]
    for row, parameter in enumerate(parameters):
        query, tagged = _query(section, body, parameter)
        match = whole.GetSubstructMatches(query, uniquify=False, maxMatches=MAX_MATCHES, useChirality=True)
        if match:
            atoms.append(np.array(match, dtype=np.int32)[:, tagged])
            rows.append(np.full(len(match), row, dtype=np.int32))
    found, of = np.concatenate(atoms), np.concatenate(rows)
    owner = np.searchsorted(start, found, side="right")
    together = np.all(owner == owner[:, :1], axis=1)  # SMIRKS of several parts would reach from molecule to molecule
    found, of = found[together], of[together]
    if section == "ImproperTorsions":
        found[:, [0, 2, 3]] = np.sort(found[:, [0, 2, 3]], axis=1)
    else:
        found = np.where(found[:, :1] > found[:, -1:], found[:, ::-1], found)
    unique, last = np.unique(found[::-1], axis=0, return_index=True)
    return unique, of[::-1][last]


def _read(section: str, parameter):
    """The SMIRKS of a parameter as an RDKit query."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        query = Chem.MolFromSmarts(parameter.smirks)
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


def _virtual_sites(handler, molecule: Molecule) -> dict[str, np.ndarray]:
    """On each parent the last matching parameter of each ``name`` makes one site, or one a permutation."""
    for parameter in handler.parameters:
        _read("VirtualSites", parameter)
    rows = {id(parameter): row for row, parameter in enumerate(handler.parameters)}
    try:
        matches = [match for found in handler.find_matches(molecule.to_topology()).values() for match in found]
    except NotImplementedError as error:  # the toolkit's answer to a connectivity that it does not support
        raise UnsupportedError(f"{describe(molecule)}: <VirtualSites>: {error}") from error
    atoms = [tuple(map(int, match.environment_match.topology_atom_indices)) for match in matches]
    return {
        "VirtualSites.atoms": np.array([(*a, *a[:1] * (4 - len(a))) for a in atoms], dtype=np.int32).reshape(-1, 4),
        "VirtualSites.rows": np.array([rows[id(match.parameter_type)] for match in matches], dtype=np.int32),
    }


def _check_coverage(molecule: Molecule, found: dict[str, np.ndarray], user_terms: Sequence[UserTerm] = ()) -> None:
    bonded = {tuple(sorted((b.atom1_index, b.atom2_index))) for b in molecule.bonds}
    index = molecule.atom_index
    held = {tuple(map(int, pair)) for pair in found.get("Constraints.atoms", ())}
    expected = {
        "vdW": {(i,) for i in range(molecule.n_atoms)},
        "GBSA": {(i,) for i in range(molecule.n_atoms)},
        "Bonds": bonded,
        "Angles": {_ascending(tuple(index(a) for a in angle)) for angle in molecule.angles},
        "ProperTorsions": {_ascending(tuple(index(a) for a in torsion)) for torsion in molecule.propers},
    }
    like = {"pair": "vdW", "bond": "Bonds", "urey-bradley": "Angles", "angle": "Angles", "torsion": "ProperTorsions"}
    expected.update({term.section: expected[like[term.kind]] for term in user_terms if term.complete})
    for section, wanted in expected.items():
        if f"{section}.atoms" not in found:
            continue
        have = {_ascending(tuple(map(int, atoms))) for atoms in found[f"{section}.atoms"]}
        # what constraints hold needs no energy: a rigid water model may have neither bonds nor angles
        missing = sorted(
            w for w in wanted - have if len(w) not in (2, 3) or (min(w[0], w[-1]), max(w[0], w[-1])) not in held
        )
        if missing:
            raise UnassignedParameterError(
                f"{describe(molecule)}: no parameter in <{section}> for {len(missing)} of {len(wanted)}, first "
                f"{_name(molecule, missing[0])}. Add a parameter that matches, for example with a general SMIRKS"
                + ("; or define the term with complete=False" if section not in BODY else "")
            )
        if extra := sorted(have - wanted):
            raise InputError(
                f"{describe(molecule)}: <{section}> matches {_name(molecule, extra[0])}, which is not a "
                f"{section.lower().rstrip('s')} of the molecule: check the SMIRKS"
            )


def _ascending(atoms: tuple[int, ...]) -> tuple[int, ...]:
    return atoms if atoms[0] <= atoms[-1] else atoms[::-1]


def _name(molecule: Molecule, atoms: tuple[int, ...]) -> str:
    return "-".join(f"{molecule.atom(i).symbol}{i}" for i in atoms) + f" (atom indices {list(atoms)})"
