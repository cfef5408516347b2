"""Force field + molecules -> System: typing each unique molecule once and writing the assignment matrices."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offjax.assignment import AssignmentMatrix
from offjax.batching.instances import SECTIONS
from offjax.batching.sites import GEOMETRY
from offjax.constants import RMIN_HALF_TO_SIGMA
from offjax.deferred import Deferred
from offjax.errors import InputError, UnassignedParameterError, UnsupportedError
from offjax.nonbonded import PairList, bonded_pairs
from offjax.parameterize import charges, forcefield, typing
from offjax.parameters import Label, ParameterSet, Schema
from offjax.settings import GBSASettings, NonbondedSettings
from offjax.system import System, Term
from offjax.terms import gbsa
from offjax.terms.user import UserTerm
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
    known: dict[Any, int] = {}
    unique, copies = [], []
    for molecule in molecules:
        key = charges.chemistry(molecule)
        if key not in known:
            known[key] = len(known)
            unique.append(molecule)
        copies.append(known[key])
    assembly = _Assembly(loaded, unique, list(known), user_terms)
    assembly.write(charges.Given(charge_from_molecules), partial_bond_orders_from_molecules, allow_nonintegral_charges)
    return assembly.system(np.array(copies, dtype=np.int64), box)


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


SLOT_ATTRIBUTES = SECTIONS | {
    "Constraints": ("distance",),
    "VirtualSites": GEOMETRY,
}


class _Entries(NamedTuple):
    """Entries of an AssignmentMatrix, each (n,): slot, parameter index and weight."""

    slot: np.ndarray
    column: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, float]]) -> _Entries:
        slot, column, value = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(np.array(slot, np.int64), np.array(column, np.int64), np.array(value, np.float64))

    @classmethod
    def joined(cls, *parts: _Entries) -> _Entries:
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def matrix(self, schema: Schema, offset: np.ndarray) -> AssignmentMatrix:
        """Sorted by slot, otherwise as they come; entries of one slot and parameter are added."""
        order = np.argsort(self.slot, kind="stable")
        slot, column, value = self.slot[order], self.column[order], self.value[order]
        _, first, same = np.unique(slot * max(schema.size, 1) + column, return_index=True, return_inverse=True)
        if len(first) < len(slot):
            total, kept = np.bincount(same, weights=value), np.argsort(first)
            slot, column, value = slot[first[kept]], column[first[kept]], total[kept]
        return AssignmentMatrix(schema, slot, column, value, offset)


class _Slots(NamedTuple):
    """The slots of one section, sorted by unique molecule, with local atoms."""

    molecule: np.ndarray
    atoms: np.ndarray
    assignment: dict[str, AssignmentMatrix]
    periodicity: np.ndarray | None = None
    kind: np.ndarray | None = None


class _Parameters:
    """The parameters of one section, and where their values stand in the parameter vector.

    ``tables[attribute][row, term]`` is the index, -1 for none (the last row is that of the section itself), and
    ``points[attribute][row, term]`` the ascending (bond order, index) between which the attribute is interpolated.
    """

    def __init__(self, handler, labels: Mapping[str, Sequence[Label]], start: Mapping[str, int]) -> None:
        self.rows = list(handler.parameters or ())
        self.labels, self.start = labels, start
        width = 1 + max((label.term or 0 for column in labels.values() for label in column), default=0)
        self.none = np.full((len(self.rows) + 1, width), -1, dtype=np.int64)
        self.tables: dict[str, np.ndarray] = {}
        self.points: dict[str, dict[tuple[int, int], list[tuple[int, int]]]] = {}
        for attribute, column in labels.items():
            table, points = self.none.copy(), self.points.setdefault(attribute.removesuffix("_bondorder"), {})
            for index, label in enumerate(column, start=start[attribute]):
                if label.bond_order is None:
                    table[label.row, label.term or 0] = index
                else:
                    points.setdefault((label.row, label.term or 0), []).append((label.bond_order, index))
            self.tables[attribute] = table
        for points in self.points.values():
            for some in points.values():
                some.sort()

    def columns(self, attribute: str, rows: np.ndarray, terms=0) -> np.ndarray:
        """The index of ``attribute`` of every row (and term); -1 where it has none."""
        table, terms = self.tables.get(attribute, self.none), np.broadcast_to(terms, rows.shape)
        known = terms < table.shape[1]
        return np.where(known, table[rows, np.where(known, terms, 0)], -1)

    def loaded(self, attribute: str, index: int) -> Label:
        return self.labels[attribute][index - self.start[attribute]]


class _Assembly:
    """Writes the slots of all unique molecules, section by section."""

    def __init__(
        self,
        force_field: openff.toolkit.ForceField,
        molecules: Sequence[openff.toolkit.Molecule],
        keys: Sequence[tuple],
        user_terms: Sequence[UserTerm],
    ) -> None:
        self.force_field = force_field
        self.molecules = molecules
        self.keys = keys
        self.user_terms = user_terms
        self.schema = forcefield.schema(force_field, user_terms)
        self.parameters = {
            section: _Parameters(
                force_field.get_parameter_handler(section),
                labels,
                {attribute: self.schema.slices[section, attribute].start for attribute in labels},
            )
            for section, labels in self.schema.labels.items()
        }
        self.settings: NonbondedSettings = forcefield.settings(force_field, user_terms)
        self.gbsa: GBSASettings | None = forcefield.gbsa_settings(force_field)
        self.merged = typing.merged(molecules, keys)
        self.matches = typing.assign(force_field, molecules, self.merged, user_terms)
        self.sites = self.matches.get("VirtualSites", (np.zeros((0, 4), np.int32), np.zeros(0, np.int32)))
        self.n_atoms = np.diff(self.merged.start)
        self.n_sites = np.bincount(self._molecule_of(self.sites[0]), minlength=len(molecules))
        self.orders: dict[tuple[int, ...], float] = {}
        self.slots: dict[str, _Slots] = {}
        self.charge_methods: list[str] = []

    def write(self, given: charges.Given, bond_orders_from, allow_nonintegral: bool) -> None:
        self._find_bond_orders(bond_orders_from)
        writers: dict[str, Callable[[], None]] = {
            "Bonds": self._bonds,
            "Angles": functools.partial(self._plain, "Angles"),
            "ProperTorsions": self._propers,
            "ImproperTorsions": self._impropers,
            "vdW": self._lennard_jones,
            "Electrostatics": functools.partial(self._charges, given, allow_nonintegral),
            "GBSA": self._implicit_solvent,
            "VirtualSites": self._virtual_sites,
            "Constraints": self._constraints,
        }
        for section, write in writers.items():
            if section in self.force_field.registered_parameter_handlers:
                write()
        for term in self.user_terms:
            self._plain(term.section, tuple(term.attributes), tuple(term.constants))

    def system(self, copies: np.ndarray, box: np.ndarray | None) -> System:
        topology = Topology(self._records(), copies)
        terms, assignment = {}, {}
        for section in (*SLOT_ATTRIBUTES, *(term.section for term in self.user_terms)):
            if section in self.slots:
                molecule, atoms, matrices, periodicity, kind = self.slots[section]
                terms[section] = Term.build(section, atoms, molecule, topology, periodicity, kind)
                assignment[section] = MappingProxyType(matrices)
        return System(
            parameters=ParameterSet.loaded(self.schema),
            topology=topology,
            terms=MappingProxyType(terms),
            assignment=MappingProxyType(assignment),
            exceptions=self._exceptions(),
            nonbonded=self.settings,
            offxml=forcefield.deferred_text(self.force_field),
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

    # --- looking up parameters --------------------------------------------------------------------------------------

    def _columns(self, section: str, attribute: str, rows: np.ndarray, terms=0) -> np.ndarray:
        """The index of ``attribute`` of every row (and term), which all have it."""
        found = self.parameters[section].columns(attribute, rows, terms)
        if np.any(found < 0):
            parameter = self.parameters[section].rows[rows[np.argmax(found < 0)]]
            raise InputError(f"<{section}> parameter {parameter.id or ''} {parameter.smirks} has no {attribute}")
        return found

    def _entries(self, section: str, attribute: str, rows, terms=0, weights=1.0, bonds=None) -> _Entries:
        """One slot a row; ``bonds`` (n, 2) are the atoms of which it may take a bond order."""
        slot = np.arange(len(rows))
        terms, weights = np.broadcast_to(terms, slot.shape), np.broadcast_to(weights, slot.shape).astype(np.float64)
        points = self.parameters[section].points.get(attribute)
        if not points:
            return _Entries(slot, self._columns(section, attribute, rows, terms), weights)
        between = np.array([key in points for key in zip(rows.tolist(), terms.tolist(), strict=True)], dtype=bool)
        at = slot[~between]
        plain = _Entries(at, self._columns(section, attribute, rows[at], terms[at]), weights[at])
        more = [
            (n, column, weight)
            for n in slot[between].tolist()
            for column, weight in _interpolated(
                points[int(rows[n]), int(terms[n])], self.orders[tuple(sorted(bonds[n].tolist()))], float(weights[n])
            )
        ]
        return _Entries.joined(plain, _Entries.of(more))

    # --- molecules --------------------------------------------------------------------------------------------------

    def _molecule_of(self, atoms: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.merged.start, atoms[:, 0], side="right") - 1

    def _add(self, section: str, atoms: np.ndarray, entries: dict[str, _Entries], offsets=None, **more) -> None:
        """A section whose slots have these atoms of the merged molecule."""
        molecule = self._molecule_of(atoms)
        local = (atoms - self.merged.start[molecule][:, None]).astype(np.int32)
        self._add_local(section, molecule, local, entries, offsets, **more)

    def _add_local(self, section: str, molecule, atoms, entries, offsets=None, **more) -> None:
        nothing = np.zeros(len(atoms))
        matrices = {
            a: one.matrix(self.schema, nothing if offsets is None else offsets[a]) for a, one in entries.items()
        }
        self.slots[section] = _Slots(molecule.astype(np.int32), atoms, matrices, **more)

    def _particles(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(molecule, local index, place among all atoms and then all sites) of the particles, molecule by molecule."""
        molecules = np.arange(len(self.molecules))
        molecule = np.concatenate([np.repeat(molecules, self.n_atoms), np.repeat(molecules, self.n_sites)])
        site = np.arange(len(self.sites[0])) - np.repeat(np.cumsum(self.n_sites) - self.n_sites, self.n_sites)
        atom = np.arange(self.merged.start[-1]) - np.repeat(self.merged.start[:-1], self.n_atoms)
        local = np.concatenate([atom, site + np.repeat(self.n_atoms, self.n_sites)])
        order = np.argsort(molecule, kind="stable")
        return molecule[order], local[order].astype(np.int32), order

    def _records(self) -> tuple[Molecule, ...]:
        names = [self.parameters["VirtualSites"].rows[row].name for row in self.sites[1].tolist()]
        site = iter(names)
        return tuple(
            _record(molecule, key, part, tuple(itertools.islice(site, int(n))))
            for molecule, key, part, n in zip(
                self.molecules, self.keys, self.merged.parts, self.n_sites.tolist(), strict=True
            )
        )

    def _exceptions(self) -> tuple[PairList, ...]:
        """Pairs of particles that do not interact fully; a virtual site has those of its parent, and interacts neither
        with it nor with the parent's other sites."""
        separated = bonded_pairs(int(self.merged.start[-1]), self.merged.bonds)
        atoms = np.concatenate([separated[1], separated[2], separated[3]])
        scaled = np.arange(len(atoms)) >= len(separated[1]) + len(separated[2])
        molecule = self._molecule_of(atoms)
        order = np.argsort(molecule, kind="stable")
        atoms, scaled = (atoms - self.merged.start[molecule][:, None]).astype(np.int32)[order], scaled[order]
        bounds = np.cumsum([0, *np.bincount(molecule, minlength=len(self.molecules))]).tolist()
        parents = iter((self.sites[0][:, 0] - self.merged.start[self._molecule_of(self.sites[0])]).tolist())
        found = []
        for u, (n_atoms, n_sites) in enumerate(zip(self.n_atoms.tolist(), self.n_sites.tolist(), strict=True)):
            pairs, is_scaled = atoms[bounds[u] : bounds[u + 1]], scaled[bounds[u] : bounds[u + 1]]
            if n_sites:
                pairs, is_scaled = _inherited(n_atoms, pairs, is_scaled, list(itertools.islice(parents, n_sites)))
            scales = (self.settings.vdw_scale14, self.settings.coulomb_scale14)
            found.append(PairList(pairs, *(np.where(is_scaled, scale, 0.0) for scale in scales)))
        return tuple(found)

    def _find_bond_orders(self, bond_orders_from) -> None:
        """``self.orders`` of the molecules that a parameter with bond orders matches."""
        known: set[int] = set()
        for section in ("Bonds", "ProperTorsions"):
            if section not in self.matches:
                continue
            rows = {row for points in self.parameters[section].points.values() for row, _ in points}
            atoms, of = self.matches[section]
            method = self.force_field.get_parameter_handler(section).fractional_bondorder_method
            for u in np.unique(self._molecule_of(atoms[np.isin(of, list(rows))])).tolist():
                if u not in known:
                    first = int(self.merged.start[u])
                    found = _bond_orders(self.molecules[u], method, bond_orders_from)
                    self.orders.update({(i + first, j + first): order for (i, j), order in found.items()})
                    known.add(u)

    # --- sections ---------------------------------------------------------------------------------------------------

    def _plain(self, section: str, attributes: Sequence[str] = (), constants: Sequence[str] = ()) -> None:
        """One slot a match, whose values stand in the force field; constants belong to the section."""
        atoms, rows = self.matches[section]
        attributes = attributes or SLOT_ATTRIBUTES[section]
        entries = {a: self._entries(section, a, rows) for a in attributes}
        entries.update({c: self._entries(section, c, np.full(len(rows), forcefield.OF_SECTION)) for c in constants})
        self._add(section, atoms, entries)

    def _bonds(self) -> None:
        atoms, rows = self.matches["Bonds"]
        self._add("Bonds", atoms, {a: self._entries("Bonds", a, rows, bonds=atoms) for a in ("k", "length")})

    def _torsions(self, section: str, auto: np.ndarray):
        """Every term of every match: (match, term from 1 on, row, periodicity, 1/idivf)."""
        rows, parameters = self.matches[section][1], self.parameters[section].rows
        default = self.force_field.get_parameter_handler(section).default_idivf
        terms = {row: _terms(parameters[row], default) for row in np.unique(rows).tolist()}
        flat = [
            (match, n, row, periodicity, a if idivf is None else idivf)
            for match, (row, a) in enumerate(zip(rows.tolist(), auto.tolist(), strict=True))
            for n, (periodicity, idivf) in enumerate(terms[row], start=1)
        ]
        match, term, row, periodicity, idivf = zip(*flat, strict=True) if flat else ((), (), (), (), ())
        divisor = np.array(idivf, dtype=np.float64)
        if not np.all(divisor > 0):
            bad = int(np.argmin(divisor > 0))
            parameter = parameters[row[bad]]
            name = f"{parameter.id or ''} {parameter.smirks}"
            raise InputError(f"torsion {name}: idivf{term[bad]} must be positive, got {divisor[bad]}")
        integers = (np.array(values, dtype=np.int64) for values in (match, term, row, periodicity))
        return *integers, 1.0 / divisor

    def _propers(self) -> None:
        atoms = self.matches["ProperTorsions"][0]
        neighbors = np.bincount(self.merged.bonds.ravel(), minlength=int(self.merged.start[-1]))
        auto = (neighbors[atoms[:, 1]] - 1) * (neighbors[atoms[:, 2]] - 1)
        match, term, row, periodicity, weight = self._torsions("ProperTorsions", auto)
        entries = {
            "k": self._entries("ProperTorsions", "k", row, term, weight, atoms[match, 1:3]),
            "phase": self._entries("ProperTorsions", "phase", row, term),
        }
        self._add("ProperTorsions", atoms[match], entries, periodicity=periodicity.astype(np.int32))

    def _impropers(self) -> None:
        """Trefoil: the central atom first, then the three cyclic orders of the others, each with k / idivf."""
        atoms = self.matches["ImproperTorsions"][0]
        each = self._torsions("ImproperTorsions", np.full(len(atoms), 3))
        match, term, row, periodicity, weight = (np.repeat(values, 3) for values in each)
        cyclic = np.array([(1, 0, 2, 3), (1, 2, 3, 0), (1, 3, 0, 2)])
        trefoil = atoms[each[0]][:, cyclic].reshape(-1, 4)
        entries = {
            "k": self._entries("ImproperTorsions", "k", row, term, weight),
            "phase": self._entries("ImproperTorsions", "phase", row, term),
        }
        self._add("ImproperTorsions", trefoil, entries, periodicity=periodicity.astype(np.int32))

    def _lennard_jones(self) -> None:
        """Atoms and virtual sites, whose parameters stand in their own section."""
        sizes, depths = [], []
        for section, rows in (("vdW", self.matches["vdW"][1]), ("VirtualSites", self.sites[1])):
            if not len(rows):
                continue
            sigma = self.parameters[section].columns("sigma", rows)
            without = np.flatnonzero(sigma < 0)
            sigma[without] = self._columns(section, "rmin_half", rows[without])
            weights = np.ones(len(rows))
            weights[without] = RMIN_HALF_TO_SIGMA
            sizes.append(_Entries(np.arange(len(rows)), sigma, weights))
            depths.append(self._entries(section, "epsilon", rows))
        molecule, local, order = self._particles()
        entries = {}
        for attribute, parts in (("sigma", sizes), ("epsilon", depths)):
            _, column, value = _Entries.joined(*parts)
            entries[attribute] = _Entries(np.arange(len(order)), column[order], value[order])
        self._add_local("vdW", molecule, local[:, None], entries)

    def _implicit_solvent(self) -> None:
        if len(self.sites[0]):
            molecule = self.molecules[self._molecule_of(self.sites[0])[0]]
            raise UnsupportedError(
                f"{charges.describe(molecule)}: <GBSA> with <VirtualSites> is not supported: GBSA has no "
                "parameters for virtual sites"
            )
        for index in np.unique(self._columns("GBSA", "radius", self.matches["GBSA"][1])).tolist():
            label = self.parameters["GBSA"].loaded("radius", index)
            if not label.loaded > gbsa.OFFSET:
                raise InputError(f"{label}: {label.loaded:g} nm, but a radius must be above {gbsa.OFFSET} nm")
        self._plain("GBSA")

    def _virtual_sites(self) -> None:
        atoms, rows = self.sites
        entries, offsets = {}, {}
        # a kind without in-plane angle stands opposite to the other atoms
        for attribute, default in (("distance", 0.0), ("outOfPlaneAngle", 0.0), ("inPlaneAngle", np.pi)):
            column = self.parameters["VirtualSites"].columns(attribute, rows)
            given = np.flatnonzero(column >= 0)
            entries[attribute] = _Entries(given, column[given], np.ones(len(given)))
            offsets[attribute] = np.where(column >= 0, 0.0, default)
        self._add("VirtualSites", atoms, entries, offsets, kind=np.array(self._site_kinds(), dtype=np.int32))

    def _site_kinds(self) -> list[int]:
        return [SITE_KINDS.index(self.parameters["VirtualSites"].rows[row].type) for row in self.sites[1].tolist()]

    def _charges(self, given: charges.Given, allow_nonintegral: bool) -> None:
        """Charges of the atoms, then of the virtual sites, whose increments are taken from the atoms of their frame.

        Here slots count all atoms first, then all sites.
        """
        base, entries = [np.zeros(0)], []
        for molecule, key, first in zip(self.molecules, self.keys, self.merged.start.tolist(), strict=False):
            result = charges.assign(self.force_field, molecule, key, given)
            total = float(result.base.sum())
            for atom, row, term, weight in result.entries:
                attribute = "charge" if result.section == "LibraryCharges" else "charge_increment"
                index = int(self._columns(result.section, attribute, np.array([row]), term)[0])
                entries.append((first + atom, index, weight))
                total += weight * self.parameters[result.section].loaded(attribute, index).loaded
            formal = float(sum(charge for _, charge, *_ in key[0]))
            if abs(total - formal) > 0.01 and not allow_nonintegral:
                raise UnassignedParameterError(
                    f"{charges.describe(molecule)}: charges from {result.method} sum to {total:.4f} e, the formal "
                    f"charge is {formal:g} e; pass allow_nonintegral_charges=True if that is wanted"
                )
            base.append(result.base)
            self.charge_methods.append(result.method)
        atoms, rows = self.sites
        for site, (frame, row, kind) in enumerate(zip(atoms.tolist(), rows, self._site_kinds(), strict=True)):
            for term, atom in enumerate(frame[: N_ATOMS[kind]], start=1):
                index = int(self._columns("VirtualSites", "charge_increment", np.array([row]), term)[0])
                entries.append((atom, index, 1.0))
                entries.append((int(self.merged.start[-1]) + site, index, -1.0))
        molecule, local, order = self._particles()
        slot, column, value = _Entries.of(entries)
        moved = _Entries(np.argsort(order)[slot], column, value)
        offset = np.concatenate([*base, np.zeros(len(atoms))])[order]
        self._add_local("Electrostatics", molecule, local[:, None], {"charge": moved}, {"charge": offset})

    def _constraints(self) -> None:
        """The distance in the force field, or that of the bond."""
        atoms, rows = self.matches["Constraints"]
        column = self.parameters["Constraints"].columns("distance", rows)
        given, without = np.flatnonzero(column >= 0), np.flatnonzero(column < 0)
        entries = _Entries(given, column[given], np.ones(len(given)))
        if len(without):
            bonds = self.matches["Bonds"][0] if "Bonds" in self.matches else np.zeros((0, 2), np.int32)
            bond = {pair: n for n, pair in enumerate(map(tuple, bonds.tolist()))}
            pairs = list(map(tuple, atoms[without].tolist()))
            for n, pair in zip(without.tolist(), pairs, strict=True):
                if pair not in bond:
                    u = self._molecule_of(atoms[n : n + 1])[0]
                    smirks = self.parameters["Constraints"].rows[rows[n]].smirks
                    raise UnassignedParameterError(
                        f"{charges.describe(self.molecules[u])}: <Constraint smirks={smirks!r}> has no distance and "
                        f"atoms {(atoms[n] - self.merged.start[u]).tolist()} have no bond to take it from: add a "
                        "distance"
                    )
            lengths = self.slots["Bonds"].assignment["length"]
            of = np.array([bond[pair] for pair in pairs])
            first, end = (np.searchsorted(lengths.rows, of, side) for side in ("left", "right"))
            taken = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
            slot = np.repeat(without, end - first)
            entries = _Entries.joined(entries, _Entries(slot, lengths.columns[taken], lengths.values[taken]))
        self._add("Constraints", atoms, {"distance": entries})


def _inherited(n_atoms: int, atoms: np.ndarray, scaled: np.ndarray, parents: Sequence[int]):
    """(pairs, whether each is 1-4 scaled rather than excluded) of atoms and virtual sites, from those of the atoms."""
    members = [[atom] for atom in range(n_atoms)]
    for site, parent in enumerate(parents, start=n_atoms):
        members[parent].append(site)
    pairs = [(i, j, s) for (a, b), s in zip(atoms, scaled, strict=True) for i in members[a] for j in members[b]]
    pairs.extend((i, j, False) for group in members for i, j in itertools.combinations(group, 2))
    return np.array([pair[:2] for pair in pairs], dtype=np.int32), np.array([pair[2] for pair in pairs], dtype=bool)


def _interpolated(points: list[tuple[int, int]], order: float, weight: float) -> list[tuple[int, float]]:
    """Piecewise linear in the bond order between the nearest two points, extrapolated beyond the ends."""
    if len(points) == 1:
        return [(points[0][1], weight)]
    n = next((n for n in range(1, len(points) - 1) if order < points[n][0]), len(points) - 1)
    (low, a), (high, b) = points[n - 1], points[n]
    t = (order - low) / (high - low)
    return [(a, weight * (1.0 - t)), (b, weight * t)]


def _terms(parameter, default) -> list[tuple[int, float | None]]:
    """(periodicity, idivf) of every term of a torsion; idivf is None where it depends on the atoms."""
    found: list[tuple[int, float | None]] = []
    for n, periodicity in enumerate(parameter.periodicity):
        given = None if parameter.idivf is None or len(parameter.idivf) <= n else parameter.idivf[n]
        if given is None and default not in (None, "auto"):
            given = default
        found.append((int(periodicity), None if given is None else float(given)))
    return found


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


def _record(molecule, key: tuple, part, site_names: tuple[str, ...]) -> Molecule:
    keys = ("residue_name", "residue_number", "chain_id")
    atoms, (numbers, bonds) = list(molecule.atoms), key
    known = any(k in atom.metadata for atom in atoms for k in keys)
    name, number, chain = ([str(a.metadata.get(k, "")) for a in atoms] for k in keys)
    residues = tuple(zip(name, number, chain, strict=True)) if known else ()
    return Molecule(
        mapped_smiles=Deferred(functools.partial(typing.mapped_smiles, part)),
        name=molecule.name or "",
        atomic_numbers=np.array([number for number, *_ in numbers], dtype=np.int32),
        formal_charges=np.array([charge for _, charge, *_ in numbers], dtype=np.int32),
        masses=np.array([_mass(number) for number, *_ in numbers], dtype=np.float64),
        bonds=np.array([bond[:2] for bond in bonds], dtype=np.int32).reshape(-1, 2),
        bond_orders=np.array([bond[2] for bond in bonds], dtype=np.int32),
        atom_names=tuple(a.name or f"{a.symbol}{i + 1}" for i, a in enumerate(atoms)),
        residues=residues,
        site_names=site_names,
    )


@functools.cache
def _mass(atomic_number: int) -> float:
    """amu, as the toolkit has it."""
    from openff.units.elements import MASSES

    return float(MASSES[atomic_number].m_as("dalton"))
