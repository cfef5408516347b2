"""Boxes of liquid: molecules packed at random by Packmol, ready for ``System.from_smirnoff``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from offjax.constants import AVOGADRO
from offjax.errors import InputError

if TYPE_CHECKING:
    import openff.toolkit

DENSEST = 25.0
"""g/mL: denser than any element; what is above was meant in kg/m^3."""


class PackedBox(NamedTuple):
    """A box of molecules: ``topology`` (openff.toolkit, with positions and box vectors), ``positions`` (n_atoms, 3) in
    nm, and ``box`` (3, 3) rows in nm.
    """

    topology: openff.toolkit.Topology
    positions: np.ndarray
    box: np.ndarray


def build_box(
    molecules: Sequence[openff.toolkit.Molecule],
    counts: Sequence[int],
    density,
    *,
    tolerance: float = 0.2,
    seed: int = 0,
) -> PackedBox:
    """A cubic periodic box with ``counts[i]`` copies of ``molecules[i]``, in that order, by Packmol.

        box = offjax.build_box([water, ethanol], [900, 100], density=0.95)
        system = offjax.System.from_smirnoff("openff-2.2.1.offxml", box.topology)

    The positions are random and not relaxed: minimise before dynamics (:func:`offjax.minimize`). Molecules are whole;
    some reach over the faces of the box. L. Martinez, R. Andrade, E. G. Birgin, J. M. Martinez, J. Comput. Chem. 30,
    2157 (2009).

    Parameters
    ----------
    molecules
        Different molecules; those without a conformer get one from the toolkit.
    counts
        How many of each.
    density
        g/mL, or an OpenFF or OpenMM quantity. About 5 to 20 % below that of the liquid packs fastest.
    tolerance
        nm: the least distance of atoms of different molecules.
    seed
        Of Packmol's random numbers; one seed gives one box.

    Raises
    ------
    InputError
        Lengths that differ, counts or a density that make no sense, Packmol absent or without a solution.
    """
    from openff.toolkit import Molecule, Topology
    from openff.units import Quantity

    molecules, counts = list(molecules), list(counts)
    if len(molecules) != len(counts) or not molecules:
        raise InputError(f"build_box needs one count a molecule, got {len(molecules)} molecules, {len(counts)} counts")
    if wrong := [m for m in molecules if not isinstance(m, Molecule)]:
        raise InputError(f"build_box needs openff.toolkit Molecules, got {wrong[0]!r}; Molecule.from_smiles makes one")
    if not all(isinstance(n, int | np.integer) and n >= 0 for n in counts) or not sum(counts):
        raise InputError(f"counts must be integers, not negative, and not all zero, got {counts}")
    density = _in_grams_per_milliliter(density)
    structures = [_coordinates(molecule) for molecule in molecules]
    mass = sum(n * sum(a.mass.m_as("dalton") for a in m.atoms) for m, n in zip(molecules, counts, strict=True))
    edge = (mass / (density * 1e-21 * AVOGADRO)) ** (1 / 3)  # 1 mL is 1e21 nm^3
    widest = max(np.ptp(x, axis=0).max() for x in structures)
    if edge < widest + tolerance:
        raise InputError(f"{sum(counts)} molecules at {density:g} g/mL make a box of {edge:.2f} nm: too small for one")
    positions = _pack(structures, counts, edge, tolerance, seed)
    topology = Topology.from_molecules([m for m, n in zip(molecules, counts, strict=True) for _ in range(n)])
    topology.set_positions(Quantity(positions, "nanometer"))
    topology.box_vectors = Quantity(np.eye(3) * edge, "nanometer")
    return PackedBox(topology, positions, np.eye(3) * edge)


def _in_grams_per_milliliter(density) -> float:
    if hasattr(density, "m_as"):
        density = density.m_as("gram / milliliter")
    elif hasattr(density, "value_in_unit"):
        from openmm import unit

        density = density.value_in_unit(unit.gram / unit.milliliter)
    if not isinstance(density, int | float | np.number) or not 0 < density < DENSEST:
        raise InputError(f"density must be in g/mL, between 0 and {DENSEST:g}, got {density}")
    return float(density)


def _coordinates(molecule) -> np.ndarray:
    """(n_atoms, 3) nm, of the first conformer or a new one."""
    if not molecule.conformers:
        from openff.toolkit import Molecule

        molecule = Molecule(molecule)
        molecule.generate_conformers(n_conformers=1)
    return np.asarray(molecule.conformers[0].m_as("nanometer"))


def _pack(structures: list[np.ndarray], counts: list[int], edge: float, tolerance: float, seed: int) -> np.ndarray:
    """Run Packmol, which counts in Angstrom and reads and writes XYZ files."""
    program = shutil.which("packmol") or shutil.which("packmol", path=str(Path(sys.executable).parent))
    if program is None:
        raise InputError("build_box needs Packmol: pip install packmol (or conda install -c conda-forge packmol)")
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            f"tolerance {10 * tolerance}",
            "filetype xyz",
            "output packed.xyz",
            f"seed {seed + 1}",
            "nloop 40",
            f"pbc {10 * edge} {10 * edge} {10 * edge}",
        ]
        for n, (x, count) in enumerate(zip(structures, counts, strict=True)):
            rows = "\n".join("C {:.8f} {:.8f} {:.8f}".format(*row) for row in 10 * x)
            Path(folder, f"{n}.xyz").write_text(f"{len(x)}\n\n{rows}\n")
            if count:
                lines += [f"structure {n}.xyz", f"  number {count}", "end structure"]
        Path(folder, "input").write_text("\n".join(lines) + "\n")
        with Path(folder, "input").open() as commands:  # a file: Packmol reads it twice, which a pipe cannot do
            ran = subprocess.run([program], stdin=commands, cwd=folder, capture_output=True, text=True)
        if ran.returncode or "Success!" not in ran.stdout:
            last = [line.strip() for line in ran.stdout.splitlines() if "ERROR" in line or "WITHOUT" in line]
            raise InputError(
                f"Packmol found no packing of {sum(counts)} molecules in a box of {edge:.2f} nm "
                f"({'; '.join(last) or 'failed'}): lower the density or the tolerance"
            )
        found = np.loadtxt(Path(folder, "packed.xyz"), skiprows=2, usecols=(1, 2, 3), ndmin=2)
    return found / 10
