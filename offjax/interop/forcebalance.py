"""Reading ForceBalance's ``qdata.txt``: one block a geometry, of one molecule that stands in another file.

    JOB 0
    COORDS  x y z ...             angstrom
    ENERGY  e                     hartree
    FORCES  fx fy fz ...          optional; hartree/bohr, forces in some files and gradients in others
    GRADIENT gx gy gz ...         optional; hartree/bohr

The molecule is a mapped SMILES, or a MOL, SDF or MOL2 file (Tripos atom types) with the atoms in the same order. If
``metadata.json`` stands beside the file (as for torsion targets), its ``dihedrals`` are the driven ones.

*The sign of FORCES* can be given; ``auto`` finds it in the data, by two tests that are positive for forces and negative
for gradients. Forces pull bonded atoms back that are further apart than on average: minus the pooled correlation over
bonds b = ij and conformers c of the bond length r_bc with F_bc = (F_j - F_i).(x_j - x_i) / (2 r_bc), both less their
means over conformers. And the energy falls along the forces: the correlation of E_(c+1) - E_c with
-(F_c + F_(c+1)).(x_(c+1) - x_c) / 2 over conformers that follow each other, superposed, as in a scan. With five
conformers or more the first decides from 0.3 on, the second from 0.8 on, unless they contradict each other; otherwise
the sign must be given. Source of the layout: https://github.com/leeping/forcebalance
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from offjax.constants import ANGSTROM, BOHR, HARTREE
from offjax.errors import InputError
from offjax.interop.records import Frame, Problem, Record, assemble, parse

Sign = Literal["auto", "forces", "gradient"]

BONDS_DECIDE, STEPS_DECIDE = 0.3, 0.8
"""Least correlations that decide on a sign."""
CONFORMERS = 5
"""Least number of conformers that decides on a sign."""
READ = {"COORDS", "ENERGY", "FORCES", "GRADIENT"}
"""What is read of a block."""


def scan(path, *, forces: bool = True, molecule: str | None = None, sign: Sign = "auto") -> Iterator[Record | Problem]:
    """The molecule of a file with its conformers, and a Problem for each block that cannot be used.

    Parameters
    ----------
    path
        The ``qdata.txt``, or the folder it stands in.
    forces
        Whether forces are needed.
    molecule
        Mapped SMILES, or the path of a MOL, SDF or MOL2 file.
    sign
        What stands under FORCES.

    Raises
    ------
    InputError
        No such file, no molecule, or a sign that cannot be found out.
    """
    path = Path(path)
    path = path / "qdata.txt" if path.is_dir() else path
    if molecule is None:
        raise InputError(
            f"{path}: the file does not say which molecule it is of: give a mapped SMILES or a MOL2 or SDF file"
        )
    smiles = mapped_smiles(molecule)
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")  # damaged numbers are then none, block by block
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    driven = _driven(path.parent / "metadata.json")
    frames: list[Frame] = []
    unsure: list[int] = []
    for item in _frames(path, text, smiles, driven):
        if isinstance(item, Problem):
            yield item
        else:
            frames.append(item[0])
            unsure += [len(frames) - 1] if item[1] else []
    if unsure and sign != "forces":
        gradients: bool | None = True
        if sign == "auto":
            named = parse(smiles, str(path), path.parent.name)
            gradients = find_sign(named, [frames[n] for n in unsure], str(path), forces)
        if gradients is None:
            yield Problem(str(path), "FORCES", "ignored", f"{path}: FORCES are left out: their sign cannot be told")
        for n in unsure:
            given = frames[n].forces
            if gradients is None or given is None:
                frames[n] = frames[n]._replace(forces=None)
            elif gradients:
                frames[n] = frames[n]._replace(forces=-given)
    yield from assemble(str(path), frames, forces)


def find_sign(molecule, frames: list[Frame], where: str, needed: bool) -> bool | None:
    """Whether gradients stand where forces should; None if that is undecided and forces are not ``needed``."""
    shape = (molecule.n_atoms, 3)
    finite = [
        f
        for f in frames
        if f.forces is not None and f.forces.shape == f.positions.shape == shape and np.isfinite(f.forces).all()
    ]
    finite = [f for f in finite if np.isfinite(f.positions).all()]
    if not finite:  # nothing of it will be used
        return False
    found = [0.0, 0.0]
    if len(finite) >= CONFORMERS:
        x, f = (np.stack([getattr(frame, name) for frame in finite]) for name in ("positions", "forces"))
        found = [_along_bonds(molecule, x, f), _along_steps(x, f, np.array([frame.energy for frame in finite]))]
    decided = {v > 0 for v, least in zip(found, (BONDS_DECIDE, STEPS_DECIDE), strict=True) if abs(v) >= least}
    if len(decided) == 1:
        return not decided.pop()
    if needed:
        raise InputError(
            f"{where}: {len(finite)} conformers do not tell whether FORCES are forces or gradients (correlations "
            f'{found[0]:+.2f} along bonds, {found[1]:+.2f} along steps): give sign = "forces" or sign = "gradient"'
        )
    return None


def _along_bonds(molecule, x: np.ndarray, f: np.ndarray) -> float:
    i, j = np.array([[b.atom1_index, b.atom2_index] for b in molecule.bonds]).reshape(-1, 2).T
    along = x[:, j] - x[:, i]
    r = np.linalg.norm(along, axis=-1)
    pull = np.sum((f[:, j] - f[:, i]) * along, axis=-1) / (2 * r)
    return -_correlation(r - r.mean(axis=0), pull - pull.mean(axis=0))


def _along_steps(x: np.ndarray, f: np.ndarray, energies: np.ndarray) -> float:
    x = x - x.mean(axis=1, keepdims=True)
    work = []
    for c in range(len(x) - 1):
        u, _, v = np.linalg.svd(x[c + 1].T @ x[c])
        rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v))]) @ v
        work.append(-0.5 * np.sum((f[c] + f[c + 1] @ rotation) * (x[c + 1] @ rotation - x[c])))
    step = np.diff(energies)
    return _correlation(step - step.mean(), np.array(work) - np.mean(work))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    size = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return float(np.sum(a * b) / size) if size > 0 else 0.0


def _frames(path: Path, text: str, smiles: str, driven) -> Iterator[tuple[Frame, bool] | Problem]:
    """Frames, each with whether its forces came from FORCES."""
    blocks: list[tuple[str, dict[str, str]]] = []
    twice: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, rest = line.strip().partition(" ")
        if not key:
            continue
        if key == "JOB":
            blocks.append((f"JOB {rest.strip()}", {}))
        elif not blocks:
            raise InputError(f"{path}, line {number}: expected JOB, found {line.strip()[:40]!r}; is this a qdata.txt?")
        else:
            if key in READ and key in blocks[-1][1]:
                twice.setdefault(len(blocks) - 1, f"line {number}: {key} a second time; is a line JOB missing?")
            blocks[-1][1][key] = rest
    unknown = {key for _, block in blocks for key in block} - READ
    if unknown:
        names = ", ".join(f"{name[:20]!r}" for name in sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        yield Problem(str(path), names, "ignored", f"{path}: lines that begin with {names} are not read")
    for n, (label, block) in enumerate(blocks):
        try:
            if n in twice:
                raise InputError(twice[n])
            if missing := {"COORDS", "ENERGY"} - set(block):
                raise InputError(f"{' and '.join(sorted(missing))} missing; was the file copied completely?")
            positions = _numbers(block["COORDS"], "COORDS") * ANGSTROM
            energy = _energy(block["ENERGY"]) * HARTREE
            force = None
            if "GRADIENT" in block:
                force = -_numbers(block["GRADIENT"], "GRADIENT") * (HARTREE / BOHR)
            elif "FORCES" in block:
                force = _numbers(block["FORCES"], "FORCES") * (HARTREE / BOHR)
            frame = Frame(path.parent.name or path.name, label, smiles, positions, energy, force, driven=driven)
            yield frame, "GRADIENT" not in block and "FORCES" in block
        except InputError as error:
            yield Problem(str(path), label, "rejected", f"{path}, {label}: {error}")


def _energy(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"ENERGY: {text[:40]!r} is not a number; was the file copied completely?") from None


def _numbers(text: str, key: str) -> np.ndarray:
    try:
        values = np.array([float(x) for x in text.split()])
    except ValueError as error:
        raise InputError(f"{key}: {error}") from None
    if values.size % 3:
        raise InputError(f"{key}: {values.size} numbers, not three an atom; was the file copied completely?")
    return values.reshape(-1, 3)


def _driven(path: Path):
    if not path.is_file():
        return ()
    try:
        return tuple(tuple(int(a) for a in d) for d in json.loads(path.read_text())["dihedrals"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an object with dihedrals, four atom indices each ({error})") from error


def mapped_smiles(molecule: str) -> str:
    """The mapped SMILES of one, or of the molecule in a file."""
    path = Path(molecule)
    if path.suffix.lower() not in (".mol2", ".sdf", ".mol"):
        return molecule
    from openff.toolkit import Molecule
    from rdkit import Chem

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix.lower() == ".mol2":
        read = Chem.MolFromMol2File(str(path), removeHs=False)
    else:
        read = Chem.MolFromMolFile(str(path), removeHs=False)
    if read is None:
        raise InputError(
            f"{path}: RDKit cannot read it; MOL2 files need Tripos atom types. Give a mapped SMILES instead"
        )
    return Molecule.from_rdkit(read, allow_undefined_stereo=True).to_smiles(mapped=True)
