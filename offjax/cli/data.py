"""``offjax data``: what can be read of reference data, and what not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from offjax.cli import options


def data(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Files of reference data.", show_default=False)],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-F",
            metavar="FORMAT",
            help="spice-hdf5, descent-arrow, extended-xyz, qc-json or forcebalance-qdata (-vdata, -optgeo).",
        ),
    ] = None,
    molecule: Annotated[
        str | None,
        typer.Option(
            "--molecule",
            metavar="MOLECULE",
            help="Of a qdata.txt: mapped SMILES, or a MOL2, SDF, MOL file. Of QCSchema results: QCSubmit's collection.",
        ),
    ] = None,
    sign: Annotated[
        str, typer.Option("--sign", metavar="SIGN", help="Under FORCES of a qdata.txt: auto, forces or gradient.")
    ] = "auto",
    forces: Annotated[
        bool, typer.Option("--forces", help="Reject records without forces, as a fit to forces would.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all problems as CSV.")
    ] = None,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Check reference data before a fit. Exit code 1 if a record cannot be used.

        offjax data reference.h5 more.extxyz

        offjax data targets/ethanol/qdata.txt --molecule targets/ethanol/ethanol.mol2

    Lists every record that cannot be used with the reason: atoms in another order than the mapped SMILES, lengths in
    another unit, bonds broken or formed, numbers that are not finite, damaged files. Duplicates and outliers are
    remarked on, but used.

    A fit stops at a record that cannot be used, unless the data set says on_error = "report".
    """
    from offjax.cli import session, tables
    from offjax.interop.files import write_atomically
    from offjax.interop.reading import read
    from offjax.interop.records import Reading

    session.start()
    found = Reading([], [])
    for file in files:
        with session.working(f"reading {file}"):
            found += read(file, format, forces=forces, strict=False, molecule=molecule, sign=sign)  # type: ignore[arg-type]
    if output is not None:
        write_atomically(output, found.table().to_csv(index=False, lineterminator="\n").encode())
    if json:
        tables.dump(_document(found))
    else:
        tables.show(
            "Records",
            [("record", "left"), ("file", "left"), ("atoms", "right"), ("conformers", "right"), ("forces", "left")]
            + [("energies / kJ/mol", "right")],
            [
                (
                    r.name,
                    Path(r.source).name,
                    r.positions.shape[1],
                    r.n_conformers,
                    "no" if r.forces is None else "yes",
                    f"{r.energies.max() - r.energies.min():.1f}",
                )
                for r in found.records
            ],
        )
        for problem in found.problems:
            tables.line(f"{problem.kind}: {problem}")
        tables.line(
            f"{len(found.records)} records with {sum(r.n_conformers for r in found.records)} conformers can be used, "
            f"{len(found.rejected)} rejected, {len(found.problems) - len(found.rejected)} remarks"
        )
    if found.rejected:
        raise typer.Exit(1)


def _document(found) -> dict[str, Any]:
    return {
        "records": [
            {
                "name": r.name,
                "source": r.source,
                "smiles": r.smiles,
                "inchikey": r.inchikey,
                "n_conformers": r.n_conformers,
                "forces": r.forces is not None,
            }
            for r in found.records
        ],
        "problems": [problem._asdict() for problem in found.problems],
    }
