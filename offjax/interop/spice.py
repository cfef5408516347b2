"""Reading quantum-chemical reference data in SPICE's HDF5 layout (P. Eastman et al., Sci. Data 10, 11 (2023)).

One group a molecule, named after it, with the datasets

=====================  =================  ==================================================================
``smiles``             (1,)               mapped SMILES with explicit hydrogens; map index = atom position + 1
``atomic_numbers``     (atoms,)           optional; checked against the SMILES
``conformations``      (n, atoms, 3)      positions
``dft_total_energy``   (n,)               total energies
``dft_total_gradient`` (n, atoms, 3)      optional; force = -gradient
=====================  =================  ==================================================================

and, for other targets than energies and forces, any of

======================  ========================  ==========================================================
``dft_total_hessian``   (n, 3 atoms, 3 atoms)     second derivatives
``frequencies``         (n, modes)                1/cm; imaginary ones negative
``modes``               (n, modes, atoms, 3)      Cartesian displacements of any length, dimensionless
``interaction_energy``  (n,)                      of a complex, whose molecules a dot separates in ``smiles``
``esp_grid``            (n, points, 3)            points of the electrostatic potential
``esp``                 (n, points)               its values, an energy unit over e
``esp_weights``         (n, points)               optional, dimensionless
======================  ========================  ==========================================================

A group with one of these needs no ``dft_total_energy``. The floating-point datasets name their unit in the attribute
``units``. Everything is checked here, once; an error names the file, the group and the dataset. A conformer that
cannot be used costs the molecule only that conformer. Of a truncated file those molecules are read of which nothing is
missing, also if the list of names is; the layout of the bytes is that of the HDF5 File Format Specification.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from offjax import constants
from offjax.errors import InputError
from offjax.interop import energy_units
from offjax.interop.records import (
    Problem,
    Record,
    check_properties,
    check_shape,
    collect,
    parse,
    usable,
)

LENGTHS = {"bohr": constants.BOHR, "angstrom": constants.ANGSTROM, "nanometer": 1.0, "nm": 1.0}
ENERGIES = {"hartree": constants.HARTREE, "kcal/mol": constants.KCAL, "kj/mol": 1.0}
GRADIENTS = {f"{e}/{x}": ENERGIES[e] / LENGTHS[x] for e in ENERGIES for x in LENGTHS}
HESSIANS = {f"{e}/{x}^2": ENERGIES[e] / LENGTHS[x] ** 2 for e in ENERGIES for x in LENGTHS}
POTENTIALS = {f"{e}/e": ENERGIES[e] for e in ENERGIES}

DATASETS: dict[str, tuple[str, dict[str, float]]] = {
    "dft_total_hessian": ("hessian", HESSIANS),
    "frequencies": ("frequencies", {"1/cm": 1.0}),
    "modes": ("modes", {"dimensionless": 1.0}),
    "interaction_energy": ("interaction", ENERGIES),
    "esp_grid": ("grid", LENGTHS),
    "esp": ("potential", POTENTIALS),
    "esp_weights": ("grid_weights", {"dimensionless": 1.0}),
}
"""Datasets that a group may have besides: the name in :data:`offjax.interop.records.PROPERTIES`, and units."""


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
    found = scan(path, include=include, exclude=exclude, forces=forces)
    return collect(energy_units.checked(found), strict=True).records


def scan(
    path, *, include: Sequence[str] = (), exclude: Sequence[str] = (), forces: bool = True
) -> Iterator[Record | Problem]:
    """The same, with a Problem for each group or conformer that cannot be used, and for a file that is not whole.

    Raises
    ------
    InputError
        No such file, or a pattern that matches nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with contextlib.ExitStack() as stack:
            size, whole = path.stat().st_size, _length(path)
            groups: Mapping[str, h5py.Group]
            if whole <= size:
                groups = file = stack.enter_context(h5py.File(path, "r"))
            else:
                file = stack.enter_context(h5py.File(stack.enter_context(_Padded(path, whole)), "r"))
                groups = _groups(file, path)
                reason = f"{path}: truncated: {size:,} of {whole:,} bytes are there; was it copied completely?"
                yield Problem(str(path), f"what is missing (after {len(groups)} groups)", "rejected", reason)
                if not groups:
                    return
            for name in _names(path, list(groups), include, exclude):
                try:
                    yield from _record(path, name, groups[name], forces)
                except InputError as error:
                    yield Problem(str(path), name, "rejected", str(error), name)
                except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
                    # the part of the file that holds it is damaged; h5py has many ways to say so
                    reason = f"{path}, group {name!r}: cannot be read ({error}); was the file copied completely?"
                    yield Problem(str(path), name, "rejected", reason, name)
    except (OSError, RuntimeError) as error:
        reason = f"{path}: not a readable HDF5 file ({error}); was it copied completely?"
        yield Problem(str(path), "the whole file", "rejected", reason)


def _length(path: Path) -> int:
    """The length that the file should have by its superblock; 0 where it has none at its beginning."""
    with open(path, "rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x89HDF\r\n\x1a\n"):
        return 0
    place = {0: 40, 1: 44, 2: 28, 3: 28}.get(head[8])
    return 0 if place is None else int(struct.unpack_from("<Q", head, place)[0])


class _Padded(io.RawIOBase):
    """A truncated file, with zeros for what is missing: HDF5 opens it, and finds no valid metadata there."""

    def __init__(self, path: Path, length: int):
        self._file, self._length, self._at = open(path, "rb"), length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        n = max(min(len(buffer), self._length - self._at), 0)
        self._file.seek(self._at)
        found = self._file.read(n)
        buffer[:n] = found + bytes(n - len(found))
        self._at += n
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _groups(file: h5py.File, path: Path) -> dict[str, h5py.Group]:
    """The groups that can still be found, by name; those whose names are lost are called by their place in the file."""
    names: list[bytes] = []
    try:
        file.id.links.iterate(names.append)
        return {name.decode(): file[name] for name in names}
    except (RuntimeError, OSError, KeyError):
        found = {}
        for name in names:
            with contextlib.suppress(KeyError, OSError, RuntimeError):
                found[name.decode(errors="replace")] = file[name]
    known = {h5py.h5o.get_info(group.id).addr for group in found.values()}
    for address in _addresses(path):
        with contextlib.suppress(ValueError, KeyError, OSError, RuntimeError):
            if address not in known and "smiles" in (group := _at(file, address)):
                found[f"group at byte {address}"] = group
    return found


def _addresses(path: Path) -> list[int]:
    """Where objects begin: by the symbol-table nodes of a file, which may lack their names (section III.B), and by the
    signature of newer object headers (section IV.A.1.b).
    """
    content, found = path.read_bytes(), []
    at = content.find(b"OHDR")
    while at >= 0:
        found.append(at)
        at = content.find(b"OHDR", at + 1)
    at = content.find(b"SNOD")
    while at >= 0:
        n = int.from_bytes(content[at + 6 : at + 8], "little")
        entries = range(at + 8, min(at + 8 + 40 * n, len(content) - 39), 40)
        found += [int.from_bytes(content[e + 8 : e + 16], "little") for e in entries]
        at = content.find(b"SNOD", at + 1)
    return sorted(set(found))


def _at(file: h5py.File, address: int):
    """The object at an address: that is what a reference to it holds."""
    with h5py.File("references", "w", driver="core", backing_store=False) as scratch:
        one = scratch.create_dataset("one", (1,), h5py.ref_dtype, chunks=(1,))
        one.id.write_direct_chunk((0,), address.to_bytes(8, "little"))
        return file[one[0]]


def _check_there(dataset: h5py.Dataset, path: Path, where: str) -> None:
    """Raise InputError where the numbers of a dataset lie beyond the end of a truncated file."""
    ends = [0]
    if dataset.chunks is not None:
        chunks = map(dataset.id.get_chunk_info, range(dataset.id.get_num_chunks()))
        ends += [chunk.byte_offset + chunk.size for chunk in chunks]
    elif dataset.id.get_offset() is not None:
        ends.append(dataset.id.get_offset() + dataset.id.get_storage_size())
    if max(ends) > path.stat().st_size:
        raise InputError(f"{where}: its numbers are missing, the file is truncated; was it copied completely?")


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


def _record(path: Path, name: str, group, forces: bool) -> Iterator[Record | Problem]:
    where = f"{path}, group {name!r}"
    if not isinstance(group, h5py.Group):
        raise InputError(f"{where}: expected one group a molecule, found a dataset; is this SPICE's layout?")
    smiles = _smiles(group, where)
    molecule = parse(smiles, f"{where}, smiles", name)
    numbers = np.array([atom.atomic_number for atom in molecule.atoms])
    _check_numbers(group, numbers, where)
    positions = _array(path, group, "conformations", LENGTHS, where)
    n = len(positions)
    if n == 0:
        raise InputError(f"{where}, conformations: no conformers; leave the molecule out with exclude = [{name!r}]")
    check_shape(positions, (n, len(numbers), 3), f"{where}, conformations", "(conformers, atoms of the SMILES, 3)")
    properties = {
        key: _array(path, group, name, units, where) for name, (key, units) in DATASETS.items() if name in group
    }
    check_properties(properties, len(numbers), where)
    if wrong := [key for key, values in properties.items() if len(values) != n]:
        raise InputError(f"{where}, {wrong[0]}: {len(properties[wrong[0]])} conformers, conformations has {n}")
    has_energies = "dft_total_energy" in group or not properties
    energies = _array(path, group, "dft_total_energy", ENERGIES, where) if has_energies else np.zeros(n)
    check_shape(energies, (n,), f"{where}, dft_total_energy", "(conformers,)")
    gradient = None
    if forces and "dft_total_gradient" not in group:
        raise InputError(
            f"{where}, dft_total_gradient: the dataset is missing but forces are asked for; "
            "set objective.force_weight = 0 to fit energies alone"
        )
    if "dft_total_gradient" in group:
        gradient = _array(path, group, "dft_total_gradient", GRADIENTS, where)
        check_shape(gradient, positions.shape, f"{where}, dft_total_gradient", "the shape of conformations")
    record = Record(
        name=name,
        smiles=smiles,
        inchikey=molecule.to_inchikey(),
        positions=positions,
        energies=energies,
        forces=None if gradient is None else -gradient,
        source=str(path),
        properties=properties,
        has_energies=has_energies,
    )
    yield from usable(molecule, record, where, ("conformations", "dft_total_energy", "dft_total_gradient"))


def _smiles(group, where: str) -> str:
    if "smiles" not in group:
        raise InputError(f"{where}, smiles: the dataset is missing; it has {', '.join(group) or 'nothing'}")
    try:
        text = np.atleast_1d(_dataset(group, "smiles", where).asstr()[()])
    except TypeError:
        raise InputError(f"{where}, smiles: expected text, found {group['smiles'].dtype}") from None
    if text.size != 1:
        raise InputError(f"{where}, smiles: expected one mapped SMILES, found {text.size}")
    if not text.flat[0]:
        raise InputError(f"{where}, smiles: the text is empty or missing; was the file copied completely?")
    return str(text.flat[0])


def _dataset(group, key: str, where: str) -> h5py.Dataset:
    """What stands under a name, if it is a dataset."""
    found = group[key]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{where}, {key}: expected a dataset, found a {type(found).__name__.lower()}")
    return found


def _check_numbers(group, numbers: np.ndarray, where: str) -> None:
    if "atomic_numbers" not in group:
        return
    given = _dataset(group, "atomic_numbers", where)[()]
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


def _array(path: Path, group, key: str, units: dict[str, float], where: str) -> np.ndarray:
    if key not in group:
        raise InputError(f"{where}, {key}: the dataset is missing; it has {', '.join(group)}")
    dataset = _dataset(group, key, where)
    allowed = ", ".join(units)
    if "units" not in dataset.attrs:
        raise InputError(f"{where}, {key}: the attribute units is missing; allowed are {allowed}")
    unit = dataset.attrs["units"]
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    if unit.lower() not in units:
        raise InputError(f"{where}, {key}: unit {unit!r} is not known; allowed are {allowed}")
    if dataset.dtype.kind != "f":
        raise InputError(f"{where}, {key}: expected floating-point numbers, found {dataset.dtype}")
    _check_there(dataset, path, f"{where}, {key}")
    return np.asarray(dataset[()], dtype=np.float64) * units[unit.lower()]
