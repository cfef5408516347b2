"""``offjax check``: parity with OpenMM and a finite-difference audit of every used parameter."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offjax.cli import options


def check(
    molecules: options.MoleculesArgument,
    force_field: options.ForceFieldOption = options.FORCE_FIELD,
    terms: options.TermsOption = None,
    openmm: Annotated[
        bool, typer.Option("--openmm/--no-openmm", help="Compare with OpenMM, or only gradients.")
    ] = True,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of the worst parameters to show.")] = 5,
    charges: options.ChargesOption = options.Charges.force_field,
    flexible: options.FlexibleOption = False,
    periodic: options.PeriodicOption = False,
    smiles: options.SmilesOption = None,
    conformers: options.ConformersOption = 1,
    allow_undefined_stereo: options.StereoOption = False,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Does the force field behave on these molecules? Exit code 1 if not.

    All of openff-2.2.1 that paracetamol uses, and your own force field on your own molecules:

        offjax check "CC(=O)Nc1ccc(O)cc1" --charges gasteiger

        offjax check ligands.sdf -f mine.offxml

    Energies of each term and the forces are compared with OpenMM's Reference platform (1e-6 relative, nonbonded
    1e-5 kJ/mol); the gradient in every used parameter with Richardson-extrapolated differences of the energy (1e-6).
    Parameters without a two-sided derivative (epsilon = 0) are listed and left out.
    """
    from offjax import audit
    from offjax.cli import session, tables

    session.start()
    document: list[dict[str, Any]] = []
    structures = session.read(molecules, smiles, conformers, allow_undefined_stereo)
    for case in session.cases(structures, force_field, charges, flexible, periodic, terms):
        with session.working(f"checking {case.structure.name}"):
            result = audit.audit(case.system, case.structure.conformers, openmm=openmm)
        document.append(_record(case, result))
        if not json:
            _print(document[-1], case, result, top)
    passed = all(record["passed"] for record in document)
    if json:
        tables.dump({"force_field": force_field, "passed": passed, "molecules": document})
    else:
        failed = [record["name"] for record in document if not record["passed"]]
        tables.line(
            f"FAILED: {', '.join(failed)}" if failed else f"passed: {len(document)} of {len(document)} molecules"
        )
    if not passed:
        raise typer.Exit(1)


def _record(case, result) -> dict[str, Any]:
    records = case.structure.records
    return {
        "name": case.structure.name,
        "source": case.structure.source,
        "smiles": case.smiles,
        "charges": case.charges,
        "passed": result.passed,
        "n_conformers": result.n_conformers,
        "tested": len(result.derivatives),
        "unused": result.unused,
        "singular": [str(label) for label in result.singular],
        "comparisons": [
            {
                "record": records[c.conformer],
                "term": c.term,
                "offjax": c.offjax,
                "openmm": c.openmm,
                "difference": c.difference,
                "tolerance": c.tolerance,
                "passed": c.passed,
            }
            for c in result.comparisons
        ],
        "derivatives": [
            {
                "section": d.label.section,
                "attribute": d.label.key,
                "id": d.label.id,
                "smirks": d.label.smirks,
                "record": records[d.conformer],
                "gradient": d.gradient,
                "difference": d.difference,
                "tolerance": d.tolerance,
                "passed": d.passed,
            }
            for d in result.derivatives
        ],
    }


def _print(record: dict[str, Any], case, result, top: int) -> None:
    from offjax.cli.tables import line, number, show

    count = f"{record['n_conformers']} conformer{'' if record['n_conformers'] == 1 else 's'}"
    line(f"{record['name']}: {count}, charges: {record['charges']}")
    worst: dict[str, Any] = {}
    for c in result.comparisons:
        if (
            c.term not in worst
            or abs(c.difference) / c.tolerance > abs(worst[c.term].difference) / worst[c.term].tolerance
        ):
            worst[c.term] = c
    rows = [
        (
            "RMS force" if c.term == "forces" else c.term,
            number(c.offjax),
            number(c.openmm),
            f"{c.difference:.1e}",
            f"{c.tolerance:.1e}",
            "ok" if c.passed else "FAILED",
        )
        for c in worst.values()
    ]
    columns = [("", "left"), ("offjax", "right"), ("OpenMM", "right"), ("difference", "right"), ("allowed", "right")]
    if rows:
        where = "" if record["n_conformers"] == 1 else ", worst conformer"
        show(
            f"Parity with OpenMM, kJ/mol (forces: kJ/mol/nm, largest difference){where}", [*columns, ("", "left")], rows
        )
    ordered = sorted(result.derivatives, key=lambda d: -d.deviation)
    shown = ordered[: max(top, sum(not d.passed for d in ordered))]
    columns = [("parameter", "left"), ("id", "left"), ("SMIRKS", "left"), ("dU/dθ", "right"), ("differences", "right")]
    show(
        f"Gradients against differences: the worst of {record['tested']} parameters, MD units",
        [*columns, ("of allowed", "right"), ("", "left")],
        [
            (
                f"{d.label.section} {d.label.key}",
                d.label.id or "",
                d.label.smirks or "",
                f"{d.gradient:.8g}",
                f"{d.difference:.8g}",
                f"{100 * d.deviation:.2g} %",
                "ok" if d.passed else "FAILED",
            )
            for d in shown
        ],
    )
    text = f"{record['tested']} parameters tested, {record['unused']} not used by this molecule"
    if record["singular"]:
        text += f", {len(record['singular'])} without a two-sided derivative: {'; '.join(record['singular'])}"
    line(text + "\n")
