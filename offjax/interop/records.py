"""Reference data of one molecule, as every reader returns them, and the checks that all readers share.

A reader converts units and knows a file format; what it returns is a :class:`Record`, whatever the format. Messages
say ``where``: the file and the place in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offjax import constants
from offjax.errors import InputError

BOND_RANGE = (0.6, 1.6)
"""Shortest and longest bond accepted, in sums of covalent radii."""


@dataclass(frozen=True, eq=False)
class Record:
    """One molecule of a data set: ``positions`` (n, atoms, 3) nm, ``energies`` (n,) kJ/mol, ``forces`` kJ/mol/nm.

    ``forces`` are None where the file has none; ``smiles`` is mapped (map index = atom position + 1); ``source`` is
    the file. ``driven`` are the dihedrals (atom indices) that were held at each point of a torsion drive; empty for
    other data.
    """

    name: str
    smiles: str
    inchikey: str
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray | None
    source: str
    driven: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def n_conformers(self) -> int:
        return len(self.energies)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over SMILES, numbers and driven dihedrals."""
        digest = hashlib.sha256(self.smiles.encode())
        for array in (self.positions, self.energies, self.forces):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        if self.driven:
            digest.update(repr(self.driven).encode())
        return digest.hexdigest()

    def molecule(self):
        """The ``openff.toolkit.Molecule`` in the order of the positions."""
        return parse(self.smiles, f"{self.source}, group {self.name!r}, smiles", self.name)


def parse(smiles: str, where: str, name: str):
    """The ``openff.toolkit.Molecule`` of a mapped SMILES.

    Raises
    ------
    InputError
        Not a SMILES, hydrogens missing, or atoms not mapped 1..n.
    """
    from openff.toolkit import Molecule

    try:
        molecule = Molecule.from_mapped_smiles(smiles, allow_undefined_stereo=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: {smiles!r} is not a SMILES with explicit hydrogens whose atoms are all mapped 1..n and "
            f"of known elements ({type(error).__name__}: {reason[:200]})"
        ) from error
    molecule.name = name
    return molecule


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise InputError where a value is NaN or infinite."""
    if (wrong := np.argwhere(~np.isfinite(values))).size:
        raise InputError(f"{where}: {len(wrong)} values are not finite, first at index {wrong[0].tolist()}")


def check_shape(values: np.ndarray, shape: tuple[int, ...], where: str, meaning: str) -> None:
    """Raise InputError unless ``values`` have this shape."""
    if values.shape != shape:
        raise InputError(f"{where}: shape {values.shape}, expected {shape} = {meaning}")


def check_bonds(molecule, positions: np.ndarray, where: str) -> None:
    """Raise InputError where a bond's length (positions (n, atoms, 3) in nm) is far from a sum of covalent radii."""
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
                f"{where}: bond {bond.atom1.symbol}{i}-{bond.atom2.symbol}{j} of conformer {c} is "
                f"{length[c]:.4f} nm long, expected about {expected:.3f}: the unit, the order of the atoms or the "
                "connectivity is wrong"
            )
