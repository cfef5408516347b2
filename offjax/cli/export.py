"""``offjax export``: OpenMM XML, OFFXML or a System file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from offjax.cli import options


class Format(StrEnum):
    """What ``--to`` accepts."""

    openmm_xml = "openmm-xml"
    offxml = "offxml"
    system = "system"


def export(
    molecules: options.MoleculesArgument,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")],
    output: options.OutputOption,
    force_field: options.ForceFieldOption = options.FORCE_FIELD,
    terms: options.TermsOption = None,
    topology: Annotated[
        Path | None,
        typer.Option("--topology", metavar="FILE", help="Also write a PDB file with topology and positions."),
    ] = None,
    split_terms: Annotated[
        bool, typer.Option("--split-terms", help="openmm-xml: one force and force group a SMIRNOFF section.")
    ] = False,
    charges: options.ChargesOption = options.Charges.force_field,
    flexible: options.FlexibleOption = False,
    smiles: options.SmilesOption = None,
    allow_undefined_stereo: options.StereoOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Write molecules with a force field for other programs.

    An OpenMM System with the PDB file that OpenMM needs beside it, and a protein with its ligand in one System:

        offjax export ligand.sdf --to openmm-xml -o system.xml --topology system.pdb

        offjax export protein.pdb ligand.sdf --to openmm-xml -o complex.xml --topology complex.pdb

    All molecules of all files become one System, in the order given and at the coordinates given. `--to offxml` writes
    the force field (several --force-field files as one); `--to system` what `offjax parameterize` writes. A file is
    written whole or not at all.
    """
    from offjax.cli import session, tables

    session.start()
    structures = session.read(molecules, smiles, 1, allow_undefined_stereo)
    extra = [s.name for s in structures if len(s.conformers) > 1]
    if topology is not None and extra:
        session.note(f"only the first conformer is written: {', '.join(extra)}")
    system, positions = session.together(structures, force_field, charges, flexible, terms)
    written = [output]
    if to is Format.offxml:
        system.to_offxml(output)
    elif to is Format.system:
        system.save(output)
    else:
        _openmm(system, output, split_terms)
    if topology is not None:
        _pdb(system, positions, topology)
        written.append(topology)
    for path in written:
        tables.line(f"written: {path} ({path.stat().st_size / 1024:.0f} kB)")


def _openmm(system, path: Path, split_terms: bool) -> None:
    import openmm

    from offjax.interop.files import write_atomically

    text = openmm.XmlSerializer.serialize(system.to_openmm(split_terms=split_terms))
    write_atomically(path, text.encode())


def _pdb(system, positions, path: Path) -> None:
    import io

    import numpy as np
    import openmm.app
    from openmm import unit

    from offjax.interop.files import write_atomically

    text = io.StringIO()
    particles = np.asarray(system.place_sites(positions)) * unit.nanometer
    openmm.app.PDBFile.writeFile(system.to_openmm_topology(), particles, text, keepIds=True)
    write_atomically(path, text.getvalue().encode())
