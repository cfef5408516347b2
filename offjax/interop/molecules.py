"""Molecules with coordinates from files and SMILES: SDF, MOL, SMI, PDB, OpenFF JSON.

Every record that cannot be used raises an :class:`~offjax.errors.InputError` that names the file and the record;
nothing is skipped and nothing is added silently (the toolkit's own SDF reader drops unreadable records and adds
hydrogens).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offjax.errors import InputError

if TYPE_CHECKING:
    from openff.toolkit import Molecule

FORMATS = (".sdf", ".mol", ".smi", ".pdb", ".json")
OTHERS = (
    ".mol2",
    ".xyz",
    ".cif",
    ".mmcif",
    ".pdbqt",
    ".gro",
    ".inchi",
    ".csv",
    ".txt",
    ".h5",
    ".hdf5",
    ".offxml",
    ".prmtop",
)
TEMPLATES = "; molecules other than proteins, water and ions need their SMILES (--smiles) and CONECT records"
CONVERT = "convert it to SDF, for example with Open Babel: obabel file -O file.sdf"


@dataclass(frozen=True, eq=False)
class Structure:
    """Molecules that form one system, with conformers.

    ``molecules`` in the order of the atoms; ``conformers`` (n_conformers, n_atoms, 3) in nm; ``records`` says for each
    conformer where it comes from; ``generated`` is True where coordinates were made here from a SMILES; ``box`` is
    (3, 3) nm or None.
    """

    name: str
    source: str
    molecules: tuple[Molecule, ...]
    conformers: np.ndarray
    records: tuple[str, ...]
    generated: bool = False
    box: np.ndarray | None = None

    @property
    def n_atoms(self) -> int:
        return sum(m.n_atoms for m in self.molecules)


def read(
    items: Iterable[str | Path],
    *,
    templates: Sequence[str] = (),
    n_conformers: int = 1,
    allow_undefined_stereo: bool = False,
) -> list[Structure]:
    """Read files and SMILES strings.

    Parameters
    ----------
    items
        Paths (SDF, MOL, SMI, PDB, OpenFF Molecule or Topology JSON) or SMILES strings.
    templates
        SMILES of the molecules in PDB files that are neither proteins, waters nor ions.
    n_conformers
        How many conformers to generate for a SMILES.
    allow_undefined_stereo
        Accept stereocentres without stereochemistry.

    Raises
    ------
    InputError
        What cannot be read; the message names file and record.
    """
    found: list[Structure] = []
    for item in items:
        text = str(item)
        if not text.strip():
            raise InputError("an empty text is neither a file nor a SMILES string")
        path = Path(text)
        suffix = path.suffix.lower()
        if path.is_dir():
            raise InputError(f"{text} is a directory, expected a file ({', '.join(FORMATS)}) or a SMILES string")
        if not path.is_file():
            if suffix in FORMATS + OTHERS or isinstance(item, Path):
                raise InputError(f"{text}: no such file")
            found.append(_from_smiles(text, text, "", n_conformers, allow_undefined_stereo))
        elif suffix in (".sdf", ".mol"):
            found.extend(_sdf(path, allow_undefined_stereo))
        elif suffix == ".smi":
            found.extend(_smi(path, n_conformers, allow_undefined_stereo))
        elif suffix == ".pdb":
            found.append(_pdb(path, templates, allow_undefined_stereo))
        elif suffix == ".json":
            found.append(_json(path))
        else:
            raise InputError(
                f"{text}: unknown extension {suffix or '(none)'}; read are {', '.join(FORMATS)}. Or {CONVERT}"
            )
    if not found:
        raise InputError("no molecules given")
    return found


# --- SMILES ---------------------------------------------------------------------------------------------------------


def _from_smiles(smiles: str, source: str, name: str, n_conformers: int, allow_undefined_stereo: bool) -> Structure:
    from openff.toolkit import Molecule
    from openff.units import Quantity
    from rdkit import Chem

    where = source if source != smiles else repr(smiles)
    with _rdkit_messages() as messages:
        if Chem.MolFromSmiles(smiles) is None:
            reason = _reason(messages)
            if source == smiles:
                raise InputError(f"{where} is neither a file nor a SMILES string{reason}")
            raise InputError(f"{where}: not a SMILES string: {smiles!r}{reason}")
        with _stereo(where):
            molecule = Molecule.from_smiles(smiles, allow_undefined_stereo=allow_undefined_stereo)
        molecule.name = name
        try:
            molecule.generate_conformers(n_conformers=n_conformers, rms_cutoff=Quantity(0.1, "angstrom"))
        except Exception as error:
            raise InputError(
                f"{where}: RDKit generated no conformer ({_first_line(error)}): give an SDF file"
            ) from error
    if not molecule.n_conformers:
        raise InputError(f"{where}: RDKit generated no conformer: give an SDF file with coordinates")
    conformers = _conformers(molecule)
    records = tuple(f"generated {n + 1}" for n in range(len(conformers)))
    return Structure(name or smiles, source, (molecule,), conformers, records, generated=True)


def _smi(path: Path, n_conformers: int, allow_undefined_stereo: bool) -> list[Structure]:
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        line = line.split("#")[0] if line.lstrip().startswith("#") else line
        if not line.strip():
            continue
        smiles, _, name = line.strip().partition(" ") if "\t" not in line else line.strip().partition("\t")
        found.append(_from_smiles(smiles, f"{path}, line {number}", name.strip(), n_conformers, allow_undefined_stereo))
    if not found:
        raise InputError(f"{path}: no SMILES in this file")
    return found


# --- SDF ------------------------------------------------------------------------------------------------------------


def _sdf(path: Path, allow_undefined_stereo: bool) -> list[Structure]:
    """One Structure for each molecule in one atom order; its records become conformers."""
    blocks = _text(path).replace("\r\n", "\n").split("$$$$\n")
    blocks = [b.removesuffix("$$$$") for b in blocks]
    if len(blocks) > 1 and not blocks[-1].strip():
        blocks.pop()
    if not any(b.strip() for b in blocks):
        raise InputError(f"{path}: the file is empty")
    found: dict[str, Structure] = {}
    for number, block in enumerate(blocks, start=1):
        where = f"{path}, record {number}"
        title = block.split("\n", 1)[0].strip()
        where += f" ({title})" if title else ""
        molecule = _mol_block(block, where, allow_undefined_stereo)
        molecule.name = title
        key = molecule.to_smiles(mapped=True)
        record = f"record {number}"
        new = Structure(title or f"{path.name} {number}", str(path), (molecule,), _conformers(molecule), (record,))
        if key in found:
            old = found[key]
            _same_charges(old.molecules[0], molecule, where)
            new = replace(
                old,
                conformers=np.concatenate([old.conformers, new.conformers]),
                records=(*old.records, record),
            )
        found[key] = new
    return list(found.values())


def _mol_block(block: str, where: str, allow_undefined_stereo: bool) -> Molecule:
    from openff.toolkit import Molecule
    from rdkit import Chem

    with _rdkit_messages() as messages:
        supplier = Chem.SDMolSupplier()
        supplier.SetData(block + "$$$$\n", sanitize=False, removeHs=False, strictParsing=True)
        record = supplier[0] if len(supplier) else None
        if record is None:
            raise InputError(f"{where}: cannot be read{_reason(messages)}")
        # the same preparation as the toolkit's reader, but failures are errors
        try:
            everything = Chem.SanitizeFlags.SANITIZE_ALL
            flags = Chem.SanitizeFlags
            Chem.SanitizeMol(record, everything ^ flags.SANITIZE_SETAROMATICITY ^ flags.SANITIZE_ADJUSTHS)
        except ValueError as error:
            raise InputError(f"{where}: {_first_line(error)}") from error
        if not record.GetNumAtoms():
            raise InputError(f"{where}: has no atoms")
        missing = sum(atom.GetTotalNumHs() for atom in record.GetAtoms())
        if missing:
            raise InputError(
                f"{where}: {missing} hydrogens are implicit; every atom must be in the file: add hydrogens"
            )
        _check_coordinates(record, block, where)
        Chem.AssignStereochemistryFrom3D(record)
        Chem.SetAromaticity(record, Chem.AromaticityModel.AROMATICITY_MDL)
        with _stereo(where):
            return Molecule.from_rdkit(record, allow_undefined_stereo=allow_undefined_stereo)


def _check_coordinates(record, block: str, where: str) -> None:
    x = record.GetConformer().GetPositions() if record.GetNumConformers() else np.zeros((record.GetNumAtoms(), 3))
    header = (block.split("\n") + ["", ""])[1]
    flat = header[20:22].upper() == "2D" and not np.any(x[:, 2])
    if flat or (len(x) > 1 and not np.any(x)):
        raise InputError(
            f"{where}: no 3-D coordinates; make a conformer first, or give the SMILES to have one generated"
        )
    if not np.all(np.isfinite(x)):
        raise InputError(f"{where}: coordinates that are not finite numbers")


def _same_charges(first: Molecule, other: Molecule, where: str) -> None:
    a, b = first.partial_charges, other.partial_charges
    same = (a is None) == (b is None) and (a is None or np.allclose(a.m, b.m, atol=1e-6))
    if not same:
        raise InputError(f"{where}: partial charges differ from those of an earlier record of the same molecule")


# --- PDB ------------------------------------------------------------------------------------------------------------


def _pdb(path: Path, templates: Sequence[str], allow_undefined_stereo: bool) -> Structure:
    from openff.toolkit import Molecule, Topology
    from openmm.app import PDBFile

    unique = []
    for smiles in templates:
        with _rdkit_messages(), _stereo(repr(smiles)):
            try:
                # a PDB file has coordinates, and the toolkit takes the stereochemistry from them
                unique.append(Molecule.from_smiles(smiles, allow_undefined_stereo=True))
            except Exception as error:
                raise InputError(f"--smiles {smiles!r} is not a SMILES string: {_first_line(error)}") from error
    with _rdkit_messages():
        try:
            topology = Topology.from_pdb(str(path), unique_molecules=unique)
        except Exception as error:
            molecule = _pdb_and_smiles(path, templates, allow_undefined_stereo)
            if molecule is None:
                hint = "" if templates else TEMPLATES
                raise InputError(f"{path}: {_first_line(error)}{hint}") from error
            topology = molecule.to_topology()
    frames = PDBFile(str(path))
    x = [np.asarray(frames.getPositions(asNumpy=True, frame=n)._value) for n in range(frames.getNumFrames())]
    conformers = np.array(x, dtype=np.float64)
    if conformers.shape[1:] != (topology.n_atoms, 3):
        raise InputError(f"{path}: {conformers.shape[1]} atoms with coordinates, {topology.n_atoms} in the molecules")
    first = topology.get_positions()
    if first is not None and not np.allclose(first.m_as("nanometer"), conformers[0], atol=1e-5):
        conformers = first.m_as("nanometer")[None]  # another atom order than the file's: only the first model is safe
        if len(x) > 1:
            raise InputError(f"{path}: several models in an atom order that differs from the SMILES template's")
    box = None if topology.box_vectors is None else topology.box_vectors.m_as("nanometer")
    if box is not None and np.all(np.diag(box) < 0.11):  # CRYST1 1 1 1: the PDB's way to say "no unit cell"
        box = None
    records = tuple(f"model {n + 1}" for n in range(len(conformers)))
    return Structure(path.stem, str(path), tuple(topology.molecules), conformers, records, box=box)


def _pdb_and_smiles(path: Path, templates: Sequence[str], allow_undefined_stereo: bool) -> Molecule | None:
    """A single molecule without CONECT records; None where that fails too."""
    from openff.toolkit import Molecule

    if len(templates) != 1:
        return None
    try:
        return Molecule.from_pdb_and_smiles(str(path), templates[0], allow_undefined_stereo=allow_undefined_stereo)
    except Exception:
        return None


# --- OpenFF JSON ----------------------------------------------------------------------------------------------------


def _json(path: Path) -> Structure:
    from openff.toolkit import Molecule, Topology

    text = _text(path)
    try:
        keys = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(keys, dict) or not ("molecules" in keys or "atoms" in keys):
        raise InputError(f"{path}: neither an OpenFF Molecule nor a Topology (Molecule.to_json(), Topology.to_json())")
    try:
        record = Topology.from_json(text) if "molecules" in keys else Molecule.from_json(text)
    except Exception as error:
        raise InputError(f"{path}: {_first_line(error)}") from error
    if isinstance(record, Molecule):
        if not record.n_conformers:
            raise InputError(f"{path}: the Molecule has no conformers; add one with Molecule.generate_conformers()")
        conformers, molecules, box = _conformers(record), (record,), None
    else:
        counts = {m.n_conformers for m in record.molecules}
        if 0 in counts:
            raise InputError(f"{path}: a molecule of the Topology has no conformer")
        if len(counts) != 1:
            raise InputError(f"{path}: the molecules of the Topology have different numbers of conformers")
        molecules = tuple(record.molecules)
        conformers = np.concatenate([_conformers(m) for m in molecules], axis=1)
        box = None if record.box_vectors is None else record.box_vectors.m_as("nanometer")
    records = tuple(f"conformer {n + 1}" for n in range(len(conformers)))
    name = molecules[0].name if len(molecules) == 1 else ""
    return Structure(name or path.stem, str(path), molecules, conformers, records, box=box)


# --- shared ---------------------------------------------------------------------------------------------------------


def _conformers(molecule: Molecule) -> np.ndarray:
    return np.array([c.m_as("nanometer") for c in molecule.conformers], dtype=np.float64)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({_first_line(error)})") from error


@contextlib.contextmanager
def _stereo(where: str) -> Iterator[None]:
    """The toolkit's many-line complaint about stereochemistry, and other failures, as one line."""
    from openff.toolkit.utils.exceptions import UndefinedStereochemistryError

    try:
        yield
    except UndefinedStereochemistryError as error:
        centres = [line.strip(" -") for line in str(error).splitlines() if line.strip().startswith("- ")]
        raise InputError(
            f"{where}: undefined stereochemistry at {'; '.join(centres) or 'an atom or bond'}: write it into the "
            "SMILES (@, @@, /, \\), or allow it with --undefined-stereo"
        ) from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: {_first_line(error)}") from error


@contextlib.contextmanager
def _rdkit_messages() -> Iterator[list[str]]:
    """RDKit's log while the block runs, instead of its lines on stderr."""
    from rdkit import rdBase

    lines: list[str] = []
    logger, handler = logging.getLogger("rdkit"), logging.Handler()
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())  # type: ignore[method-assign]
    before = logger.handlers, logger.propagate
    rdBase.LogToPythonLogger()
    logger.handlers, logger.propagate = [handler], False
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = before
        rdBase.LogToCppStreams()


def _reason(messages: Sequence[str]) -> str:
    """The line of RDKit's log that says most, as ' (...)'."""
    lines = [line.split("] ", 1)[-1].removeprefix("ERROR: ").strip() for line in messages]
    lines = [line for line in lines if line and "check for mistakes" not in line]
    telling = [line for line in lines if line.startswith(("Element", "Explicit valence", "SMILES Parse Error"))]
    return f" ({(telling or lines)[0].rstrip(':')})" if lines else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__
