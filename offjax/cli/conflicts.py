"""``offjax conflicts`` and ``offjax split``: parameters that are pulled opposite ways, and what to do about them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from offjax.cli import options
from offjax.cli.fit import BenchmarkOption

FitArgument = Annotated[
    Path, typer.Argument(metavar="FIT", help="Output directory of a fit, or a configuration (its starting values).")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="CONFIG", help="The fit's configuration, where its files have moved."),
]


def conflicts(
    fit: FitArgument,
    top: Annotated[int, typer.Option("--top", min=1, help="How many parameters and splits to show.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write everything as JSON, place by place.")
    ] = None,
    config: ConfigOption = None,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Which parameters do the molecules pull opposite ways, and which SMARTS would tell the molecules apart?

        offjax conflicts fit-output

    A parameter acts in many places. At the end of a fit the pulls of these places on it cancel; if they are large, no
    value suits them all. "cancelled" is the share of the pulls that is lost that way.

    For each such parameter, its SMIRKS with one more condition is tried (element, neighbours, hydrogens, charge, ring)
    and the best is proposed with the expected gain: how much the objective should fall beyond this fit. Try one with

        offjax split fit-output

    Nothing is written without -o.
    """
    from offjax.cli import session, tables

    session.start()
    from offjax.fit import FitConfig, FitResult, find_conflicts

    with session.working("gradients of every place"):
        found = find_conflicts(fit, top=top, config=None if config is None else FitConfig.load(config))
    if output is not None:
        found.write(output)
    if json:
        tables.dump(found.to_dict())
        return
    tables.show(
        "Largest conflicts; pulls are in units of the objective a prior width",
        [("parameter", "left"), ("id", "left"), ("SMIRKS", "left"), ("places", "right")]
        + [("up", "right"), ("down", "right"), ("cancelled", "right")],
        [
            (
                f"{p.label.section} {p.label.key}",
                p.label.id or "",
                p.label.smirks or "",
                len(p.places),
                f"{p.up:.3g}",
                f"{p.down:.3g}",
                f"{p.cancelled:.2f}",
            )
            for p in found.pulls[:top]
        ],
    )
    tables.show(
        f"Proposed splits; the objective is {found.objective:.5g}",
        [("section", "left"), ("id", "left"), ("child SMIRKS, to stand right after its parent", "left")]
        + [("places", "right"), ("molecules", "left"), ("expected gain", "right")],
        [
            (
                s.section,
                s.id or s.smirks,
                s.child,
                f"{s.n_child} of {s.n_places}",
                ", ".join(s.molecules[:3]) + (f" and {len(s.molecules) - 3} more" if len(s.molecules) > 3 else ""),
                f"{s.gain:.4g}",
            )
            for s in found.splits
        ],
    )
    logged = None if fit.is_file() else FitResult.load(fit).history[-1]["objective"]
    moved = logged is not None and abs(logged - found.objective) > 1e-3 * found.objective
    if moved:
        tables.line(
            f"the objective was {logged:.5g} at the end of the fit. The fit relaxes each geometry from where the "
            "iteration before left it; here each is relaxed from its reference geometry, and some end in another "
            "minimum"
        )
    if found.unsplit_gain > 0.01 * found.objective:
        words = "at these minima" if moved else "this is not the end of a fit:"
        tables.line(
            f"{words} the objective should fall by {found.unsplit_gain:.3g} without any split"
            f"{'' if moved else '; fit first'}"
        )
    if found.left_out:
        tables.line(f"without SMIRKS to split, left out: {', '.join(sorted({x.section for x in found.left_out}))}")
    if output is not None:
        tables.line(f"written: {os.path.relpath(output)}")


def split(
    fit: FitArgument,
    parameter: Annotated[
        str | None,
        typer.Option("--parameter", "-p", metavar="ID", help="Id or SMIRKS of the parameter to split; none: the best."),
    ] = None,
    child: Annotated[
        str | None,
        typer.Option("--smirks", "-s", metavar="SMIRKS", help="Your own child; needs --parameter and --section."),
    ] = None,
    section: Annotated[
        str | None, typer.Option("--section", metavar="SECTION", help="Section of --parameter, such as Bonds.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIRECTORY", help="Where the files and the new fit go.")
    ] = Path("split"),
    refit: Annotated[bool, typer.Option("--refit/--no-refit", help="Run the fit with the split force field.")] = True,
    benchmark: BenchmarkOption = True,
    config: ConfigOption = None,
    debug: options.DebugOption = False,
) -> None:
    """Split a parameter in two and fit again.

        offjax split fit-output -o split

        offjax split fit-output --section Bonds --parameter b84 --smirks "[#6X4;$(*~[#8]):1]-[#1:2]"

    Without --smirks the split is the one that `offjax conflicts` puts first (of that parameter, with --parameter). The
    new parameter starts as a copy of its parent, stands right after it and has an id of its own.

    Written to DIRECTORY: `split.offxml` (the force field before the fit; valid for every SMIRNOFF program),
    `split.yaml` (the same fit with it) and, after the fit, `fit-output`.
    """
    from offjax.cli import session, tables
    from offjax.errors import InputError

    session.start()
    from offjax.cli.fit import finish
    from offjax.fit import FitConfig, FitResult, find_conflicts, for_terminal, run
    from offjax.fit.split import refit_files

    given = None if config is None else FitConfig.load(config)
    if child is not None:
        if parameter is None or section is None:
            raise InputError("--smirks needs --parameter and --section: which parameter is its parent?")
        smirks = parameter
    else:
        with session.working("gradients of every place"):
            found = find_conflicts(fit, config=given, parameter=parameter)
        chosen = [s for s in found.splits if parameter in (None, s.id, s.smirks) and section in (None, s.section)]
        if not chosen:
            raise InputError(f"no split {f'of {parameter} ' if parameter else ''}is expected to lower the objective")
        best = chosen[0]
        section, smirks, child = best.section, best.smirks, best.child
        tables.line(f"objective {found.objective:.5g}, expected after the split {found.objective - best.gain:.5g}")
    if given is None:
        given = FitConfig.load(fit) if fit.is_file() else FitResult.load(fit).config
    path = refit_files(given, section, smirks, child, output)
    tables.line(f"<{section}> {smirks} has the child {child}")
    for name in ("split.offxml", "split.yaml"):
        tables.line(f"written: {os.path.relpath(output / name)}")
    if refit:
        result = run(FitConfig.load(path), progress=for_terminal())
        finish(result, benchmark)
        tables.line(f"objective after the split: {result.history[-1]['objective']:.5g}")
        if result.interrupted:
            raise typer.Exit(130)
