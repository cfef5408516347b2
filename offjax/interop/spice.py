"""Reading quantum-chemical reference data in SPICE's HDF5 layout (P. Eastman et al., Sci. Data 10, 11 (2023)).

One group a molecule, named after it, with the datasets

=====================  =================  ==================================================================
``smiles``             (1,)               mapped SMILES with explicit hydrogens; map index = atom position + 1
``atomic_numbers``     (atoms,)           optional; checked against the SMILES
``conformations``      (n, atoms, 3)      positions
``dft_total_energy``   (n,)               total energies
``dft_total_gradient`` (n, atoms, 3)      optional; force = -gradient
=====================  =================  ==================================================================

The three floating-point datasets name their unit in the attribute ``units``. Everything is checked here, once; an error
names the file, the group and the dataset.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from offjax import constants
from offjax.errors import InputError
from offjax.interop.records import (
    Problem,
    Record,
    check_bonds,
    check_contacts,
    check_finite,
    check_shape,
    collect,
    parse,
)

LENGTHS = {"bohr": constants.BOHR, "angstrom": constants.ANGSTROM, "nanometer": 1.0, "nm": 1.0}
ENERGIES = {"hartree": constants.HARTREE, "kcal/mol": constants.KCAL, "kj/mol": 1.0}
GRADIENTS = {f"{e}/{x}": ENERGIES[e] / LENGTHS[x] for e in ENERGIES for x in LENGTHS}


def read(path, *, include: Sequence[str] = (), exclude: Sequence[str] = (), forces: bool = True) -> list[Record]:
    """The molecules of a file, in the file's order.

    Parameters
    ----------
    path
        The HDF5 file.
    include, exclude
        Names of groups, shell wildcards allowed; an ``include`` that matches nothing raises.
    forces
        Whether forces are needed: a group without ``dft_total_gradient`` raises.

    Raises
    ------
    InputError
        No such file, not HDF5, or a record that cannot be used.
    """
    return collect(scan(path, include=include, exclude=exclude, forces=forces), strict=True).records


def scan(
    path, *, include: Sequence[str] = (), exclude: Sequence[str] = (), forces: bool = True
) -> Iterator[Record | Problem]:
    """The same, with a Problem for each group that cannot be used, or for a file that cannot be opened.

    Raises
    ------
    InputError
        No such file, or a pattern that matches nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            for name in _names(path, list(file), include, exclude):
                try:
                    yield _record(path, name, file[name], forces)
                except InputError as error:
                    yield Problem(str(path), name, "rejected", str(error))
                except (OSError, KeyError, RuntimeError) as error:  # the part of the file that holds it is damaged
                    reason = f"{path}, group {name!r}: cannot be read ({error}); was the file copied completely?"
                    yield Problem(str(path), name, "rejected", reason)
    except OSError as error:
        reason = f"{path}: not a readable HDF5 file ({error}); was it copied completely?"
        yield Problem(str(path), "the whole file", "rejected", reason)


def _names(path: Path, names: list[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    for pattern in [*include, *exclude]:
        if not fnmatch.filter(names, pattern):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"{path}: no group matches {pattern!r}; groups: {shown or 'none'}")
    chosen = [
        name
        for name in names
        if (not include or any(fnmatch.fnmatchcase(name, p) for p in include))
        and not any(fnmatch.fnmatchcase(name, p) for p in exclude)
    ]
    if not chosen:
        raise InputError(f"{path}: no molecule is left{' after exclude' if exclude else ': the file has no groups'}")
    return chosen


def _record(path: Path, name: str, group, forces: bool) -> Record:
    where = f"{path}, group {name!r}"
    if not isinstance(group, h5py.Group):
        raise InputError(f"{where}: expected one group a molecule, found a dataset; is this SPICE's layout?")
    smiles = _smiles(group, where)
    molecule = parse(smiles, f"{where}, smiles", name)
    numbers = np.array([atom.atomic_number for atom in molecule.atoms])
    _check_numbers(group, numbers, where)
    positions = _array(group, "conformations", LENGTHS, where)
    n = len(positions)
    if n == 0:
        raise InputError(f"{where}, conformations: no conformers; leave the molecule out with exclude = [{name!r}]")
    check_shape(positions, (n, len(numbers), 3), f"{where}, conformations", "(conformers, atoms of the SMILES, 3)")
    energies = _array(group, "dft_total_energy", ENERGIES, where)
    check_shape(energies, (n,), f"{where}, dft_total_energy", "(conformers,)")
    gradient = None
    if forces and "dft_total_gradient" not in group:
        raise InputError(
            f"{where}, dft_total_gradient: the dataset is missing but forces are asked for; "
            "set objective.force_weight = 0 to fit energies alone"
        )
    if "dft_total_gradient" in group:
        gradient = _array(group, "dft_total_gradient", GRADIENTS, where)
        check_shape(gradient, positions.shape, f"{where}, dft_total_gradient", "the shape of conformations")
    check_bonds(molecule, positions, f"{where}, conformations")
    check_contacts(molecule, positions, f"{where}, conformations")
    return Record(
        name=name,
        smiles=smiles,
        inchikey=molecule.to_inchikey(),
        positions=positions,
        energies=energies,
        forces=None if gradient is None else -gradient,
        source=str(path),
    )


def _smiles(group, where: str) -> str:
    if "smiles" not in group:
        raise InputError(f"{where}, smiles: the dataset is missing; it has {', '.join(group) or 'nothing'}")
    try:
        text = np.atleast_1d(group["smiles"].asstr()[()])
    except TypeError:
        raise InputError(f"{where}, smiles: expected text, found {group['smiles'].dtype}") from None
    if text.size != 1:
        raise InputError(f"{where}, smiles: expected one mapped SMILES, found {text.size}")
    return str(text.flat[0])


def _check_numbers(group, numbers: np.ndarray, where: str) -> None:
    if "atomic_numbers" not in group:
        return
    given = group["atomic_numbers"][()]
    if given.shape != numbers.shape:
        raise InputError(f"{where}, atomic_numbers: {given.size} atoms, but the SMILES has {numbers.size}")
    wrong = np.flatnonzero((given < 1) | (given > 118))
    if wrong.size:
        raise InputError(f"{where}, atomic_numbers: unknown element {given[wrong[0]]} of atom {wrong[0]}")
    if (wrong := np.flatnonzero(given != numbers)).size:
        i = wrong[0]
        raise InputError(
            f"{where}, atomic_numbers: atom {i} has number {given[i]}, but map index {i + 1} of the SMILES has "
            f"{numbers[i]}; are positions and SMILES in the same order?"
        )


def _array(group, key: str, units: dict[str, float], where: str) -> np.ndarray:
    if key not in group:
        raise InputError(f"{where}, {key}: the dataset is missing; it has {', '.join(group)}")
    dataset = group[key]
    allowed = ", ".join(units)
    if "units" not in dataset.attrs:
        raise InputError(f"{where}, {key}: the attribute units is missing; allowed are {allowed}")
    unit = dataset.attrs["units"]
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    if unit.lower() not in units:
        raise InputError(f"{where}, {key}: unit {unit!r} is not known; allowed are {allowed}")
    if dataset.dtype.kind != "f":
        raise InputError(f"{where}, {key}: expected floating-point numbers, found {dataset.dtype}")
    values = np.asarray(dataset[()], dtype=np.float64) * units[unit.lower()]
    check_finite(values, f"{where}, {key}")
    return values
