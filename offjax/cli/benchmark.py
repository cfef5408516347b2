"""``offjax benchmark``: minima of force fields against geometries and energies of quantum chemistry."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from offjax.cli import options


class Kind(StrEnum):
    """What the reference data are."""

    minima = "minima"
    torsion_profiles = "torsion-profiles"


def benchmark(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Files of reference data.", show_default=False)],
    force_field: Annotated[
        list[str],
        typer.Option(
            "--force-field",
            "-f",
            metavar="FILE",
            help="OFFXML file or installed name. Repeat it to compare several; join files of one with a comma.",
        ),
    ] = options.FORCE_FIELD,
    terms: options.TermsOption = None,
    charges: options.ChargesOption = options.Charges.force_field,
    kind: Annotated[
        Kind, typer.Option("--kind", help="torsion-profiles: find the driven dihedrals in the coordinates.")
    ] = Kind.minima,
    format: Annotated[
        str | None,
        typer.Option("--format", "-F", metavar="FORMAT", help="As in offjax data; none: by the file's name."),
    ] = None,
    molecule: Annotated[
        str | None,
        typer.Option("--molecule", metavar="MOLECULE", help="Of a qdata.txt: mapped SMILES, or a MOL2, SDF, MOL file."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also conformers whose QM forces say that they are no minima.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write a page with curves and geometries.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", "-t", metavar="FILE", help="Write a CSV table, one row a conformer.")
    ] = None,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """How near are a force field's minima to those of quantum chemistry?

        offjax benchmark optimised.json -f openff-2.2.1.offxml -f fit-output/fitted.offxml -o benchmark.html

    Each conformer is minimised with each force field. The table has the medians of what the OpenFF benchmarks compare:
    RMSD of the heavy atoms after superposition, TFD of the torsions, and ddE, the error of the energy relative to the
    molecule's conformer that is lowest in QM. The files are those that `offjax data` reads.
    """
    from offjax.cli import session, tables
    from offjax.errors import InputError
    from offjax.fit import benchmark as benchmarks
    from offjax.fit import for_terminal
    from offjax.interop import definitions
    from offjax.interop.files import write_atomically

    session.start()
    if charges is options.Charges.file:
        raise InputError("--charges file: reference data hold no charges")
    records = _records(files, kind, format, molecule, every)
    progress = for_terminal()
    try:
        contenders = benchmarks.parameterized(
            records, force_field, charges.value, progress, definitions.read(terms or ())
        )
        progress.stage(f"minimising {sum(r.n_conformers for r in records)} conformers")
        found = benchmarks.compare(records, contenders)
    finally:
        progress.close()
    if table is not None:
        write_atomically(table, found.table().to_csv(index=False, lineterminator="\n").encode())
    if output is not None:
        from offjax import report

        report.write_benchmark(found, output, files=files)
    if json:
        tables.dump({"summary": found.summary(), "conformers": found.table().to_dict("records")})
        return
    show(found)
    for path in (table, output):
        if path is not None:
            tables.line(f"written: {os.path.relpath(path)}")


def show(found) -> None:
    """The table of a Benchmark on the terminal."""
    from offjax.cli import tables

    columns = [("force field", "left"), ("conformers", "right"), ("not converged", "right")]
    columns += [("RMSD / Å median", "right"), ("mean", "right"), ("TFD median", "right"), ("mean", "right")]
    columns += [("|ddE| / kcal/mol median", "right"), ("RMS", "right")]

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.4f}"

    names = ("rmsd_median", "rmsd_mean", "tfd_median", "tfd_mean", "dde_median", "dde_rms")
    rows = [
        (row["force_field"], row["conformers"], row["unconverged"], *(cell(row[name]) for name in names))
        for row in found.summary()
    ]
    tables.show("Minima against QM", columns, rows)


def _records(files: list[Path], kind: Kind, format: str | None, molecule: str | None, every: bool):
    from offjax.cli import session
    from offjax.errors import InputError
    from offjax.fit.benchmark import MAX_FORCE, minima_of
    from offjax.interop import torsiondrives
    from offjax.interop.reading import read

    records, dropped = [], 0
    for file in files:
        found = read(file, format, forces=False, strict=False, molecule=molecule)  # type: ignore[arg-type]
        for problem in found.rejected:
            session.note(f"not used: {problem}")
        for record in found.records:
            if kind is Kind.torsion_profiles:
                try:
                    records += [record] if record.driven else torsiondrives.drives(record)
                except InputError as error:
                    session.note(f"not used: {error}")
                continue
            kept = record if every else minima_of(record)
            dropped += record.n_conformers - (0 if kept is None else kept.n_conformers)
            records += [] if kept is None else [kept]
    if dropped:
        session.note(
            f"{dropped} conformers are no minima in QM (a force above {MAX_FORCE:g} kJ/mol/nm); --all takes them"
        )
    if not records:
        raise InputError(f"{files[0]}: no conformer is left to compare; see offjax data, and --all")
    return records
