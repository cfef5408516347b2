"""Force field + molecules -> System: typing each unique molecule once and writing the assignment matrices."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from offjax.assignment import AssignmentMatrix
from offjax.constants import RMIN_HALF_TO_SIGMA
from offjax.errors import InputError, UnassignedParameterError, UnsupportedError
from offjax.nonbonded import PairList, bonded_pairs
from offjax.parameterize import cache, charges, forcefield, typing
from offjax.parameters import ParameterSet, Schema
from offjax.settings import GBSASettings, NonbondedSettings
from offjax.system import System, Term
from offjax.terms import gbsa
from offjax.terms.user import KINDS, UserTerm
from offjax.topology import Molecule, Topology, reduced_box
from offjax.virtual_sites import KINDS as SITE_KINDS
from offjax.virtual_sites import N_ATOMS

if TYPE_CHECKING:
    import openff.toolkit


def parameterize(
    force_field,
    topology,
    *,
    box=None,
    charge_from_molecules=None,
    partial_bond_orders_from_molecules=None,
    allow_nonintegral_charges: bool = False,
    user_terms: Sequence[UserTerm] = (),
) -> System:
    """The work behind :meth:`offjax.System.from_smirnoff`."""
    _check_list("charge_from_molecules", charge_from_molecules)
    _check_list("partial_bond_orders_from_molecules", partial_bond_orders_from_molecules)
    loaded = forcefield.shared(force_field, forcefield.check_terms(user_terms))
    user_terms = [term for term in user_terms if term.section in loaded.registered_parameter_handlers]
    forcefield.check(loaded, user_terms)
    molecules, box = _molecules(topology, box)
    source = forcefield.text(loaded)
    assembly = _Assembly(loaded, source, user_terms)

    known: dict[Any, int] = {}
    unique, copies = [], []
    for molecule in molecules:
        key = charges.chemistry(molecule)
        if key not in known:
            known[key] = len(known)
            unique.append(molecule)
        copies.append(known[key])
    smiles = [molecule.to_smiles(mapped=True) for molecule in unique]
    given = charges.Given(charge_from_molecules)
    for entry in zip(unique, smiles, _typed(loaded, assembly, unique, smiles), strict=True):
        assembly.add(*entry, given, partial_bond_orders_from_molecules, allow_nonintegral_charges)
    return assembly.system(np.array(copies, dtype=np.int64), box)


def _typed(force_field, assembly: _Assembly, molecules, smiles: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Which parameters apply to the molecules, from the cache or from :func:`typing.assign`."""
    terms = assembly.user_terms
    versions = charges.versions() + "".join(f"{t.section} {t.kind} {t.complete}" for t in terms)
    names = [cache.key("typing", assembly.fingerprint, s, versions) for s in smiles]
    found = [cache.read(name) for name in names]
    missing = [n for n, stored in enumerate(found) if stored is None]
    for n, typed in zip(missing, typing.assign(force_field, [molecules[n] for n in missing], terms), strict=True):
        found[n] = typed
        cache.write(names[n], typed)
    return [typed for typed in found if typed is not None]


def _molecules(topology, box) -> tuple[list[openff.toolkit.Molecule], np.ndarray | None]:
    from openff.toolkit import Molecule, Topology

    if isinstance(topology, Topology):
        if box is None:
            box = topology.box_vectors
        molecules = list(topology.molecules)
    elif isinstance(topology, Molecule):
        molecules = [topology]
    elif isinstance(topology, Iterable) and not isinstance(topology, str | bytes):
        molecules = list(topology)
    else:
        raise InputError(
            "topology must be an openff.toolkit Molecule, Topology or a list of Molecules, "
            f"got {type(topology).__name__}"
        )
    if not molecules:
        raise InputError("the topology has no molecules")
    for molecule in molecules:
        if not isinstance(molecule, Molecule):
            raise InputError(f"expected openff.toolkit.Molecule objects, got {type(molecule).__name__}")
    return molecules, reduced_box(box)


def _check_list(option: str, molecules) -> None:
    from openff.toolkit import Molecule

    if molecules is None or (
        isinstance(molecules, Sequence) and all(isinstance(molecule, Molecule) for molecule in molecules)
    ):
        return
    raise InputError(f"{option} must be a list of openff.toolkit Molecules, got {type(molecules).__name__}")


class _Coordinates:
    """The sparse entries of one AssignmentMatrix while it is written."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.offset: list[float] = []

    def slot(self, entries: Iterable[tuple[int, float]], offset: float = 0.0) -> None:
        """Append one slot: its (parameter index, weight) entries and its offset."""
        merged: dict[int, float] = {}
        for column, value in entries:
            merged[column] = merged.get(column, 0.0) + value
        self.rows.extend([len(self.offset)] * len(merged))
        self.columns.extend(merged)
        self.values.extend(merged.values())
        self.offset.append(offset)

    def matrix(self, schema: Schema) -> AssignmentMatrix:
        return AssignmentMatrix(
            schema,
            np.array(self.rows, dtype=np.int64),
            np.array(self.columns, dtype=np.int64),
            np.array(self.values, dtype=np.float64),
            np.array(self.offset, dtype=np.float64),
        )


class _Slots:
    """The slots of one section while they are written."""

    def __init__(self, body: int, attributes: Sequence[str]) -> None:
        self.body = body
        self.atoms: list[tuple[int, ...]] = []
        self.molecule: list[int] = []
        self.periodicity: list[int] = []
        self.kind: list[int] = []
        self.coordinates = {a: _Coordinates() for a in attributes}


SLOT_ATTRIBUTES = {
    "Bonds": (2, ("k", "length")),
    "Angles": (3, ("k", "angle")),
    "ProperTorsions": (4, ("k", "phase")),
    "ImproperTorsions": (4, ("k", "phase")),
    "vdW": (1, ("sigma", "epsilon")),
    "Electrostatics": (1, ("charge",)),
    "Constraints": (2, ("distance",)),
    "GBSA": (1, ("radius", "scale")),
    "VirtualSites": (4, ("distance", "outOfPlaneAngle", "inPlaneAngle")),
}


class _Assembly:
    """Collects the slots of one unique molecule after the other."""

    def __init__(self, force_field: openff.toolkit.ForceField, source: str, user_terms: Sequence[UserTerm]) -> None:
        self.force_field = force_field
        self.user_terms = user_terms
        self.source = source
        self.fingerprint = hashlib.sha256(source.encode()).hexdigest()
        self.schema = forcefield.schema(force_field, user_terms)
        self.settings: NonbondedSettings = forcefield.settings(force_field, user_terms)
        self.gbsa: GBSASettings | None = forcefield.gbsa_settings(force_field)
        self.index = {
            (label.section, label.attribute, label.row, label.term, label.bond_order): i
            for i, label in enumerate(self.schema.flat)
        }
        self.sections = {
            s: _Slots(*SLOT_ATTRIBUTES[s]) for s in SLOT_ATTRIBUTES if s in force_field.registered_parameter_handlers
        }
        self.sections.update({t.section: _Slots(KINDS[t.kind].body, t.names) for t in user_terms})
        self.molecules: list[Molecule] = []
        self.exceptions: list[PairList] = []
        self.charge_methods: list[str] = []

    def system(self, copies: np.ndarray, box: np.ndarray | None) -> System:
        topology = Topology(tuple(self.molecules), copies)
        terms, assignment = {}, {}
        for section, slots in self.sections.items():
            atoms = np.array(slots.atoms, dtype=np.int32).reshape(-1, slots.body)
            periodicity = (
                np.array(slots.periodicity, dtype=np.int32)
                if section in ("ProperTorsions", "ImproperTorsions")
                else None
            )
            kind = np.array(slots.kind, dtype=np.int32) if section == "VirtualSites" else None
            terms[section] = Term.build(section, atoms, np.array(slots.molecule, np.int32), topology, periodicity, kind)
            assignment[section] = MappingProxyType({a: c.matrix(self.schema) for a, c in slots.coordinates.items()})
        return System(
            parameters=ParameterSet.loaded(self.schema),
            topology=topology,
            terms=MappingProxyType(terms),
            assignment=MappingProxyType(assignment),
            exceptions=tuple(self.exceptions),
            nonbonded=self.settings,
            source=self.source,
            box=box,
            charge_methods=tuple(self.charge_methods),
            gbsa=self.gbsa,
            user_terms=MappingProxyType({t.section: t for t in self.user_terms}),
            scale14=MappingProxyType(
                {
                    t.section: float(self.force_field.get_parameter_handler(t.section).scale14)
                    for t in self.user_terms
                    if t.is_pair
                }
            ),
        )

    # --- one unique molecule ----------------------------------------------------------------------------------------

    def add(self, molecule, smiles, matches, given: charges.Given, bond_orders_from, allow_nonintegral: bool) -> None:
        u = len(self.molecules)
        sites = _rows(matches, "VirtualSites") if "VirtualSites" in self.sections else []
        record = _record(molecule, smiles, self._site_names(sites))
        orders = None
        for section in ("Bonds", "ProperTorsions"):
            if orders is None and self._interpolates(section, matches):
                method = self.force_field.get_parameter_handler(section).fractional_bondorder_method
                orders = _bond_orders(molecule, method, bond_orders_from)
        neighbors = np.bincount(record.bonds.ravel(), minlength=record.n_atoms)
        if "Bonds" in self.sections:
            self._bonds(u, matches, orders)
        if "Angles" in self.sections:
            for atoms, row in _rows(matches, "Angles"):
                self._slot(
                    "Angles",
                    u,
                    atoms,
                    k=self._one("Angles", "k", row),
                    angle=self._one("Angles", "angle", row),
                )
        if "ProperTorsions" in self.sections:
            self._propers(u, matches, orders, neighbors)
        if "ImproperTorsions" in self.sections:
            self._impropers(u, matches)
        if "vdW" in self.sections:
            for atoms, row in _rows(matches, "vdW"):
                self._lennard_jones("vdW", u, atoms, row)
            for n, (_, row) in enumerate(sites, start=record.n_atoms):
                self._lennard_jones("VirtualSites", u, (n,), row)
        if "Electrostatics" in self.sections:
            self._charges(u, molecule, sites, given, allow_nonintegral)
        if "GBSA" in self.sections:
            self._implicit_solvent(u, molecule, matches, sites)
        for term in self.user_terms:
            for atoms, row in _rows(matches, term.section):
                own = {a: self._one(term.section, a, row) for a in term.attributes}
                shared = {c: self._one(term.section, c, forcefield.OF_SECTION) for c in term.constants}
                self._slot(term.section, u, atoms, None, **own, **shared)
        self._virtual_sites(u, sites)
        if "Constraints" in self.sections:
            self._constraints(u, molecule, matches)
        self.molecules.append(record)
        self.exceptions.append(self._exceptions(record, [atoms[0] for atoms, _ in sites]))

    def _slot(self, section: str, u: int, atoms: Sequence[int], periodicity: int | None = None, **entries) -> None:
        slots = self.sections[section]
        slots.atoms.append(tuple(atoms))
        slots.molecule.append(u)
        if periodicity is not None:
            slots.periodicity.append(periodicity)
        for attribute, entry in entries.items():
            slots.coordinates[attribute].slot(entry)

    def _one(self, section, attribute, row, term=None, weight=1.0, optional=False) -> list[tuple[int, float]]:
        index = self.index.get((section, attribute, row, term, None))
        if index is None:
            if optional:
                return []
            parameter = self.force_field.get_parameter_handler(section).parameters[row]
            raise InputError(f"<{section}> parameter {parameter.id or ''} {parameter.smirks} has no {attribute}")
        return [(index, weight)]

    def _interpolated(self, section, attribute, row, term, order, weight=1.0) -> list[tuple[int, float]]:
        """Piecewise linear in the bond order between the nearest two points, extrapolated beyond the ends."""
        points = sorted(
            (label.bond_order or 0, self.index[section, label.attribute, row, term, label.bond_order])
            for label in self.schema.labels[section].get(attribute, ())
            if label.row == row and label.term == term
        )
        if len(points) == 1:
            return [(points[0][1], weight)]
        n = next((n for n in range(1, len(points) - 1) if order < points[n][0]), len(points) - 1)
        (low, a), (high, b) = points[n - 1], points[n]
        t = (order - low) / (high - low)
        return [(a, weight * (1.0 - t)), (b, weight * t)]

    def _interpolates(self, section: str, matches) -> bool:
        if section not in self.sections:
            return False
        rows = set(matches[f"{section}.rows"].tolist())
        columns = self.schema.labels[section]
        return any(label.row in rows for a in columns if a.endswith("_bondorder") for label in columns[a])

    def _has(self, section: str, attribute: str, row: int, term: int | None = None) -> bool:
        return any(label.row == row and label.term == term for label in self.schema.labels[section].get(attribute, ()))

    def _bond_value(self, attribute: str, row: int, order: float | None) -> list[tuple[int, float]]:
        if order is not None and self._has("Bonds", f"{attribute}_bondorder", row):
            return self._interpolated("Bonds", f"{attribute}_bondorder", row, None, order)
        return self._one("Bonds", attribute, row)

    def _bonds(self, u: int, matches, orders) -> None:
        for atoms, row in _rows(matches, "Bonds"):
            order = None if orders is None else orders[tuple(sorted(atoms))]
            self._slot(
                "Bonds",
                u,
                atoms,
                k=self._bond_value("k", row, order),
                length=self._bond_value("length", row, order),
            )

    def _propers(self, u: int, matches, orders, neighbors: np.ndarray) -> None:
        handler = self.force_field.get_parameter_handler("ProperTorsions")
        for atoms, row in _rows(matches, "ProperTorsions"):
            parameter = handler.parameters[row]
            auto = (neighbors[atoms[1]] - 1) * (neighbors[atoms[2]] - 1)
            for n, periodicity in enumerate(parameter.periodicity, start=1):
                weight = 1.0 / _idivf(parameter, n, handler.default_idivf, auto)
                if self._has("ProperTorsions", "k_bondorder", row, n):
                    order = orders[tuple(sorted(atoms[1:3]))]
                    k = self._interpolated("ProperTorsions", "k_bondorder", row, n, order, weight)
                else:
                    k = self._one("ProperTorsions", "k", row, n, weight)
                phase = self._one("ProperTorsions", "phase", row, n)
                self._slot("ProperTorsions", u, atoms, int(periodicity), k=k, phase=phase)

    def _impropers(self, u: int, matches) -> None:
        """Trefoil: the central atom first, then the three cyclic orders of the others, each with k / idivf."""
        handler = self.force_field.get_parameter_handler("ImproperTorsions")
        for (a, center, b, c), row in _rows(matches, "ImproperTorsions"):
            parameter = handler.parameters[row]
            for n, periodicity in enumerate(parameter.periodicity, start=1):
                weight = 1.0 / _idivf(parameter, n, handler.default_idivf, 3)
                k = self._one("ImproperTorsions", "k", row, n, weight)
                phase = self._one("ImproperTorsions", "phase", row, n)
                for outer in ((a, b, c), (b, c, a), (c, a, b)):
                    self._slot("ImproperTorsions", u, (center, *outer), int(periodicity), k=k, phase=phase)

    def _lennard_jones(self, section: str, u: int, particle: tuple[int, ...], row: int) -> None:
        """The vdW slot of an atom or virtual site, from a parameter of its section."""
        if sigma := self._one(section, "sigma", row, optional=True):
            size = sigma
        else:
            size = [(i, RMIN_HALF_TO_SIGMA) for i, _ in self._one(section, "rmin_half", row)]
        self._slot("vdW", u, particle, sigma=size, epsilon=self._one(section, "epsilon", row))

    def _implicit_solvent(self, u: int, molecule, matches, sites) -> None:
        if sites:
            raise UnsupportedError(
                f"{charges.describe(molecule)}: <GBSA> with <VirtualSites> is not supported: GBSA has no "
                "parameters for virtual sites"
            )
        for atoms, row in _rows(matches, "GBSA"):
            radius, scale = self._one("GBSA", "radius", row), self._one("GBSA", "scale", row)
            label = self.schema.flat[radius[0][0]]
            if not label.loaded > gbsa.OFFSET:
                raise InputError(f"{label}: {label.loaded:g} nm, but a radius must be above {gbsa.OFFSET} nm")
            self._slot("GBSA", u, atoms, radius=radius, scale=scale)

    def _site_names(self, sites) -> tuple[str, ...]:
        if not sites:
            return ()
        parameters = self.force_field.get_parameter_handler("VirtualSites").parameters
        return tuple(parameters[row].name for _, row in sites)

    def _virtual_sites(self, u: int, sites) -> None:
        if not sites:
            return
        parameters = self.force_field.get_parameter_handler("VirtualSites").parameters
        slots = self.sections["VirtualSites"]
        for atoms, row in sites:
            slots.atoms.append(atoms)
            slots.molecule.append(u)
            slots.kind.append(SITE_KINDS.index(parameters[row].type))
            # a kind without in-plane angle stands opposite to the other atoms
            for attribute, default in (("distance", 0.0), ("outOfPlaneAngle", 0.0), ("inPlaneAngle", np.pi)):
                entries = self._one("VirtualSites", attribute, row, optional=True)
                slots.coordinates[attribute].slot(entries, 0.0 if entries else default)

    def _charges(self, u: int, molecule, sites, given: charges.Given, allow_nonintegral: bool) -> None:
        """Charges of the atoms, then of the virtual sites, whose increments are taken from the atoms of their frame."""
        result = charges.assign(self.force_field, molecule, given)
        n_atoms = molecule.n_atoms
        entries: list[list[tuple[int, float]]] = [[] for _ in range(n_atoms + len(sites))]
        total = float(result.base.sum())
        flat = self.schema.flat
        for atom, row, term, weight in result.entries:
            attribute = "charge" if result.section == "LibraryCharges" else "charge_increment"
            index = self.index[result.section, attribute, row, term, None]
            entries[atom].append((index, weight))
            total += weight * flat[index].loaded
        formal = float(sum(atom.formal_charge.m for atom in molecule.atoms))
        if abs(total - formal) > 0.01 and not allow_nonintegral:
            raise UnassignedParameterError(
                f"{charges.describe(molecule)}: charges from {result.method} sum to {total:.4f} e, the formal charge "
                f"is {formal:g} e; pass allow_nonintegral_charges=True if that is wanted"
            )
        parameters = self.force_field.get_parameter_handler("VirtualSites").parameters if sites else ()
        for site, (atoms, row) in enumerate(sites, start=n_atoms):
            for term in range(1, N_ATOMS[SITE_KINDS.index(parameters[row].type)] + 1):
                [(index, _)] = self._one("VirtualSites", "charge_increment", row, term)
                entries[atoms[term - 1]].append((index, 1.0))
                entries[site].append((index, -1.0))
        slots = self.sections["Electrostatics"]
        for particle, base in enumerate([*result.base.tolist(), *[0.0] * len(sites)]):
            slots.atoms.append((particle,))
            slots.molecule.append(u)
            slots.coordinates["charge"].slot(entries[particle], base)
        self.charge_methods.append(result.method)

    def _constraints(self, u: int, molecule, matches) -> None:
        handler = self.force_field.get_parameter_handler("Constraints")
        lengths = self._lengths(u)
        for atoms, row in _rows(matches, "Constraints"):
            if entry := self._one("Constraints", "distance", row, optional=True):
                self._slot("Constraints", u, atoms, distance=entry)
                continue
            if tuple(sorted(atoms)) not in lengths:
                raise UnassignedParameterError(
                    f"{charges.describe(molecule)}: <Constraint smirks={handler.parameters[row].smirks!r}> has no "
                    f"distance and atoms {list(atoms)} have no bond to take it from: add a distance"
                )
            self._slot("Constraints", u, atoms, distance=lengths[tuple(sorted(atoms))])

    def _lengths(self, u: int) -> dict[tuple[int, ...], list[tuple[int, float]]]:
        """The (parameter index, weight) entries of the equilibrium length of every bond of molecule u."""
        if "Bonds" not in self.sections:
            return {}
        slots = self.sections["Bonds"]
        length, first = slots.coordinates["length"], int(np.searchsorted(slots.molecule, u))
        entries: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        for row, column, value in zip(length.rows, length.columns, length.values, strict=True):
            if row >= first:
                entries.setdefault(tuple(sorted(slots.atoms[row])), []).append((column, value))
        return entries

    def _exceptions(self, record: Molecule, parents: Sequence[int]) -> PairList:
        """Pairs of particles that do not interact fully; a virtual site has those of its parent (``parents[n]``), and
        interacts neither with it nor with the parent's other sites."""
        separated = bonded_pairs(record.n_atoms, record.bonds)
        atoms = np.concatenate([separated[1], separated[2], separated[3]])
        scaled = np.arange(len(atoms)) >= len(separated[1]) + len(separated[2])
        if len(parents):
            atoms, scaled = _inherited(record.n_atoms, atoms, scaled, parents)
        return PairList(
            atoms,
            np.where(scaled, self.settings.vdw_scale14, 0.0),
            np.where(scaled, self.settings.coulomb_scale14, 0.0),
        )


def _inherited(n_atoms: int, atoms: np.ndarray, scaled: np.ndarray, parents: Sequence[int]):
    """(pairs, whether each is 1-4 scaled rather than excluded) of atoms and virtual sites, from those of the atoms."""
    members = [[atom] for atom in range(n_atoms)]
    for site, parent in enumerate(parents, start=n_atoms):
        members[parent].append(site)
    pairs = [(i, j, s) for (a, b), s in zip(atoms, scaled, strict=True) for i in members[a] for j in members[b]]
    pairs.extend((i, j, False) for group in members for i, j in itertools.combinations(group, 2))
    return np.array([pair[:2] for pair in pairs], dtype=np.int32), np.array([pair[2] for pair in pairs], dtype=bool)


def _rows(matches: dict[str, np.ndarray], section: str) -> list[tuple[tuple[int, ...], int]]:
    atoms, rows = matches[f"{section}.atoms"], matches[f"{section}.rows"]
    return [(tuple(map(int, a)), int(r)) for a, r in zip(atoms, rows, strict=True)]


def _idivf(parameter, n: int, default, auto: float) -> float:
    given = None if parameter.idivf is None or len(parameter.idivf) < n else parameter.idivf[n - 1]
    if given is None:
        given = auto if default in (None, "auto") else float(default)
    if not float(given) > 0:
        raise InputError(f"torsion {parameter.id or ''} {parameter.smirks}: idivf{n} must be positive, got {given}")
    return float(given)


def _bond_orders(molecule, method: str, given) -> dict[tuple[int, ...], float]:
    from openff.toolkit import Molecule

    for other in given or ():
        if other.n_atoms != molecule.n_atoms or other.hill_formula != molecule.hill_formula:
            continue
        same, mapping = Molecule.are_isomorphic(other, molecule, return_atom_map=True)
        if same:
            if other.to_smiles(mapped=True) == molecule.to_smiles(mapped=True):
                mapping = {i: i for i in range(molecule.n_atoms)}
            orders: dict[tuple[int, ...], float] = {}
            for bond in other.bonds:
                order = bond.fractional_bond_order
                if order is None or not np.isfinite(order):
                    raise InputError(
                        f"partial_bond_orders_from_molecules: {charges.describe(other)} has a bond, "
                        f"{bond.atom1_index}-{bond.atom2_index}, with fractional_bond_order {order}"
                    )
                i, j = mapping[bond.atom1_index], mapping[bond.atom2_index]
                orders[tuple(sorted((i, j)))] = float(order)
            return orders
    if method in (None, "none", "None"):
        raise InputError(
            "the force field interpolates by bond order but its fractional_bondorder_method is none: pass "
            "partial_bond_orders_from_molecules"
        )
    values = charges.bond_orders(molecule, method)
    return {
        tuple(sorted((b.atom1_index, b.atom2_index))): float(v) for b, v in zip(molecule.bonds, values, strict=True)
    }


def _record(molecule, smiles: str, site_names: tuple[str, ...]) -> Molecule:
    keys = ("residue_name", "residue_number", "chain_id")
    known = any(k in atom.metadata for atom in molecule.atoms for k in keys)
    name, number, chain = ([str(a.metadata.get(k, "")) for a in molecule.atoms] for k in keys)
    residues = tuple(zip(name, number, chain, strict=True)) if known else ()
    bonds = list(molecule.bonds)
    return Molecule(
        smiles=smiles,
        name=molecule.name or "",
        atomic_numbers=np.array([a.atomic_number for a in molecule.atoms], dtype=np.int32),
        formal_charges=np.array([int(a.formal_charge.m) for a in molecule.atoms], dtype=np.int32),
        masses=np.array([a.mass.m_as("dalton") for a in molecule.atoms], dtype=np.float64),
        bonds=np.array([[b.atom1_index, b.atom2_index] for b in bonds], dtype=np.int32).reshape(-1, 2),
        bond_orders=np.array([b.bond_order for b in bonds], dtype=np.int32),
        atom_names=tuple(a.name or f"{a.symbol}{i + 1}" for i, a in enumerate(molecule.atoms)),
        residues=residues,
        site_names=site_names,
    )
