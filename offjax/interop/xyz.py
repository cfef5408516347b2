"""Reading extended XYZ files with mapped SMILES, in the conventions of ASE.

Each frame is the number of atoms, a line of ``key=value`` pairs and a line an atom. Read are

==============  ===========================================================================================
``Properties``  the columns; ``species:S:1:pos:R:3`` if it is missing; ``pos`` in angstrom, ``forces`` (or
                ``REF_forces``) in eV/angstrom
``energy``      eV (or ``REF_energy``); may be missing beside
``interaction_energy``, eV, of a complex, whose molecules a dot separates in ``smiles``
``smiles``      mapped SMILES with explicit hydrogens (or ``mapped_smiles``); map index = atom position + 1
``charge``      optional, e, and ``multiplicity``: compared with the SMILES
``name``        optional; frames of one name and SMILES are conformers of one molecule
==============  ===========================================================================================

A frame that cannot be read costs itself; reading goes on at the next number of atoms that a line of pairs follows.
A frame that is periodic (``pbc`` with a T) is refused. Other keys and columns are not looked at. Source:
https://ase-lib.org/ase/io/formatoptions.html#extxyz
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from offjax import constants
from offjax.errors import InputError
from offjax.interop.files import read_text
from offjax.interop.records import Frame, Problem, Record, assemble

PAIR = re.compile(r"""([\w-]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\S+)""")

UNDECODED = re.compile("[\udc80-\udcff]")
"""What Python makes of bytes that are no UTF-8 text."""


def scan(path, *, forces: bool = True) -> Iterator[Record | Problem]:
    """The molecules of a file, and a Problem for each frame that cannot be used.

    Raises
    ------
    InputError
        No such file, or not text.
    """
    path = Path(path)
    text, wrong = read_text(path, errors="surrogateescape")  # damaged bytes then cost their frame only
    if wrong is not None:
        yield Problem(str(path), "what is missing", "rejected", wrong)
    lines = re.split(r"\r\n|\r|\n", text)
    if UNDECODED.search(text) and _header(lines, 0, len(lines)) is None:
        raise InputError(f"{path}: cannot be read as text: no UTF-8, and no frame in it")
    yield from assemble(str(path), _frames(path, lines), forces)


def _frames(path: Path, lines: list[str]) -> Iterator[Frame | Problem]:
    at, number = 0, 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        n = _count(lines[at])
        after = at + 2 + n if n else len(lines)
        try:
            if n < 1:
                raise InputError(f"expected a number of atoms, found {lines[at].strip()[:40]!r}")
            if len(rows := lines[at + 2 : after]) < n:
                raise InputError(f"the file ends after {len(rows)} of {n} atoms; was it copied completely?")
            yield _frame(f"frame {number}", lines[at + 1], rows)
        except (InputError, ValueError) as error:
            following = _header(lines, at + 1, after)  # a line may be missing or too much, or the number wrong
            label = f"frame {number}" + (" and all that follow" if not n and following is None else "")
            yield Problem(str(path), label, "rejected", f"{path}, frame {number} (line {at + 1}): {error}")
            after = after if following is None else following
        at, number = after, number + 1


def _count(line: str) -> int:
    """The number of atoms in the first line of a frame; 0 for anything else."""
    return int(line) if line.strip().isdecimal() else 0


def _header(lines: list[str], start: int, stop: int) -> int | None:
    """The first line from ``start`` on that looks like the beginning of a frame."""
    last = min(stop, len(lines) - 1)
    return next((i for i in range(start, last) if _count(lines[i]) and PAIR.search(lines[i + 1])), None)


def _frame(label: str, comment: str, rows: list[str]) -> Frame:
    if wrong := next((row for row in (comment, *rows) if UNDECODED.search(row)), None):
        raise InputError(f"bytes that are no UTF-8 text, in {ascii(wrong.strip())[:80]}")
    keys = {k: v.strip("\"'") for k, v in PAIR.findall(comment)}
    if "T" in keys.get("pbc", "").upper().split():
        raise InputError(f"periodic (pbc = {keys['pbc']!r}): reference data are of molecules in vacuum")
    columns = _columns(keys.get("Properties", "species:S:1:pos:R:3"))
    cells = [row.split() for row in rows]
    width = max(span.stop for span in columns.values())
    if short := next((i for i, row in enumerate(cells) if len(row) < width), None):
        raise InputError(f"atom {short} has {len(cells[short])} columns, Properties names {width}")

    def numbers(name):
        return np.array([[float(x) for x in row[columns[name]]] for row in cells])

    smiles = _first(keys, "smiles", "mapped_smiles")
    properties = {}
    if "interaction_energy" in keys:
        properties["interaction"] = np.asarray(float(keys["interaction_energy"]) * constants.ELECTRONVOLT)
    there = not properties or "energy" in keys or "REF_energy" in keys
    energy = float(_first(keys, "energy", "REF_energy")) * constants.ELECTRONVOLT if there else None
    found = next((name for name in ("forces", "REF_forces") if name in columns), None)
    return Frame(
        name=keys.get("name", smiles),
        label=label,
        smiles=smiles,
        positions=numbers("pos") * constants.ANGSTROM,
        energy=energy,
        forces=None if found is None else numbers(found) * (constants.ELECTRONVOLT / constants.ANGSTROM),
        numbers=np.array([atomic_number(row[columns["species"]][0]) for row in cells]),
        properties=properties,
        charge=float(keys["charge"]) if "charge" in keys else None,
        multiplicity=float(keys["multiplicity"]) if "multiplicity" in keys else None,
    )


def _first(keys: dict[str, str], *names: str) -> str:
    for name in names:
        if name in keys:
            return keys[name]
    raise InputError(f"the key {' or '.join(names)} is missing; there are {', '.join(keys) or 'none'}")


def _columns(properties: str) -> dict[str, slice]:
    fields = properties.split(":")
    if len(fields) % 3:
        raise InputError(f"Properties={properties}: expected triples name:type:number")
    found, start = {}, 0
    for name, _, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        found[name] = slice(start, start + int(count))
        start += int(count)
    for name, count in (("species", 1), ("pos", 3), ("forces", 3), ("REF_forces", 3)):
        if name in found and found[name].stop - found[name].start != count:
            raise InputError(f"Properties={properties}: {name} must have {count} columns")
    if missing := {"species", "pos"} - set(found):
        raise InputError(f"Properties={properties}: {' and '.join(sorted(missing))} missing")
    return found


def atomic_number(symbol: str) -> int:
    """Of an element's symbol; InputError if there is none."""
    from rdkit import Chem, rdBase

    try:
        with rdBase.BlockLogs():
            return Chem.GetPeriodicTable().GetAtomicNumber(symbol)
    except RuntimeError:
        raise InputError(f"unknown element {symbol!r}") from None
