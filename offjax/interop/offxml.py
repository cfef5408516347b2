"""Parameters back into a SMIRNOFF force field: only what changed is rewritten, in the unit of the file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from offjax.errors import InputError
from offjax.interop.files import write_atomically
from offjax.parameterize import forcefield, plugins
from offjax.parameters import Label

if TYPE_CHECKING:
    from openff.toolkit import ForceField

    from offjax.parameters import ParameterSet
    from offjax.system import System


def to_force_field(system: System, p: ParameterSet | None = None) -> ForceField:
    """The ``ForceField`` of ``system.source`` with the values of ``p`` (default: ``system.parameters``).

    A value is rewritten, in the unit that the file gives it, only where its entry in ``p`` differs bitwise from the
    loaded one; every other value, all section options and cosmetic attributes stay as they were. Loading the result
    gives ``p`` bitwise, or its nearest representable neighbour where no number in the file's unit maps onto it.

    Raises
    ------
    InputError
        ``p`` belongs to another force field, or has values that are not finite or that SMIRNOFF does not allow.
    """
    p = system.parameters if p is None else p
    schema = system.parameters.schema
    if p.schema is not schema:
        raise InputError(
            f"these parameters belong to another force field (digest {p.digest[:12]}, "
            f"this System has {schema.digest[:12]})"
        )
    vector = np.asarray(p.to_vector(), dtype=np.float64)
    loaded = np.array([label.loaded for label in schema.flat], dtype=np.float64)
    force_field = plugins.force_field([system.source], tuple(system.user_terms.values()))
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
    write_atomically(path, forcefield.text(to_force_field(system, p)).encode())


def _write(force_field: ForceField, label: Label, value: float) -> None:
    from openff.units import Quantity

    if not math.isfinite(value):
        raise InputError(f"{label} is {value}: a force field holds finite numbers only")
    handler = force_field.get_parameter_handler(label.section)
    parameter = handler if label.row == forcefield.OF_SECTION else handler.parameters[label.row]
    stored = getattr(parameter, label.attribute)
    if label.attribute == "outOfPlaneAngle" and parameter.match == "once" and parameter.type == "DivalentLonePair":
        raise InputError(
            f'{label} became {value} rad, but a DivalentLonePair of match="once" lies in the plane of its atoms: keep '
            'it at 0, or use match="all_permutations"'
        )
    if label.term is not None and label.bond_order is not None:
        holder, key = stored[label.term - 1], label.bond_order
    elif label.term is not None:
        holder, key = stored, label.term - 1
    elif label.bond_order is not None:
        holder, key = stored, label.bond_order
    else:
        number = decimal(value, label.factor)
        setattr(parameter, label.attribute, Quantity(number, stored.units) if hasattr(stored, "units") else number)
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
