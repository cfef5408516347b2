"""SystemBatch: energies, forces and parameter gradients of many different molecules in a few compiled programs.

    batch = SystemBatch.from_systems(systems)
    conformers = batch.pack(arrays)
    energies, forces = batch.energies_and_forces(p, conformers)

A batch is flat on the outside: energies (n_conformers,) in the order of the molecules, forces (n_atom_rows, 3) with the
atoms of each conformer in turn. ``conformers.molecule``, ``.conformer`` and ``.mask`` say what a row belongs to.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offjax.batching import evaluate
from offjax.batching.chunks import (
    Chunks,
    Prepared,
    Shape,
    balanced,
    choose_lanes,
    fill,
    first_fit,
    most_chunks,
    place_positions,
    prepare,
    split,
)
from offjax.batching.instances import MoleculeTerms, extract
from offjax.batching.plain import PlainTerms, flatten
from offjax.batching.sites import Sites
from offjax.batching.types import Types, classify
from offjax.devices import on_cpu
from offjax.energy import as_positions
from offjax.errors import InputError, OffjaxError, UnsupportedError
from offjax.parameters import ParameterSet, Schema
from offjax.system import System

if TYPE_CHECKING:
    from offjax.relaxation import Relaxed

BOND_RATIO = (0.5, 2.0)
"""Bond lengths in ``pack`` must lie within these multiples of the force field's equilibrium length."""


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Conformers:
    """Positions of a batch's conformers, with everything an energy needs to know about their molecules.

    Made by :meth:`SystemBatch.pack`; a pytree, to be passed to jitted functions as an argument (a function that closes
    over Conformers bakes them into its program). ``molecule`` (n_conformers,) is the index of each conformer's molecule
    in the batch, ``mask`` (n_conformers,) is False for padding; ``conformer`` (n_rows,) is the conformer of each atom
    row, ``row_mask`` (n_rows,) False for padding. Padding stands at the end, and only where a minibatch was padded to
    a common shape.
    """

    packed: Float[Array, "chunk atom 3*lane"]
    molecule: Int[Array, " conformer"]
    mask: Bool[Array, " conformer"]
    conformer: Int[Array, " row"]
    row_mask: Bool[Array, " row"]
    types: Types
    chunks: Chunks
    sites: Sites | None = None
    source: _Source | None = None

    def tree_flatten(self):
        rows = (self.molecule, self.mask, self.conformer, self.row_mask)
        return (self.packed, *rows, self.types, self.chunks, self.sites), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)

    @property
    def n_conformers(self) -> int:
        """Number of conformer rows, padding included."""
        return self.molecule.shape[0]

    @property
    def n_rows(self) -> int:
        """Number of atom rows, padding included."""
        return self.conformer.shape[0]

    @property
    def dtype(self):
        """The floating-point type of the positions, in which everything is computed."""
        return self.packed.dtype

    @property
    def positions(self) -> Float[Array, "row 3"]:
        """Positions of all atom rows, nm."""
        return evaluate.from_lanes(self.packed, self.chunks)

    def with_positions(self, positions: Float[Array, "row 3"]) -> Conformers:
        """The same conformers at other positions (n_rows, 3) in nm; may be traced, as by a minimiser."""
        x = as_positions(positions)
        if x.shape != (self.n_rows, 3) or x.dtype != self.dtype:
            raise InputError(f"positions must be {self.dtype} of shape {(self.n_rows, 3)}, got {x.dtype} of {x.shape}")
        return replace(self, packed=evaluate.to_lanes(x, self.packed, self.chunks), source=None)

    def replicate(self, values):
        """A pytree of arrays with a copy on every device that shares the conformers; what lies there already stays.

        For what a function jitted over the conformers takes at every call: otherwise each call moves it. Outside jit.
        """
        if (mesh := self.chunks.mesh) is None:
            return values if not self.packed.committed else jax.device_put(values, self.packed.sharding)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

        def placed(value):
            there = isinstance(value, jax.Array) and getattr(value.sharding, "mesh", None) == mesh
            return value if there else jax.device_put(value, everywhere)

        return jax.tree.map(placed, values)

    def _shared(self, rows: np.ndarray) -> Array:
        """Flat rows, of which each device has its share where these are of equal size."""
        mesh = self.chunks.mesh
        if mesh is None or len(rows) % mesh.size:
            return self.replicate(jnp.asarray(rows))
        return jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*mesh.axis_names)))

    def select(self, molecules: Sequence[int]) -> Conformers:
        """The conformers of some molecules: a minibatch, with ``molecule`` counted within the selection.

        All minibatches of as many molecules have the same shapes, padded to what the largest of them needs: a function
        that is jitted over Conformers compiles once for them. Goes with ``batch.select(molecules)``, which flattens
        its targets and unpacks its results.
        """
        if self.source is None:
            raise InputError("these Conformers came through a JAX transformation: select from those that pack made")
        batch, arrays, shape, devices = self.source
        chosen = _indices(molecules, len(batch))
        frame = batch._frame(np.array([len(a) for a in arrays]), len(chosen), shape)
        return batch.select(chosen)._packed([arrays[i] for i in chosen], frame, devices)

    def __repr__(self) -> str:
        return f"Conformers({self.n_conformers} conformers, {self.n_rows} atom rows, {self.dtype})"


class _Source(NamedTuple):
    """What ``Conformers.select`` starts from: lost when a JAX transformation rebuilds the pytree."""

    batch: SystemBatch
    arrays: list[np.ndarray]
    shape: Shape
    devices: tuple[jax.Device, ...]


class Frame(NamedTuple):
    """The sizes that minibatches and other parts of a batch are padded to."""

    shape: Shape
    n_chunks: int
    n_conformers: int
    n_rows: int
    n_sites: int


@jax.tree_util.register_pytree_node_class
class SystemBatch:
    """Different molecules with one force field: few compiled programs for all of them.

    Make one with :meth:`from_systems`. The arrays live in the :class:`Conformers` that :meth:`pack` makes; as a pytree
    a SystemBatch has none. Passed through ``jax.jit`` it can compute energies; ``pack``, ``unpack`` and ``select``
    belong outside.

    Derivatives in the parameters and positions are available in reverse mode (``jax.grad``, at the cost of about one
    more evaluation of energies and forces) and in forward mode (``jax.jvp``, ``jax.jacfwd``), once; second
    derivatives raise DifferentiationError. :meth:`plain` can be differentiated without limit.

    The first call compiles one program for energies, or for energies and forces, whatever the number of molecules;
    other parameters, positions and minibatches of one size use the same. Functions of your own are fastest jitted with
    ``compiler_options=offjax.batch.compiler_options()``.
    """

    def __init__(
        self, schema: Schema, members: tuple[_Member, ...], types: Types | None, whole: SystemBatch | None = None
    ):
        self.schema, self._members, self._types, self._whole = schema, members, types, whole

    def tree_flatten(self):
        return (), self.schema

    @classmethod
    def tree_unflatten(cls, schema, children):
        return cls(schema, (), None)

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
        types, typed = classify(list(terms.values()))
        prepared = dict(zip(terms, map(prepare, typed), strict=True))
        return cls(schema, tuple(_Member(s, terms[id(s)], prepared[id(s)]) for s in systems), types)

    @property
    def systems(self) -> tuple[System, ...]:
        """The Systems, in order."""
        return tuple(m.system for m in self._host)

    def __len__(self) -> int:
        return len(self._host)

    @property
    def _host(self) -> tuple[_Member, ...]:
        if not self._members:
            raise InputError("this SystemBatch came through a JAX transformation: use the original one outside jit")
        return self._members

    def select(self, molecules: Sequence[int]) -> SystemBatch:
        """The batch of some molecules, in the given order.

        What it packs is padded to the shapes that any equally many molecules of this batch need with as many conformers
        each as the largest of ``arrays`` has, so that a jitted function compiles once for all minibatches of one size.
        To take minibatches from conformers that are packed already, use ``conformers.select``.
        """
        chosen = _indices(molecules, len(self))
        whole = self if self._whole is None else self._whole
        return SystemBatch(self.schema, tuple(self._host[i] for i in chosen), self._types, whole)

    # --- positions --------------------------------------------------------------------------------------------------

    def pack(
        self,
        arrays: Sequence[Any],
        *,
        check_bonds: bool = True,
        devices: Sequence[jax.Device] | None = None,
        frame: Frame | None = None,
    ) -> Conformers:
        """Conformers of every molecule, ready for the energies.

        Parameters
        ----------
        arrays
            One a molecule: (n_conformers, n_atoms, 3), or (n_atoms, 3) for one, in nm; OpenFF and OpenMM quantities are
            converted. A molecule may have none (0, n_atoms, 3). Rows of virtual sites may follow those of the atoms and
            are ignored; among the rows of the batch every site has one, whose force is zero.
        check_bonds
            Refuse bonds shorter than half or longer than twice their equilibrium length.
        devices
            The devices that share the work; None: all local ones. A process sees the cores of a CPU as one device
            unless it begins with ``jax.config.update("jax_num_cpu_devices", number_of_cores)``.
        frame
            What :meth:`frame` found for the parts of a batch of which this is one.

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
        hosts = [_checked(n, m.system, a, check_bonds) for n, (m, a) in enumerate(zip(self._host, arrays, strict=True))]
        if len(dtypes := {h.dtype for h in hosts}) > 1:
            raise InputError(f"all positions must have one dtype, got {', '.join(sorted(map(str, dtypes)))}")
        counts = np.array([len(h) for h in hosts])
        if not counts.sum():
            raise InputError("there is no conformer at all")
        devices = tuple(jax.local_devices() if devices is None else devices)
        if frame is not None or self._whole is None:
            return self._packed(hosts, frame, devices)
        alike = np.full(len(self._whole), counts.max())
        return self._packed(hosts, self._whole._frame(alike, len(self), None), devices)

    def frame(self, parts: Sequence[Sequence[int]], counts: Sequence[int]) -> Frame:
        """Common sizes for parts of the batch: ``batch.select(part).pack(arrays, frame=frame)`` gives arrays of equal
        shapes for each of ``parts`` (indices of molecules), so that one compiled program serves all.

        ``counts`` (molecule,) are the numbers of conformers of the molecules of the batch.
        """
        counts, prepared = np.asarray(counts), [m.prepared for m in self._host]
        lanes = choose_lanes(counts, np.array([m.load.sum() for m in prepared]))
        # one job a molecule tells what chunks need: balancing takes the product of jobs and chunks
        _, shape = balanced(prepared, split(np.minimum(counts, lanes), lanes), lanes)
        sizes = counts[:, None] * [[1, m.prepared.molecule.n_atoms, m.n_sites] for m in self._host]
        most = np.max([sizes[part].sum(axis=0) for part in map(list, parts)], axis=0)
        n_chunks = 0
        for part in parts:
            jobs = split(counts[list(part)], lanes)
            n_chunks = max(n_chunks, 1 + int(first_fit([prepared[m] for m in part], jobs, shape).max(initial=0)))
        return Frame(shape, n_chunks, *map(int, most))

    def _frame(self, counts: np.ndarray, k: int, shape: Shape | None) -> Frame:
        """Sizes for any k molecules when each has ``counts`` conformers."""
        prepared = [m.prepared for m in self._host]
        if shape is None:
            lanes = choose_lanes(counts, np.array([m.load.sum() for m in prepared]))
            _, shape = balanced(prepared, split(counts, lanes), lanes)
        rows = counts * np.array([m.molecule.n_atoms for m in prepared])
        sites = counts * np.array([m.n_sites for m in self._host])
        n_conformers, n_rows, n_sites = (int(np.sort(n)[::-1][:k].sum()) for n in (counts, rows, sites))
        return Frame(shape, most_chunks(prepared, counts, k, shape), n_conformers, n_rows, n_sites)

    def _packed(self, arrays: list[np.ndarray], frame: Frame | None, devices: tuple[jax.Device, ...]) -> Conformers:
        prepared = [m.prepared for m in self._host]
        counts = np.array([len(a) for a in arrays])
        sizes = np.array([m.molecule.n_atoms for m in prepared])
        if frame is None:
            lanes = choose_lanes(counts, np.array([m.load.sum() for m in prepared]))
            jobs = split(counts, lanes)
            chunk, shape = balanced(prepared, jobs, lanes, len(devices))
            sites = counts * np.array([m.n_sites for m in self._host])
            frame = Frame(shape, int(chunk.max()) + 1, int(counts.sum()), int((counts * sizes).sum()), int(sites.sum()))
        else:
            jobs = split(counts, frame.shape.lanes)
            chunk = first_fit(prepared, jobs, frame.shape)
            needed = (int(chunk.max()) + 1, int(counts.sum()), int((counts * sizes).sum()))
            if any(n > room for n, room in zip(needed, frame[1:4], strict=True)):
                raise InputError(
                    "pack: more molecules or conformers than the frame has room for; make it for these parts"
                )
        devices = devices[: frame.n_chunks]
        frame = frame._replace(n_chunks=-(-frame.n_chunks // len(devices)) * len(devices))
        chunks, atom_start = fill(prepared, jobs, chunk, *frame[:4])
        packed = place_positions(arrays, jobs, chunk, atom_start, frame.shape, frame.n_chunks)
        molecule = np.repeat(np.arange(len(arrays)), counts)
        conformer = np.repeat(np.arange(len(molecule)), sizes[molecule])
        rows = (
            _extended(molecule, frame.n_conformers, len(arrays) - 1),
            np.arange(frame.n_conformers) < len(molecule),
            _extended(conformer, frame.n_rows, frame.n_conformers - 1),
            np.arange(frame.n_rows) < len(conformer),
        )
        everywhere, shared = _placements(devices)
        ways: dict[str, Any] = _placed(
            {"energy_row": chunks.energy_row, "force_row": chunks.force_row}, packed.dtype, everywhere
        )
        rest: dict[str, Any] = dict.fromkeys(ways)
        chunks = _placed(replace(chunks, **rest), packed.dtype, shared)
        chunks = replace(chunks, **ways, mesh=getattr(shared, "mesh", None))
        return Conformers(
            _placed(packed, packed.dtype, shared),
            *_placed(rows, packed.dtype, everywhere),
            self._types_on(everywhere, packed.dtype),
            chunks,
            self._sites(molecule, frame, packed.dtype, everywhere),
            _Source(self, arrays, frame.shape, devices),
        )

    def _sites(self, molecule: np.ndarray, frame: Frame, dtype, place) -> Sites | None:
        if not frame.n_sites:
            return None
        return _placed(Sites.of([m.terms for m in self._host], molecule, frame.n_rows, frame.n_sites), dtype, place)

    def _types_on(self, everywhere, dtype) -> Types:
        """The types on the devices, shared by everything that is packed."""
        home = self if self._whole is None else self._whole
        known = home.__dict__.setdefault("_types_by_place", {})
        if (everywhere, dtype) not in known:
            known[everywhere, dtype] = _placed(self._types, dtype, everywhere)
        return known[everywhere, dtype]

    def unpack(self, values, conformers: Conformers) -> list[np.ndarray]:
        """Flat values as a list with one array a molecule: (n_conf, ...) or (n_conf, n_atoms, 3); outside jit.

        ``values`` are (n_conformers,), or (n_rows, 3) such as forces; padding is dropped.
        """
        values = np.asarray(values)
        counts = np.bincount(np.asarray(conformers.molecule)[np.asarray(conformers.mask)], minlength=len(self))
        sizes = np.array([m.prepared.molecule.n_atoms for m in self._host])
        if values.shape == (conformers.n_conformers,):
            return np.split(values[: counts.sum()], np.cumsum(counts)[:-1])
        if values.shape == (conformers.n_rows, 3):
            rows = counts * sizes
            parts = np.split(values[: rows.sum()], np.cumsum(rows)[:-1])
            return [part.reshape(c, n, 3) for part, c, n in zip(parts, counts, sizes, strict=True)]
        raise InputError(f"expected shape ({conformers.n_conformers},) or ({conformers.n_rows}, 3), got {values.shape}")

    def flatten(self, arrays: Sequence[Any], conformers: Conformers) -> Array:
        """The inverse of :meth:`unpack`: energies or forces, one array a molecule, as flat rows; 0 in padding.

        They lie on the devices that share the conformers, so that a jitted function that takes both as arguments moves
        nothing from one to another: rows of atoms in shares, where these are of equal size.
        """
        counts = np.bincount(np.asarray(conformers.molecule)[np.asarray(conformers.mask)], minlength=len(self))
        sizes = np.array([m.prepared.molecule.n_atoms for m in self._host])
        arrays = [np.asarray(a, dtype=conformers.dtype) for a in arrays]
        shapes = [[(c,) for c in counts], [(c, n, 3) for c, n in zip(counts, sizes, strict=True)]]
        got = [a.shape for a in arrays]
        if got == shapes[0]:
            flat = np.zeros(conformers.n_conformers, conformers.dtype)
            flat[: counts.sum()] = np.concatenate(arrays)
            return conformers.replicate(jnp.asarray(flat))
        if got == shapes[1]:
            flat = np.zeros((conformers.n_rows, 3), conformers.dtype)
            flat[: (counts * sizes).sum()] = np.concatenate([a.reshape(-1, 3) for a in arrays])
            return conformers._shared(flat)
        for n, (a, c, size) in enumerate(zip(got, counts, sizes, strict=False)):
            if a not in ((c,), (c, size, 3)):
                raise InputError(f"{_describe(n, self.systems[n])}: expected shape ({c},) or ({c}, {size}, 3), got {a}")
        raise InputError(f"flatten needs {len(self)} arrays, all of energies or all of forces, got {len(arrays)}")

    # --- energies ---------------------------------------------------------------------------------------------------

    def energies(self, p: ParameterSet, conformers: Conformers) -> Float[Array, " conformer"]:
        """Energy of every conformer, kJ/mol, in the order of ``conformers.molecule``; 0 in padding."""
        return _run(self._theta(p, conformers), conformers, False)[0]

    def energies_and_forces(self, p: ParameterSet, conformers: Conformers):
        """Energies (n_conformers,) in kJ/mol and forces (n_rows, 3) in kJ/mol/nm; 0 in padding."""
        return _run(self._theta(p, conformers), conformers, True)

    def minimize(
        self,
        p: ParameterSet,
        conformers: Conformers,
        *,
        frozen: Bool[Array, " row"] | None = None,
        restraint: Float[Array, " row"] | float = 0.0,
        anchors: Float[Array, "row 3"] | None = None,
        method=None,
        tolerance: float = 1e-2,
        max_steps: int = 5000,
    ) -> Relaxed:
        """The minima that all conformers reach from where they are, side by side in one compiled program.

        Each conformer has its own line search and ends by itself. ``positions`` and ``energies`` are differentiable in
        the parameters (and in ``restraint`` and ``anchors``) once, in forward and reverse mode, by the implicit
        function theorem: see :mod:`offjax.relaxation`. Inside ``jit`` pass the conformers as an argument.

        Parameters
        ----------
        frozen
            (n_rows,) boolean: atoms that stay where they are, exactly.
        restraint
            k of the energy k/2 |x - a|^2 that holds each atom (n_rows,), or all, kJ/mol/nm^2.
        anchors
            a, (n_rows, 3) nm; None: the conformers as they are.
        method
            A Descent of :mod:`offjax.md`; None: L-BFGS that moves no atom farther than 0.02 nm in a step.
        tolerance
            The largest force on an atom at which a conformer is done, kJ/mol/nm.
        max_steps
            Evaluations of the energy after which it stops, unconverged.

        Returns
        -------
        Relaxed
            positions, energies (without restraints), largest_force, steps, converged, in the order of the conformers.
            A conformer that becomes not-a-number is not converged; the others do not notice.

        Raises
        ------
        UnsupportedError
            A System with constraints, which nothing would hold.
        """
        from offjax import relaxation

        for n, member in enumerate(self._members):
            if "Constraints" in member.system.terms and member.system.terms["Constraints"].n_instances:
                raise UnsupportedError(
                    f"{_describe(n, member.system)}: batch.minimize does not hold constraints; give their "
                    "bonds energies with system.without_constraints() (water=True for rigid water)"
                )

        return relaxation.minimize(
            self,
            p,
            conformers,
            frozen=frozen,
            restraint=restraint,
            anchors=anchors,
            method=method,
            tolerance=tolerance,
            max_steps=max_steps,
        )

    def plain(self, conformers: Conformers) -> PlainBatch:
        """The same energies and forces by the plain path; slower, differentiable in every mode and to any order.

        ``plain.energies(p, positions)`` and ``plain.energies_and_forces(p, positions)`` take positions as
        ``conformers.positions``.
        """
        molecule = np.asarray(conformers.molecule)[np.asarray(conformers.mask)]
        terms = flatten([m.terms for m in self._host], molecule)
        return PlainBatch(jax.device_put(terms), self.schema, conformers.n_conformers)

    def _theta(self, p: ParameterSet, conformers: Conformers):
        if not isinstance(conformers, Conformers):
            raise InputError(f"expected what SystemBatch.pack returns, got {type(conformers).__name__}")
        return _vector(p, self.schema, conformers.dtype)

    def __repr__(self) -> str:
        if not self._members:
            return "SystemBatch(traced)"
        atoms = sum(m.prepared.molecule.n_atoms for m in self._members)
        return f"SystemBatch({len(self)} molecules, {atoms} atoms, force field {self.schema.digest[:8]})"


class _Member(NamedTuple):
    system: System
    terms: MoleculeTerms
    prepared: Prepared

    @property
    def n_sites(self) -> int:
        return self.system.n_particles - self.system.topology.n_atoms


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PlainBatch:
    """Energies and forces of a batch's conformers by concatenation and automatic differentiation."""

    terms: PlainTerms
    schema: Schema = field(metadata={"static": True})
    n_conformers: int = field(metadata={"static": True})

    def energies(self, p: ParameterSet, positions: Float[Array, "row 3"]) -> Float[Array, " conformer"]:
        """Energies, kJ/mol."""
        return self.terms.energies(_vector(p, self.schema, positions.dtype), positions, self.n_conformers)

    def energies_and_forces(self, p: ParameterSet, positions: Float[Array, "row 3"]):
        """Energies, kJ/mol, and forces (n_rows, 3), kJ/mol/nm."""
        return self.terms.energies_and_forces(_vector(p, self.schema, positions.dtype), positions, self.n_conformers)

    def charges(
        self, p: ParameterSet, positions: Float[Array, "row 3"]
    ) -> tuple[Float[Array, " row"], Float[Array, "row 3"]]:
        """Charge of every row, e, and where it is: positions with virtual sites in their places."""
        return self.terms.charges(_vector(p, self.schema, positions.dtype), positions)

    def gradients(self, p: ParameterSet, positions, v: Float[Array, "row 3"], columns: Int[Array, " k"]):
        """Gradient of U_c + v . F_c of each conformer in some entries of ``p.to_vector()``: (n_conformers, k)."""

        def along(energies, x):
            u, du = jax.jvp(energies, (x,), (v,))
            return u - du

        return self.rows(p, positions, columns, along)[2]

    def rows(self, p: ParameterSet, positions, columns: Int[Array, " k"], function):
        """(n_conformers,) ``function(energies, positions)``, its gradient (row, 3), and that in some entries of
        ``p.to_vector()``, (n_conformers, k): see :meth:`offjax.batching.plain.PlainTerms.rows`.
        """
        theta = _vector(p, self.schema, positions.dtype)
        return self.terms.rows(theta, positions, self.n_conformers, columns, function)


def _run(theta, conformers: Conformers, forces: bool):
    """Energies, and forces or None: with the compiler options at top level, where alone JAX accepts them."""
    if not any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves((theta, conformers))):
        options = tuple(compiler_options().items())
        with contextlib.suppress(ValueError):  # inside a jitted function that closes over everything
            return _compiled(options)(theta, conformers, forces)
    return _compiled(())(theta, conformers, forces)


@cache
def _compiled(options: tuple[tuple[str, Any], ...]):
    return jax.jit(_energies_and_forces, static_argnums=2, compiler_options=dict(options))


def _energies_and_forces(theta, conformers: Conformers, forces: bool):
    chunks, sites = conformers.chunks, conformers.sites
    terms = evaluate.term_parameters(theta, conformers.types, chunks)
    if sites is None:
        return evaluate.evaluate(terms, conformers.packed, chunks, forces)
    rows, to_atoms = jax.vjp(lambda x: sites.place(theta, x), conformers.positions)
    energies, force = evaluate.evaluate(terms, evaluate.to_lanes(rows, conformers.packed, chunks), chunks, forces)
    return energies, to_atoms(force)[0] if forces else None


def compiler_options() -> dict[str, Any]:
    """What ``jax.jit(..., compiler_options=...)`` should be given for functions of a batch, on this platform.

    On a CPU the older emitters of XLA and wide vectors make these loops run faster. JAX accepts such options only for
    the outermost ``jit``; a SystemBatch called outside ``jit`` uses them by itself.
    """
    if not on_cpu():
        return {}
    # level 3 unrolls loops over 16 conformers into scalar code, before LLVM's vectorizer sees them
    options: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512, "xla_backend_optimization_level": 2}
    if jax.__version_info__ < (0, 11):  # later XLA has the new emitters only, and refuses the option
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def _vector(p: ParameterSet, schema: Schema, dtype):
    """The parameters as one vector of the dtype of the positions."""
    if not isinstance(p, ParameterSet):
        raise InputError(f"the first argument must be a ParameterSet (system.parameters), got {type(p).__name__}")
    if p.schema is not schema:
        raise InputError(
            f"these parameters belong to another force field (digest {p.digest[:12]}, "
            f"this batch has {schema.digest[:12]})"
        )
    return p.to_vector()


def _extended(index: np.ndarray, n: int, value: int) -> np.ndarray:
    """Indices padded to length n."""
    return np.concatenate([index, np.full(n - len(index), value)]).astype(np.int32)


def _placements(devices: tuple[jax.Device, ...]):
    """Where replicated arrays go, and where those with a leading axis of chunks go."""
    if len(devices) == 1:
        default = None if devices[0] == jax.local_devices()[0] else devices[0]
        return default, default
    mesh = jax.sharding.Mesh(np.array(devices), ("chunk",))
    return tuple(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("chunk",)))


def _placed(tree, dtype, place):
    """Host arrays to their devices; floating-point numbers in ``dtype``."""
    return jax.tree.map(
        lambda v: jax.device_put(v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v, place), tree
    )


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


def _host(array) -> np.ndarray:
    """Positions in nm on the host, under the rules of :func:`offjax.energy.as_positions`."""
    if isinstance(array, jax.core.Tracer):
        raise InputError("pack belongs outside jit; inside, use conformers.with_positions(x)")
    if hasattr(array, "value_in_unit"):
        return np.asarray(as_positions(array))
    x = np.asarray(array.m_as("nanometer") if hasattr(array, "m_as") else array)
    if x.dtype not in (np.float32, np.float64) or x.dtype == np.float64 and not jax.config.jax_enable_x64:
        return np.asarray(as_positions(x))
    return x


def _checked(n: int, system: System, array, check_bonds: bool) -> np.ndarray:
    """One molecule's conformers as (n_conf, n_atoms, 3) host array in nm."""
    try:
        x = _host(array)
    except OffjaxError as error:
        raise type(error)(f"{_describe(n, system)}: {error}") from error
    x = x[None] if x.ndim == 2 else x
    n_atoms, n_sites = system.topology.n_atoms, system.n_particles - system.topology.n_atoms
    if n_sites and x.ndim == 3 and x.shape[1:] == (n_atoms, 3):
        x = np.pad(x, ((0, 0), (0, n_sites), (0, 0)))
    if x.ndim != 3 or x.shape[1:] != (n_atoms + n_sites, 3):
        raise InputError(
            f"{_describe(n, system)}: expected positions (n_conformers, {n_atoms}, 3) in nm, got {x.shape}"
        )
    if not np.all(np.isfinite(x)):
        c = int(np.nonzero(~np.all(np.isfinite(x), axis=(1, 2)))[0][0])
        raise InputError(f"{_describe(n, system)}: the positions of conformer {c} are not finite")
    if check_bonds and len(x) and "Bonds" in system.terms and system.terms["Bonds"].n_instances:
        bonds = system.terms["Bonds"]
        columns, weights = (matrix := system.assignment["Bonds"]["length"]).table
        slots = np.sum(weights * system.parameters.to_vector()[columns], axis=1) + matrix.offset
        length = slots[bonds.slot]
        r = np.linalg.norm(x[:, bonds.atoms[:, 1]] - x[:, bonds.atoms[:, 0]], axis=-1)
        bad = (r < BOND_RATIO[0] * length) | (r > BOND_RATIO[1] * length)
        if np.any(bad):
            c, b = (int(v) for v in np.argwhere(bad)[0])
            i, j = bonds.atoms[b]
            raise InputError(
                f"{_describe(n, system)}: in conformer {c} the bond of atoms {i} and {j} is {r[c, b]:.4g} nm long, its "
                f"equilibrium length is {length[b]:.4g} nm: are the coordinates in angstrom? Positions are taken in "
                "nm; check_bonds=False accepts them as they are"
            )
    return x
