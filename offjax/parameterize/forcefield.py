"""Reading a SMIRNOFF force field: its parameters as a Schema, its section options, and what is not supported."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offjax import constants
from offjax.errors import InputError, UnsupportedError
from offjax.parameters import Label, Schema
from offjax.settings import GBSASettings, NonbondedSettings
from offjax.terms import gbsa

if TYPE_CHECKING:
    from openff.toolkit import ForceField

SECTIONS = (
    "Bonds",
    "Angles",
    "ProperTorsions",
    "ImproperTorsions",
    "vdW",
    "Electrostatics",
    "LibraryCharges",
    "ChargeIncrementModel",
    "NAGLCharges",
    "ToolkitAM1BCC",
    "Constraints",
    "VirtualSites",
    "GBSA",
)
"""Supported sections, in the order of the parameter vector."""

VERSIONS = {
    "Bonds": ("0.3", "0.4"),
    "Angles": ("0.3",),
    "ProperTorsions": ("0.3", "0.4"),
    "ImproperTorsions": ("0.3",),
    "vdW": ("0.3", "0.4", "0.5"),
    "Electrostatics": ("0.3", "0.4"),
    "LibraryCharges": ("0.3",),
    "ChargeIncrementModel": ("0.3", "0.4"),
    "NAGLCharges": ("0.3",),
    "ToolkitAM1BCC": ("0.3",),
    "Constraints": ("0.3",),
    "VirtualSites": ("0.3",),
    "GBSA": ("0.3",),
}

ATTRIBUTES = {
    "Bonds": ("k", "length", "k_bondorder", "length_bondorder"),
    "Angles": ("k", "angle"),
    "ProperTorsions": ("k", "phase", "k_bondorder"),
    "ImproperTorsions": ("k", "phase"),
    "vdW": ("epsilon", "sigma", "rmin_half"),
    "LibraryCharges": ("charge",),
    "ChargeIncrementModel": ("charge_increment",),
    "Constraints": ("distance",),
    "VirtualSites": (
        "distance",
        "outOfPlaneAngle",
        "inPlaneAngle",
        "charge_increment",
        "epsilon",
        "sigma",
        "rmin_half",
    ),
    "GBSA": ("radius", "scale"),
}
"""The numerical attributes of each section that are differentiable parameters, in vector order."""

HARMONIC = ("harmonic", "(k/2)*(r-length)^2", "(k/2)*(theta-angle)^2")
COSINE = ("k*(1+cos(periodicity*theta-phase))", "charmm")


def load(force_field) -> ForceField:
    """A ``ForceField`` from one, a path or name, or a sequence of paths or names (later files add to earlier ones).

    Raises
    ------
    InputError
        A file that does not exist or cannot be read; the message names it and lists similar installed names.
    UnsupportedError
        A section that the toolkit itself does not know.
    """
    from openff.toolkit import ForceField

    if isinstance(force_field, ForceField):
        return force_field
    if not isinstance(force_field, str | os.PathLike | Sequence):
        raise InputError(
            f"force_field must be a ForceField, a path or name, or several files, got {type(force_field).__name__}; "
            "the order is from_smirnoff(force_field, topology)"
        )
    files: Sequence[Any] = [force_field] if isinstance(force_field, str | os.PathLike) else list(force_field)
    if not files:
        raise InputError("no force field given: pass a ForceField, a path or name, or several files")
    names = [os.fspath(f) for f in files]
    try:
        loaded = ForceField(*names, allow_cosmetic_attributes=True)
        _check_cosmetic(loaded, names)
        return loaded
    except InputError:
        raise
    except OSError as error:
        for name in names:
            if Path(name).is_file():
                _check_xml(name)
        raise InputError(_not_found(names)) from error
    except KeyError as error:
        if found := re.search(r"parameter handler class for tag '(\w+)'", str(error)):
            raise UnsupportedError(
                f"force field {', '.join(names)}: section <{found[1]}> is not supported; supported are "
                f"{', '.join(SECTIONS)}"
            ) from error
        raise InputError(f"force field {', '.join(names)}: KeyError: {error}") from error
    except Exception as error:
        raise InputError(f"force field {', '.join(names)}: {type(error).__name__}: {error}") from error


def shared(force_field) -> ForceField:
    """What :func:`load` gives, read once for as long as its files do not change. Not to be modified."""
    if isinstance(force_field, str | os.PathLike):
        force_field = [force_field]
    if not isinstance(force_field, Sequence) or not all(isinstance(f, str | os.PathLike) for f in force_field):
        return load(force_field)
    return _shared(tuple(os.fspath(f) for f in force_field), tuple(_stamp(Path(f)) for f in force_field))


def _stamp(path: Path) -> tuple | None:
    """What tells a file from its next version; None for the name of an installed force field."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return str(path.resolve()), stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4)
def _shared(names: tuple[str, ...], stamps: tuple) -> ForceField:
    return load(names)


COSMETIC = {"parameterize", "parameter_eval", "source", "comment", "description", "note", "notes", "provenance", "name"}
"""Attributes outside the specification that mean nothing for the energy: ForceBalance's tags and remarks of people."""


def _check_cosmetic(force_field: ForceField, names: Sequence[str]) -> None:
    """Refuse attributes that nobody knows: a misspelt ``idivf1`` would otherwise change the energy silently."""
    import difflib

    for section in force_field.registered_parameter_handlers:
        handler = force_field.get_parameter_handler(section)
        for holder in (handler, *(handler.parameters or ())):
            for attribute in getattr(holder, "_cosmetic_attribs", ()):
                if attribute.lower() in COSMETIC:
                    continue
                where = f"<{section}>" if holder is handler else f"<{section}> {holder.id or ''} {holder.smirks}"
                known = list(holder._get_parameter_attributes()) + [str(a) for a in vars(holder)]
                close = difflib.get_close_matches(attribute.rstrip("0123456789"), [k.strip("_") for k in known], n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise InputError(
                    f"force field {', '.join(names)}: {where} has an unknown attribute {attribute!r}{hint}. "
                    "Load it yourself with ForceField(..., allow_cosmetic_attributes=True) if it is only a remark"
                )


def _check_xml(path: str) -> None:
    """Name the line where a file stops being XML."""
    import xml.etree.ElementTree as ElementTree

    try:
        ElementTree.parse(path)
    except ElementTree.ParseError as error:
        raise InputError(f"force field {path} is not a valid OFFXML file: {error}") from error
    except OSError as error:
        raise InputError(f"force field {path} cannot be read: {error.strerror or error}") from error


def _not_found(names: Sequence[str]) -> str:
    import difflib

    from openff.toolkit.typing.engines.smirnoff import get_available_force_fields

    installed = get_available_force_fields()
    missing = [n for n in names if n not in installed and not Path(n).is_file() and not n.lstrip().startswith("<")]
    close = difflib.get_close_matches(missing[0] if missing else names[0], installed, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else f"; {len(installed)} names are installed"
    return f"force field {', '.join(missing or names)} is neither a file nor an installed name{hint}"


def check(force_field: ForceField) -> None:
    """Raise UnsupportedError for a section, version or option that offjax would otherwise ignore."""
    for name in force_field.registered_parameter_handlers:
        handler = force_field.get_parameter_handler(name)
        if name not in SECTIONS:
            raise UnsupportedError(
                f"section <{name}> is not supported; supported are {', '.join(SECTIONS)}. "
                f"Remove it with ForceField.deregister_parameter_handler({name!r}) if its energy is not wanted"
            )
        if str(handler.version) not in VERSIONS[name]:
            raise UnsupportedError(
                f'<{name} version="{handler.version}"> is not supported; versions {", ".join(VERSIONS[name])} are'
            )
    _check_options(force_field)


def _check_options(force_field: ForceField) -> None:
    registered = force_field.registered_parameter_handlers

    def require(section: str, attribute: str, allowed: Sequence[Any]) -> None:
        if section in registered:
            value = getattr(force_field.get_parameter_handler(section), attribute)
            if value not in allowed:
                text = ", ".join(map(str, allowed))
                raise UnsupportedError(f'<{section} {attribute}="{value}"> is not supported; supported: {text}')

    require("Bonds", "potential", HARMONIC)
    require("Bonds", "fractional_bondorder_method", ("AM1-Wiberg", "am1-wiberg", "none", "None", None))
    require("Angles", "potential", HARMONIC)
    require("ProperTorsions", "potential", COSINE)
    require("ProperTorsions", "fractional_bondorder_method", ("AM1-Wiberg", "am1-wiberg", "none", "None", None))
    require("ImproperTorsions", "potential", COSINE)
    for section in ("vdW", "Electrostatics"):
        require(section, "scale12", (0.0,))
        require(section, "scale13", (0.0,))
        require(section, "scale15", (1.0,))
    require("vdW", "potential", ("Lennard-Jones-12-6",))
    require("vdW", "combining_rules", ("Lorentz-Berthelot",))
    require("vdW", "nonperiodic_method", ("no-cutoff", "cutoff"))
    require("vdW", "periodic_method", ("no-cutoff", "cutoff", "Ewald3D"))
    require("Electrostatics", "nonperiodic_potential", ("Coulomb",))
    require("Electrostatics", "exception_potential", ("Coulomb",))
    require("GBSA", "gb_model", gbsa.MODELS)
    require("GBSA", "sa_model", ("ACE", None))
    if "GBSA" in registered and "Electrostatics" not in registered:
        raise UnsupportedError("<GBSA> without <Electrostatics> is not supported: implicit solvent acts on charges")
    require("VirtualSites", "exclusion_policy", ("parents",))


def text(force_field: ForceField) -> str:
    """The force field as OFFXML that can be loaded again.

    The toolkit writes the angles that a kind of virtual site does not have, and a surface model that is None, as empty
    attributes, which it cannot read.
    """
    text = re.sub(r' (outOfPlaneAngle|inPlaneAngle)=""', "", force_field.to_string())
    return text.replace(' sa_model=""', ' sa_model="None"')


def schema(force_field: ForceField) -> Schema:
    """One Label for every numerical value that stands in the force field."""
    labels: dict[str, dict[str, list[Label]]] = {}
    for section in SECTIONS:
        if section not in force_field.registered_parameter_handlers:
            continue
        columns: dict[str, list[Label]] = {}
        for row, parameter in enumerate(force_field.get_parameter_handler(section).parameters):
            for attribute in ATTRIBUTES.get(section, ()):
                for (term, order), quantity in values(parameter, attribute).items():
                    unit, factor = unit_factor(quantity.units)
                    label = Label(
                        section=section,
                        attribute=attribute,
                        row=row,
                        id=parameter.id,
                        smirks=parameter.smirks,
                        name=getattr(parameter, "name", None),
                        term=term,
                        bond_order=order,
                        unit=unit,
                        factor=factor,
                        loaded=float(quantity.magnitude) * factor,
                    )
                    columns.setdefault(attribute, []).append(label)
        labels[section] = {a: columns[a] for a in ATTRIBUTES.get(section, ()) if a in columns}
    return Schema(labels)


def values(parameter, attribute: str) -> dict[tuple[int | None, int | None], Any]:
    """The quantities of one attribute of a parameter, keyed by (term n of ``k<n>``, bond order m)."""
    value = getattr(parameter, attribute, None)
    # the toolkit derives sigma from rmin_half and the other way round; only what the file wrote is a parameter
    if value is None or attribute == getattr(parameter, "_extra_nb_var", None):
        return {}
    if isinstance(value, float):
        from openff.units import Quantity

        value = Quantity(value, "dimensionless")
    if isinstance(value, dict):
        return {(None, int(order)): q for order, q in value.items()}
    if isinstance(value, list):
        found: dict[tuple[int | None, int | None], Any] = {}
        for n, item in enumerate(value, start=1):
            if isinstance(item, dict):
                found.update({(n, int(order)): q for order, q in item.items()})
            elif item is not None:
                found[n, None] = item
        return found
    return {(None, None): value}


def unit_factor(units) -> tuple[str, float]:
    """The unit's text, and its size in MD units (nm, kJ/mol, rad, e)."""
    from openff.units import unit as registry

    factor = 1.0
    for name, power in units._units.items():
        if name in _FACTORS:
            factor *= _FACTORS[name] ** power
            continue
        one = registry.Quantity(1.0, name)
        for target in (
            "nanometer",
            "kilojoule / mole",
            "kilojoule",
            "elementary_charge",
            "radian",
            "dimensionless",
        ):
            if one.is_compatible_with(target):
                factor *= float(one.m_as(target)) ** power
                break
        else:
            raise UnsupportedError(f"unit {units} of the force field cannot be expressed in nm, kJ/mol, rad and e")
    if not math.isfinite(factor):
        raise UnsupportedError(f"unit {units} of the force field has no finite size")
    return str(units), factor


_FACTORS = {
    "nanometer": 1.0,
    "angstrom": constants.ANGSTROM,
    "degree": constants.DEGREE,
    "radian": 1.0,
    "kilocalorie": constants.KCAL,
    "kilocalorie_per_mole": constants.KCAL,
    "kilojoule": 1.0,
    "mole": 1.0,
    "elementary_charge": 1.0,
}


def settings(force_field: ForceField) -> NonbondedSettings:
    """The options of <vdW> and <Electrostatics>; the specification's defaults where a section is absent."""
    options: dict[str, Any] = {}
    registered = force_field.registered_parameter_handlers
    if "vdW" in registered:
        vdw = force_field.get_parameter_handler("vdW")
        options.update(
            vdw_scale14=float(vdw.scale14),
            vdw_cutoff=float(vdw.cutoff.m_as("angstrom")) * constants.ANGSTROM,
            vdw_switch_width=float(vdw.switch_width.m_as("angstrom")) * constants.ANGSTROM,
            vdw_periodic_method=vdw.periodic_method,
            vdw_nonperiodic_method=vdw.nonperiodic_method,
        )
    if "Electrostatics" in registered:
        coulomb = force_field.get_parameter_handler("Electrostatics")
        options.update(
            coulomb_scale14=float(coulomb.scale14),
            coulomb_cutoff=float(coulomb.cutoff.m_as("angstrom")) * constants.ANGSTROM,
            coulomb_periodic_potential=str(coulomb.periodic_potential),
            coulomb_nonperiodic_potential=str(coulomb.nonperiodic_potential),
        )
    return NonbondedSettings(**options)


def gbsa_settings(force_field: ForceField) -> GBSASettings | None:
    """The options of <GBSA>, or None without that section."""
    if "GBSA" not in force_field.registered_parameter_handlers:
        return None
    handler = force_field.get_parameter_handler("GBSA")
    penalty = 0.0 if handler.sa_model is None else handler.surface_area_penalty.m_as("kilojoule / mole / nanometer**2")
    return GBSASettings(
        model=handler.gb_model,
        solvent_dielectric=float(handler.solvent_dielectric),
        solute_dielectric=float(handler.solute_dielectric),
        surface_area_penalty=float(penalty),
        solvent_radius=float(handler.solvent_radius.m_as("angstrom")) * constants.ANGSTROM,
    )
