"""SMIRNOFF typing of one molecule: which parameter applies to which atoms (the last matching parameter wins)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offjax.errors import InputError, UnassignedParameterError, UnsupportedError
from offjax.parameterize.charges import describe

if TYPE_CHECKING:
    from openff.toolkit import ForceField, Molecule

BODY = {"Bonds": 2, "Angles": 3, "ProperTorsions": 4, "ImproperTorsions": 4, "vdW": 1, "Constraints": 2, "GBSA": 1}


def assign(force_field: ForceField, molecule: Molecule) -> dict[str, np.ndarray]:
    """``{section + ".atoms": (n, body), section + ".rows": (n,)}``: local atoms and the parameter's row, sorted.

    Improper atoms are (outer, central, outer, outer) as the toolkit gives them. ``VirtualSites`` has one row a site, in
    the toolkit's order: the atoms of its frame from the parent on, filled up with the parent to four.

    Raises
    ------
    UnassignedParameterError
        A bond, angle, proper torsion or atom without parameter; the message names molecule and atoms.
    UnsupportedError
        A virtual site at atoms whose number of neighbours the toolkit does not take for its kind.
    """
    topology = molecule.to_topology()
    found: dict[str, np.ndarray] = {}
    for section, body in BODY.items():
        if section not in force_field.registered_parameter_handlers:
            continue
        handler = force_field.get_parameter_handler(section)
        rows = {id(parameter): row for row, parameter in enumerate(handler.parameters)}
        try:
            found_matches = handler.find_matches(topology)
        except Exception as error:
            raise _blame(section, handler, topology) or error from error
        matches = sorted((tuple(map(int, atoms)), rows[id(m.parameter_type)]) for atoms, m in found_matches.items())
        found[f"{section}.atoms"] = np.array([a for a, _ in matches], dtype=np.int32).reshape(-1, body)
        found[f"{section}.rows"] = np.array([row for _, row in matches], dtype=np.int32)
    if "VirtualSites" in force_field.registered_parameter_handlers:
        found.update(_virtual_sites(force_field.get_parameter_handler("VirtualSites"), molecule))
    _check_coverage(molecule, found)
    return found


def _virtual_sites(handler, molecule: Molecule) -> dict[str, np.ndarray]:
    """On each parent the last matching parameter of each ``name`` makes one site, or one a permutation."""
    topology = molecule.to_topology()
    rows = {id(parameter): row for row, parameter in enumerate(handler.parameters)}
    try:
        matches = [match for found in handler.find_matches(topology).values() for match in found]
    except NotImplementedError as error:
        raise UnsupportedError(f"{describe(molecule)}: <VirtualSites>: {error}") from error
    except Exception as error:
        raise _blame("VirtualSites", handler, topology) or error from error
    atoms = [tuple(map(int, match.environment_match.topology_atom_indices)) for match in matches]
    return {
        "VirtualSites.atoms": np.array([(*a, *a[:1] * (4 - len(a))) for a in atoms], dtype=np.int32).reshape(-1, 4),
        "VirtualSites.rows": np.array([rows[id(match.parameter_type)] for match in matches], dtype=np.int32),
    }


def _blame(section: str, handler, topology) -> InputError | None:
    """The parameter whose SMIRKS cannot be matched at all, as an error that names it."""
    for parameter in handler.parameters:
        try:
            topology.chemical_environment_matches(parameter.smirks)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return InputError(f"<{section}> parameter {parameter.id or ''}: bad SMIRKS {parameter.smirks!r}: {reason}")
    return None


def _check_coverage(molecule: Molecule, found: dict[str, np.ndarray]) -> None:
    bonded = {tuple(sorted((b.atom1_index, b.atom2_index))) for b in molecule.bonds}
    index = molecule.atom_index
    expected = {
        "vdW": {(i,) for i in range(molecule.n_atoms)},
        "GBSA": {(i,) for i in range(molecule.n_atoms)},
        "Bonds": bonded,
        "Angles": {_ascending(tuple(index(a) for a in angle)) for angle in molecule.angles},
        "ProperTorsions": {_ascending(tuple(index(a) for a in torsion)) for torsion in molecule.propers},
    }
    for section, wanted in expected.items():
        if f"{section}.atoms" not in found:
            continue
        have = {_ascending(tuple(map(int, atoms))) for atoms in found[f"{section}.atoms"]}
        if missing := sorted(wanted - have):
            raise UnassignedParameterError(
                f"{describe(molecule)}: no parameter in <{section}> for {len(missing)} of {len(wanted)}, first "
                f"{_name(molecule, missing[0])}. Add a parameter that matches, for example with a general SMIRKS"
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
