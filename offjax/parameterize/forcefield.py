"""Reading a SMIRNOFF force field: its parameters as a Schema, its section options, and what is not supported."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offjax import constants
from offjax.deferred import Deferred
from offjax.errors import InputError, UnsupportedError
from offjax.parameterize import plugins
from offjax.parameters import Label, Schema
from offjax.settings import GBSASettings, NonbondedSettings
from offjax.terms import gbsa
from offjax.terms.user import UserTerm

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


OF_SECTION = -1
"""The ``row`` of attributes that belong to a section itself, not to one of its parameters."""


def load(force_field, user_terms: Sequence[UserTerm] = ()) -> ForceField:
    """A ``ForceField`` from one, a path or name, or a sequence of paths or names (later files add to earlier ones).

    Files may have the sections of ``user_terms``; a ForceField must have been read with them.

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
        _check_decimal_points(names)
        loaded = plugins.force_field(names, user_terms)
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
                f"{', '.join(SECTIONS)}, and those of the definitions in user_terms (terms in the configuration of a "
                "fit, --terms on the command line)"
            ) from error
        raise InputError(f"force field {', '.join(names)}: KeyError: {error}") from error
    except Exception as error:
        raise InputError(f"force field {', '.join(names)}: {type(error).__name__}: {error}") from error


def check_terms(user_terms: Sequence[UserTerm]) -> tuple[UserTerm, ...]:
    """The definitions, each of a section that has no other meaning.

    Raises
    ------
    InputError
        Something else than a UserTerm, a section of the SMIRNOFF specification, or two definitions of a section.
    """
    terms = tuple(user_terms)
    for n, term in enumerate(terms):
        if not isinstance(term, UserTerm):
            raise InputError(f"user_terms must be offjax.UserTerm objects, got {type(term).__name__}")
        if term.section in SECTIONS:
            raise InputError(f"<{term.section}> is a section of SMIRNOFF: give the section of {term!r} another name")
        if any(other.section == term.section for other in terms[:n]):
            raise InputError(f"user_terms define <{term.section}> twice")
    return terms


def shared(force_field, user_terms: tuple[UserTerm, ...] = ()) -> ForceField:
    """What :func:`load` gives, read once for as long as its files do not change. Not to be modified."""
    if isinstance(force_field, str | os.PathLike):
        force_field = [force_field]
    if not isinstance(force_field, Sequence) or not all(isinstance(f, str | os.PathLike) for f in force_field):
        return load(force_field, user_terms)
    return _shared(tuple(os.fspath(f) for f in force_field), tuple(_stamp(Path(f)) for f in force_field), user_terms)


def _stamp(path: Path) -> tuple | None:
    """What tells a file from its next version; None for the name of an installed force field."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return str(path.resolve()), stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4)
def _shared(names: tuple[str, ...], stamps: tuple, user_terms: tuple[UserTerm, ...]) -> ForceField:
    return load(names, user_terms)


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
                known = {str(a).strip("_") for a in (*holder._get_parameter_attributes(), *vars(holder))}
                known -= set(holder._cosmetic_attribs)
                close = difflib.get_close_matches(attribute.rstrip("0123456789"), sorted(known), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise InputError(
                    f"force field {', '.join(names)}: {where} has an unknown attribute {attribute!r}{hint}. "
                    "Load it yourself with ForceField(..., allow_cosmetic_attributes=True) if it is only a remark"
                )


def _check_decimal_points(names: Sequence[str]) -> None:
    """Refuse ``1,45 * angstrom`` in files, which the toolkit reads as 145."""
    for name in names:
        if _stamp(Path(name)) is None or not Path(name).is_file():
            continue
        text = Path(name).read_text("utf-8", errors="replace")
        for found in re.finditer(r'\b(?!id\b|name\b)(\w+)="\s*([-+]?\d+,\d+)\s*[*"]', text):
            line = text.count("\n", 0, found.start()) + 1
            raise InputError(f"force field {name}, line {line}: {found[1]} is {found[2]}: write numbers with a point")


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


def check(force_field: ForceField, user_terms: Sequence[UserTerm] = ()) -> None:
    """Raise UnsupportedError for a section, version or option that offjax would otherwise ignore."""
    defined = {term.section: term for term in user_terms}
    for name in force_field.registered_parameter_handlers:
        handler = force_field.get_parameter_handler(name)
        if name in defined:
            _check_user_section(defined[name], handler)
            continue
        if name not in SECTIONS:
            raise UnsupportedError(
                f"section <{name}> is not supported; supported are {', '.join(SECTIONS)}. Define its energy as an "
                "offjax.UserTerm and pass it in user_terms, or remove "
                f"it with ForceField.deregister_parameter_handler({name!r}) if its energy is not wanted"
            )
        if str(handler.version) not in VERSIONS[name]:
            raise UnsupportedError(
                f'<{name} version="{handler.version}"> is not supported; versions {", ".join(VERSIONS[name])} are'
            )
    _check_options(force_field)


def _check_user_section(term: UserTerm, handler) -> None:
    """The options of a pair potential, and the constants of any, which may come from a handler of the user's."""
    for name in term.constants:
        if getattr(handler, name, None) is None:
            raise InputError(f"<{term.section}> has no attribute {name}, which {term!r} needs")
    if not term.is_pair:
        return
    for name, allowed in PAIR_OPTIONS.items():
        value = getattr(handler, name, None)
        if value not in allowed:
            raise UnsupportedError(
                f'<{term.section} {name}="{value}"> is not supported; supported: {", ".join(map(str, allowed))}'
            )
    for name in ("scale14", "cutoff", "switch_width"):
        if getattr(handler, name, None) is None:
            raise InputError(f"<{term.section}> has no attribute {name}, which a pair potential needs")
    _check_cutoff(term.section, handler)


PAIR_OPTIONS = {
    "scale12": (0.0,),
    "scale13": (0.0,),
    "scale15": (1.0,),
    "periodic_method": ("cutoff",),
    "nonperiodic_method": ("no-cutoff",),
}
"""What the section of a pair potential may say."""


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
    for section in sorted({"ProperTorsions", "ImproperTorsions"} & set(registered)):
        for row in force_field.get_parameter_handler(section).parameters:
            for n, periodicity in enumerate(row.periodicity, start=1):
                if periodicity < 1:
                    where = f"{section}/periodicity{n} {row.id or ''} {row.smirks}"
                    raise InputError(f"force field: {where} is {periodicity}; it must be 1 or more")
    for section in ("vdW", "Electrostatics"):
        if section in registered:
            _check_cutoff(section, force_field.get_parameter_handler(section))


def _check_cutoff(section: str, handler) -> None:
    cutoff, width = (float(getattr(handler, name).m_as("angstrom")) for name in ("cutoff", "switch_width"))
    if not (cutoff > 0.0 and 0.0 <= width <= cutoff):
        raise InputError(
            f"force field: <{section}> has cutoff {cutoff:g} and switch_width {width:g} angstrom; the cutoff must be "
            "above 0, and the switch from 0 to the cutoff wide"
        )


def tags(source: str) -> dict[tuple[str, int], tuple[frozenset[str], dict[str, str]]]:
    """ForceBalance's tags in a force field (OFFXML text), for each (section, row) that has any: the attributes that
    ``parameterize="k, length"`` names, and those that ``parameter_eval="k=PARM[...]"`` ties to others, by what.

    Raises
    ------
    InputError
        ``parameterize`` names an attribute that its row does not have.
    """
    import xml.etree.ElementTree as ElementTree

    found = {}
    for section in ElementTree.fromstring(source.encode()):
        for row, element in enumerate(section):
            chosen = frozenset(name.strip() for name in element.get("parameterize", "").split(",") if name.strip())
            if unknown := sorted(chosen - set(element.attrib)):
                there = ", ".join(name for name in element.attrib if not name.startswith("parameter"))
                raise InputError(
                    f"<{section.tag}>, {element.get('id', '')} {element.get('smirks', '')}: parameterize names "
                    f"{unknown[0]}, which is no attribute of it; there are {there}"
                )
            parts = (part.partition("=") for part in _ties(element.get("parameter_eval", "")))
            tied = {name.strip(): text.strip() for name, _, text in parts}
            if chosen or tied:
                found[section.tag, row] = chosen, tied
    return found


def _ties(text: str) -> list[str]:
    """The parts of ``k=PARM['Bonds/Bond/k/[#6:1]-[#1:2]'], length=...``; there may be commas in brackets and quotes."""
    return [part for part in re.split(r",\s*(?=\w+\s*=)", text) if part.strip()]


def text(force_field: ForceField) -> str:
    """The force field as OFFXML that can be loaded again.

    The toolkit writes the angles that a kind of virtual site does not have, and a surface model that is None, as empty
    attributes, which it cannot read; and it takes ForceBalance's ``parameterize="k"`` for Boltzmann's constant.
    """
    text = re.sub(r' (outOfPlaneAngle|inPlaneAngle)=""', "", force_field.to_string())
    text = re.sub(r' parameterize="1(\.0)? \* boltzmann_constant \*\* 1(\.0)?"', ' parameterize="k"', text)
    return text.replace(' sa_model=""', ' sa_model="None"')


def deferred_text(force_field: ForceField) -> Deferred:
    """:func:`text` of the force field as it is now, written when it is first read."""
    now = copy.copy(force_field)
    now._parameter_handlers = {name: _copied(one) for name, one in force_field._parameter_handlers.items()}
    for handler in now._parameter_handlers.values():
        if handler._parameters is not None:
            handler._parameters = type(handler._parameters)([_copied(one) for one in handler._parameters])
    return Deferred(lambda: text(now))


def _copied(holder):
    """A section or parameter whose attributes may change without changing those of the other."""
    other = object.__new__(type(holder))
    lists = {name: copy.copy(value) for name, value in vars(holder).items() if isinstance(value, list | dict)}
    vars(other).update({**vars(holder), **lists})
    return other


def schema(force_field: ForceField, user_terms: Sequence[UserTerm] = ()) -> Schema:
    """One Label for every numerical value that stands in the force field."""
    labels: dict[str, dict[str, list[Label]]] = {}
    attributes = {section: ATTRIBUTES.get(section, ()) for section in SECTIONS}
    units: dict[Any, tuple[str, float]] = {}
    for section in (*SECTIONS, *(term.section for term in user_terms)):
        if section not in force_field.registered_parameter_handlers:
            continue
        handler = force_field.get_parameter_handler(section)
        holders = list(enumerate(handler.parameters))
        defined = next((term for term in user_terms if term.section == section), None)
        if defined is not None:
            attributes[section] = defined.names
            holders.append((OF_SECTION, handler))
        columns: dict[str, list[Label]] = {}
        for row, holder in holders:
            for attribute in attributes[section]:
                if defined is not None and (attribute in defined.constants) != (row == OF_SECTION):
                    continue
                for (term, order), quantity in values(holder, attribute).items():
                    written = quantity.units
                    if written not in units:
                        units[written] = unit_factor(written)
                    unit, factor = units[written]
                    if defined is not None:
                        _check_dimension(defined, attribute, quantity)
                    label = Label(
                        section=section,
                        attribute=attribute,
                        row=row,
                        id=getattr(holder, "id", None),
                        smirks=getattr(holder, "smirks", None),
                        name=getattr(holder, "name", None),
                        term=term,
                        bond_order=order,
                        unit=unit,
                        factor=factor,
                        loaded=float(quantity.magnitude) * factor,
                    )
                    _check_value(label)
                    columns.setdefault(attribute, []).append(label)
        labels[section] = {a: columns[a] for a in attributes[section] if a in columns}
    return Schema(labels)


def _check_value(label: Label) -> None:
    """Refuse what no energy can be made of: numbers that are not finite, and negative Lennard-Jones parameters."""
    wanted = None if math.isfinite(label.loaded) else "finite"
    if label.section in ("vdW", "VirtualSites") and label.attribute in ATTRIBUTES["vdW"] and label.loaded < 0:
        wanted = "not negative"
    if wanted is not None:
        raise InputError(f"force field: {label} is {label.loaded / label.factor:g} {label.unit}; it must be {wanted}")


def _check_dimension(term: UserTerm, attribute: str, quantity) -> None:
    if not quantity.is_compatible_with(term.units[attribute]):
        raise InputError(f"<{term.section}> {attribute} is {quantity}, but its unit should be {term.units[attribute]}")


def values(parameter, attribute: str) -> dict[tuple[int | None, int | None], Any]:
    """The quantities of one attribute of a parameter, keyed by (term n of ``k<n>``, bond order m)."""
    value = getattr(parameter, attribute, None)
    # the toolkit derives sigma from rmin_half and the other way round; only what the file wrote is a parameter
    if value is None or attribute == vars(parameter).get("_extra_nb_var"):
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


def settings(force_field: ForceField, user_terms: Sequence[UserTerm] = ()) -> NonbondedSettings:
    """The options of <vdW> and <Electrostatics>; the specification's defaults where a section is absent.

    Without <vdW>, the cutoff of the user's pair potentials takes its place; with it, they must agree.
    """
    options: dict[str, Any] = {}
    registered = force_field.registered_parameter_handlers
    found = ""
    cut: dict[str, Any] = {}
    for section in ("vdW", *(term.section for term in user_terms if term.is_pair)):
        if section not in registered:
            continue
        one = force_field.get_parameter_handler(section)
        chosen = {
            "vdw_cutoff": float(one.cutoff.m_as("angstrom")) * constants.ANGSTROM,
            "vdw_switch_width": float(one.switch_width.m_as("angstrom")) * constants.ANGSTROM,
        }
        if cut and cut != chosen:
            raise UnsupportedError(
                f"<{section}> has another cutoff or switch_width than <{found}>: one neighbour list serves "
                "all pair potentials, give them the same"
            )
        found, cut = section, chosen
    options.update(cut)
    if "vdW" in registered:
        vdw = force_field.get_parameter_handler("vdW")
        options.update(
            vdw_scale14=float(vdw.scale14),
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
