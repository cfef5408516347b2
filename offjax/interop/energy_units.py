"""Energies and forces whose unit is not the one that the file declares.

Nothing in a number tells its unit, but molecules do:

*Total energies.* All electrons together, a molecule has the energy of its atoms but for one or two percent: sum_i E_i
of the free atoms (S. J. Chakravorty et al., Phys. Rev. A 47, 3649 (1993), table XI; Br: B3LYP). If the energies of all
conformers, as they were read, are a conversion factor times that, they have another unit.

*Forces and bonds.* The slope of the pull along bonds (F_j - F_i).e_ij / 2 against their length, both less their means
over conformers, is minus the force constant of bonds, 1e5 to 1e6 kJ/mol/nm^2.

*Energies and forces.* A harmonic molecule lies at least |F|^2 / (2 k) above its minimum, with its largest force
constant k; without forces, its bonds alone need 1/2 k (r - <r>)^2 with their smallest. Energies that spread by much
less than that, or by more than bonds could hold, have another unit.

*Work.* Between two conformers c and d that are near each other, superposed, the energy changes by what the forces do,
-(F_c + F_d).(x_d - x_c) / 2. If the changes of all such pairs go with that work, but are another multiple of it than
about 1, energies or forces have another unit. (Molecules at room temperature: 0.7 to 1.3, with correlations above 0.9.)

What fits none of these is left alone: relative energies and formation energies are as good as total ones. Energies of
pseudopotentials and of semi-empirical methods can meet a factor by chance, which is why a data set can do without this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from offjax.constants import ELECTRONVOLT, HARTREE, KCAL
from offjax.interop.records import Problem, Record

ATOMS = {
    1: -0.500,
    3: -7.478,
    5: -24.654,
    6: -37.845,
    7: -54.589,
    8: -75.067,
    9: -99.734,
    11: -162.255,
    12: -200.053,
    14: -289.359,
    15: -341.259,
    16: -398.110,
    17: -460.148,
    35: -2574.1,
}
"""Energies of atoms by atomic number, hartree."""
UNITS = {"hartree": HARTREE, "eV": ELECTRONVOLT, "kcal/mol": KCAL, "kJ/mol": 1.0}
BOUND = (0.985, 1.03)
"""Total energies lie within these multiples of those of the atoms."""
STIFFNESS = (3e4, 3e6)
"""Slopes of forces along bonds that are possible, kJ/mol/nm^2."""
SOFTEST, STIFFEST = 1e5, 2.5e6
"""Force constants of bonds at least, and of anything in a molecule at most, kJ/mol/nm^2."""
TOO_SMALL = 1.0 / 30.0
"""Energies that spread by less than this times what geometry or forces need have another unit."""
LEAST = 1.0
"""Least spread that geometry or forces must need to decide, kJ/mol: files round their energies."""
TOO_LARGE = 50.0
"""Energies that spread by more than this an atom have another unit, kJ/mol."""
FEWEST = 5
"""Conformers that a spread needs, and pairs that work needs."""
NEAR = 0.04
"""Farthest that an atom may move between two conformers for their work to count, nm."""
COMPARED = 40
"""Of how many conformers, the first ones, pairs are compared."""
GOES_WITH = 0.9
"""Least correlation of changes of energy and work that decides."""
LEAST_WORK = 0.1
"""Least root mean square of work that decides, kJ/mol."""
MULTIPLE = 3.0
"""Changes of energy beyond this multiple of work, or below its inverse, have another unit than forces."""
ALIKE = 0.1
"""Energies of different geometries that lie within this are remarked on, kJ/mol."""
MOVED = 0.05
"""Distances of atoms that change by more than this make geometries different, nm."""


def checked(found: Iterable[Record | Problem]) -> Iterator[Record | Problem]:
    """The same without the records whose unit is wrong, with a Problem for each of these."""
    for item in found:
        doubts = list(_doubts(item)) if isinstance(item, Record) else []
        yield from doubts
        if not any(problem.kind == "rejected" for problem in doubts):
            yield item


def _doubts(record: Record) -> Iterator[Problem]:
    """A Problem of kind ``rejected`` for a record whose energies or forces cannot have the unit that they were read in,
    and an ``outlier`` where that is likely.
    """
    if not record.has_energies:
        return
    numbers, bonds = _graph(record.smiles)
    reason = _total(record.energies, numbers) or _stiffness(record, bonds) or _spread(record, bonds)
    reason = reason or _work(record)
    if reason is not None:
        words = f"{record.source}, {record.name}: {reason}; correct the unit, or set check_units = false if it is right"
        yield Problem(record.source, record.name, "rejected", words, record.name)
    elif record.n_conformers > FEWEST and np.ptp(record.energies) < ALIKE and _moves(record.positions):
        reason = (
            f"the energies of {record.n_conformers} different geometries lie within {np.ptp(record.energies):.2g} "
            "kJ/mol: is their unit right?"
        )
        yield Problem(record.source, record.name, "outlier", reason, record.name)


def _graph(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (atoms,) and bonds (bond, 2) in the order of the map indices."""
    from rdkit import Chem

    settings = Chem.SmilesParserParams()
    settings.removeHs = settings.sanitize = False
    molecule = Chem.MolFromSmiles(smiles, settings)
    place = np.argsort(np.argsort([atom.GetAtomMapNum() for atom in molecule.GetAtoms()]))
    numbers = np.zeros(len(place), int)
    numbers[place] = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    pairs = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]
    return numbers, place[np.array(pairs, int).reshape(-1, 2)]


def _total(energies: np.ndarray, numbers: np.ndarray) -> str | None:
    """Words for the unit that total energies have instead of the one that they were read in."""
    if not set(numbers.tolist()) <= set(ATOMS):
        return None
    ratio = energies / (HARTREE * sum(ATOMS[n] for n in numbers.tolist()))
    for given, true in UNITS.items():
        for read, taken in UNITS.items():
            # formation energies are about 1/96 of total ones: eV read as kJ/mol cannot be told
            if given != read and (given, read) != ("eV", "kJ/mol"):
                low, high = (taken / true * bound for bound in BOUND)
                if np.all((ratio > low) & (ratio < high)):
                    times = f"{np.median(ratio):.3g} times those of the atoms"
                    return f"the energies are {times}, as if {given} read as {read}"
    return None


def _along(positions: np.ndarray, bonds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, bond, 3) and lengths (n, bond)."""
    vector = positions[:, bonds[:, 1]] - positions[:, bonds[:, 0]]
    length = np.linalg.norm(vector, axis=-1)
    return vector / length[..., None], length


def _stiffness(record: Record, bonds: np.ndarray) -> str | None:
    if record.forces is None or record.n_conformers < FEWEST or not len(bonds):
        return None
    unit, length = _along(record.positions, bonds)
    pull = 0.5 * np.sum((record.forces[:, bonds[:, 1]] - record.forces[:, bonds[:, 0]]) * unit, axis=-1)
    r, f = length - length.mean(axis=0), pull - pull.mean(axis=0)
    size = np.sqrt(np.sum(r**2) * np.sum(f**2))
    if size == 0 or np.std(r) < 3e-4 or abs(np.sum(r * f)) < 0.5 * size:
        return None
    slope = -np.sum(r * f) / np.sum(r**2)
    if slope < 0:
        return "bonds that are longer than on average are pushed further apart, as if gradients read as forces"
    if not STIFFNESS[0] < slope < STIFFNESS[1]:
        return (
            f"bonds have a force constant of {slope:.2g} kJ/mol/nm^2 by the forces, where {STIFFNESS[0]:.0g} to "
            f"{STIFFNESS[1]:.0g} is possible: the unit of forces or positions is wrong"
        )
    return None


def _spread(record: Record, bonds: np.ndarray) -> str | None:
    if record.n_conformers < FEWEST:
        return None
    spread = _deviation(record.energies)
    n_atoms = record.positions.shape[1]
    if spread > TOO_LARGE * n_atoms:
        return f"the energies deviate by {spread:.3g} kJ/mol from their median, more than {n_atoms} bound atoms can"
    needed = 0.0
    if record.forces is not None:
        needed = _deviation(np.sum(record.forces**2, axis=(1, 2)) / (2 * STIFFEST))
    if len(bonds):
        length = _along(record.positions, bonds)[1]
        stretched = np.sum(0.5 * SOFTEST * (length - np.median(length, axis=0)) ** 2, axis=1)
        needed = max(needed, _deviation(stretched))
    if needed > LEAST and spread < TOO_SMALL * needed and np.ptp(record.energies) > 0:  # equal ones stand for none
        return (
            f"the energies deviate by {spread:.2g} kJ/mol from their median, where bonds and forces need {needed:.2g} "
            "and more: the unit of energies or forces is wrong"
        )
    return None


def _work(record: Record) -> str | None:
    if record.forces is None or record.n_conformers < 2:
        return None
    x = record.positions[:COMPARED] - record.positions[:COMPARED].mean(axis=1, keepdims=True)
    c, d = np.triu_indices(len(x), 1)
    u, _, v = np.linalg.svd(np.swapaxes(x[d], 1, 2) @ x[c])
    u[:, :, 2] *= np.sign(np.linalg.det(u @ v))[:, None]
    rotation = u @ v
    step = x[d] @ rotation - x[c]
    near = np.linalg.norm(step, axis=-1).max(axis=1) < NEAR
    if np.count_nonzero(near) < FEWEST:
        return None
    work = -0.5 * np.sum((record.forces[c] + record.forces[d] @ rotation) * step, axis=(1, 2))[near]
    change = (record.energies[d] - record.energies[c])[near]
    size = np.sqrt(np.sum(work**2) * np.sum(change**2))
    if np.sqrt(np.mean(work**2)) < LEAST_WORK or np.sum(work * change) < GOES_WITH * size or size == 0:
        return None
    multiple = np.sum(work * change) / np.sum(work**2)
    if 1 / MULTIPLE < multiple < MULTIPLE:
        return None
    return (
        f"from one geometry to another near it the energy changes by {multiple:.3g} times the work of the forces: the "
        "unit of energies or forces is wrong"
    )


def _deviation(values: np.ndarray) -> float:
    """The median deviation from the median, which single outliers do not change."""
    return float(np.median(np.abs(values - np.median(values))))


def _moves(positions: np.ndarray) -> bool:
    """Whether distances between atoms change from one conformer to another."""
    first = np.linalg.norm(positions[0][:, None] - positions[0][None], axis=-1)
    return any(np.abs(np.linalg.norm(x[:, None] - x[None], axis=-1) - first).max() > MOVED for x in positions[1:])
