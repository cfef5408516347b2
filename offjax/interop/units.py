"""Units of a force-field file as people write them in tables."""

from __future__ import annotations

WORDS = {
    "kilocalorie_per_mole": "kcal/mol",
    "kilocalorie": "kcal",
    "kilojoule": "kJ",
    "angstrom": "Å",
    "nanometer": "nm",
    "radian": "rad",
    "degree": "°",
    "elementary_charge": "e",
    "mole": "mol",
    "dimensionless": "",
    " ** 2": "²",
}


def short(unit: str) -> str:
    """The short form of a unit in the words of the OpenFF units library.

    >>> short("kilocalorie / angstrom ** 2 / mole")
    'kcal/mol/Å²'
    >>> short("elementary_charge")
    'e'
    """
    for word, symbol in WORDS.items():
        unit = unit.replace(word, symbol)
    head, *rest = [part.strip() for part in unit.split("/")]
    if "mol" in rest:  # the energy unit stays together
        rest.remove("mol")
        head += "/mol"
    return "/".join([head, *rest])
