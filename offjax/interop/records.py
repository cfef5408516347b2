"""Reference data of one molecule, as every reader returns them, and the checks that all readers share.

A reader converts units and knows a file format; what it gives is a :class:`Record`, whatever the format, or a
:class:`Problem` that says which record cannot be used and why. Messages say ``where``: the file and the place in it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from offjax import constants
from offjax.errors import InputError

BOND_RANGE = (0.6, 1.6)
"""Shortest and longest bond accepted, in sums of covalent radii."""
ASYMMETRY = 1e-3
"""Largest difference of the two halves of a Hessian, relative to its largest element."""
NEAREST, FARTHEST = 0.05, 2.0
"""nm: an electrostatic potential is not given nearer to an atom, nor most of its points farther from all."""
CONTACT = 1.15
"""Atoms that are not bonded and closer than this, in sums of covalent radii, have formed a bond."""
SLIPS = {
    10.0: "angstrom read as nm",
    0.1: "nm read as angstrom",
    1.0 / (10.0 * constants.BOHR): "bohr read as angstrom",
    10.0 * constants.BOHR: "angstrom read as bohr",
    1.0 / constants.BOHR: "bohr read as nm",
}
"""Lengths by mistaken units, in true lengths."""


PROPERTIES = {
    "hessian": ("3 atoms", "3 atoms"),
    "frequencies": ("modes",),
    "modes": ("modes", "atoms", "3"),
    "interaction": (),
    "grid": ("points", "3"),
    "potential": ("points",),
    "grid_weights": ("points",),
}
"""What a file may know of each conformer besides, and the shape after the conformers: ``hessian`` d2E/dx2 in
kJ/mol/nm^2; ``frequencies`` in 1/cm with the Cartesian displacements ``modes`` of any length; ``interaction`` energies
of complexes in kJ/mol; the electrostatic ``potential`` in kJ/mol/e at the points ``grid`` in nm, and their
``grid_weights``."""


@dataclass(frozen=True, eq=False)
class Record:
    """One molecule of a data set: ``positions`` (n, atoms, 3) nm, ``energies`` (n,) kJ/mol, ``forces`` kJ/mol/nm.

    ``forces`` are None where the file has none; ``smiles`` is mapped (map index = atom position + 1); ``source`` is
    the file. ``driven`` are the dihedrals (atom indices) that were held at each point of a torsion drive; empty for
    other data. ``kind`` is what a fit compares: readers leave it to the fit.
    ``properties`` are other data of each conformer, under the names of PROPERTIES. ``energies`` are
    0 where the file has none, and ``has_energies`` is False.
    """

    name: str
    smiles: str
    inchikey: str
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray | None
    source: str
    driven: tuple[tuple[int, int, int, int], ...] = ()
    kind: str = "energies"
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    has_energies: bool = True

    @property
    def n_conformers(self) -> int:
        return len(self.energies)

    def take(self, conformers) -> Record:
        """The record of some conformers: indices, a mask or a slice."""
        return replace(
            self,
            positions=self.positions[conformers],
            energies=self.energies[conformers],
            forces=None if self.forces is None else self.forces[conformers],
            properties={name: values[conformers] for name, values in self.properties.items()},
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over SMILES, numbers, driven dihedrals and kind."""
        digest = hashlib.sha256(self.smiles.encode())
        for array in (self.positions, self.energies, self.forces):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        if self.driven:
            digest.update(repr(self.driven).encode())
        if self.kind != "energies":
            digest.update(self.kind.encode())
        for name in sorted(self.properties):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.properties[name]).tobytes())
        return digest.hexdigest()

    def molecule(self):
        """The ``openff.toolkit.Molecule`` in the order of the positions."""
        return parse(self.smiles, f"{self.source}, group {self.name!r}, smiles", self.name)

    def molecules(self) -> list[Any]:
        """The molecules of a complex, one after the other; else the molecule."""
        return components(self.smiles, f"{self.source}, group {self.name!r}, smiles", self.name)


def components(smiles: str, where: str, name: str) -> list[Any]:
    """The ``openff.toolkit.Molecule`` objects of a mapped SMILES, in the order of their atoms.

    Raises
    ------
    InputError
        The atoms of one molecule do not stand one after the other.
    """
    found = []
    for part in smiles.split("."):
        order = sorted(int(n) for n in re.findall(r":(\d+)\]", part))
        start = order[0] if order else 1
        if order != list(range(start, start + len(order))):
            raise InputError(
                f"{where}: {part!r} has the map indices {order}: the atoms of a molecule must stand one after the other"
            )
        own = re.sub(r":(\d+)\]", lambda match, start=start: f":{int(match[1]) - start + 1}]", part)
        found.append((start, parse(own, where, name)))
    return [molecule for _, molecule in sorted(found, key=lambda item: item[0])]


def parse(smiles: str, where: str, name: str):
    """The ``openff.toolkit.Molecule`` of a mapped SMILES.

    Raises
    ------
    InputError
        Not a SMILES, hydrogens missing, or atoms not mapped 1..n.
    """
    from openff.toolkit import Molecule
    from rdkit import rdBase

    try:
        with warnings.catch_warnings(), rdBase.BlockLogs():  # what RDKit would print is in the error
            # a complex is one Molecule where only its atoms and bonds are asked for
            warnings.filterwarnings("ignore", message=".*consists of more than one molecule")
            molecule = Molecule.from_mapped_smiles(smiles, allow_undefined_stereo=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: {smiles!r} is not a SMILES with explicit hydrogens whose atoms are all mapped 1..n and "
            f"of known elements ({type(error).__name__}: {reason[:200]})"
        ) from error
    molecule.name = name
    return molecule


def check_finite(values: np.ndarray, where: str, first: int = 0) -> None:
    """Raise InputError where a value is NaN or infinite; ``first`` is the number of the first conformer."""
    if (wrong := np.argwhere(~np.isfinite(values))).size:
        index = [int(wrong[0][0]) + first, *wrong[0][1:].tolist()]
        raise InputError(f"{where}: {len(wrong)} values are not finite, first at index {index}")


def check_shape(values: np.ndarray, shape: tuple[int, ...], where: str, meaning: str) -> None:
    """Raise InputError unless ``values`` have this shape."""
    if values.shape != shape:
        raise InputError(f"{where}: shape {values.shape}, expected {shape} = {meaning}")


def check_bonds(molecule, positions: np.ndarray, where: str, first: int = 0) -> None:
    """Raise InputError where a bond's length (positions (n, atoms, 3) in nm) is far from a sum of covalent radii.

    ``first`` is the number of the first conformer.
    """
    from rdkit import Chem

    radius = Chem.GetPeriodicTable().GetRcovalent
    for bond in molecule.bonds:
        i, j = bond.atom1_index, bond.atom2_index
        expected = constants.ANGSTROM * (radius(bond.atom1.atomic_number) + radius(bond.atom2.atomic_number))
        length = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)
        wrong = np.flatnonzero((length < BOND_RANGE[0] * expected) | (length > BOND_RANGE[1] * expected))
        if wrong.size:
            c = wrong[0]
            raise InputError(
                f"{where}: bond {bond.atom1.symbol}{i}-{bond.atom2.symbol}{j} of conformer {c + first} is "
                f"{length[c]:.4f} nm long, expected about {expected:.3f}: {_slip(molecule, positions)}the unit, the "
                "order of the atoms or the connectivity is wrong"
            )


def _slip(molecule, positions: np.ndarray) -> str:
    """Words for a unit that was mistaken, if all bonds are off by the same factor."""
    from rdkit import Chem

    radius = Chem.GetPeriodicTable().GetRcovalent
    ratios = [
        np.linalg.norm(positions[:, b.atom1_index] - positions[:, b.atom2_index], axis=-1)
        / (constants.ANGSTROM * (radius(b.atom1.atomic_number) + radius(b.atom2.atomic_number)))
        for b in molecule.bonds
    ]
    typical = float(np.median(ratios))
    for factor, words in SLIPS.items():
        if np.all(np.abs(np.log(np.array(ratios) / factor)) < 0.25) and abs(np.log(typical / factor)) < 0.15:
            return f"all bonds are about {factor:.3g} times as long as they should be, as if {words}; "
    return ""


# --- records that cannot be used, and records that look odd -----------------------------------------------------------


class Problem(NamedTuple):
    """Something about a record: its file, its name, the ``kind`` and the reason.

    ``rejected`` records are not used, nor is ``ignored`` content; ``duplicate`` and ``outlier`` are remarks about
    records that are used. ``molecule`` is the name of the Record that it would have become a part of, if known.
    """

    source: str
    record: str
    kind: str
    reason: str
    molecule: str = ""

    def __str__(self) -> str:
        return self.reason if self.source in self.reason else f"{self.source}, {self.record}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read: the usable ``records``, and all ``problems``."""

    records: list[Record]
    problems: list[Problem]

    @property
    def rejected(self) -> list[Problem]:
        """The problems of records that are not used."""
        return [p for p in self.problems if p.kind == "rejected"]

    def table(self):
        """A pandas table of the problems."""
        import pandas as pd

        return pd.DataFrame(self.problems, columns=list(Problem._fields))

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.records + other.records, self.problems + other.problems)


def collect(found: Iterable[Record | Problem], strict: bool) -> Reading:
    """Records and problems apart, with remarks on duplicates and outliers.

    Raises
    ------
    InputError
        A rejected record, if ``strict``.
    """
    records, problems = [], []
    for item in found:
        if isinstance(item, Record):
            records.append(item)
        elif strict and item.kind == "rejected":
            raise InputError(str(item))
        else:
            problems.append(item)
    return Reading(records, problems + list(duplicates(records)) + [p for r in records for p in outliers(r)])


def chosen(
    path, found: list[Record | Problem], include: Sequence[str], exclude: Sequence[str]
) -> Iterator[Record | Problem]:
    """What ``include`` and ``exclude`` leave: names, InChIKeys (wildcards allowed) or SMILES of records.

    Raises
    ------
    InputError
        A pattern that matches nothing, or nothing is left.
    """
    for pattern in [*include, *exclude]:
        if not any(_matches(item, [pattern]) for item in found):
            names = list(dict.fromkeys(i.name if isinstance(i, Record) else i.molecule or i.record for i in found))
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"{path}: no record matches {pattern!r}; there are {shown or 'none'} (InChIKeys do too)")
    left = [
        item
        for item in found
        if (not include or _unknown(item) or _matches(item, include)) and not _matches(item, exclude)
    ]
    if not left:
        raise InputError(f"{path}: no molecule is left{' after exclude' if exclude else ': there are no records'}")
    yield from left


def _unknown(item: Record | Problem) -> bool:
    """A problem of nobody knows which molecule: reported whatever is included."""
    return isinstance(item, Problem) and not item.molecule


def _matches(item: Record | Problem, patterns: Sequence[str]) -> bool:
    names = (item.name, item.inchikey) if isinstance(item, Record) else (item.record, item.molecule)
    exact = (*names, item.smiles) if isinstance(item, Record) else names  # a SMILES has brackets, which are wildcards
    return any(p in exact or any(fnmatch.fnmatchcase(name, p) for name in names) for p in patterns)


def duplicates(records: Iterable[Record]) -> Iterator[Problem]:
    """Conformers of one molecule with the same positions to 1e-6 nm."""
    seen: dict[tuple[str, bytes], str] = {}
    for record in records:
        for c, x in enumerate(record.positions):
            key = record.smiles, np.round(x, 6).tobytes()
            here = f"{record.name}, conformer {c}"
            if key in seen:
                yield Problem(record.source, here, "duplicate", f"the positions of {seen[key]}")
            else:
                seen[key] = here


OUTLYING = 10.0
"""Deviation from the median, in median deviations, that counts as an outlier."""
ENERGY_SPREAD, FORCE_SIZE = 50.0, 5000.0
"""kJ/mol and kJ/mol/nm: smaller deviations and forces are never outliers."""


def outliers(record: Record) -> Iterator[Problem]:
    """Conformers whose energy or largest force is far from those of the molecule's other conformers."""
    quantities = [("energy", record.energies - np.median(record.energies), ENERGY_SPREAD, "kJ/mol from the median")]
    if record.forces is not None:
        largest = np.max(np.linalg.norm(record.forces, axis=-1), axis=1)
        quantities.append(("largest force", largest, FORCE_SIZE, "kJ/mol/nm"))
    for name, values, least, unit in quantities:
        far = np.abs(values - np.median(values))
        for c in np.flatnonzero((far > OUTLYING * np.median(far)) & (far > least)):
            reason = f"{name} {values[c]:.4g} {unit}; the median deviation is {np.median(far):.3g}"
            yield Problem(record.source, f"{record.name}, conformer {c}", "outlier", reason)


def usable(molecule, record: Record, where: str, names: tuple[str, str, str]) -> Iterator[Record | Problem]:
    """The record without the conformers that cannot be used, and a Problem for each of these.

    Of a record that has no other conformers one Problem is left. ``names`` are what the file calls positions, energies
    and forces.
    """

    def check(c: slice) -> None:
        for values, name in zip((record.positions, record.energies, record.forces), names, strict=True):
            if values is not None:
                check_finite(values[c], f"{where}, {name}", c.start)
        for name, values in record.properties.items():
            check_finite(values[c], f"{where}, {name}", c.start)
        part = {name: values[c] for name, values in record.properties.items()}
        check_values(part, record.positions[c], where, c.start)
        check_bonds(molecule, record.positions[c], f"{where}, {names[0]}", c.start)
        check_contacts(molecule, record.positions[c], f"{where}, {names[0]}", c.start)
        check_stereo(molecule, record.positions[c], f"{where}, {names[0]}", c.start)

    n = record.n_conformers
    try:
        check(slice(0, n))
        yield record
        return
    except InputError as error:
        overall = str(error)
    reasons: dict[int, str] = {}
    for c in range(n):
        try:
            check(slice(c, c + 1))
        except InputError as error:
            reasons[c] = str(error)
    if len(reasons) == n:
        none = f"; none of the {n} conformers can be used" if n > 1 else ""
        yield Problem(record.source, record.name, "rejected", overall + none, record.name)
        return
    for c, reason in reasons.items():
        yield Problem(record.source, f"{record.name}, conformer {c}", "rejected", reason, record.name)
    yield record.take([c for c in range(n) if c not in reasons])


def check_properties(properties: dict[str, np.ndarray], n_atoms: int, where: str) -> None:
    """Raise InputError unless the properties (each with a first axis of conformers) have the shapes of PROPERTIES."""
    sizes = {"3": 3, "atoms": n_atoms, "3 atoms": 3 * n_atoms}
    for name, values in properties.items():
        for axis, length in zip(PROPERTIES[name], values.shape[1:], strict=False):
            sizes.setdefault(axis, length)
        shape = (len(values), *(sizes.get(axis, -1) for axis in PROPERTIES[name]))
        check_shape(values, shape, f"{where}, {name}", f"(conformers, {', '.join(PROPERTIES[name])})")
    for one, other in (("frequencies", "modes"), ("grid", "potential"), ("potential", "grid")):
        if one in properties and other not in properties:
            raise InputError(f"{where}: {one} are there, but not {other}")


def check_values(properties: dict[str, np.ndarray], positions: np.ndarray, where: str, first: int = 0) -> None:
    """Raise InputError unless Hessians are symmetric, atoms move in every mode, and grids and their weights serve.

    Positions are in nm; ``first`` is the number of the first conformer.
    """
    for c, x in enumerate(positions):
        own, here = {name: values[c] for name, values in properties.items()}, f"conformer {c + first}"
        if (hessian := own.get("hessian")) is not None:
            difference = np.abs(hessian - hessian.T).max(initial=0.0)
            if difference > ASYMMETRY * np.abs(hessian).max(initial=0.0):
                raise InputError(
                    f"{where}, hessian of {here}: not symmetric, elements differ by {difference:.3g} kJ/mol/nm^2"
                )
        if (modes := own.get("modes")) is not None and len(still := np.nonzero(~np.any(modes, axis=(1, 2)))[0]):
            raise InputError(f"{where}, modes of {here}: no atom moves in mode {still[0]} (counted from 0)")
        if (weights := own.get("grid_weights")) is not None and (np.any(weights < 0) or not np.any(weights > 0)):
            raise InputError(f"{where}, grid weights of {here}: expected no negative ones, and one above zero")
        if (grid := own.get("grid")) is not None and len(grid):
            near = np.min(np.linalg.norm(grid[:, None] - x[None], axis=-1), axis=1)
            if near.min() < NEAREST or np.median(near) > FARTHEST:
                raise InputError(
                    f"{where}, grid of {here}: points are {near.min():.3g} to {near.max():.3g} nm from the nearest "
                    f"atom; expected {NEAREST:g} nm or more, and less than {FARTHEST:g} nm for most: is the unit right?"
                )


class Frame(NamedTuple):
    """One geometry as a file has it, in MD units: ``positions`` (atoms, 3), ``forces`` the same or None.

    Frames of one ``name`` and ``smiles`` become the conformers of one Record; ``label`` names the frame in messages.
    ``numbers`` (atomic numbers) and ``bonds`` (pairs of atoms) are compared with the SMILES where the file has them.
    ``energy`` is None in files without; ``properties`` are those of PROPERTIES, of this geometry. ``charge`` (e) and
    spin ``multiplicity`` of the calculation are compared with the SMILES too. ``level`` is its method and basis:
    energies of two levels are not compared.
    """

    name: str
    label: str
    smiles: str
    positions: np.ndarray
    energy: float | None
    forces: np.ndarray | None = None
    numbers: np.ndarray | None = None
    bonds: tuple[tuple[int, int], ...] | None = None
    driven: tuple[tuple[int, int, int, int], ...] = ()
    properties: dict[str, np.ndarray] = {}
    charge: float | None = None
    multiplicity: float | None = None
    level: str | None = None


def assemble(source: str, frames: Iterable[Frame | Problem], forces: bool) -> Iterator[Record | Problem]:
    """Records of checked frames: a frame that cannot be used is a Problem, its molecule keeps the others."""
    groups: dict[tuple[str, str], list[Frame]] = {}
    levels: dict[str, str | None] = {}
    for frame in frames:
        if isinstance(frame, Problem):
            yield frame
        else:
            groups.setdefault((frame.name, frame.smiles), []).append(frame)
    for (name, smiles), members in groups.items():
        try:
            molecule = parse(smiles, f"{source}, {members[0].label}, smiles", name)
        except InputError as error:
            yield from (Problem(source, frame.label, "rejected", str(error), name) for frame in members)
            continue
        good = []
        for frame in members:
            try:
                check_frame(molecule, frame, f"{source}, {frame.label}", forces)
                good.append(frame)
            except InputError as error:
                yield Problem(source, frame.label, "rejected", str(error), name)
        if good:
            usual, _ = Counter(map(_content, good)).most_common(1)[0]
            for frame in good:
                if (content := _content(frame)) != usual:
                    has, most = (", ".join(sorted(c)) or "none of these data" for c in (content, usual))
                    reason = f"it has {has}; most frames of this molecule have {most}"
                    yield Problem(source, frame.label, "rejected", reason, name)
            good = [frame for frame in good if _content(frame) == usual]
            level = _usual([frame.level for frame in good])
            for frame in good:
                if frame.level not in (None, level):
                    reason = f"computed with {frame.level}; most frames of this molecule with {level}"
                    yield Problem(source, frame.label, "rejected", reason, name)
            good = [frame for frame in good if frame.level in (None, level)]
            levels[name] = level
            without = [frame.label for frame in good if frame.forces is None]
            complete = not without
            if 0 < len(without) < len(good):
                reason = f"{len(without)} of {len(good)} conformers have no forces ({without[0]} the first): those of "
                yield Problem(source, name, "ignored", f"{source}, {name}: {reason}the others are left out", name)
            yield Record(
                name=name,
                smiles=smiles,
                inchikey=molecule.to_inchikey(),
                positions=np.stack([frame.positions for frame in good]),
                energies=np.array([frame.energy or 0.0 for frame in good], dtype=np.float64),
                forces=np.stack([frame.forces for frame in good]) if complete else None,
                source=source,
                driven=good[0].driven,
                properties={key: np.stack([f.properties[key] for f in good]) for key in good[0].properties},
                has_energies="energy" in usual,
            )
    usual_level = _usual(list(levels.values()))
    for name, level in levels.items():
        if level not in (None, usual_level):
            reason = f"computed with {level}; most molecules of the file with {usual_level}"
            yield Problem(source, name, "outlier", reason, name)


def _usual(levels: Sequence[str | None]) -> str | None:
    """The most common of those that are known."""
    counted = Counter(level for level in levels if level is not None).most_common(1)
    return counted[0][0] if counted else None


def _content(frame: Frame) -> frozenset[str]:
    """What a frame has besides geometry and forces."""
    return frozenset(frame.properties) | ({"energy"} if frame.energy is not None else set())


def check_frame(molecule, frame: Frame, where: str, forces: bool) -> None:
    """Raise InputError where a frame contradicts its SMILES, has no forces though they are needed, or is not finite."""
    elements = np.array([atom.atomic_number for atom in molecule.atoms])
    check_shape(frame.positions, (len(elements), 3), f"{where}, positions", "(atoms of the SMILES, 3)")
    if frame.numbers is not None:
        check_shape(np.asarray(frame.numbers), elements.shape, f"{where}, elements", "(atoms of the SMILES,)")
    if frame.numbers is not None and (wrong := np.flatnonzero(np.asarray(frame.numbers) != elements)).size:
        i = wrong[0]
        raise InputError(
            f"{where}: atom {i} has atomic number {frame.numbers[i]}, but map index {i + 1} of the SMILES has "
            f"{elements[i]}; are positions and SMILES in the same order?"
        )
    if frame.bonds is not None:
        check_connectivity(molecule, frame.bonds, where)
    check_electrons(molecule, frame.charge, frame.multiplicity, where)
    if forces and frame.forces is None:
        raise InputError(f"{where}: no forces, but they are asked for; set objective.force_weight = 0 to fit energies")
    check_finite(np.array([frame.energy or 0.0]), f"{where}, energy")
    check_finite(frame.positions, f"{where}, positions")
    check_bonds(molecule, frame.positions[None], where)
    check_contacts(molecule, frame.positions[None], where)
    check_stereo(molecule, frame.positions[None], where)
    if frame.forces is not None:
        check_shape(frame.forces, frame.positions.shape, f"{where}, forces", "the shape of the positions")
        check_finite(frame.forces, f"{where}, forces")
    each = {name: np.asarray(values)[None] for name, values in frame.properties.items()}
    for name, values in each.items():
        check_finite(values, f"{where}, {name}")
    check_properties(each, len(elements), where)
    check_values(each, frame.positions[None], where)


def check_connectivity(molecule, bonds: Iterable[tuple[int, int]], where: str) -> None:
    """Raise InputError where the bonds that a file gives are not those of the SMILES."""
    given = {(min(b), max(b)) for b in bonds}
    own = {tuple(sorted((b.atom1_index, b.atom2_index))) for b in molecule.bonds}
    if given != own:
        words = [f"{_pair(molecule, b)} is in the SMILES only" for b in sorted(own - given)]
        words += [f"{_pair(molecule, b)} is in the file only" for b in sorted(given - own)]
        raise InputError(f"{where}: the connectivity differs: bond {'; bond '.join(words[:3])}")


def check_contacts(molecule, positions: np.ndarray, where: str, first: int = 0) -> None:
    """Raise InputError where atoms (positions (n, atoms, 3) in nm) are as close as bonded ones, but not bonded.

    ``first`` is the number of the first conformer.
    """
    from rdkit import Chem

    table = Chem.GetPeriodicTable()
    radii = constants.ANGSTROM * np.array([table.GetRcovalent(atom.atomic_number) for atom in molecule.atoms])
    apart = np.triu(np.ones((len(radii), len(radii)), dtype=bool), 1)
    for bond in molecule.bonds:
        apart[tuple(sorted((bond.atom1_index, bond.atom2_index)))] = False
    i, j = np.nonzero(apart)
    distance = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)
    if (wrong := np.argwhere(distance < CONTACT * (radii[i] + radii[j]))).size:
        c, k = wrong[0]
        raise InputError(
            f"{where}: the connectivity changed: {_pair(molecule, (int(i[k]), int(j[k])))} of conformer "
            f"{c + first} are {distance[c, k]:.4f} nm apart and not bonded in the SMILES"
        )


def check_stereo(molecule, positions: np.ndarray, where: str, first: int = 0) -> None:
    """Raise InputError where a stereocentre of the SMILES has the other hand in space (positions (n, atoms, 3) in nm).

    ``first`` is the number of the first conformer. Double bonds may turn, as in torsion drives about them.
    """
    from rdkit import Chem

    centres = [atom.molecule_atom_index for atom in molecule.atoms if atom.stereochemistry]
    if not centres:
        return
    whole = molecule.to_rdkit()
    whole.RemoveAllConformers()
    shape = Chem.Conformer(whole.GetNumAtoms())
    whole.AddConformer(shape)
    for c, x in enumerate(positions):
        whole.GetConformer().SetPositions(np.ascontiguousarray(x / constants.ANGSTROM, dtype=np.float64))
        Chem.AssignStereochemistryFrom3D(whole)
        for i in centres:
            atom = whole.GetAtomWithIdx(i)
            found = atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else "none"
            if found != molecule.atom(i).stereochemistry:
                raise InputError(
                    f"{where}: the stereocentre {molecule.atom(i).symbol}{i} of conformer {c + first} is {found}, but "
                    f"{molecule.atom(i).stereochemistry} in the SMILES"
                )


def check_electrons(molecule, charge: float | None, multiplicity: float | None, where: str) -> None:
    """Raise InputError where charge (e) or spin multiplicity of a calculation are not those of the SMILES."""
    own = int(sum(atom.formal_charge.m for atom in molecule.atoms))
    if charge is not None and abs(charge - own) > 1e-3:
        raise InputError(f"{where}: the calculation has the charge {charge:g}, the SMILES {own:g}")
    if multiplicity is not None and multiplicity != 1:  # the toolkit's molecules have no unpaired electrons
        raise InputError(
            f"{where}: the calculation has the multiplicity {multiplicity:g}, the SMILES no unpaired electron"
        )


def _pair(molecule, atoms) -> str:
    return "-".join(f"{molecule.atom(i).symbol}{i}" for i in atoms)
