"""Reading reference data in JSON: QCSchema results, and the data sets of yammbs.

A QCSchema file is one object or a list of them, each an ``AtomicResult`` (an energy, or a gradient or Hessian with its
energy in ``properties.return_energy``; force = -gradient) or an ``OptimizationResult`` (its last geometry and
energy). Lengths are in bohr, energies in hartree. The mapped SMILES is the molecule's
``canonical_isomeric_explicit_hydrogen_mapped_smiles`` in ``identifiers`` or ``extras``; ``symbols`` and
``connectivity`` are compared with it.

yammbs writes ``qm_molecules`` (optimised geometries: ``mapped_smiles``, ``coordinates`` in angstrom, ``final_energy``
in kcal/mol) or ``qm_torsions`` (torsion drives: ``dihedral_indices``, ``coordinates`` and ``energies`` by grid angle).

Data sets of OpenFF QCSubmit hold inputs of calculations, or references to results on a server, and no energies: they
are refused with a word on how to get them. Sources: https://molssi-qc-schema.readthedocs.io,
https://github.com/openforcefield/yammbs
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offjax.constants import ANGSTROM, BOHR, HARTREE, KCAL
from offjax.errors import InputError
from offjax.interop.records import Frame, Problem, Record, assemble
from offjax.interop.xyz import atomic_number

SMILES = "canonical_isomeric_explicit_hydrogen_mapped_smiles"


def scan(path, *, forces: bool = True) -> Iterator[Record | Problem]:
    """The molecules of a file, and a Problem for each entry that cannot be used.

    Raises
    ------
    InputError
        No such file, not JSON, or none of these layouts.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not complete JSON ({error}); was it copied completely?") from error
    yield from assemble(str(path), _frames(path, content), forces)


def _frames(path: Path, content: Any) -> Iterator[Frame | Problem]:
    if isinstance(content, dict) and "qm_molecules" in content:
        entries = [
            (f"molecule {e.get('qcarchive_id', n)}", _optimised, e) for n, e in enumerate(content["qm_molecules"])
        ]
    elif isinstance(content, dict) and "qm_torsions" in content:
        entries = [
            (f"torsion {e.get('id', n)}, angle {angle}", _torsion_point(angle), e)
            for n, e in enumerate(content["qm_torsions"])
            for angle in sorted(e.get("coordinates", {}), key=float)
        ]
    elif isinstance(content, dict) and ("dataset_name" in content or isinstance(content.get("entries"), dict)):
        held = "references to results" if "entries" in content else "molecules to be computed"
        entries = content.get("entries") or content.get("dataset") or {}
        raise InputError(
            f"{path}: the QCSubmit data set {content.get('dataset_name', 'without a name')!r} holds {held} "
            f"({len(entries)} entries) and no energies: submit it to a server if that was not done; then download the "
            "results (OptimizationResultCollection.from_server of openff-qcsubmit) and let yammbs write a "
            "QCArchiveDataset of the collection, or write the results as QCSchema"
        )
    else:
        results = content if isinstance(content, list) else [content]
        entries = [(f"result {n}", _result, e) for n, e in enumerate(results)]
    for label, read, entry in entries:
        try:
            yield read(label, entry)
        except InputError as error:
            yield Problem(str(path), label, "rejected", f"{path}, {label}: {error}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{path}, {label}: not of the expected layout ({type(error).__name__}: {error})"
            yield Problem(str(path), label, "rejected", reason)


def _optimised(label: str, entry: dict) -> Frame:
    return Frame(
        name=entry["mapped_smiles"],
        label=label,
        smiles=entry["mapped_smiles"],
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
            smiles=entry["mapped_smiles"],
            positions=_table(entry["coordinates"][angle]) * ANGSTROM,
            energy=float(energies[float(angle)]) * KCAL,
            driven=((a, b, c, d),),
        )

    return read


def _result(label: str, entry: dict) -> Frame:
    name = entry.get("schema_name", "")
    if name == "qcschema_molecule" or ("symbols" in entry and "molecule" not in entry):
        raise InputError("a QCSchema Molecule has no energy: give the AtomicResult or OptimizationResult of it")
    if entry.get("success") is False:
        raise InputError(f"the calculation failed: {str(entry.get('error'))[:100]}")
    if "final_molecule" in entry or "optimization" in name:
        return _molecule(label, entry["final_molecule"], float(entry["energies"][-1]), None)
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
    return _molecule(label, entry["molecule"], float(energy), gradient, hessian)


def _molecule(
    label: str, molecule: dict, energy: float, gradient: np.ndarray | None, hessian: np.ndarray | None = None
) -> Frame:
    places = [molecule.get(key) or {} for key in ("identifiers", "extras")]
    smiles = next((place[SMILES] for place in places if place.get(SMILES)), None)
    if smiles is None:
        raise InputError(f"the molecule has no {SMILES}, neither in identifiers nor in extras")
    bonds = molecule.get("connectivity")
    return Frame(
        name=molecule.get("name") or smiles,
        label=label,
        smiles=smiles,
        positions=_table(molecule["geometry"]) * BOHR,
        energy=energy * HARTREE,
        forces=None if gradient is None else -gradient * (HARTREE / BOHR),
        numbers=np.array([atomic_number(symbol) for symbol in molecule["symbols"]]),
        bonds=None if bonds is None else tuple((int(b[0]), int(b[1])) for b in bonds),
        properties={} if hessian is None else {"hessian": hessian},
    )


def _table(values) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1, 3)
