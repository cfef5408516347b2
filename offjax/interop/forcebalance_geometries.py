"""Reading ForceBalance's targets of optimised geometries and of vibrations.

``optgeo_options.txt`` names one geometry or more, each in a block

    $system
    name 9HXanthene
    geometry 9HXanthene-optimized.xyz
    mol2 9HXanthene.mol2
    $end

with files beside it; coordinates are in angstrom. The denominators in the file are not read: the configuration of a fit
has scales of its own.

``vdata.txt`` is a geometry in the XYZ layout (angstrom), and then for each vibration its wavenumber in 1/cm on a line
of its own and the Cartesian displacement of every atom, not mass-weighted; ``#`` begins a comment. An ``hdata.txt``
beside it has a Hessian in internal coordinates that it does not name, and is not read.

The atoms stand in the order of the molecule, which is given as for ``qdata.txt`` (:mod:`offjax.interop.forcebalance`),
or is the MOL2 file of the options. Source of the layouts: https://github.com/leeping/forcebalance
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from offjax.constants import ANGSTROM
from offjax.errors import InputError
from offjax.interop.forcebalance import mapped_smiles
from offjax.interop.records import Frame, Problem, Record, assemble
from offjax.interop.xyz import atomic_number

DENOMINATORS = {"bond_denom", "angle_denom", "dihedral_denom", "improper_denom"}


def scan_optimized(path, *, molecule: str | None = None) -> Iterator[Record | Problem]:
    """The geometries of an ``optgeo_options.txt``, or of the folder it stands in.

    Raises
    ------
    InputError
        No such file, or a line that is not of its layout.
    """
    path = Path(path)
    path = path / "optgeo_options.txt" if path.is_dir() else path
    frames: list[Frame | Problem] = []
    ignored: set[str] = set()
    for number, options in _systems(path):
        ignored |= DENOMINATORS & set(options)
        name = options.get("name", [f"line {number}"])[0]
        try:
            frames.append(_optimized(path, name, options, molecule))
        except InputError as error:
            frames.append(Problem(str(path), name, "rejected", f"{path}, system {name}: {error}"))
    if ignored:
        names = ", ".join(sorted(ignored))
        yield Problem(str(path), names, "ignored", f"{path}: {names} are not read; set the scales of the fit")
    yield from assemble(str(path), frames, False)


def _systems(path: Path) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """Line number and options of each ``$system``, completed by those of ``$global``."""
    everywhere: dict[str, list[str]] = {}
    block: dict[str, list[str]] | None = None
    kind, begin = "", 0
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "$end" and block is not None:
            if kind == "$global":
                everywhere = block
            else:
                yield begin, everywhere | block
            block = None
        elif words[0] in ("$global", "$system") and block is None:
            kind, begin, block = words[0], number, {}
        elif block is not None and not words[0].startswith("$"):
            block[words[0].lower()] = words[1:]
        else:
            raise InputError(f"{path}, line {number}: unexpected {words[0]!r}; is this an optgeo_options.txt?")
    if block is not None:
        raise InputError(f"{path}: the block of line {begin} has no $end; was the file copied completely?")


def _optimized(path: Path, name: str, options: dict[str, list[str]], molecule: str | None) -> Frame:
    if not options.get("geometry"):
        raise InputError("no geometry is named")
    if molecule is None and len(options.get("mol2", [])) != 1:
        raise InputError("it needs one mol2 file, or a molecule in the configuration")
    geometry = path.parent / options["geometry"][0]
    rows = _text(geometry).splitlines()
    try:
        n = int(rows[0])
    except (ValueError, IndexError):
        raise InputError(f"{geometry}: not an XYZ file") from None
    numbers, positions = _atoms(rows[2 : 2 + n], n, str(geometry))
    smiles = mapped_smiles(molecule if molecule is not None else str(path.parent / options["mol2"][0]))
    return Frame(name, f"system {name}", smiles, positions, None, numbers=numbers)


def scan_vibrations(path, *, molecule: str | None = None) -> Iterator[Record | Problem]:
    """Geometry, frequencies and modes of a ``vdata.txt``, or of the folder it stands in.

    Raises
    ------
    InputError
        No such file, or no molecule.
    """
    path = Path(path)
    path = path / "vdata.txt" if path.is_dir() else path
    if molecule is None:
        raise InputError(
            f"{path}: the file does not say which molecule it is of: give a mapped SMILES or a MOL2 or SDF file"
        )
    if (path.parent / "hdata.txt").is_file():
        reason = f"{path.parent / 'hdata.txt'}: Hessians in internal coordinates are not read"
        yield Problem(str(path.parent / "hdata.txt"), "the whole file", "ignored", reason)
    name = path.parent.name or path.name
    try:
        frame = _vibrations(path, name, mapped_smiles(molecule))
    except InputError as error:
        yield Problem(str(path), name, "rejected", str(error))
        return
    yield from assemble(str(path), [frame], False)


def _vibrations(path: Path, name: str, smiles: str) -> Frame:
    lines = [line.split("#", 1)[0].strip() for line in _text(path).splitlines()]
    begin = next((i for i, line in enumerate(lines) if line), len(lines))
    try:
        n = int(lines[begin])
    except (ValueError, IndexError):
        raise InputError(f"{path}: expected a number of atoms; is this a vdata.txt?") from None
    numbers, positions = _atoms(lines[begin + 2 : begin + 2 + n], n, str(path))
    rows = [line.split() for line in lines[begin + 2 + n :] if line]
    if not rows or len(rows) % (n + 1):
        raise InputError(f"{path}: {len(rows)} lines of vibrations, not {n + 1} for each; was it copied completely?")
    try:
        blocks = [rows[i : i + n + 1] for i in range(0, len(rows), n + 1)]
        frequencies = np.array([float(value) for [value], *_ in blocks])
        modes = np.array([[[float(d) for d in row] for row in block[1:]] for block in blocks])
    except ValueError as error:
        raise InputError(f"{path}: a vibration is not one number and {n} lines of three ({error})") from None
    if modes.shape != (len(blocks), n, 3):
        raise InputError(f"{path}: displacements do not have three numbers an atom")
    properties = {"frequencies": frequencies, "modes": modes}
    return Frame(name, "the whole file", smiles, positions, None, numbers=numbers, properties=properties)


def _atoms(rows: list[str], n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and positions, nm, of lines ``C x y z``."""
    cells = [row.split() for row in rows]
    if len(cells) < n or any(len(row) != 4 for row in cells):
        raise InputError(f"{where}: expected {n} lines of an element and three coordinates; was it copied completely?")
    try:
        positions = np.array([[float(x) for x in row[1:]] for row in cells])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return np.array([atomic_number(row[0]) for row in cells]), positions * ANGSTROM


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from error
