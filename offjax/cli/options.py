"""Arguments and options that several commands share, with the words of their help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Charges(StrEnum):
    """Where partial charges come from."""

    force_field = "force-field"
    am1bcc = "am1bcc"
    gasteiger = "gasteiger"
    zeros = "zeros"
    file = "file"


MoleculesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MOLECULES",
        help="Files (SDF, MOL, SMI, PDB, OpenFF JSON) or SMILES strings. A conformer is generated for a SMILES.",
        show_default=False,
    ),
]
ForceFieldOption = Annotated[
    list[str],
    typer.Option(
        "--force-field",
        "-f",
        metavar="FILE",
        help="OFFXML file or installed name. Repeat it to add files on top of each other.",
    ),
]
TermsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--terms",
        metavar="FILE",
        help="Python file (or installed module) that defines terms of your own for sections of the force field. "
        "Repeatable.",
    ),
]
FORCE_FIELD = ["openff-2.2.1.offxml"]

ChargesOption = Annotated[
    Charges,
    typer.Option(
        "--charges",
        help="force-field: what the force field says (AM1-BCC for OpenFF 2.2, which needs AmberTools). file: those in "
        "the SDF or JSON file. The others replace the force field's charges.",
    ),
]
SmilesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--smiles",
        metavar="SMILES",
        help="Chemistry of molecules in a PDB file that are not proteins, water or ions. Repeatable.",
    ),
]
ConformersOption = Annotated[
    int,
    typer.Option(
        "--conformers", "-n", min=1, help="How many conformers to generate for a SMILES; similar ones are dropped."
    ),
]
StereoOption = Annotated[bool, typer.Option("--undefined-stereo", help="Accept stereocentres without stereochemistry.")]
FlexibleOption = Annotated[
    bool,
    typer.Option("--flexible", help="Give constrained bonds their harmonic term back (rigid water stays rigid)."),
]
PeriodicOption = Annotated[
    bool,
    typer.Option("--periodic", help="In the periodic box of the file, with what the force field says about boxes."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output, one JSON document.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]
