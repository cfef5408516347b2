"""Minima against QM for the page: cumulative curves, the worst molecules, and what the three-dimensional views show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from offjax.constants import ANGSTROM, KCAL
from offjax.fit.targets import CONFORMERS
from offjax.report import drawings

if TYPE_CHECKING:
    from offjax.fit.benchmark import Benchmark
    from offjax.fit.result import FitResult, MoleculeResult
    from offjax.interop.records import Record

MEASURES = {"rmsd": ("RMSD", "Å"), "tfd": ("TFD", ""), "dde": ("|ddE|", "kcal/mol")}
WORST = 6
"""Molecules that are shown for each quantity."""
MAX_STEPS = 1000
"""Points of a cumulative curve."""


def curves(benchmark: Benchmark) -> list[dict[str, Any]]:
    """For each quantity and force field: which part of the conformers (percent) is at most x."""
    found = []
    for quantity, (name, unit) in MEASURES.items():
        lines = []
        for force_field in benchmark.force_fields:
            values = np.sort(np.abs(benchmark.values(force_field, quantity)))
            if not len(values):
                continue
            keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_STEPS)).astype(int))
            lines.append(
                {
                    "name": force_field,
                    "x": np.concatenate([[0.0], values[keep]]),
                    "y": np.concatenate([[0.0], 100.0 * (keep + 1) / len(values)]),
                    "n": len(values),
                }
            )
        if lines:
            found.append({"quantity": quantity, "title": f"{name} ({unit})" if unit else name, "lines": lines})
    return found


def worst(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Cards of the molecules whose RMSD or ddE in the last force field is largest, each with its worst conformer."""
    last = benchmark.minima[benchmark.force_fields[-1]]
    chosen: dict[int, int] = {}
    for quantity in ("rmsd", "dde"):
        sizes = [np.nan_to_num(np.abs(getattr(m, quantity)) * m.converged) for m in last]
        order = sorted(range(len(last)), key=lambda m: -float(sizes[m].max(initial=0.0)))
        for m in order[:WORST]:
            if sizes[m].max(initial=0.0) > 0:
                chosen.setdefault(m, int(np.argmax(sizes[m])))
    return [_card(benchmark, m, c) for m, c in chosen.items()]


def _card(benchmark: Benchmark, m: int, c: int) -> dict[str, Any]:
    record = benchmark.records[m]
    rows = []
    for name, members in benchmark.minima.items():
        here = members[m]
        values = [here.rmsd[c] / ANGSTROM, here.tfd[c], here.dde[c] / KCAL]
        rows.append({"name": name, "values": [None if np.isnan(v) else float(v) for v in values]})
    overlays = [("QM", record.positions[c])] + [(name, ms[m].positions[c]) for name, ms in benchmark.minima.items()]
    return {
        "name": record.name,
        "where": f"conformer {c}" if record.n_conformers > 1 else "",
        "svg": drawings.molecule(record.smiles),
        "rows": rows,
        "view": view(record, overlays),
    }


def largest_errors(result: FitResult) -> list[dict[str, Any]]:
    """Cards of the molecules with the largest errors after the fit: by forces, then those without forces by energies.

    Each shows the conformer that contributes most; with forces, its atoms by the size of their errors.
    """
    found = []
    for m in result.molecules:
        errors = _errors(m)
        if errors is not None and len(errors[0]):
            found.append((float(np.sqrt(np.mean(errors[0] ** 2))), m, *errors))
    found.sort(key=lambda item: -item[0])
    by_force = [item for item in found if item[3] is not None][:WORST]
    by_energy = [item for item in found if item[3] is None][:WORST]
    cards = []
    for size, m, each, by_atom in by_force + by_energy:
        c = int(np.argmax(np.abs(each)))
        heat = None if by_atom is None else by_atom[c] / max(float(by_atom[c].max()), 1e-300)
        what = "energy" if by_atom is None else "force"
        unit = "kJ/mol" if by_atom is None else "kJ/mol/nm"
        cards.append(
            {
                "name": m.name,
                "where": f"conformer {c}, {what} error {abs(each[c]):.4g} {unit}",
                "svg": drawings.molecule(m.smiles),
                "size": size,
                "unit": unit,
                "what": what,
                "split": m.split,
                "view": view(m, [("QM", m.positions[c])], heat),
            }
        )
    return cards


def _errors(m: MoleculeResult) -> tuple[np.ndarray, np.ndarray | None] | None:
    """By conformer: the RMS force error with the errors of its atoms (n, atoms), or the energy error and None; None
    for other kinds of data."""
    if m.kind not in CONFORMERS:
        return None
    if m.forces_qm is not None:
        difference = m.forces_fitted - m.forces_qm
        return np.sqrt(np.mean(difference**2, axis=(1, 2))), np.linalg.norm(difference, axis=-1)
    return m.energies_fitted - m.energies_qm, None


def view(molecule: Record | MoleculeResult, overlays: list[tuple[str, np.ndarray]], heat=None) -> dict[str, Any]:
    """What ``viewer.js`` draws: elements, bonds, and geometries in angstrom, seen along the shortest principal axis."""
    from rdkit import Chem

    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    mol = Chem.MolFromSmiles(molecule.smiles, parameters)
    place = {atom.GetIdx(): atom.GetAtomMapNum() - 1 for atom in mol.GetAtoms()}
    elements = [""] * mol.GetNumAtoms()
    for atom in mol.GetAtoms():
        elements[place[atom.GetIdx()]] = atom.GetSymbol()
    first = overlays[0][1]
    centre = first.mean(axis=0)
    axes = np.linalg.svd(first - centre, full_matrices=True)[2]
    axes[2] = np.cross(axes[0], axes[1])
    sets = [
        {"name": name, "xyz": np.round((x - centre) @ axes.T / ANGSTROM, 3)}
        for name, x in overlays
        if np.all(np.isfinite(x))
    ]
    return {
        "elements": elements,
        "bonds": [[place[b.GetBeginAtomIdx()], place[b.GetEndAtomIdx()]] for b in mol.GetBonds()],
        "sets": sets,
        "heat": None if heat is None else np.round(heat, 3),
    }
