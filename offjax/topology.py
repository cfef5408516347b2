"""What is simulated: unique molecules, and how often and in which order they occur."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offjax.deferred import Deferred
from offjax.errors import InputError


@dataclass(frozen=True, eq=False)
class Molecule:
    """One unique molecule in one atom order; its copies share its parameter slots.

    ``smiles``, what ``mapped_smiles`` gives, is fully mapped (map number = atom index + 1), so it carries the whole
    chemistry and the order.
    ``residues`` holds (residue name, residue number, chain id) for each atom where the input knew them. ``site_names``
    are the names of its virtual sites, whose local indices follow those of the atoms.
    """

    mapped_smiles: Deferred
    name: str
    atomic_numbers: np.ndarray
    formal_charges: np.ndarray
    masses: np.ndarray
    bonds: np.ndarray
    bond_orders: np.ndarray
    atom_names: tuple[str, ...]
    residues: tuple[tuple[str, str, str], ...] = ()
    site_names: tuple[str, ...] = ()

    @property
    def smiles(self) -> str:
        return self.mapped_smiles()

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def n_sites(self) -> int:
        return len(self.site_names)

    @property
    def n_particles(self) -> int:
        """Atoms and virtual sites."""
        return self.n_atoms + self.n_sites


@dataclass(frozen=True, eq=False)
class Topology:
    """Unique molecules and ``copies``: for each molecule of the system, in order, the index of its unique molecule.

    The particles of a system are the atoms of all molecules, then the virtual sites of all molecules, as in the OpenMM
    Systems that OpenFF Interchange makes.
    """

    molecules: tuple[Molecule, ...]
    copies: np.ndarray

    @cached_property
    def offsets(self) -> np.ndarray:
        """(n_copies + 1,) index of the first atom of each molecule, and the number of atoms."""
        sizes = np.array([m.n_atoms for m in self.molecules], dtype=np.int64)
        return np.concatenate([[0], np.cumsum(sizes[self.copies])]).astype(np.int64)

    @property
    def n_atoms(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def site_offsets(self) -> np.ndarray:
        """(n_copies + 1,) index of the first virtual site of each molecule, and the number of particles."""
        counts = np.array([m.n_sites for m in self.molecules], dtype=np.int64)
        return self.n_atoms + np.concatenate([[0], np.cumsum(counts[self.copies])]).astype(np.int64)

    @property
    def n_particles(self) -> int:
        """Number of particles: atoms and virtual sites."""
        return int(self.site_offsets[-1])

    @property
    def n_molecules(self) -> int:
        return len(self.copies)

    @cached_property
    def masses(self) -> np.ndarray:
        """(n_particles,) amu; virtual sites have none."""
        sites = np.zeros(self.n_particles - self.n_atoms)
        each = self.spread([m.n_atoms for m in self.molecules])
        return np.concatenate([np.concatenate([m.masses for m in self.molecules])[each], sites])

    @cached_property
    def atomic_numbers(self) -> np.ndarray:
        """(n_atoms,)."""
        each = self.spread([m.n_atoms for m in self.molecules])
        return np.concatenate([m.atomic_numbers for m in self.molecules])[each]

    @cached_property
    def bonds(self) -> np.ndarray:
        """(n_bonds, 2) global atom indices."""
        return self.tile([m.bonds for m in self.molecules], 2)

    def tile(self, local: Sequence[np.ndarray], width: int) -> np.ndarray:
        """Global indices of per-molecule index arrays, one (n_u, width) array a unique molecule."""
        counts = np.array([len(rows) for rows in local], dtype=np.int64)
        indices = np.concatenate([np.zeros((0, width), np.int64), *local])[self.spread(counts)]
        copy = np.repeat(np.arange(self.n_molecules), counts[self.copies])[:, None]
        shift = self.offsets[copy]
        if self.n_particles > self.n_atoms:
            n_atoms = np.array([m.n_atoms for m in self.molecules], dtype=np.int64)[self.copies]
            shift = np.where(indices < n_atoms[copy], shift, (self.site_offsets[:-1] - n_atoms)[copy])
        return (indices + shift).astype(np.int32)

    def spread(self, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of an array that holds ``counts[u]`` rows of every unique molecule u, for each copy in turn."""
        counts = np.asarray(counts, dtype=np.int64)
        size = counts[self.copies]
        return np.arange(size.sum()) + np.repeat(
            (np.cumsum(counts) - counts)[self.copies] - np.cumsum(size) + size, size
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the mapped SMILES and the order of copies."""
        text = "\n".join(m.smiles for m in self.molecules) + "\n" + ",".join(map(str, self.copies))
        return hashlib.sha256(text.encode()).hexdigest()

    def formula(self) -> str:
        """For a repr: how many of which molecule."""
        counts = np.bincount(self.copies, minlength=len(self.molecules))
        names = [m.name or (m.smiles if len(m.smiles) <= 40 else m.smiles[:37] + "...") for m in self.molecules]
        parts = [f"{n} x {name}" for n, name in zip(counts, names, strict=True)]
        return ", ".join(parts[:6]) + (f", ... {len(parts) - 6} more" if len(parts) > 6 else "")


def reduced_box(box) -> np.ndarray | None:
    """A box as (3, 3) rows in nm, OpenMM's reduced form: a = (a_x, 0, 0), b = (b_x, b_y, 0), c = (c_x, c_y, c_z).

    Accepts (3, 3) or (3,) arrays in nm, and OpenFF or OpenMM quantities.

    Raises
    ------
    InputError
        Another shape, non-finite or non-positive edges, or vectors that are not in reduced form.
    """
    if box is None:
        return None
    if hasattr(box, "m_as"):
        box = box.m_as("nanometer")
    elif hasattr(box, "value_in_unit"):
        from openmm import unit

        box = box.value_in_unit(unit.nanometer)
    try:
        array = np.array(box, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a box is (3, 3) rows or (3,) edges in nm, got {box!r}") from error
    if array.shape == (3,):
        array = np.diag(array)
    if array.shape != (3, 3):
        raise InputError(f"a box is (3, 3) rows or (3,) edges in nm, got shape {array.shape}")
    diagonal = np.diag(array)
    if not np.all(np.isfinite(array)) or np.any(diagonal <= 0):
        raise InputError(f"box edges must be finite and positive, got {array.tolist()}")
    tolerance = 1e-6 * diagonal[:, None].clip(min=1e-300)
    a, b, c = array
    upper = np.any(np.abs(np.triu(array, 1)) > tolerance.max())
    skewed = (
        2 * abs(b[0]) > a[0] + tolerance[0, 0]
        or 2 * abs(c[0]) > a[0] + tolerance[0, 0]
        or 2 * abs(c[1]) > b[1] + tolerance[1, 0]
    )
    if upper or skewed:
        raise InputError(
            f"box vectors {array.tolist()} are not in reduced form (a along x, b in the xy plane, |b_x| and |c_x| "
            "at most a_x/2, |c_y| at most b_y/2): use openmm.app.internal.unitcell.reducePeriodicBoxVectors first"
        )
    return array
