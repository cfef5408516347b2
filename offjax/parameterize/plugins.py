"""The toolkit's ParameterHandlers of user-defined terms, made from their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offjax.errors import InputError
from offjax.terms.user import UserTerm

if TYPE_CHECKING:
    from openff.toolkit import ForceField
    from openff.toolkit.typing.engines.smirnoff import ParameterHandler


def parameter_handler(term: UserTerm) -> type[ParameterHandler]:
    """The ParameterHandler class that reads and writes ``<section>``; see :meth:`offjax.UserTerm.parameter_handler`.

    A pair potential has the options of ``<vdW>`` too: ``scale12`` to ``scale15``, ``cutoff``, ``switch_width``,
    ``periodic_method="cutoff"`` and ``nonperiodic_method="no-cutoff"``, with the defaults of the specification.

    Raises
    ------
    InputError
        A unit that does not exist or is not made of nm, kJ/mol, rad and e.
    """
    from openff.toolkit.typing.engines.smirnoff import ParameterAttribute, ParameterHandler, ParameterType
    from openff.units import Quantity

    units = {name: _unit(term, name) for name in term.names}
    one = {
        "_ELEMENT_NAME": term.element,
        "_VALENCE_TYPE": "Atom" if term.is_pair else None,
        **{name: ParameterAttribute(unit=units[name]) for name in term.attributes},
    }
    own: dict[str, Any] = {name: ParameterAttribute(unit=units[name]) for name in term.constants}
    options: dict[str, Any] = {}
    if term.is_pair:
        for name, scale in (("scale12", 0.0), ("scale13", 0.0), ("scale14", 0.5), ("scale15", 1.0)):
            options[name] = ParameterAttribute(default=scale, converter=float)
        for name, length in (("cutoff", 9.0), ("switch_width", 1.0)):
            options[name] = ParameterAttribute(default=Quantity(length, "angstrom"), unit=Quantity("angstrom").units)
        options["periodic_method"] = ParameterAttribute(default="cutoff")
        options["nonperiodic_method"] = ParameterAttribute(default="no-cutoff")

    def check_handler_compatibility(self, other_handler):
        words = [name for name in options if name.endswith("method")]
        numbers = [name for name in (*own, *options) if name not in words]
        self._check_attributes_are_equal(other_handler, identical_attrs=words, tolerance_attrs=numbers)

    members = {
        "_TAGNAME": term.section,
        "_INFOTYPE": type(f"{term.section}Type", (ParameterType,), one),
        "check_handler_compatibility": check_handler_compatibility,
    }
    return type(f"{term.section}Handler", (ParameterHandler,), {**members, **own, **options})


def _unit(term: UserTerm, name: str):
    from openff.units import Unit

    from offjax.parameterize.forcefield import unit_factor

    text = term.units[name]
    try:
        unit = Unit(text)
    except Exception as error:  # pint has several kinds of errors for what it cannot read
        raise InputError(f"{term!r}: {name} has the unit {text!r}, which is unknown") from error
    factor = unit_factor(unit)[1]
    if abs(factor - 1.0) > 1e-12:
        raise InputError(
            f"{term!r}: {name} has the unit {text!r}, but potentials are written in nm, kJ/mol, rad and e; files may "
            "use any unit of the same dimension"
        )
    return unit


def force_field(names: Sequence[str], user_terms: Sequence[UserTerm] = ()) -> ForceField:
    """A ForceField that knows the sections of ``user_terms`` beside those of the toolkit."""
    from openff.toolkit import ForceField

    made = ForceField()
    made._register_parameter_handler_classes([parameter_handler(term) for term in user_terms])
    made.parse_sources(names, allow_cosmetic_attributes=True)
    return made
