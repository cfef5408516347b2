"""``offjax energy``: energies by term, optionally beside OpenMM's."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offjax.cli import options


def energy(
    molecules: options.MoleculesArgument,
    force_field: options.ForceFieldOption = options.FORCE_FIELD,
    terms: options.TermsOption = None,
    openmm: Annotated[bool, typer.Option("--openmm", help="Beside OpenMM's Reference platform.")] = False,
    charges: options.ChargesOption = options.Charges.force_field,
    flexible: options.FlexibleOption = False,
    periodic: options.PeriodicOption = False,
    smiles: options.SmilesOption = None,
    conformers: options.ConformersOption = 1,
    allow_undefined_stereo: options.StereoOption = False,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Potential energy of each conformer, term by term, in vacuum or in a periodic box.

    The energies of an ethanol conformer that RDKit makes, and of all conformers of an SDF file beside OpenMM:

        offjax energy CCO --charges gasteiger

        offjax energy ligand.sdf -f openff-2.2.1.offxml --openmm

    Units: kJ/mol, and the total in kcal/mol. Bonds that the force field constrains have no energy; --flexible gives
    them their harmonic term back.
    """
    from offjax import audit
    from offjax.cli import session, tables

    session.start()
    document: list[dict[str, Any]] = []
    structures = session.read(molecules, smiles, conformers, allow_undefined_stereo)
    for case in session.cases(structures, force_field, charges, flexible, periodic, terms):
        structure = case.structure
        with session.working(f"compiling the energy of {structure.name}"):
            ours = audit.energies_by_term(case.system, structure.conformers)
            theirs = audit.openmm_energies_and_forces(case.system, structure.conformers)[0] if openmm else None
        document.append(_record(case, ours, theirs))
        if not json:
            _print(document[-1])
    if json:
        tables.dump({"force_field": force_field, "unit": "kJ/mol", "molecules": document})


def _record(case, ours, theirs) -> dict[str, Any]:
    structure = case.structure
    conformers = []
    for n, record in enumerate(structure.records):
        terms = {term: float(values[n]) for term, values in ours.items()}
        entry: dict[str, Any] = {"record": record, "terms": terms, "total": sum(terms.values())}
        if theirs is not None:
            entry["openmm"] = {term: float(values[n]) for term, values in theirs.items()}
            entry["openmm_total"] = sum(entry["openmm"].values())
        conformers.append(entry)
    return {
        "name": structure.name,
        "source": structure.source,
        "smiles": case.smiles,
        "n_atoms": structure.n_atoms,
        "charges": case.charges,
        "generated_coordinates": structure.generated,
        "conformers": conformers,
    }


def _print(record: dict[str, Any]) -> None:
    from offjax.cli.tables import number, show
    from offjax.constants import KCAL

    title = f"{record['name']}: {record['n_atoms']} atoms, charges: {record['charges']}"
    conformers = record["conformers"]
    if "openmm" in conformers[0]:
        for entry in conformers:
            rows = [
                (term, number(value), number(entry["openmm"][term]), f"{value - entry['openmm'][term]:.1e}")
                for term, value in entry["terms"].items()
            ]
            total, other = entry["total"], entry["openmm_total"]
            rows.append(("Total", number(total), number(other), f"{total - other:.1e}"))
            headings = [("kJ/mol", "left"), ("offjax", "right"), ("OpenMM", "right"), ("difference", "right")]
            show(f"{title}, {entry['record']}", headings, rows, total=True)
        return
    if len(conformers) == 1:
        entry = conformers[0]
        rows = [(term, number(value), number(value / KCAL)) for term, value in entry["terms"].items()]
        rows.append(("Total", number(entry["total"]), number(entry["total"] / KCAL)))
        headings = [(entry["record"], "left"), ("kJ/mol", "right"), ("kcal/mol", "right")]
        show(title, headings, rows, total=True)
        return
    headings = [("kJ/mol", "left"), *((term, "right") for term in conformers[0]["terms"])]
    headings += [("Total", "right"), ("kcal/mol", "right")]
    rows = [
        (entry["record"], *map(number, entry["terms"].values()), number(entry["total"]), number(entry["total"] / KCAL))
        for entry in conformers
    ]
    show(title, headings, rows)
