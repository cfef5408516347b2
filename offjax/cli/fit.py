"""``offjax fit`` and ``offjax report``: run a fit, and make its page again from the stored result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from offjax.cli import options
from offjax.errors import OffjaxError

BenchmarkOption = Annotated[
    bool,
    typer.Option(
        "--benchmark/--no-benchmark",
        help="Minimise the conformers that are QM minima, and torsion drives, with both force fields, and compare.",
    ),
]


def fit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML or YAML file that describes the fit.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint, exactly.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIRECTORY", help="Instead of output.directory.")
    ] = None,
    benchmark: BenchmarkOption = True,
    debug: options.DebugOption = False,
) -> None:
    """Fit a force field to quantum-chemical energies and forces.

        offjax fit examples/demo/fit.toml

    Ctrl-C stops after the iteration that runs; this goes on where it stopped:

        offjax fit examples/demo/fit.toml --resume

    Written to the output directory: `fitted.offxml` (only fitted values differ from the start), `parameters.csv`,
    `report.html` (open it in a browser), `log.jsonl`, `checkpoint.npz` and `result.h5`; with a `[network]` also
    `network.npz`.
    """
    from offjax.cli import session

    session.start()
    from offjax.fit import FitConfig, for_terminal, run

    loaded = FitConfig.load(config)
    if output is not None:
        loaded = loaded.model_copy(update={"output": loaded.output.model_copy(update={"directory": output})})
    result = run(loaded, resume=resume, progress=for_terminal())
    finish(result, benchmark)
    if result.interrupted:
        raise typer.Exit(130)


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Output directory of a fit.")],
    benchmark: BenchmarkOption = True,
    debug: options.DebugOption = False,
) -> None:
    """Write a fit's summary and report.html again.

    offjax report fit-output
    """
    from offjax.cli import session

    session.start()
    from offjax.fit import FitResult

    finish(FitResult.load(directory), benchmark)


def finish(result, benchmark: bool) -> None:
    """Write the report and print the summary."""
    from offjax import report
    from offjax.cli import session, tables
    from offjax.cli.benchmark import show
    from offjax.fit import benchmark as benchmarks
    from offjax.fit import summary
    from offjax.fit.result import NETWORK
    from offjax.fit.targets import QUANTITIES

    minima = None
    if benchmark and result.network is not None:
        session.note("minima are not compared: they would be those of the force field without its network")
    elif benchmark and not result.interrupted:
        with session.working("minimising the QM geometries with both force fields"):
            try:
                minima = benchmarks.of_fit(result)
            except OffjaxError as error:  # the fit is done: its report is written
                session.note(f"the minima of the two force fields are not compared: {error}")
    with session.working("writing the report"):
        page = report.write(result, result.directory / "report.html", minima)

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    columns = [("RMSE against QM", "left"), ("training before", "right"), ("after", "right")]
    columns += [("held out before", "right"), ("after", "right")]
    rows = [("{} ({})".format(*QUANTITIES[row[0]]), *map(cell, row[1:])) for row in summary(result)]
    tables.show("", columns, rows)
    table = result.table()
    if len(table):
        _shifts(tables, table)
    if minima is not None:
        show(minima)
    tables.line(f"stopped: {result.stopped}, after {result.history[-1]['iteration']} iterations")
    network = [] if result.network is None else [NETWORK]
    for name in ("fitted.offxml", *network, "parameters.csv", "log.jsonl"):
        if (result.directory / name).is_file():
            tables.line(f"written: {os.path.relpath(result.directory / name)}")
    tables.line(f"written: {os.path.relpath(page)}")


def _shifts(tables, table) -> None:
    """Print the five largest shifts of a :meth:`FitResult.table`."""
    from offjax.interop.units import short

    order = table["shift_in_widths"].abs().sort_values(ascending=False, kind="stable").index[:5]
    largest = table.loc[order]
    tables.show(
        f"Largest of {len(table)} shifts",
        [
            ("parameter", "left"),
            ("id", "left"),
            ("before", "right"),
            ("after", "right"),
            ("unit", "left"),
            ("shift / prior width", "right"),
            ("", "left"),
        ],  # fmt: skip
        [
            (
                f"{row.section} {row.attribute}",
                row.id or "",
                f"{row.initial:.5g}",
                f"{row.fitted:.5g}",
                short(row.unit),
                f"{row.shift_in_widths:+.2f}",
                "at its bound" if row.at_bound else "",
            )
            for row in largest.itertuples()
        ],
    )
