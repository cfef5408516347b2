"""The numbers of the report as plain rows: cards, parameters, molecules, provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offjax.fit import metrics, uncertainty
from offjax.fit.result import NETWORK
from offjax.fit.targets import CONFORMERS, QUANTITIES
from offjax.interop.units import short

if TYPE_CHECKING:
    from offjax.fit import FitResult, MoleculeResult

KINDS = {
    "energies": "energies and forces",
    "torsion-profiles": "torsion profiles",
    "optimized-geometries": "optimised geometries",
    "minimum-gradients": "forces at QM minima",
    "hessians": "Hessians",
    "vibrations": "vibrations",
    "interaction-energies": "interaction energies",
    "electrostatic-potentials": "electrostatic potentials",
}
"""Kinds of reference data in words."""
SPLITS = {"test": "held out", "validation": "validation", "train": "training"}


def summary(result: FitResult) -> dict[str, Any]:
    """The headline: what was fitted to what."""
    count = {split: sum(m.split == split for m in result.molecules) for split in SPLITS}
    files = result.provenance.get("force_field") or result.config.force_field
    files = [files] if isinstance(files, str) else files
    return {
        "title": ", ".join(name.rsplit("/", 1)[-1].removesuffix(".offxml") for name in files),
        "n_parameters": len(result.selection),
        "n_weights": 0 if result.network is None else result.network.n_weights,
        "n_train": count["train"],
        "n_test": count["test"],
        "n_conformers": sum(len(m.energies_qm) for m in result.molecules),
        "method": result.config.optimizer.method,
        "iterations": result.history[-1]["iteration"],
        "stopped": result.stopped,
        "interrupted": result.interrupted,
        "n_at_bound": int(np.count_nonzero(result.at_bound)),
        "date": str(result.provenance.get("date", ""))[:10],
        "seconds": result.provenance.get("seconds"),
    }


def cards(result: FitResult) -> list[dict[str, Any]]:
    """RMSE before and after, held out first."""
    found = []
    for split, words in SPLITS.items():
        for quantity in ("force", "energy", *(q for q in QUANTITIES if q not in ("force", "energy"))):
            name, units = QUANTITIES[quantity]
            before = result.metrics.get(split, {}).get(f"{quantity}_rmse_initial")
            after = result.metrics.get(split, {}).get(f"{quantity}_rmse_fitted")
            if before is None or after is None:
                continue
            change = 100.0 * (after / before - 1.0) if before else 0.0
            found.append(
                {
                    "split": split,
                    "name": f"{name[0].upper()}{name[1:]} RMSE, {words}",
                    "unit": units,
                    "before": before,
                    "after": after,
                    "change": f"{abs(change):.0f} % {'lower' if change < 0 else 'higher'}",
                    "better": change < 0,
                    "share": min(after / before, before / after) * 100.0 if before and after else 0.0,
                }
            )
    return found


def parameters(result: FitResult) -> list[dict[str, Any]]:
    """One row a fitted value, in the units of the force-field file; largest shift first."""
    found = []
    factors = np.array([label.factor for label in result.selection.labels])
    stored = uncertainty.stored_errors(result)
    errors = np.full(len(factors), np.nan) if stored is None else stored[0] / factors
    table = result.table().to_dict("records")
    for index, error, row in zip(result.selection.indices, errors.tolist(), table, strict=True):
        shift = row["shift_in_widths"] if math.isfinite(row["prior_width"]) else None
        found.append(
            {
                "index": int(index),
                "section": row["section"],
                "attribute": row["attribute"],
                "id": row["id"] or "",
                "smirks": row["smirks"] or row["name"] or "",
                "unit": short(row["unit"]),
                "initial": row["initial"],
                "fitted": row["fitted"],
                "change": row["change"],
                "width": row["prior_width"] if shift is not None else None,
                "shift": shift,
                "error": error if math.isfinite(error) else None,
                "learned": 1 - (error / row["prior_width"]) ** 2
                if shift is not None and math.isfinite(error)
                else None,
                "lower": row["lower"],
                "upper": row["upper"],
                "at_bound": bool(row["at_bound"]),
                "instances": int(row["training_instances"]),
                "molecules": int(row["training_molecules"]),
            }
        )
    return sorted(found, key=lambda row: -abs(row["shift"] if row["shift"] is not None else 0.0))


def noise(result: FitResult) -> str | None:
    """What the standard errors assume: "scales" or "residuals"; None where there are none."""
    stored = uncertainty.stored_errors(result)
    return None if stored is None else stored[1]


def molecules(result: FitResult) -> list[dict[str, Any]]:
    """One row a molecule: RMSE of its relative energies and of its forces, before and after."""
    found = []
    for m in result.molecules:
        row: dict[str, Any] = {
            "name": m.name,
            "smiles": plain_smiles(m.smiles),
            "inchikey": m.inchikey,
            "split": m.split,
            "split_name": SPLITS[m.split],
            "n_conformers": len(m.energies_qm),
            "n_atoms": m.system.n_particles,
        }
        for when in ("initial", "fitted"):
            row[f"energy_{when}"] = row[f"force_{when}"] = None
            if m.kind in CONFORMERS:
                row[f"energy_{when}"] = metrics.energy_rmse([getattr(m, f"energies_{when}")], [m.energies_qm])
                row[f"force_{when}"] = metrics.force_rmse([getattr(m, f"forces_{when}")], [m.forces_qm])
        row["others"] = [(*QUANTITIES[q], m.errors_initial.get(q), value) for q, value in m.errors_fitted.items()]
        found.append(row)
    return found


def targets(result: FitResult) -> list[dict[str, Any]]:
    """One row a kind of reference data, split and quantity: how much there is, and RMSE before and after."""
    found = []
    for kind in dict.fromkeys(m.kind for m in result.molecules):
        for split, where in SPLITS.items():
            members = [m for m in result.molecules if m.kind == kind and m.split == split]
            if not members:
                continue
            count = {"kind": KINDS[kind], "split": split, "split_name": where, "molecules": len(members)}
            count["conformers"] = sum(len(m.positions) for m in members)
            for quantity, (name, unit) in QUANTITIES.items():
                pair = [_root_mean(members, quantity, when) for when in ("initial", "fitted")]
                if pair[0] is not None or pair[1] is not None:
                    found.append(count | {"quantity": name, "unit": unit, "before": pair[0], "after": pair[1]})
    return found


def _root_mean(members: Sequence[MoleculeResult], quantity: str, when: str) -> float | None:
    """The RMSE of a quantity in which every molecule counts equally; None if no molecule has it."""
    if members[0].kind not in CONFORMERS:
        errors = [getattr(m, f"errors_{when}") for m in members]
        squares = [e[quantity] ** 2 for e in errors if quantity in e]
        return math.sqrt(sum(squares) / len(squares)) if squares else None
    if quantity == "energy":
        return metrics.energy_rmse([getattr(m, f"energies_{when}") for m in members], [m.energies_qm for m in members])
    if quantity == "force":
        return metrics.force_rmse([getattr(m, f"forces_{when}") for m in members], [m.forces_qm for m in members])
    return None


def plain_smiles(mapped: str) -> str:
    """A mapped SMILES without map numbers and hydrogens."""
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(mapped)
    if molecule is None:
        return mapped
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(Chem.RemoveHs(molecule))


def provenance(result: FitResult) -> list[tuple[str, str]]:
    """Where the numbers come from: (key, text)."""
    p = result.provenance
    found = [
        ("Command", p.get("command")),
        ("Date", p.get("date")),
        ("Machine", p.get("machine")),
        ("Wall time", f"{p['seconds']:.0f} s" if isinstance(p.get("seconds"), int | float) else None),
        ("Versions", ", ".join(f"{k} {v}" for k, v in (p.get("versions") or {}).items())),
        ("Force field", ", ".join(map(str, p.get("force_field") or ()))),
        ("Force-field digest", p.get("force_field_digest") or result.initial.digest),
        ("Charges", ", ".join(map(str, p.get("charges") or ()))),
        *((f"Data {d['file']}", f"SHA-256 {d['sha256']}") for d in p.get("data") or ()),
        ("Data digest", p.get("data_digest")),
        ("Configuration", p.get("config")),
        ("Configuration digest", p.get("config_digest")),
        ("Network", None if result.network is None else f"{result.network.n_weights} weights, in {NETWORK}"),
        ("Stopped", result.stopped),
    ]
    return [(key, str(text)) for key, text in found if text]


def benchmark_provenance(files) -> list[tuple[str, str]]:
    """Where the numbers of a benchmark come from: (key, text)."""
    from offjax.fit import provenance

    found = [("Command", provenance.command()), ("Date", provenance.date()), ("Machine", provenance.machine())]
    found.append(("Versions", ", ".join(f"{k} {v}" for k, v in provenance.versions().items())))
    return found + [(f"Data {Path(file).name}", f"SHA-256 {provenance.sha256(Path(file))}") for file in files]


def configuration(result: FitResult) -> str:
    """The configuration as JSON, without keys that were left empty."""
    content = result.config.model_dump(mode="json", exclude_none=True)
    return json.dumps(content, indent=2, ensure_ascii=False)
