"""Reading reference data in JSON: QCSchema results, and the data sets of yammbs.

A QCSchema file is one object or a list of them, each an ``AtomicResult`` (an energy, or a gradient or Hessian with its
energy in ``properties.return_energy``; force = -gradient) or an ``OptimizationResult`` (its last geometry and
energy). Lengths are in bohr, energies in hartree. The mapped SMILES is the molecule's
``canonical_isomeric_explicit_hydrogen_mapped_smiles`` in ``identifiers`` or ``extras``; ``symbols``,
``connectivity``, ``molecular_charge`` and ``molecular_multiplicity`` are compared with it.

yammbs writes ``qm_molecules`` (optimised geometries: ``mapped_smiles``, ``coordinates`` in angstrom, ``final_energy``
in kcal/mol) or ``qm_torsions`` (torsion drives: ``dihedral_indices``, ``coordinates`` and ``energies`` by grid angle).

A QCSchema ``TorsionDriveResult`` has a geometry and an energy for each grid point (``final_molecules``,
``final_energies``) and the driven dihedrals in ``keywords``.

Result collections of OpenFF QCSubmit hold the mapped SMILES of records on a server and no energies. With the records
beside them, exported as QCSchema with their ``id``, they say which molecule each is of; alone, and as inputs of
calculations, they are refused with a word on how to get the records. Sources: https://molssi-qc-schema.readthedocs.io,
https://github.com/openforcefield/yammbs, https://github.com/openforcefield/openff-qcsubmit
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offjax.constants import ANGSTROM, BOHR, HARTREE, KCAL
from offjax.errors import InputError
from offjax.interop.files import read_text
from offjax.interop.records import Frame, Problem, Record, assemble
from offjax.interop.xyz import atomic_number

SMILES = "canonical_isomeric_explicit_hydrogen_mapped_smiles"


def scan(path, *, forces: bool = True, collection: str | None = None) -> Iterator[Record | Problem]:
    """The molecules of a file, and a Problem for each entry that cannot be used.

    Parameters
    ----------
    path
        The file; its name may end in ``.json.gz``.
    forces
        Whether forces are needed.
    collection
        A result collection of QCSubmit, which has the mapped SMILES of QCSchema records by their ``id``.

    Raises
    ------
    InputError
        No such file, not JSON, or none of these layouts.
    """
    path = Path(path)
    text, wrong = read_text(path, errors="replace")  # a damaged byte in a text then costs its entry only
    try:
        content = json.loads(text)
    except ValueError as error:
        reason = f"{path}: not complete JSON ({error}); was it copied completely?"
        content, n = _beginning(text)
        if not n:
            raise InputError(reason) from error
        yield Problem(str(path), f"what follows {n} entries", "rejected", wrong or reason)
    known = None if collection is None else _collected(Path(collection))
    found: set[str] = set()
    yield from assemble(str(path), _frames(path, content, known, found), forces)
    for identity in sorted(set(known or ()) - found):
        reason = f"{path}: there is no record of the id {identity}, which {collection} names"
        yield Problem(str(path), f"record {identity}", "rejected", reason)


def _beginning(text: str) -> tuple[Any, int]:
    """The whole entries of a list that is cut off, as the content of a file, and their number."""
    start = re.match(r'\s*(?:\{\s*"(qm_molecules|qm_torsions)"\s*:\s*)?\[', text)
    if start is None:
        return None, 0
    decoder, entries, at = json.JSONDecoder(), [], start.end()
    with contextlib.suppress(ValueError):
        while True:
            while text[at : at + 1] in tuple(" \t\r\n,"):
                at += 1
            entry, at = decoder.raw_decode(text, at)
            entries.append(entry)
    return entries if start[1] is None else {start[1]: entries}, len(entries)


def _collected(path: Path) -> dict[str, str]:
    """Mapped SMILES by record id."""
    try:
        servers = json.loads(read_text(path)[0])["entries"].values()
        return {str(entry["record_id"]): entry["cmiles"] for entries in servers for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a result collection of OpenFF QCSubmit with record_id and cmiles of every entry "
            f"({type(error).__name__}: {error})"
        ) from error


def _frames(path: Path, content: Any, known: dict[str, str] | None, found: set[str]) -> Iterator[Frame | Problem]:
    """``known`` are mapped SMILES by record id; ``found`` becomes the ids that are there."""
    entries: list[tuple[str, Any, Any]] = []
    if isinstance(content, dict) and isinstance(content.get("qm_molecules"), list):
        for n, e in enumerate(content["qm_molecules"]):
            entries.append((f"molecule {_of(e, 'qcarchive_id', n)}", _optimised, e))
    elif isinstance(content, dict) and isinstance(content.get("qm_torsions"), list):
        for n, e in enumerate(content["qm_torsions"]):
            label, points = f"torsion {_of(e, 'id', n)}", _of(e, "coordinates", None)
            if not isinstance(points, dict) or not points:
                reason = f"{path}, {label}: there are no coordinates by angle"
                yield Problem(str(path), label, "rejected", reason)
                continue
            entries += [(f"{label}, angle {angle}", _torsion_point(angle), e) for angle in sorted(points, key=_degrees)]
            entries += [(f"{label}, angle {a}", _no_geometry, e) for a in _alone(e.get("energies"), points)]
    elif isinstance(content, dict) and ("dataset_name" in content or isinstance(content.get("entries"), dict)):
        held = "references to results" if "entries" in content else "molecules to be computed"
        servers = (content.get("entries") or {}).values()
        number = sum(len(own) for own in servers if isinstance(own, list)) or len(content.get("dataset") or {})
        raise InputError(
            f"{path}: the QCSubmit data set {content.get('dataset_name', 'without a name')!r} holds {held} "
            f"({number} entries) and no energies: submit it to a server if that was not done; download the "
            "records (collection.to_records() of openff-qcsubmit) and write them as a list of QCSchema results with "
            "their id, which is read with molecule = this file; or let yammbs write a QCArchiveDataset of it"
        )
    else:
        results = content if isinstance(content, list) else [content]
        for n, e in enumerate(results):
            label, smiles = f"result {n}", None
            if known is not None and isinstance(e, dict):
                found.add(identity := str(e.get("id")))
                label += f" (id {identity})"
                smiles = known.get(identity)
            if isinstance(e, dict) and isinstance(e.get("final_molecules"), dict):
                points = e["final_molecules"]
                entries += [(f"{label}, angle {a}", _drive_point(a, smiles), e) for a in points]
                entries += [(f"{label}, angle {a}", _no_geometry, e) for a in _alone(e.get("final_energies"), points)]
            else:
                entries.append((label, _result(smiles), e))
    for label, read, entry in entries:
        try:
            yield read(label, entry)
        except InputError as error:
            yield Problem(str(path), label, "rejected", f"{path}, {label}: {error}")
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{path}, {label}: not of the expected layout ({type(error).__name__}: {error})"
            yield Problem(str(path), label, "rejected", reason)


def _of(entry: Any, key: str, otherwise: Any) -> Any:
    """A value of an entry, if it is one."""
    return entry.get(key, otherwise) if isinstance(entry, dict) else otherwise


def _degrees(angle: str) -> float:
    """To sort by; what is no number stands last."""
    with contextlib.suppress(ValueError):
        return float(angle)
    return math.inf


def _alone(energies: Any, points: dict) -> list[str]:
    """The angles that have an energy, but no geometry."""
    there = {key for angle in points for key in (angle, _degrees(angle))}
    return [a for a in energies if not {a, _degrees(a)} & there] if isinstance(energies, dict) else []


def _optimised(label: str, entry: dict) -> Frame:
    return Frame(
        name=_text(entry, "mapped_smiles"),
        label=label,
        smiles=_text(entry, "mapped_smiles"),
        positions=_table(entry["coordinates"]) * ANGSTROM,
        energy=float(entry["final_energy"]) * KCAL,
    )


def _torsion_point(angle: str):
    def read(label: str, entry: dict) -> Frame:
        energies = {float(k): v for k, v in entry["energies"].items()}
        if float(angle) not in energies:
            raise InputError(f"no energy for the angle {angle}; there are {', '.join(map(str, sorted(energies)))}")
        a, b, c, d = map(int, entry["dihedral_indices"])
        return Frame(
            name=label.split(",")[0],
            label=label,
            smiles=_text(entry, "mapped_smiles"),
            positions=_table(entry["coordinates"][angle]) * ANGSTROM,
            energy=float(energies[float(angle)]) * KCAL,
            driven=((a, b, c, d),),
        )

    return read


def _no_geometry(label: str, entry: dict) -> Frame:
    raise InputError("there is an energy, but no geometry")


def _result(smiles: str | None):
    """A reader of results of molecules whose SMILES, if they have none themselves, is this."""
    return lambda label, entry: _single(label, entry, smiles)


def _drive_point(angle: str, smiles: str | None):
    def read(label: str, entry: dict) -> Frame:
        _check_success(entry)
        if angle not in entry["final_energies"]:
            raise InputError(f"no energy for the angle {angle}")
        a, b, c, d = map(int, entry["keywords"]["dihedrals"][0])
        if len(entry["keywords"]["dihedrals"]) != 1:
            raise InputError("a scan of several dihedrals is not read")
        energy = float(entry["final_energies"][angle])
        frame = _molecule(label, entry["final_molecules"][angle], energy, None, smiles=smiles)
        return frame._replace(level=_level(entry), name=str(entry.get("id") or frame.name), driven=((a, b, c, d),))

    return read


def _check_success(entry: dict) -> None:
    if entry.get("success") is False:
        raise InputError(f"the calculation failed: {str(entry.get('error') or 'no reason is given')[:100]}")


def _single(label: str, entry: dict, smiles: str | None) -> Frame:
    name = entry.get("schema_name", "")
    if name == "qcschema_molecule" or ("symbols" in entry and "molecule" not in entry):
        raise InputError("a QCSchema Molecule has no energy: give the AtomicResult or OptimizationResult of it")
    _check_success(entry)
    if "final_molecule" in entry or "optimization" in name:
        frame = _molecule(label, entry["final_molecule"], float(entry["energies"][-1]), None, smiles=smiles)
        return frame._replace(level=_level(entry))
    if entry["driver"] not in ("energy", "gradient", "hessian"):
        raise InputError(f"the driver {entry['driver']!r} is not read; energy, gradient and hessian are")
    gradient, hessian = None, None
    if entry["driver"] == "hessian":
        properties = entry["properties"]
        energy = properties["return_energy"]
        if (found := properties.get("return_gradient")) is not None:
            gradient = _table(found)
        hessian = np.asarray(entry["return_result"], dtype=np.float64)
        side = math.isqrt(hessian.size)
        if side * side != hessian.size:
            raise InputError(f"the Hessian has {hessian.size} elements, which is no square")
        hessian = hessian.reshape(side, side) * (HARTREE / BOHR**2)
    elif entry["driver"] == "gradient":
        gradient, energy = _table(entry["return_result"]), entry["properties"]["return_energy"]
    else:
        energy = entry["return_result"]
    frame = _molecule(label, entry["molecule"], float(energy), gradient, hessian, smiles)
    return frame._replace(level=_level(entry))


def _level(entry: dict) -> str | None:
    """Method and basis of a calculation, if it says: an AtomicResult has them in ``model``, others in what they ran."""
    places = [entry, *(entry.get(key) for key in ("input_specification", "optimization_spec", "specification"))]
    for model in (place.get("model", place) for place in places if isinstance(place, dict)):
        if isinstance(model, dict) and isinstance(model.get("method"), str):
            basis = model.get("basis")
            return model["method"].lower() + (f"/{basis.lower()}" if isinstance(basis, str) and basis else "")
    return None


def _molecule(
    label: str,
    molecule: dict,
    energy: float,
    gradient: np.ndarray | None,
    hessian: np.ndarray | None = None,
    smiles: str | None = None,
) -> Frame:
    places = [molecule.get(key) or {} for key in ("identifiers", "extras")]
    smiles = next((place[SMILES] for place in places if place.get(SMILES)), smiles)
    if smiles is None:
        raise InputError(
            f"the molecule has no {SMILES}, neither in identifiers nor in extras, and no result collection "
            "(molecule) names its id"
        )
    if not isinstance(smiles, str):
        raise InputError(f"{SMILES}: expected text, found {smiles!r}")
    bonds = molecule.get("connectivity")
    return Frame(
        name=str(molecule.get("name") or smiles),
        label=label,
        smiles=smiles,
        positions=_table(molecule["geometry"]) * BOHR,
        energy=energy * HARTREE,
        forces=None if gradient is None else -gradient * (HARTREE / BOHR),
        numbers=np.array([atomic_number(symbol) for symbol in molecule["symbols"]]),
        bonds=None if bonds is None else tuple((int(b[0]), int(b[1])) for b in bonds),
        properties={} if hessian is None else {"hessian": hessian},
        charge=_number(molecule.get("molecular_charge")),
        multiplicity=_number(molecule.get("molecular_multiplicity")),
    )


def _text(entry: dict, key: str) -> str:
    if not isinstance(entry[key], str):
        raise InputError(f"{key}: expected text, found {entry[key]!r}")
    return entry[key]


def _number(value) -> float | None:
    return None if value is None else float(value)


def _table(values) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1, 3)
