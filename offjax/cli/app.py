"""The typer application, and ``main``: every way a command can end becomes an exit code and at most one line.

0 success; 1 a check that failed, or an unexpected error; 2 bad input; 130 Ctrl-C. Heavy imports live inside commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from offjax.cli import benchmark, check, conflicts, data, energy, export, fit, gradient, parameterize, uncertainty
from offjax.errors import OffjaxError

HELP = """Differentiable SMIRNOFF force fields on JAX: look at them, check them, fit them.

MOLECULES are files (SDF, MOL, SMI, PDB, OpenFF JSON) or SMILES strings, so this works at once:

    offjax energy CCO --charges gasteiger

Every command explains itself: `offjax energy --help`.
"""

app = typer.Typer(
    name="offjax",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(energy.energy)
app.command()(gradient.gradient)
app.command()(check.check)
app.command()(parameterize.parameterize)
app.command()(export.export)
app.command()(data.data)
app.command()(fit.fit)
app.command()(fit.report)
app.command()(uncertainty.uncertainty)
app.command()(benchmark.benchmark)
app.command()(conflicts.conflicts)
app.command()(conflicts.split)


def _version(shown: bool) -> None:
    if shown:
        from offjax import __version__

        print(f"offjax {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
) -> None:
    pass


INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. The entry point of the console script."""
    # Before anything imports JAX: XLA warns, at length, that programs from its cache were compiled with tuning
    # preferences ("+prefer-no-gather") that are not processor features. The cache is kept apart by processor.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("OFFJAX_DEBUG", "") not in ("", "0")
    try:
        code = app(arguments, prog_name="offjax", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer's own translation of KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # `offjax ... | head` is not an error, also not when Python flushes at exit
        return 0
    except OffjaxError as error:
        if debug:
            raise
        return _say(str(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage, as typer reports it
            return _say(error.format_message() + _usage(error), 2)
        if debug:
            raise
        return _say(f"{type(error).__name__}: {error} (an unexpected error; --debug shows where)", 1)


def _usage(error) -> str:
    context = getattr(error, "ctx", None)
    return f"; see {context.command_path} --help" if context is not None else ""


def _say(message: str, code: int) -> int:
    """``error: message`` on stderr; a message of several findings is one line each."""
    for line in message.splitlines() or [""]:
        if line.strip():
            print(f"error: {line.strip()}", file=sys.stderr)
    return code
