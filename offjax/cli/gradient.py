"""``offjax gradient``: which force-field parameters matter for a molecule."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offjax.cli import options

TYPICAL = {
    "length": (0.001, "0.01 Å"),
    "distance": (0.001, "0.01 Å"),
    "radius": (0.001, "0.01 Å"),
    "sigma": (0.001, "0.01 Å"),
    "rmin_half": (0.001, "0.01 Å"),
    "angle": (0.017453292519943295, "1°"),
    "phase": (0.017453292519943295, "1°"),
    "outOfPlaneAngle": (0.017453292519943295, "1°"),
    "inPlaneAngle": (0.017453292519943295, "1°"),
    "charge": (0.01, "0.01 e"),
    "charge_increment": (0.01, "0.01 e"),
}
"""A change of moderate size by attribute, MD units, and how it is written; every other attribute: 5 % of its value."""
RELATIVE = 0.05


def gradient(
    molecules: options.MoleculesArgument,
    force_field: options.ForceFieldOption = options.FORCE_FIELD,
    terms: options.TermsOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many parameters to show.")] = 20,
    charges: options.ChargesOption = options.Charges.force_field,
    flexible: options.FlexibleOption = False,
    periodic: options.PeriodicOption = False,
    smiles: options.SmilesOption = None,
    conformers: options.ConformersOption = 1,
    allow_undefined_stereo: options.StereoOption = False,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Which parameters matter for this molecule: dU/dtheta, sorted.

    The ten parameters that the energy of paracetamol depends on most:

        offjax gradient "CC(=O)Nc1ccc(O)cc1" --top 10 --charges gasteiger

    dU/dtheta is in kcal/mol for one unit of the parameter in the force-field file. Parameters have different units, so
    the table is sorted by the effect of a typical change: 0.01 Å of a length, 1 degree of an angle, 0.01 e of a
    charge, 5 % of anything else. With several conformers, dU/dtheta is the mean and the effect the root mean square.
    """
    from offjax import audit
    from offjax.cli import session, tables

    session.start()
    document: list[dict[str, Any]] = []
    structures = session.read(molecules, smiles, conformers, allow_undefined_stereo)
    for case in session.cases(structures, force_field, charges, flexible, periodic, terms):
        with session.working(f"compiling the gradient of {case.structure.name}"):
            g = audit.evaluate(case.system, case.structure.conformers).gradient
        document.append(_record(case, g))
        if not json:
            _print(document[-1], top)
    if json:
        for record in document:
            record["parameters"] = record["parameters"][:top]
        tables.dump({"force_field": force_field, "molecules": document})


def _record(case, g) -> dict[str, Any]:
    import numpy as np

    from offjax.constants import KCAL

    p, used = case.system.parameters, np.asarray(case.system.used.to_vector())
    theta, mean, rms = np.asarray(p.to_vector()), g.mean(axis=0), np.sqrt(np.mean(g**2, axis=0))
    rows = []
    for i in np.nonzero(used)[0]:
        label = p.schema.flat[i]
        change, written = TYPICAL.get(label.attribute, (RELATIVE * abs(theta[i]), "5 %"))
        rows.append(
            {
                "section": label.section,
                "attribute": label.key,
                "id": label.id,
                "smirks": label.smirks,
                "instances": int(used[i]),
                "value": theta[i] / label.factor,
                "unit": label.unit,
                "gradient_kcal_per_mol_per_unit": mean[i] * label.factor / KCAL,
                "change": written,
                "effect_kcal_per_mol": rms[i] * change / KCAL,
            }
        )
    rows.sort(key=lambda row: -row["effect_kcal_per_mol"])
    return {
        "name": case.structure.name,
        "source": case.structure.source,
        "smiles": case.smiles,
        "charges": case.charges,
        "n_conformers": len(case.structure.conformers),
        "n_used": len(rows),
        "n_parameters": len(theta),
        "parameters": rows,
    }


def _print(record: dict[str, Any], top: int) -> None:
    from offjax.cli.tables import line, show
    from offjax.interop.units import short

    rows = [
        (
            f"{row['section']} {row['attribute']}",
            row["id"] or "",
            row["smirks"] or "",
            row["instances"],
            f"{row['value']:.6g}",
            short(row["unit"]),
            f"{row['gradient_kcal_per_mol_per_unit']:.4g}",
            row["change"],
            f"{row['effect_kcal_per_mol']:.3g}",
        )
        for row in record["parameters"][:top]
    ]
    columns = [
        ("parameter", "left"),
        ("id", "left"),
        ("SMIRKS", "left"),
        ("uses", "right"),
        ("value", "right"),
        ("unit", "left"),
        ("dU/dθ", "right"),
        ("change", "right"),
        ("effect", "right"),
    ]
    show(f"{record['name']}: dU/dθ in kcal/mol per unit, effect of the change in kcal/mol", columns, rows)
    more = record["n_used"] - len(rows)
    line(
        f"{record['n_used']} of {record['n_parameters']} parameters of the force field are used"
        + (f"; {more} more with --top {record['n_used']}" if more else "")
        + f". Charges: {record['charges']}."
    )
