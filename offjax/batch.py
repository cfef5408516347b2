"""SystemBatch: energies, forces and parameter gradients of many different molecules in a few compiled programs.

    batch = SystemBatch.from_systems(systems)
    conformers = batch.pack(arrays)
    energies, forces = batch.energies_and_forces(p, conformers)

A batch is flat on the outside: energies (n_conformers,) in the order of the molecules, forces (n_atom_rows, 3) with the
atoms of each conformer in turn. ``conformers.molecule``, ``.conformer`` and ``.mask`` say what a row belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offjax.batching import plain
from offjax.batching.instances import MoleculeTerms, extract
from offjax.energy import as_positions
from offjax.errors import InputError, OffjaxError
from offjax.parameters import ParameterSet, Schema
from offjax.system import System

BOND_RATIO = (0.5, 2.0)
"""Bond lengths in ``pack`` must lie within these multiples of the force field's equilibrium length."""


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Conformers:
    """Positions of a batch's conformers, with everything an energy needs to know about their molecules.

    Made by :meth:`SystemBatch.pack`; a pytree to pass to jitted functions. ``molecule`` (n_conformers,) is the index of
    each conformer's molecule in the batch, ``mask`` (n_conformers,) is False for padding; ``conformer`` (n_rows,) is
    the conformer of each atom row, ``row_mask`` (n_rows,) False for padding. Padding stands at the end, and only where
    a minibatch was padded to a common shape. ``positions`` (n_rows, 3) are in nm.
    """

    positions: Float[Array, "row 3"]
    molecule: Int[Array, " conformer"]
    mask: Bool[Array, " conformer"]
    conformer: Int[Array, " row"]
    row_mask: Bool[Array, " row"]
    terms: Any
    source: tuple[SystemBatch, list[np.ndarray]] | None = None

    def tree_flatten(self):
        return (self.positions, self.molecule, self.mask, self.conformer, self.row_mask, self.terms), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)

    @property
    def n_conformers(self) -> int:
        """Number of conformer rows, padding included."""
        return len(self.molecule)

    @property
    def n_rows(self) -> int:
        """Number of atom rows, padding included."""
        return len(self.conformer)

    def with_positions(self, positions: Float[Array, "row 3"]) -> Conformers:
        """The same conformers at other positions (n_rows, 3) in nm, as traced by a minimiser for instance."""
        if positions.shape != self.positions.shape:
            raise InputError(f"positions must have shape {self.positions.shape}, got {positions.shape}")
        return replace(self, positions=positions, source=None)

    def select(self, molecules: Sequence[int]) -> Conformers:
        """The conformers of some molecules: a minibatch, that goes with ``batch.select(molecules)``."""
        if self.source is None:
            raise InputError("these Conformers came through a JAX transformation: select from those that pack made")
        batch, arrays = self.source
        return batch.select(molecules).pack([arrays[i] for i in _indices(molecules, len(batch))], check_bonds=False)

    def __repr__(self) -> str:
        return f"Conformers({self.n_conformers} conformers, {self.n_rows} atom rows, {self.positions.dtype})"


@jax.tree_util.register_pytree_node_class
class SystemBatch:
    """Different molecules with one force field: few compiled programs for all of them.

    Make one with :meth:`from_systems`. As a pytree it has no arrays: passed through ``jax.jit`` it can compute energies;
    ``pack``, ``unpack`` and ``select`` belong outside.
    """

    def __init__(self, schema: Schema, systems: tuple[System, ...], molecules: tuple[MoleculeTerms, ...]):
        self.schema, self._systems, self._molecules = schema, systems, molecules

    def tree_flatten(self):
        return (), self.schema

    @classmethod
    def tree_unflatten(cls, schema, children):
        return cls(schema, (), ())

    # --- making -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_systems(cls, systems: Sequence[System]) -> SystemBatch:
        """A batch of Systems without box; each may hold several molecules (a dimer).

        Constraints count as in ``System.to_jax()``: use ``system.without_constraints()`` to fit bond parameters.

        Raises
        ------
        InputError
            No Systems, different force fields, or a System with a box.
        UnsupportedError
            A section that a batch does not support.
        """
        systems = tuple(systems)
        if not systems:
            raise InputError("a SystemBatch needs at least one System")
        schema = systems[0].parameters.schema
        terms: dict[int, MoleculeTerms] = {}
        for n, system in enumerate(systems):
            if not isinstance(system, System):
                raise InputError(f"from_systems: item {n} is a {type(system).__name__}, expected offjax.System")
            if system.parameters.schema is not schema:
                raise InputError(
                    f"{_describe(n, system)}: another force field (digest {system.parameters.digest[:12]}) than "
                    f"molecule 0 ({schema.digest[:12]}); make all Systems from the same force field"
                )
            if id(system) not in terms:
                try:
                    terms[id(system)] = extract(system)
                except OffjaxError as error:
                    raise type(error)(f"{_describe(n, system)}: {error}") from error
        return cls(schema, systems, tuple(terms[id(s)] for s in systems))

    @property
    def systems(self) -> tuple[System, ...]:
        """The Systems, in order."""
        return self._host(self._systems)

    def __len__(self) -> int:
        return len(self._host(self._systems))

    def _host(self, value):
        if not self._systems:
            raise InputError("this SystemBatch came through a JAX transformation: use the original one outside jit")
        return value

    def select(self, molecules: Sequence[int]) -> SystemBatch:
        """The batch of some molecules, in the given order."""
        chosen = _indices(molecules, len(self))
        return SystemBatch(
            self.schema, tuple(self._systems[i] for i in chosen), tuple(self._molecules[i] for i in chosen)
        )

    # --- positions --------------------------------------------------------------------------------------------------

    def pack(self, arrays: Sequence[Any], *, check_bonds: bool = True) -> Conformers:
        """Conformers of every molecule, ready for the energies.

        Parameters
        ----------
        arrays
            One a molecule: (n_conformers, n_atoms, 3), or (n_atoms, 3) for one, in nm; OpenFF and OpenMM quantities are
            converted. A molecule may have none (0, n_atoms, 3).
        check_bonds
            Refuse bonds shorter than half or longer than twice their equilibrium length.

        Raises
        ------
        InputError
            Wrong number of arrays, shapes, mixed dtypes, NaN or infinity, no conformers at all, or bond lengths that
            suggest another unit; the message names the molecule.
        PrecisionError
            float64 host arrays while JAX's x64 mode is off.
        """
        arrays = list(arrays)
        if len(arrays) != len(self):
            raise InputError(f"pack needs one array for each of the {len(self)} molecules, got {len(arrays)}")
        hosts = [_checked(n, s, a, check_bonds) for n, (s, a) in enumerate(zip(self._systems, arrays, strict=True))]
        dtypes = {h.dtype for h in hosts}
        if len(dtypes) > 1:
            raise InputError(f"all positions must have one dtype, got {', '.join(sorted(map(str, dtypes)))}")
        counts = np.array([len(h) for h in hosts])
        if not counts.sum():
            raise InputError("there is no conformer at all")
        sizes = np.array([m.n_atoms for m in self._molecules])
        molecule = np.repeat(np.arange(len(hosts)), counts).astype(np.int32)
        conformer = np.repeat(np.arange(len(molecule)), sizes[molecule]).astype(np.int32)
        positions = np.concatenate([h.reshape(-1, 3) for h in hosts])
        fields = (molecule, np.ones(len(molecule), bool), conformer, np.ones(len(conformer), bool))
        terms = plain.flatten(self._molecules, molecule)
        packed = jax.tree.map(jnp.asarray, Conformers(positions, *fields, terms))
        return replace(packed, source=(self, hosts))

    def unpack(self, values, conformers: Conformers) -> list[np.ndarray]:
        """Flat values as a list with one array a molecule: (n_conf, ...) or (n_conf, n_atoms, 3); outside jit.

        ``values`` are (n_conformers,), or (n_rows, 3) such as forces; padding is dropped.
        """
        values = np.asarray(values)
        counts = np.bincount(np.asarray(conformers.molecule)[np.asarray(conformers.mask)], minlength=len(self))
        sizes = np.array([m.n_atoms for m in self._molecules])
        if values.shape == (conformers.n_conformers,):
            return np.split(values[: counts.sum()], np.cumsum(counts)[:-1])
        if values.shape == (conformers.n_rows, 3):
            rows = counts * sizes
            parts = np.split(values[: rows.sum()], np.cumsum(rows)[:-1])
            return [part.reshape(c, n, 3) for part, c, n in zip(parts, counts, sizes, strict=True)]
        raise InputError(f"expected shape ({conformers.n_conformers},) or ({conformers.n_rows}, 3), got {values.shape}")

    def flatten(self, arrays: Sequence[Any], conformers: Conformers) -> np.ndarray:
        """The inverse of :meth:`unpack`: reference energies or forces, one array a molecule, as flat rows; padding is 0."""
        counts = np.bincount(np.asarray(conformers.molecule)[np.asarray(conformers.mask)], minlength=len(self))
        sizes = np.array([m.n_atoms for m in self._molecules])
        arrays = [np.asarray(a, dtype=conformers.positions.dtype) for a in arrays]
        shapes = [[(c,) for c in counts], [(c, n, 3) for c, n in zip(counts, sizes, strict=True)]]
        got = [a.shape for a in arrays]
        if got == shapes[0]:
            flat = np.zeros(conformers.n_conformers, conformers.positions.dtype)
            flat[: counts.sum()] = np.concatenate(arrays)
            return flat
        if got == shapes[1]:
            flat = np.zeros((conformers.n_rows, 3), conformers.positions.dtype)
            flat[: (counts * sizes).sum()] = np.concatenate([a.reshape(-1, 3) for a in arrays])
            return flat
        for n, (a, c, size) in enumerate(zip(got, counts, sizes, strict=False)):
            if a not in ((c,), (c, size, 3)):
                raise InputError(
                    f"{_describe(n, self._systems[n])}: expected shape ({c},) or ({c}, {size}, 3), got {a}"
                )
        raise InputError(f"flatten needs {len(self)} arrays, all of energies or all of forces, got {len(arrays)}")

    # --- energies ---------------------------------------------------------------------------------------------------

    def energies(self, p: ParameterSet, conformers: Conformers) -> Float[Array, " conformer"]:
        """Energy of every conformer, kJ/mol, in the order of ``conformers.molecule``; 0 in padding."""
        theta = self._theta(p, conformers)
        return conformers.terms.energies(theta, conformers.positions, conformers.n_conformers)

    def energies_and_forces(self, p: ParameterSet, conformers: Conformers, *, mode: str = "reverse"):
        """Energies (n_conformers,) in kJ/mol and forces (n_rows, 3) in kJ/mol/nm; 0 in padding."""
        theta = self._theta(p, conformers)
        return conformers.terms.energies_and_forces(theta, conformers.positions, conformers.n_conformers)

    def _theta(self, p: ParameterSet, conformers: Conformers):
        if not isinstance(p, ParameterSet):
            raise InputError(f"the first argument must be a ParameterSet (system.parameters), got {type(p).__name__}")
        if not isinstance(conformers, Conformers):
            raise InputError(f"expected what SystemBatch.pack returns, got {type(conformers).__name__}")
        if p.schema is not self.schema:
            raise InputError(
                f"these parameters belong to another force field (digest {p.digest[:12]}, this batch has "
                f"{self.schema.digest[:12]})"
            )
        leaves = [jnp.asarray(v, conformers.positions.dtype) for v in jax.tree_util.tree_leaves(p)]
        return jnp.concatenate(leaves) if leaves else jnp.zeros(1, conformers.positions.dtype)

    def __repr__(self) -> str:
        if not self._systems:
            return "SystemBatch(traced)"
        atoms = sum(m.n_atoms for m in self._molecules)
        return f"SystemBatch({len(self)} molecules, {atoms} atoms, force field {self.schema.digest[:8]})"


def _describe(n: int, system: System) -> str:
    """A molecule in messages: its index, name and SMILES."""
    parts = [system.topology.molecules[u] for u in system.topology.copies]
    names = [m.name for m in parts if m.name]
    smiles = ".".join(re.sub(r":\d+\]", "]", m.smiles) for m in parts)
    return f"molecule {n}" + (f" {'+'.join(names)!r}" if names else "") + f" ({smiles})"


def _indices(molecules, n: int) -> list[int]:
    chosen = np.atleast_1d(np.asarray(molecules))
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise InputError(f"select needs a list of molecule indices, got {molecules!r}")
    if chosen.min() < 0 or chosen.max() >= n:
        raise InputError(f"molecule indices run from 0 to {n - 1}, got {chosen.min()} to {chosen.max()}")
    return [int(i) for i in chosen]


def _checked(n: int, system: System, array, check_bonds: bool) -> np.ndarray:
    """One molecule's conformers as (n_conf, n_atoms, 3) host array in nm."""
    try:
        x = np.asarray(as_positions(array))
    except OffjaxError as error:
        raise type(error)(f"{_describe(n, system)}: {error}") from error
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[1:] != (system.n_particles, 3):
        raise InputError(
            f"{_describe(n, system)}: expected positions (n_conformers, {system.n_particles}, 3) in nm, got {x.shape}"
        )
    if not np.all(np.isfinite(x)):
        c = int(np.nonzero(~np.all(np.isfinite(x), axis=(1, 2)))[0][0])
        raise InputError(f"{_describe(n, system)}: the positions of conformer {c} are not finite")
    if check_bonds and len(x) and "Bonds" in system.terms and system.terms["Bonds"].n_instances:
        bonds = system.terms["Bonds"]
        length = system.slots()["Bonds"]["length"][bonds.slot]
        r = np.linalg.norm(x[:, bonds.atoms[:, 1]] - x[:, bonds.atoms[:, 0]], axis=-1)
        bad = (r < BOND_RATIO[0] * length) | (r > BOND_RATIO[1] * length)
        if np.any(bad):
            c, b = (int(v) for v in np.argwhere(bad)[0])
            i, j = bonds.atoms[b]
            raise InputError(
                f"{_describe(n, system)}: in conformer {c} the bond of atoms {i} and {j} is {r[c, b]:.4g} nm long and its "
                f"equilibrium length is {length[b]:.4g} nm: are the coordinates in angstrom? Positions are taken in nm; "
                "check_bonds=False accepts them as they are"
            )
    return x
