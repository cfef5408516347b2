"""A System as one HDF5 file: plain arrays, units as attributes, text as UTF-8, no pickle.

The schema is called ``offjax-system`` and has a version number; ``docs/data-format.md`` describes it for other readers.
Loading needs neither the OpenFF toolkit nor RDKit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from offjax.assignment import AssignmentMatrix
from offjax.deferred import Deferred
from offjax.errors import InputError
from offjax.interop.files import write_atomically
from offjax.nonbonded import PairList
from offjax.parameters import Label, ParameterSet, Schema
from offjax.settings import GBSASettings, NonbondedSettings
from offjax.topology import Molecule, Topology, reduced_box
from offjax.virtual_sites import KINDS

if TYPE_CHECKING:
    from offjax.system import System
    from offjax.terms.user import UserTerm

FORMAT = "offjax-system"
VERSION = 3
"""2: virtual sites, whose terms reach beyond the atoms of their molecule, and implicit solvent. 3: user-defined terms;
a System without them is written in version 2, which older releases read."""

UNITS = {
    ("Bonds", "k"): "kJ/mol/nm^2",
    ("Bonds", "length"): "nm",
    ("Angles", "k"): "kJ/mol/rad^2",
    ("Angles", "angle"): "rad",
    ("ProperTorsions", "k"): "kJ/mol",
    ("ProperTorsions", "phase"): "rad",
    ("ImproperTorsions", "k"): "kJ/mol",
    ("ImproperTorsions", "phase"): "rad",
    ("vdW", "sigma"): "nm",
    ("vdW", "epsilon"): "kJ/mol",
    ("Electrostatics", "charge"): "e",
    ("Constraints", "distance"): "nm",
    ("GBSA", "radius"): "nm",
    ("GBSA", "scale"): "dimensionless",
    ("VirtualSites", "distance"): "nm",
    ("VirtualSites", "outOfPlaneAngle"): "rad",
    ("VirtualSites", "inPlaneAngle"): "rad",
}
"""Units of the slots of (section, attribute)."""

_TEXT = h5py.string_dtype("utf-8")
_COMPRESS = 4096
_NAMES = ("id", "smirks", "name")


# --- writing ----------------------------------------------------------------------------------------------------------


def save(system: System, path) -> None:
    """Write a System, under a temporary name that is then renamed.

    Raises
    ------
    InputError
        The directory does not exist or cannot be written.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION if system.user_terms else 2
        file.attrs["writer"] = f"offjax {_release()}"
        file.attrs["digest"] = system.digest
        _put(file, "source", system.source, "the force field as OFFXML text")
        if system.box is not None:
            _put(file, "box", system.box, "box vectors, one a row", "nm")
        for name, value in asdict(system.nonbonded).items():
            file.require_group("nonbonded").attrs[name] = value
        if system.gbsa is not None:
            for name, value in asdict(system.gbsa).items():
                file.require_group("gbsa").attrs[name] = value
        if system.user_terms:
            _put_user_terms(file.create_group("user_terms"), system)
        _put(file, "charge_methods", _text(system.charge_methods), "how each unique molecule got its charges")
        _put_parameters(file.create_group("parameters"), system.parameters)
        _put_molecules(file.create_group("molecules"), system)
        _put(file, "copies", system.topology.copies, "the unique molecule of each molecule, in order")
        _put_terms(file.create_group("terms"), system)
    write_atomically(path, buffer.getvalue())


def _release() -> str:
    try:
        return metadata.version("offjax")
    except metadata.PackageNotFoundError:
        return "unknown"


def _text(values) -> np.ndarray:
    return np.array(list(values), dtype=object).astype(_TEXT) if len(values) else np.zeros(0, dtype=_TEXT)


def _put(group: h5py.Group, name: str, value, description: str, unit: str | None = None) -> None:
    if isinstance(value, str):
        dataset = group.create_dataset(name, data=value, dtype=_TEXT)
    else:
        value = np.asarray(value)
        packed: dict[str, Any] = {"compression": "gzip", "shuffle": True} if value.size >= _COMPRESS else {}
        dataset = group.create_dataset(name, data=value, **packed)
    dataset.attrs["description"] = description
    if unit is not None:
        dataset.attrs["unit"] = unit


def _put_user_terms(group: h5py.Group, system: System) -> None:
    group.attrs["order"] = _text(list(system.user_terms))
    for section, term in system.user_terms.items():
        one = group.create_group(section)
        one.attrs["kind"] = term.kind
        for name in ("attributes", "constants"):
            one.attrs[name] = _text(list(getattr(term, name)))
            one.attrs[f"{name}_units"] = _text(list(getattr(term, name).values()))
        if term.openmm is not None:
            one.attrs["openmm"] = term.openmm
        if section in system.scale14:
            one.attrs["scale14"] = system.scale14[section]


def _put_parameters(group: h5py.Group, parameters: ParameterSet) -> None:
    flat = parameters.schema.flat
    group.attrs["digest"] = parameters.digest
    group.attrs["sections"] = _text(list(parameters.labels))
    _put(group, "values", np.asarray(parameters.to_vector(), np.float64), "theta", "MD units: nm, kJ/mol, rad, e")
    for name in ("section", "attribute", "unit"):
        _put(group, name, _text([getattr(label, name) for label in flat]), f"{name} of each value, as in the OFFXML")
    for name in _NAMES:
        _put(group, name, _text([getattr(label, name) or "" for label in flat]), f"{name} of the OFFXML parameter")
        given = np.array([getattr(label, name) is not None for label in flat], dtype=bool)
        _put(group, f"has_{name}", given, f"whether the parameter has an attribute {name}")
    _put(group, "row", np.array([label.row for label in flat], np.int64), "position of the parameter in its section")
    for name in ("term", "bond_order"):
        numbers = [getattr(label, name) for label in flat]
        _put(group, name, np.array([-1 if n is None else n for n in numbers], np.int64), "index, -1 for none")
    _put(group, "factor", np.array([label.factor for label in flat]), "the value in MD units of one `unit`")
    _put(group, "loaded", np.array([label.loaded for label in flat]), "theta as `source` has it")


def _put_molecules(group: h5py.Group, system: System) -> None:
    molecules, exceptions = system.topology.molecules, system.exceptions

    def stack(arrays, dtype, shape=()):
        return np.concatenate([np.zeros((0, *shape)), *arrays]).astype(dtype)

    def starts(counts):
        return np.concatenate([[0], np.cumsum(list(counts))]).astype(np.int64)

    _put(group, "smiles", _text([m.smiles for m in molecules]), "fully mapped SMILES, map number = atom index + 1")
    _put(group, "name", _text([m.name for m in molecules]), "name of each unique molecule")
    _put(group, "has_residues", np.array([bool(m.residues) for m in molecules], bool), "whether residues are known")
    _put(group, "atom_start", starts(m.n_atoms for m in molecules), "first row of each molecule in atoms/, and the end")
    _put(group, "bond_start", starts(len(m.bonds) for m in molecules), "the same for bonds/")
    _put(group, "pair_start", starts(len(e.atoms) for e in exceptions), "the same for pairs/")
    _put(group, "site_start", starts(m.n_sites for m in molecules), "the same for sites/")

    atoms = group.create_group("atoms")
    _put(atoms, "atomic_number", stack([m.atomic_numbers for m in molecules], np.int32), "atomic number")
    _put(atoms, "formal_charge", stack([m.formal_charges for m in molecules], np.int32), "formal charge", "e")
    _put(atoms, "mass", stack([m.masses for m in molecules], np.float64), "mass", "amu")
    _put(atoms, "name", _text([n for m in molecules for n in m.atom_names]), "atom name")
    residues = [r for m in molecules for r in (m.residues or (("", "", ""),) * m.n_atoms)]
    for n, name in enumerate(("residue_name", "residue_number", "chain_id")):
        _put(atoms, name, _text([r[n] for r in residues]), f"{name.replace('_', ' ')}, empty for none")

    bonds = group.create_group("bonds")
    _put(bonds, "atoms", stack([m.bonds for m in molecules], np.int32, (2,)), "local atom indices")
    _put(bonds, "order", stack([m.bond_orders for m in molecules], np.int32), "Kekule bond order")

    sites = group.create_group("sites")
    sites.attrs["description"] = "virtual sites; their local indices follow those of the atoms of their molecule"
    _put(sites, "name", _text([n for m in molecules for n in m.site_names]), "name of the virtual site")

    pairs = group.create_group("pairs")
    pairs.attrs["description"] = "pairs of one molecule that do not interact fully; all others have scale 1"
    _put(pairs, "atoms", stack([e.atoms for e in exceptions], np.int32, (2,)), "local atom indices")
    _put(pairs, "vdw_scale", stack([e.vdw_scale for e in exceptions], np.float64), "scale of vdW")
    _put(pairs, "coulomb_scale", stack([e.coulomb_scale for e in exceptions], np.float64), "scale of Electrostatics")


def _put_terms(group: h5py.Group, system: System) -> None:
    group.attrs["order"] = _text(list(system.terms))
    for section, term in system.terms.items():
        one = group.create_group(section)
        one.attrs["order"] = _text(list(system.assignment[section]))
        _put(one, "slot_atoms", term.slot_atoms, "local atom indices of each slot")
        _put(one, "slot_molecule", term.slot_molecule, "unique molecule of each slot, ascending")
        _put(one, "active", system.active[section], "False where constraints replace the slot")
        if term.periodicity is not None:
            _put(one, "periodicity", term.periodicity, "periodicity of each slot")
        if term.kind is not None:
            _put(one, "kind", _text([KINDS[k] for k in term.kind]), "type of each virtual site")
        for attribute, matrix in system.assignment[section].items():
            entry = one.create_group(attribute)
            entry.attrs["description"] = "slots = sparse(values at rows, columns) @ parameters/values + offset"
            unit = system.user_terms[section].units[attribute] if section in system.user_terms else "MD units"
            unit = UNITS.get((section, attribute), unit)
            entry.attrs["unit"] = unit
            _put(entry, "rows", matrix.rows, "slot of each entry, ascending")
            _put(entry, "columns", matrix.columns, "parameter of each entry")
            _put(entry, "values", matrix.values, "weight of each entry")
            _put(entry, "offset", matrix.offset, "b", unit)


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path, user_terms: Sequence[UserTerm] = ()) -> System:
    """Read a System that :func:`save` wrote; ``user_terms`` are the definitions of those that it was made with.

    Raises
    ------
    InputError
        No such file, not HDF5, truncated or damaged, another schema, or a newer version of it; the message says which.
        A user-defined term whose definition is missing, or has other attributes than the one that was saved.
    """
    path = Path(os.fspath(path))
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: not an HDF5 file; System.load reads what System.save wrote")
        with h5py.File(path, "r") as file:
            _check_format(file, path)
            return _system(file, _user_terms(file, user_terms))
    except InputError as error:
        raise error if str(error).startswith(str(path)) else InputError(f"{path}: {error}") from error
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: truncated or damaged: {str(error).strip(chr(34))}; save the System again") from error


def _check_format(file: h5py.File, path: Path) -> None:
    found = file.attrs.get("format")
    if found != FORMAT:
        what = f"its format is {found!r}" if isinstance(found, str) else "it has no attribute 'format'"
        raise InputError(f"{path}: an HDF5 file, but not of schema {FORMAT!r}: {what}")
    version = int(file.attrs["version"])
    if version > VERSION:
        raise InputError(
            f"{path}: written by {file.attrs.get('writer', 'a newer release')} in version {version} of {FORMAT}; "
            f"this offjax reads up to version {VERSION}: upgrade offjax"
        )
    if version < 1:
        raise InputError(f"{path}: {FORMAT} has no version {version}")


def _strings(item) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(item[()]).ravel()]


def _names(value) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(value).ravel()]


def _user_terms(file: h5py.File, given: Sequence[UserTerm]) -> dict[str, UserTerm]:
    """The definitions of the file's user-defined terms, by section."""
    if "user_terms" not in file:
        return {}
    by_section = {term.section: term for term in given}
    found = {}
    for section in _names(file["user_terms"].attrs["order"]):
        stored = file["user_terms"][section].attrs
        units = [dict(zip(_names(stored[n]), _names(stored[f"{n}_units"]), strict=True))
                 for n in ("attributes", "constants")]  # fmt: skip
        what = f"UserTerm({section!r}, {stored['kind']!r}, ..., attributes={units[0]}, constants={units[1]})"
        if section not in by_section:
            raise InputError(
                f"it has the user-defined term <{section}>, whose function no file holds: pass "
                f"System.load(path, user_terms=[...]) with the definition that it was made with, {what}"
            )
        term = found[section] = by_section[section]
        if (term.kind, dict(term.attributes), dict(term.constants)) != (stored["kind"], *units):
            raise InputError(f"{term!r} is not the definition of <{section}> that it was made with, {what}")
    return found


def _system(file: h5py.File, user_terms: dict[str, UserTerm]) -> System:
    from offjax.system import System, Term

    parameters = _parameters(file["parameters"])
    molecules, exceptions = _molecules(file["molecules"])
    topology = Topology(molecules, file["copies"][()])
    if topology.copies.size and not 0 <= topology.copies.min() <= topology.copies.max() < len(molecules):
        raise ValueError("/copies names molecules that are not there")
    terms, assignment = {}, {}
    for section in _names(file["terms"].attrs["order"]):
        group = file["terms"][section]
        periodicity = group["periodicity"][()] if "periodicity" in group else None
        kind = np.array([KINDS.index(k) for k in _strings(group["kind"])], np.int32) if "kind" in group else None
        slots = group["slot_atoms"][()], group["slot_molecule"][()]
        terms[section] = Term.build(section, *slots, topology, periodicity, kind)
        assignment[section] = MappingProxyType(
            {a: _matrix(group[a], parameters.schema) for a in _names(group.attrs["order"])}
        )
    known = {f.name: type(f.default) for f in fields(NonbondedSettings)}
    stored: Mapping[str, Any] = file["nonbonded"].attrs
    gbsa = None
    if "gbsa" in file:
        options = dict(file["gbsa"].attrs)
        gbsa = GBSASettings(options.pop("model"), **{name: float(value) for name, value in options.items()})
    system = System(
        parameters=parameters,
        topology=topology,
        terms=MappingProxyType(terms),
        assignment=MappingProxyType(assignment),
        exceptions=exceptions,
        nonbonded=NonbondedSettings(**{name: kind(stored[name]) for name, kind in known.items()}),
        offxml=Deferred(file["source"].asstr()[()]),
        box=reduced_box(file["box"][()]) if "box" in file else None,
        charge_methods=tuple(_strings(file["charge_methods"])),
        gbsa=gbsa,
        user_terms=MappingProxyType(user_terms),
        scale14=MappingProxyType(
            {s: float(file["user_terms"][s].attrs["scale14"]) for s, term in user_terms.items() if term.is_pair}
        ),
    )
    if system.digest != file.attrs["digest"]:
        raise ValueError("molecules and parameters do not give the digest that the file has")
    return system


def _parameters(group: h5py.Group) -> ParameterSet:
    columns = {name: _strings(group[name]) for name in ("section", "attribute", "unit")}
    for name in _NAMES:
        given = group[f"has_{name}"][()].tolist()
        columns[name] = [text if has else None for text, has in zip(_strings(group[name]), given, strict=True)]
    columns["row"] = group["row"][()].tolist()
    for name in ("term", "bond_order"):
        columns[name] = [None if n < 0 else n for n in group[name][()].tolist()]
    for name in ("factor", "loaded"):
        columns[name] = group[name][()].tolist()
    labels: dict[str, dict[str, list[Label]]] = {section: {} for section in _names(group.attrs["sections"])}
    for row in zip(*columns.values(), strict=True):
        label = Label(**dict(zip(columns, row, strict=True)))
        labels[label.section].setdefault(label.attribute, []).append(label)
    schema = Schema(labels)
    if schema.digest != group.attrs["digest"]:
        raise ValueError("/parameters does not give the digest that the file has")
    return ParameterSet.loaded(schema).from_vector(group["values"][()])


def _molecules(group: h5py.Group) -> tuple[tuple[Molecule, ...], tuple[PairList, ...]]:
    atoms, bonds, pairs = group["atoms"], group["bonds"], group["pairs"]
    numbers = {name: atoms[name][()] for name in ("atomic_number", "formal_charge", "mass")}
    names = _strings(atoms["name"])
    residues = list(zip(*(_strings(atoms[n]) for n in ("residue_name", "residue_number", "chain_id")), strict=True))
    bond_atoms, orders = bonds["atoms"][()], bonds["order"][()]
    scaled = [pairs[name][()] for name in ("atoms", "vdw_scale", "coulomb_scale")]
    start = {kind: group[f"{kind}_start"][()] for kind in ("atom", "bond", "pair")}
    site_names: list[str] = []
    start["site"] = np.zeros(len(start["atom"]), np.int64)
    if "sites" in group:
        site_names, start["site"] = _strings(group["sites"]["name"]), group["site_start"][()]
    molecules, exceptions = [], []
    rows = zip(_strings(group["smiles"]), _strings(group["name"]), group["has_residues"][()], strict=True)
    for u, (smiles, name, has_residues) in enumerate(rows):
        a, b, e, s = (slice(start[kind][u], start[kind][u + 1]) for kind in ("atom", "bond", "pair", "site"))
        molecules.append(
            Molecule(
                mapped_smiles=Deferred(smiles),
                name=name,
                atomic_numbers=numbers["atomic_number"][a],
                formal_charges=numbers["formal_charge"][a],
                masses=numbers["mass"][a],
                bonds=bond_atoms[b],
                bond_orders=orders[b],
                atom_names=tuple(names[a]),
                residues=tuple(residues[a]) if has_residues else (),
                site_names=tuple(site_names[s]),
            )
        )
        exceptions.append(PairList(*(array[e] for array in scaled)))
    return tuple(molecules), tuple(exceptions)


def _matrix(group: h5py.Group, schema: Schema) -> AssignmentMatrix:
    return AssignmentMatrix(schema, *(group[name][()] for name in ("rows", "columns", "values", "offset")))
