"""Reading reference data of any supported format, with a report on what could not be used.

    found = read("reference.extxyz", strict=False)
    found.records      # what a fit can use
    found.problems     # every rejected record with file, name and reason; duplicates and outliers

===================  =========================================  ==========================
format               module                                     taken from the name of
===================  =========================================  ==========================
spice-hdf5           :mod:`offjax.interop.spice`                ``.h5``, ``.hdf5``
descent-arrow        :mod:`offjax.interop.descent`              ``.arrow``, folders of them
extended-xyz         :mod:`offjax.interop.xyz`                  ``.xyz``, ``.extxyz``, also ``.gz``
qc-json              :mod:`offjax.interop.qcjson`               ``.json``, also ``.gz``
forcebalance-qdata   :mod:`offjax.interop.forcebalance`         ``qdata.txt`` and its folder
forcebalance-vdata   :mod:`~offjax.interop.forcebalance_geometries`  ``vdata.txt``
forcebalance-optgeo  :mod:`~offjax.interop.forcebalance_geometries`  ``optgeo_options.txt``
===================  =========================================  ==========================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from offjax.errors import InputError
from offjax.interop import descent, energy_units, forcebalance, forcebalance_geometries, qcjson, spice, spill, xyz
from offjax.interop.records import Reading, chosen, collect

Format = Literal[
    "spice-hdf5",
    "descent-arrow",
    "extended-xyz",
    "qc-json",
    "forcebalance-qdata",
    "forcebalance-vdata",
    "forcebalance-optgeo",
]

SUFFIXES: dict[str, Format] = {
    ".h5": "spice-hdf5",
    ".hdf5": "spice-hdf5",
    ".arrow": "descent-arrow",
    ".xyz": "extended-xyz",
    ".extxyz": "extended-xyz",
    ".json": "qc-json",
    ".txt": "forcebalance-qdata",
}
NAMES: dict[str, Format] = {
    "qdata.txt": "forcebalance-qdata",
    "vdata.txt": "forcebalance-vdata",
    "optgeo_options.txt": "forcebalance-optgeo",
}


def read(
    path,
    format: Format | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    forces: bool = True,
    strict: bool = True,
    molecule: str | None = None,
    sign: forcebalance.Sign = "auto",
    check_units: bool = True,
    folder: Path | None = None,
) -> Reading:
    """The records of one file, and its problems.

    Parameters
    ----------
    path
        The file, or a folder for descent-arrow and forcebalance-qdata.
    format
        None takes it from the name.
    include, exclude
        Names of records, shell wildcards allowed; a pattern that matches nothing raises.
    forces
        Whether forces are needed: a record without them is rejected.
    strict
        Raise at the first rejected record instead of reporting it.
    molecule, sign
        Of ForceBalance's files: see :func:`offjax.interop.forcebalance.scan`. For qc-json ``molecule`` is a result
        collection of QCSubmit: see :func:`offjax.interop.qcjson.scan`.
    check_units
        Reject records whose energies or forces cannot have the unit that the file declares:
        :mod:`offjax.interop.energy_units`.
    folder
        Where positions and forces are kept in files (:mod:`offjax.interop.spill`); None: in memory. Of SPICE's and
        descent's formats one record at a time is in memory then.

    Raises
    ------
    InputError
        A file or pattern that cannot be used; with ``strict``, a record that cannot.
    """
    path = Path(path)
    format = guess(path) if format is None else format
    if format not in get_args(Format):
        raise InputError(f"{path}: there is no format {format!r}; there are {', '.join(get_args(Format))}")
    if format != "forcebalance-qdata" and sign != "auto":
        raise InputError(f"{path}: sign belongs to forcebalance-qdata, this is {format}")
    if not format.startswith("forcebalance") and format != "qc-json" and molecule is not None:
        raise InputError(f"{path}: molecule belongs to ForceBalance's formats and qc-json, this is {format}")
    found: Any
    if format == "spice-hdf5":
        found = spice.scan(path, include=include, exclude=exclude, forces=forces)
    elif format == "descent-arrow":
        found = descent.scan(path, include=include, exclude=exclude, forces=forces)
    else:
        if format == "forcebalance-qdata":
            items = list(forcebalance.scan(path, forces=forces, molecule=molecule, sign=sign))
        elif format == "forcebalance-vdata":
            items = list(forcebalance_geometries.scan_vibrations(path, molecule=molecule))
        elif format == "forcebalance-optgeo":
            items = list(forcebalance_geometries.scan_optimized(path, molecule=molecule))
        elif format == "qc-json":
            items = list(qcjson.scan(path, forces=forces, collection=molecule))
        else:
            items = list(xyz.scan(path, forces=forces))
        found = chosen(path, items, include, exclude)
    if check_units:
        found = energy_units.checked(found)
    return collect(found if folder is None else spill.spilled(found, folder), strict)


def guess(path: Path) -> Format:
    """The format that a file's name says.

    Raises
    ------
    InputError
        Nothing by that name, or one that says nothing.
    """
    if path.is_dir():
        for name, found in NAMES.items():
            if (path / name).is_file():
                return found
        if any(path.glob("*.arrow")):
            return "descent-arrow"
    elif not path.exists():
        raise InputError(f"{path}: no such file")
    elif path.name in NAMES:
        return NAMES[path.name]
    elif (suffix := Path(path.name.lower().removesuffix(".gz")).suffix) in SUFFIXES:
        format = SUFFIXES[suffix]
        if path.suffix.lower() == ".gz" and format not in ("qc-json", "extended-xyz"):
            raise InputError(f"{path}: {format} is not read from a gzip file: unpack it first")
        return format
    raise InputError(f"{path}: the name does not tell its format; give one of {', '.join(get_args(Format))}")
