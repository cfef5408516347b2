"""Parameters back into a SMIRNOFF force field: only what changed is rewritten, in the unit of the file."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offjax.errors import InputError
from offjax.parameters import Label

if TYPE_CHECKING:
    from openff.toolkit import ForceField

    from offjax.parameters import ParameterSet
    from offjax.system import System


def to_force_field(system: System, p: ParameterSet | None = None) -> ForceField:
    """The ``ForceField`` of ``system.source`` with the values of ``p`` (default: ``system.parameters``).

    A value is rewritten, in the unit that the file gives it, only where its entry in ``p`` differs bitwise from the loaded
    one; every other value, all section options and cosmetic attributes stay as they were. Loading the result gives
    ``p`` bitwise, or its nearest representable neighbour where no number in the file's unit maps onto it.

    Raises
    ------
    InputError
        ``p`` belongs to another force field, or has values that are not finite.
    """
    from openff.toolkit import ForceField

    p = system.parameters if p is None else p
    schema = system.parameters.schema
    if p.schema is not schema:
        raise InputError(
            f"these parameters belong to another force field (digest {p.digest[:12]}, "
            f"this System has {schema.digest[:12]})"
        )
    vector = np.asarray(p.to_vector(), dtype=np.float64)
    loaded = np.array([label.loaded for label in schema.flat], dtype=np.float64)
    force_field = ForceField(system.source, allow_cosmetic_attributes=True)
    for index in np.nonzero(vector.view(np.int64) != loaded.view(np.int64))[0]:
        _write(force_field, schema.flat[index], float(vector[index]))
    return force_field


def to_offxml(system: System, path, p: ParameterSet | None = None) -> None:
    """Write :func:`to_force_field` as an OFFXML file, under a temporary name that is then renamed.

    Raises
    ------
    InputError
        The directory does not exist or cannot be written, or see :func:`to_force_field`.
    """
    write_atomically(path, to_force_field(system, p).to_string().encode())


def write_atomically(path, content: bytes) -> None:
    """Write a file so that ``path`` holds either its old or all of its new content, never a part.

    Raises
    ------
    InputError
        The directory does not exist or cannot be written.
    """
    path = Path(os.fspath(path))
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory")
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(force_field: ForceField, label: Label, value: float) -> None:
    from openff.units import Quantity

    if not math.isfinite(value):
        raise InputError(f"{label} is {value}: a force field holds finite numbers only")
    parameter = force_field.get_parameter_handler(label.section).parameters[label.row]
    stored = getattr(parameter, label.attribute)
    if label.term is not None and label.bond_order is not None:
        holder, key = stored[label.term - 1], label.bond_order
    elif label.term is not None:
        holder, key = stored, label.term - 1
    elif label.bond_order is not None:
        holder, key = stored, label.bond_order
    else:
        setattr(parameter, label.attribute, Quantity(decimal(value, label.factor), stored.units))
        return
    holder[key] = Quantity(decimal(value, label.factor), holder[key].units)


def decimal(value: float, factor: float) -> float:
    """The number x in the file's unit, with the fewest digits, for which ``x * factor`` is ``value`` bitwise.

    Where no double maps onto ``value`` (the factor stretches the spacing of doubles), the nearest one.

    >>> decimal(0.15 * 0.1, 0.1), decimal(418.4, 418.4)
    (0.15, 1.0)
    """
    guess = value / factor
    near = [guess]
    for direction in (-math.inf, math.inf):
        x = guess
        for _ in range(2):
            x = math.nextafter(x, direction)
            near.append(x)
    exact = [x for x in near if x * factor == value]
    if not exact:
        return min(near, key=lambda x: abs(x * factor - value))
    return min((_shortest(x, value, factor) for x in exact), key=lambda x: len(repr(x)))


def _shortest(x: float, value: float, factor: float) -> float:
    for digits in range(1, 17):
        short = float(f"{x:.{digits}g}")
        if short * factor == value:
            return short
    return x
