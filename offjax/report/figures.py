"""The data behind the plots. ``script.js`` draws them; nothing here knows colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from offjax.fit import metrics
from offjax.fit.targets import CONFORMERS, QUANTITIES
from offjax.interop.torsiondrives import dihedrals

if TYPE_CHECKING:
    from offjax.fit import FitResult

MAX_POINTS = 4000
"""Points of a scatter plot and split; beyond, a regular sample is shown and the page says so."""
BINS = 70
MAX_BARS = 40
PARTS = {"energy_part": "energies", "force_part": "forces", "prior_part": "priors"}
"""Parts of the objective in words."""
MAX_PROFILES = 48
"""Torsion profiles that are drawn, the worst first."""


def data(result: FitResult, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is plotted, as JSON-ready values."""
    splits = [s for s in ("test", "train") if any(m.split == s and m.kind in CONFORMERS for m in result.molecules)]
    return {
        "history": history(result),
        "energies": {split: energies(result, split) for split in splits},
        "forces": {split: found for split in splits if (found := forces(result, split)) is not None},
        "profiles": profiles(result),
        "shifts": shifts(parameters),
    }


def history(result: FitResult) -> dict[str, Any]:
    """Columns of the iterations' log: the objective, its parts by name, and the RMSE of one quantity by split."""
    last = result.history[-1]
    parts = [key for key in last if key.endswith("_part")]
    known = [q for q in ("force", *QUANTITIES) if last.get(f"{q}_rmse_train") is not None]
    shown = known[0] if known else "energy"

    def column(key: str) -> list[Any]:
        return [entry.get(key) for entry in result.history]

    name, unit = QUANTITIES[shown]
    return {
        "iteration": column("iteration"),
        "objective": column("objective"),
        "parts": [
            {"name": PARTS.get(key, key.removesuffix("_part").replace("_", " ")), "y": column(key)} for key in parts
        ],
        "quantity": f"{name} RMSE ({unit})",
        "rmse": {split: column(f"{shown}_rmse_{split}") for split in ("train", "test")},
    }


def energies(result: FitResult, split: str) -> dict[str, Any]:
    """Relative energies of all conformers, kJ/mol: QM, before, after, and which molecule."""
    chosen = [m for m in result.molecules if m.split == split and m.kind in CONFORMERS]
    columns = {
        key: np.concatenate([np.asarray(getattr(m, f"energies_{key}"), dtype=float) for m in chosen])
        for key in ("qm", "initial", "fitted")
    }
    member = np.repeat(np.arange(len(chosen)), [len(m.energies_qm) for m in chosen])
    total = len(member)
    keep = slice(None) if total <= MAX_POINTS else np.linspace(0, total - 1, MAX_POINTS).astype(int)
    return {
        **{key: column[keep] for key, column in columns.items()},
        "molecule": member[keep],
        "names": [m.name for m in chosen],
        "total": total,
        "shown": min(total, MAX_POINTS),
    }


def forces(result: FitResult, split: str) -> dict[str, Any] | None:
    """Two-dimensional histograms of all Cartesian force components against QM, kJ/mol/nm; None without QM forces."""
    chosen = [m for m in result.molecules if m.split == split and m.forces_qm is not None]
    if not chosen:
        return None
    columns = {
        key: np.concatenate([np.asarray(getattr(m, f"forces_{key}"), dtype=float).ravel() for m in chosen])
        for key in ("qm", "initial", "fitted")
    }
    limit = _round_up(max(float(np.quantile(np.abs(c), 0.9995)) for c in columns.values()))
    edges = np.linspace(-limit, limit, BINS + 1)
    found: dict[str, Any] = {"centres": (edges[1:] + edges[:-1]) / 2, "limit": limit, "total": len(columns["qm"])}
    for when in ("initial", "fitted"):
        counts = np.histogram2d(columns[when], columns["qm"], bins=(edges, edges))[0].astype(int)
        found[when] = counts
        found[f"{when}_outside"] = len(columns["qm"]) - int(counts.sum())
    return found


def profiles(result: FitResult) -> list[dict[str, Any]]:
    """Torsion profiles in one dihedral, largest error after the fit first: degrees and kJ/mol, QM's minimum is zero."""
    found = []
    for m in result.molecules:
        if len(m.driven) != 1:
            continue
        angle = dihedrals(m.positions, m.driven[0])
        order = np.argsort(angle, kind="stable")
        lowest = int(np.argmin(m.energies_qm))
        curves = {k: getattr(m, f"energies_{k}") for k in ("qm", "initial", "fitted")}
        errors = {k: metrics.energy_rmse([curves[k]], [m.energies_qm]) for k in ("initial", "fitted")}
        found.append(
            {"name": m.name, "split": m.split, "angle": angle[order], "atoms": [a + 1 for a in m.driven[0]]}
            | {k: (v - v[lowest])[order] for k, v in curves.items()}
            | {f"rmse_{k}": v for k, v in errors.items()}
        )
    return sorted(found, key=lambda p: -p["rmse_fitted"])


def shifts(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest shifts in widths of their priors."""
    with_prior = [row for row in parameters if row["shift"] is not None]
    shown = with_prior[:MAX_BARS]
    return {
        "name": [f"{row['id'] or row['smirks']} {row['attribute']}" for row in shown],
        "section": [row["section"] for row in shown],
        "smirks": [row["smirks"] for row in shown],
        "shift": [row["shift"] for row in shown],
        "at_bound": [row["at_bound"] for row in shown],
        "text": [f"{row['initial']:.5g} → {row['fitted']:.5g} {row['unit']}" for row in shown],
        "total": len(with_prior),
    }


def _round_up(value: float) -> float:
    """To one of 1, 2, 5 times a power of ten; 1 for zero."""
    if not value > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(f * power for f in (1, 1.5, 2, 3, 5, 7.5, 10) if f * power >= value * (1 - 1e-12)))
