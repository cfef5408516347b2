"""Minima of force fields against geometries and energies of quantum chemistry, as in the OpenFF benchmarks.

Each QM conformer is minimised with the force field from where it is, without constraints and restraints. Of what comes
out three numbers are taken:

    RMSD    root mean square deviation of the heavy atoms after the best superposition, over all mappings of equivalent
            atoms (of all atoms for a molecule with fewer than two heavy ones)
    TFD     torsion fingerprint deviation: 0 for the same conformer, 1 at most; NaN without a rotatable torsion
    ddE_c   = [U(x_c) - U(x_r)] - [E_c - E_r],  where r is the conformer of the molecule that is lowest in E

with the energies U of the force field at its minima x and E of quantum chemistry; r itself has no ddE. The points of a
torsion drive are minimised with the atoms of the driven dihedral frozen.

Sources: V. T. Lim, D. F. Hahn, G. Tresadern, C. I. Bayly, D. L. Mobley, F1000Research 9, 1390 (2020) for the
comparison; T. Schulz-Gasch, C. Schaerfer, W. Guba, M. Rarey, J. Chem. Inf. Model. 52, 1499 (2012) for TFD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offjax.batch import SystemBatch
from offjax.constants import ANGSTROM, KCAL
from offjax.errors import InputError
from offjax.fit import driver
from offjax.fit.progress import Silent
from offjax.fit.result import FitResult
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.system import System
from offjax.terms.user import UserTerm

MAX_FORCE = 50.0
"""kJ/mol/nm: a conformer whose largest QM force is above (where there are forces) is no minimum of the QM energy."""
MAX_MAPPINGS = 10_000
"""Mappings of equivalent atoms that are tried for one superposition."""


class Minima(NamedTuple):
    """The minima of one molecule in one force field.

    ``positions`` (n, atoms, 3) nm, superposed on the QM conformers; ``energies`` (n,) kJ/mol; ``rmsd`` (n,) nm; ``tfd``
    and ``dde`` (n,), kJ/mol, NaN where there is none; ``converged`` (n,) bool.
    """

    positions: np.ndarray
    energies: np.ndarray
    rmsd: np.ndarray
    tfd: np.ndarray
    dde: np.ndarray
    converged: np.ndarray


@dataclass(frozen=True, eq=False)
class Benchmark:
    """``minima[name][m]`` are those of ``records[m]`` in the force field ``name``; the first is the one to beat."""

    records: list[Record]
    minima: dict[str, list[Minima]]

    @property
    def force_fields(self) -> list[str]:
        """Their names, in order."""
        return list(self.minima)

    def values(self, name: str, quantity: str) -> np.ndarray:
        """``rmsd``, ``tfd`` or ``dde`` of all converged conformers that have one: (n,) angstrom, 1 or kcal/mol."""
        scale = {"rmsd": 1 / ANGSTROM, "tfd": 1.0, "dde": 1 / KCAL}[quantity]
        found = np.concatenate([getattr(m, quantity)[m.converged] for m in self.minima[name]])
        return scale * found[np.isfinite(found)]

    def table(self):
        """A pandas table, one row a conformer and force field; angstrom and kcal/mol."""
        import pandas as pd

        rows = [
            {
                "force_field": name,
                "molecule": record.name,
                "smiles": record.smiles,
                "conformer": c,
                "rmsd": m.rmsd[c] / ANGSTROM,
                "tfd": m.tfd[c],
                "dde": m.dde[c] / KCAL,
                "converged": bool(m.converged[c]),
            }
            for name, members in self.minima.items()
            for record, m in zip(self.records, members, strict=True)
            for c in range(record.n_conformers)
        ]
        return pd.DataFrame(rows)

    def summary(self) -> list[dict[str, Any]]:
        """One row a force field: number of conformers, unconverged ones, medians and means; angstrom and kcal/mol."""
        found = []
        for name, members in self.minima.items():
            row: dict[str, Any] = {"force_field": name, "conformers": sum(len(m.rmsd) for m in members)}
            row["unconverged"] = sum(int(np.sum(~m.converged)) for m in members)
            for quantity in ("rmsd", "tfd", "dde"):
                values = self.values(name, quantity)
                known = len(values) > 0
                row[f"{quantity}_median"] = float(np.median(np.abs(values))) if known else None
                row[f"{quantity}_mean"] = float(np.mean(np.abs(values))) if known else None
                row[f"{quantity}_rms"] = float(np.sqrt(np.mean(values**2))) if known else None
            found.append(row)
        return found


def compare(
    records: Sequence[Record],
    contenders: Mapping[str, tuple[Sequence[System], ParameterSet]],
    *,
    tolerance: float = 0.1,
    max_steps: int = 5000,
) -> Benchmark:
    """Minimise all conformers with all force fields.

    Parameters
    ----------
    records
        The reference: geometries that are minima of the QM energy, or torsion drives.
    contenders
        By name, the Systems of the records and the parameters. Force fields that share their Systems share their
        compiled program.
    tolerance, max_steps
        Of :meth:`offjax.SystemBatch.minimize`, kJ/mol/nm and evaluations.

    Raises
    ------
    InputError
        No records, or a number of Systems that is not theirs.
    """
    if not records:
        raise InputError("there is nothing to compare: no conformer is given")
    batches: dict[tuple[int, ...], SystemBatch] = {}
    minima = {}
    with jax.enable_x64(True):
        for name, (systems, p) in contenders.items():
            if len(systems) != len(records):
                raise InputError(f"{name}: {len(systems)} Systems for {len(records)} records")
            key = tuple(map(id, systems))
            if key not in batches:
                free = {id(s): s.without_constraints(water=True) for s in systems}  # shared ones stay shared
                batches[key] = SystemBatch.from_systems([free[id(s)] for s in systems])
            batch = batches[key]
            minima[name] = _minima(batch, p, records, tolerance, max_steps)
    return Benchmark(list(records), minima)


def parameterized(
    records: Sequence[Record],
    force_fields: Sequence[str],
    charges: str = "force-field",
    progress: Silent | None = None,
    user_terms: Sequence[UserTerm] = (),
) -> dict[str, tuple[list[System], ParameterSet]]:
    """Contenders of :func:`compare`: force fields by file name or installed name; files of one joined by commas.

    Raises
    ------
    InputError
        Two force fields of one name.
    OffjaxError
        What :func:`offjax.fit.driver.parameterize` raises.
    """
    found: dict[str, tuple[list[System], ParameterSet]] = {}
    for text in force_fields:
        files = [part.strip() for part in text.split(",")]
        name = " + ".join(Path(file).name.removesuffix(".offxml") for file in files)
        if name in found:
            name = text
        if name in found:
            raise InputError(f"the force field {text} is given twice")
        systems = driver.parameterize(records, files, charges, progress=progress, user_terms=user_terms)
        found[name] = systems, systems[0].parameters
    return found


def _minima(batch: SystemBatch, p: ParameterSet, records: Sequence[Record], tolerance, max_steps) -> list[Minima]:
    conformers = batch.pack([record.positions for record in records])
    frozen = batch.flatten([_frozen(record) for record in records], conformers) > 0
    whole = jax.tree.map(jnp.asarray, p)
    found = batch.minimize(whole, conformers, frozen=frozen[:, 0], tolerance=tolerance, max_steps=max_steps)
    each = (batch.unpack(np.asarray(v), conformers) for v in (found.positions, found.energies, found.converged))
    return [
        _compared(record, np.asarray(x), np.asarray(u), np.asarray(c, bool))
        for record, x, u, c in zip(records, *each, strict=True)
    ]


def _frozen(record: Record) -> np.ndarray:
    frozen = np.zeros(record.positions.shape)
    frozen[:, [atom for dihedral in record.driven for atom in dihedral]] = 1.0
    return frozen


def _compared(record: Record, x: np.ndarray, energies: np.ndarray, converged: np.ndarray) -> Minima:
    molecule = record.molecule().to_rdkit()
    rmsd, tfd = np.full(len(x), np.nan), np.full(len(x), np.nan)
    x = x.copy()
    for c in np.flatnonzero(np.all(np.isfinite(x), axis=(1, 2))):
        rmsd[c], x[c] = superposed(molecule, x[c], record.positions[c])
        tfd[c] = torsion_deviation(molecule, x[c], record.positions[c])
    lowest = int(np.argmin(record.energies))
    dde = (energies - energies[lowest]) - (record.energies - record.energies[lowest])
    dde[lowest] = np.nan
    if not converged[lowest] or not record.has_energies:
        dde[:] = np.nan
    return Minima(x, energies, rmsd, tfd, dde, converged)


def superposed(molecule, x: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """The RMSD, nm, and all atoms of x moved onto the reference, both (atoms, 3) nm; ``molecule`` is RDKit's."""
    from rdkit import Chem
    from rdkit.Chem import rdMolAlign

    probe, target = (_with(molecule, y) for y in (x, reference))
    if sum(atom.GetAtomicNum() > 1 for atom in molecule.GetAtoms()) > 1:
        probe, target = Chem.RemoveHs(probe), Chem.RemoveHs(target)
    if probe.GetNumAtoms() < 2:
        return 0.0, x - x.mean(axis=0) + reference.mean(axis=0)
    rmsd, motion, _ = rdMolAlign.GetBestAlignmentTransform(probe, target, maxMatches=MAX_MAPPINGS)
    turn = np.asarray(motion)
    return rmsd * ANGSTROM, x @ turn[:3, :3].T + ANGSTROM * turn[:3, 3]


def torsion_deviation(molecule, x: np.ndarray, reference: np.ndarray) -> float:
    """TFD of two geometries (atoms, 3) nm; NaN for a molecule without rotatable torsions."""
    from rdkit.Chem import TorsionFingerprints

    probe, target = (_with(molecule, y) for y in (x, reference))
    bonds, rings = TorsionFingerprints.CalculateTorsionLists(target)
    if not bonds and not rings:
        return np.nan
    return float(TorsionFingerprints.GetTFDBetweenMolecules(target, probe))


def _with(molecule, x: np.ndarray):
    """A copy with these coordinates, nm, alone."""
    from rdkit import Chem

    copy = Chem.Mol(molecule)
    copy.RemoveAllConformers()
    conformer = Chem.Conformer(len(x))
    conformer.SetPositions(np.ascontiguousarray(x / ANGSTROM, dtype=np.float64))
    copy.AddConformer(conformer)
    return copy


def minima_of(record: Record, max_force: float = MAX_FORCE) -> Record | None:
    """The conformers that are minima of the QM energy, as far as forces tell; None if none is. Torsion drives stay."""
    if record.forces is None or record.driven:
        return record
    keep = np.max(np.linalg.norm(record.forces, axis=-1), axis=1) <= max_force
    if not keep.any():
        return None
    return record.take(keep)


def of_fit(result: FitResult, max_force: float = MAX_FORCE) -> Benchmark | None:
    """The initial and the fitted force field on the molecules of a fit, under the names "initial" and "fitted".

    Left out are conformers that are no minima of the QM energy, or of which nothing says that they are: energies
    without forces, interaction energies, electrostatic potentials. Geometries under several kinds count once. None if
    nothing else is there.
    """
    records, systems, seen = [], [], set()
    for m in result.molecules:
        key = m.smiles, m.driven, m.positions.tobytes()
        unknown = m.kind == "energies" and m.forces_qm is None
        if unknown or m.kind in ("interaction-energies", "electrostatic-potentials") or key in seen:
            continue
        seen.add(key)
        record = Record(
            m.name, m.smiles, m.inchikey, m.positions, m.energies_qm, m.forces_qm, str(result.directory), m.driven
        )
        record = replace(record, kind=m.kind, has_energies=bool(np.any(m.energies_qm)))
        if (found := minima_of(record, max_force)) is not None:
            records.append(found)
            systems.append(m.system)
    if not records:
        return None
    return compare(records, {"initial": (systems, result.initial), "fitted": (systems, result.fitted)})
