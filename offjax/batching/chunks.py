"""Packing: which conformers of which molecules share a chunk, and the index tables of every chunk.

A *job* is one molecule with up to ``lanes`` of its conformers. Jobs are put into chunks of one common shape,
so that a single compiled loop runs over all of them: small enough for the cache, and filled evenly in atoms,
bonds, angles, torsions and pairs at the same time. What is left of a chunk is padded with terms on four dummy
atoms, which no sum of forces or energies refers to; sums of slopes are filled up with a torsion of zero slope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from offjax.batching import solvent, sums
from offjax.batching.half_planes import SIDES
from offjax.batching.kernel import ChunkTables, Kind, kinds
from offjax.batching.types import NO_FORCE, TypedMolecule

LANES = (1, 2, 4, 8, 16)
"""Possible numbers of conformers side by side."""

ATOM_LANES = 2300
"""Atoms x conformers of a chunk: about what keeps the working set of a chunk in a core's cache."""

LANE_OVERHEAD = 4
"""Cost of a term's index arithmetic in units of one lane; decides between few wide and many narrow lanes."""

DUMMIES = np.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [0.3, 0.3, 0.0], [0.3, 0.3, 0.3]])
"""Positions of the dummy atoms, nm: no distance, angle or torsion of theirs is singular."""

_SHIFT = 24


class Job(NamedTuple):
    """A molecule and its conformers start, start + 1, ..., stop - 1."""

    molecule: int
    start: int
    stop: int


class Shape(NamedTuple):
    """The common shape of chunks: lanes, and capacities in atoms (dummies apart), molecules, terms and groups
    of sums; atoms of the largest molecule; most torsions on one half-plane. Tables have more rows, for padding.
    """

    lanes: int
    atoms: int
    jobs: int
    terms: tuple[int, ...]
    force_groups: int
    energy_groups: tuple[int, int]
    force_width: int
    energy_width: int
    slope_width: int
    widest: int


class Prepared(NamedTuple):
    """A molecule with the tables of its sums; rows are coded as (block << 24) + term, ``slopes`` are those of torsions
    by half-plane: codes with their signs (side, angle, width).
    """

    molecule: TypedMolecule
    forces: sums.Groups
    energies: tuple[sums.Groups, sums.Groups]
    slopes: tuple[np.ndarray, np.ndarray]
    load: np.ndarray
    widths: tuple[int, int, int]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Chunks:
    """All chunks: ``tables`` and ``types`` of their terms, and the way between the flat rows and the lanes.

    ``energy_row`` (n_conformers,) and ``force_row`` (n_rows,) are places in (chunk, job, lane) and (chunk,
    atom, lane); ``conformer_of`` and ``row_of`` the inverse, with n_conformers and n_rows where a lane is
    padding. ``mesh`` are the devices that share the chunks, None for one.
    """

    tables: ChunkTables
    types: dict[str, Int[Array, "chunk n"]]
    coulomb_scale: Float[Array, "chunk pair"]
    charge_type: Int[Array, "chunk atom"]
    charge_offset: Float[Array, "chunk atom"]
    energy_row: Int[Array, " conformer"]
    force_row: Int[Array, " row"]
    conformer_of: Int[Array, "chunk job lane"]
    row_of: Int[Array, "chunk atom lane"]
    mesh: Mesh | None = field(default=None, metadata={"static": True})


def prepare(molecule: TypedMolecule) -> Prepared:
    """The sums of one molecule: its force rows by atom, its energies over all terms."""
    rows, sign, target = [], [], []
    every = kinds(molecule.user)
    for block, (name, vector) in enumerate(_force_rows(every)):
        atoms = molecule.terms[name].atoms
        code = (block << _SHIFT) + np.arange(len(atoms))
        for end, s in zip(every[name].vectors[vector], (-1, 1), strict=True):
            rows.append(code)
            sign.append(np.full(len(code), s))
            target.append(atoms[:, end])
    forces = sums.group(*map(np.concatenate, (rows, sign, target)))
    counts = [len(molecule.terms[name].type) for name in every]
    codes = np.concatenate([(block << _SHIFT) + np.arange(n) for block, n in enumerate(counts)])
    first = _plain_groups(codes)
    second = _plain_groups(np.arange(len(first.rows)))
    slopes = _slopes(molecule)
    load = np.array([molecule.n_atoms, 1, *counts, len(forces.rows), len(first.rows), len(second.rows)])
    widths = (_most(forces.target), len(second.rows), slopes[0].shape[2])
    return Prepared(molecule, forces, (first, second), slopes, load, widths)


def _torsions(every: Mapping[str, Kind]) -> list[str]:
    """The kinds between half-planes."""
    return [name for name, kind in every.items() if not kind.vectors]


def _slopes(molecule: TypedMolecule) -> tuple[np.ndarray, np.ndarray]:
    """The torsions of each half-plane (side, angle, width), coded, and how the torsion angle turns with it."""
    names, n_angles = _torsions(kinds(molecule.user)), len(molecule.terms["angles"].type)
    codes, targets, signs = [], [], []
    for block, name in enumerate(names):
        planes = molecule.terms[name].planes
        codes.append(np.repeat((block << _SHIFT) + np.arange(len(planes.angle)), 2))
        targets.append((planes.side * n_angles + planes.angle).reshape(-1))
        signs.append((planes.sign * [1, -1]).reshape(-1))
    code, target, sign = map(np.concatenate, (codes, targets, signs))
    order = np.argsort(target, kind="stable")
    shape = (SIDES, n_angles, _most(target))
    table = sums.table(order, target[order], SIDES * n_angles, shape[2])
    there = table >= 0
    return np.where(there, code[table], -1).reshape(shape), np.where(there, sign[table], 0).reshape(shape)


def _force_rows(every: Mapping[str, Kind]) -> list[tuple[str, int]]:
    """(kind, difference vector) of every block of force rows."""
    return [(name, vector) for name, kind in every.items() for vector in range(len(kind.vectors))]


def _plain_groups(codes: np.ndarray) -> sums.Groups:
    return sums.group(codes, np.ones(len(codes), int), np.zeros(len(codes), int))


def _most(target: np.ndarray) -> int:
    return int(np.bincount(target).max(initial=0)) if len(target) else 0


# --- shapes ---------------------------------------------------------------------------------------------------------


def choose_lanes(counts: np.ndarray, weight: np.ndarray) -> int:
    """How many conformers stand side by side: the number that wastes least, given those of each molecule."""
    cost = [np.sum(-(-counts // lanes) * weight) * (lanes + LANE_OVERHEAD) for lanes in LANES]
    return LANES[int(np.argmin(cost))]


def split(counts: np.ndarray, lanes: int) -> list[Job]:
    """Jobs of at most ``lanes`` conformers of one molecule, in order."""
    return [
        Job(m, start, min(start + lanes, n)) for m, n in enumerate(map(int, counts)) for start in range(0, n, lanes)
    ]


def balanced(
    molecules: Sequence[Prepared], jobs: Sequence[Job], lanes: int, n_devices: int = 1
) -> tuple[np.ndarray, Shape]:
    """A chunk for each job so that all chunks are full alike, and the shape they need; as many for each device.

    Largest jobs first, each to the chunk whose fullest resource stays lowest.
    """
    loads = np.stack([molecules[j.molecule].load for j in jobs])
    total = loads.sum(axis=0)
    n_chunks = min(len(jobs), n_devices * max(1, round(total[0] * lanes / ATOM_LANES / n_devices)))
    aim = np.maximum(total / n_chunks, 1)
    relative = loads / aim
    filled = np.zeros((n_chunks, loads.shape[1]))
    chunk = np.empty(len(jobs), dtype=int)
    for job in np.argsort(-relative.sum(axis=1), kind="stable"):
        chunk[job] = chosen = np.argmin((filled + relative[job]).max(axis=1))
        filled[chosen] += relative[job]
    used = np.zeros((n_chunks, loads.shape[1]), dtype=int)
    np.add.at(used, chunk, loads)
    return chunk, _shape(used.max(axis=0), lanes, molecules)


def first_fit(molecules: Sequence[Prepared], jobs: Sequence[Job], shape: Shape) -> np.ndarray:
    """A chunk for each job, largest first, each into the first chunk that has room."""
    capacity = _capacity(shape)
    loads = np.stack([molecules[j.molecule].load for j in jobs])
    filled = np.zeros((0, loads.shape[1]), dtype=int)
    chunk = np.empty(len(jobs), dtype=int)
    for job in np.argsort(-(loads / capacity).max(axis=1), kind="stable"):
        fits = np.nonzero(np.all(filled + loads[job] <= capacity, axis=1))[0]
        if not len(fits):
            fits = [len(filled)]
            filled = np.concatenate([filled, np.zeros((1, loads.shape[1]), dtype=int)])
        chunk[job] = fits[0]
        filled[fits[0]] += loads[job]
    return chunk


def most_chunks(molecules: Sequence[Prepared], counts: np.ndarray, k: int, shape: Shape) -> int:
    """How many chunks :func:`first_fit` can need for any k of the molecules.

    With no job larger than a <= 1/2 of a chunk, every chunk but the last is fuller than 1 - a before another
    is opened.
    """
    size = np.array([(m.load / _capacity(shape)).max() for m in molecules])
    jobs = -(-counts // shape.lanes)
    worst = np.sort(size * jobs)[::-1][:k].sum()
    largest = min(size[jobs > 0].max(initial=0.0), 0.5)
    return int(np.floor(worst / (1 - largest) + 1e-9)) + 1


def _shape(used: np.ndarray, lanes: int, molecules: Sequence[Prepared]) -> Shape:
    atoms, jobs, *rest = (max(int(n), 1) for n in used)
    n = len(kinds(molecules[0].molecule.user))
    widths = [max(max(m.widths[i] for m in molecules), 1) for i in range(3)]
    widths.append(max(m.molecule.n_atoms for m in molecules))
    return Shape(lanes, atoms, jobs, tuple(rest[:n]), rest[n], (rest[n + 1], rest[n + 2]), *widths)


def _capacity(shape: Shape) -> np.ndarray:
    return np.array([shape.atoms, shape.jobs, *shape.terms, shape.force_groups, *shape.energy_groups])


# --- tables ---------------------------------------------------------------------------------------------------------


def fill(
    molecules: Sequence[Prepared],
    jobs: Sequence[Job],
    chunk: np.ndarray,
    shape: Shape,
    n_chunks: int,
    n_conformers: int,
    n_rows: int,
) -> tuple[Chunks, np.ndarray]:
    """Tables of all chunks, and ``atom_start`` (n_jobs,): the first atom of each job in its chunk.

    ``n_conformers`` and ``n_rows`` are the flat sizes, at least as large as the jobs need.
    """
    order = np.lexsort((np.arange(len(jobs)), chunk))
    loads = np.stack([molecules[j.molecule].load for j in jobs])
    start = np.zeros_like(loads)
    running = np.cumsum(loads[order], axis=0) - loads[order]
    first = np.searchsorted(chunk[order], chunk[order])
    start[order] = running - running[first]
    used = [molecules[j.molecule] for j in jobs]
    place = _Placement(chunk, start, n_chunks)

    user, implicit = used[0].molecule.user, used[0].molecule.gbsa
    every = kinds(user)
    atoms, planes, sign, job_of, types = {}, {}, {}, {}, {}
    first_angle, n_angles = start[:, 2 + list(every).index("angles")], _rows_of(shape, every)["angles"]
    for column, (name, n) in enumerate(_rows_of(shape, every).items(), start=2):
        local = [u.molecule.terms[name] for u in used]
        if every[name].vectors:
            body = local[0].atoms.shape[1]
            table = np.broadcast_to(shape.atoms + np.arange(body), (n_chunks, n, body)).copy()
            if name == "angles":
                table[:, -1] += 1  # dummies 1-2-3 after 0-1-2: the torsion between them is not singular
            place.put(table, column, [t.atoms for t in local], shift=start[:, 0])
            atoms[name] = np.moveaxis(table, 2, 1).astype(np.int32)
        else:
            table = np.broadcast_to([n_angles - 2, 2 * n_angles - 1], (n_chunks, n, 2)).copy()
            place.put(table, column, [t.planes.angle + n_angles * t.planes.side for t in local], shift=first_angle)
            planes[name] = np.moveaxis(table, 2, 1).astype(np.int32)
            signs = np.ones((n_chunks, n, 2))
            place.put(signs, column, [t.planes.sign for t in local])
            sign[name] = np.moveaxis(signs, 2, 1)
        owner = np.full((n_chunks, n), shape.jobs)
        place.put(owner, column, [np.zeros(len(t.type), int) for t in local], shift=start[:, 1])
        job_of[name] = owner.astype(np.int32)
        type_of = np.full((n_chunks, n), NO_FORCE)
        place.put(type_of, column, [t.type for t in local])
        types[name] = type_of.astype(np.int32)
    scale = np.zeros((n_chunks, _rows_of(shape, every)["pairs"]))
    place.put(scale, 1 + len(every), [u.molecule.coulomb_scale for u in used])
    charge_type = np.zeros((n_chunks, shape.atoms + len(DUMMIES)))
    place.put(charge_type, 0, [u.molecule.charge_type for u in used])
    charge_offset = np.zeros((n_chunks, shape.atoms + len(DUMMIES)))
    place.put(charge_offset, 0, [u.molecule.charge_offset for u in used])

    members = np.full((n_chunks, shape.jobs + 1, 0 if implicit is None else shape.widest), -1, np.int32)
    if implicit is not None:
        sizes = np.array([u.molecule.n_atoms for u in used])
        members[chunk, start[:, 1]] = solvent.members(sizes, start[:, 0], shape.widest)
        type_of = np.zeros(charge_type.shape)
        place.put(type_of, 0, [u.molecule.gbsa_type for u in used])
        types["gbsa"] = type_of.astype(np.int32)

    owner = np.full((n_chunks, shape.atoms + len(DUMMIES)), shape.jobs)
    place.put(owner, 0, [np.zeros(u.molecule.n_atoms, int) for u in used], shift=start[:, 1])
    tables = ChunkTables(
        atoms,
        planes,
        sign,
        job_of,
        owner.astype(np.int32),
        *_slope_sums(used, place, shape),
        *_force_sums(used, place, shape),
        _energy_sums(used, place, shape),
        np.bincount(chunk, minlength=n_chunks) > 0,
        members,
        user,
        implicit,
    )
    ways = _ways(jobs, used, place, shape, n_conformers, n_rows)
    return Chunks(tables, types, scale, charge_type.astype(np.int32), charge_offset, *ways), start[:, 0]


class _Placement(NamedTuple):
    """Where each job's entries go: its chunk, and its start in each resource (columns as in ``Prepared.load``)."""

    chunk: np.ndarray
    start: np.ndarray
    n_chunks: int

    def put(self, table, column: int, parts: Sequence[np.ndarray], shift=None) -> None:
        """table[chunk, start + i] = parts[job][i] (+ shift[job])."""
        counts = np.array([len(p) for p in parts])
        jobs = np.repeat(np.arange(len(parts)), counts)
        if not len(jobs):
            return
        within = np.arange(len(jobs)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = np.concatenate(parts)
        if shift is not None:
            values = values + shift[jobs].reshape(-1, *[1] * (values.ndim - 1))
        table[self.chunk[jobs], self.start[jobs, column] + within] = values

    def decode(self, parts: Sequence[np.ndarray], first_column: list[int], base: list[int], zero: int):
        """Coded rows of every job as rows of the chunk's buffer; -1 becomes the row of zeros."""
        columns, offsets = np.array(first_column), np.array(base)
        decoded = []
        for job, codes in enumerate(parts):
            block, local = codes >> _SHIFT, codes & ((1 << _SHIFT) - 1)
            row = offsets[block] + self.start[job, columns[block]] + local
            decoded.append(np.where(codes < 0, zero, row))
        return decoded


def _rows_of(shape: Shape, every: Mapping[str, Kind]) -> dict[str, int]:
    """Rows of each kind of terms, the last of them padding; of angles the last two: torsions of padding lie between."""
    return {name: capacity + 1 + (name == "angles") for name, capacity in zip(every, shape.terms, strict=True)}


def _slope_sums(used, place: _Placement, shape: Shape):
    """The sums of the torsions' slopes by half-plane, and the signs."""
    every = kinds(used[0].molecule.user)
    rows, names = _rows_of(shape, every), _torsions(every)
    sizes, columns = [rows[name] for name in names], [2 + list(every).index(name) for name in names]
    column = 2 + list(every).index("angles")
    zero = sum(sizes) - 1  # the padding of "torsions", which come after the user's, has no force
    table = np.full((place.n_chunks, SIDES, rows["angles"], shape.slope_width), zero)
    sign = np.zeros(table.shape)
    for side in range(SIDES):
        codes = [_widened(u.slopes[0][side], shape.slope_width, -1) for u in used]
        base = list(np.cumsum([0, *sizes[:-1]]))
        place.put(table[:, side], column, place.decode(codes, columns, base, zero))
        place.put(sign[:, side], column, [_widened(u.slopes[1][side], shape.slope_width, 0) for u in used])
    flat = (place.n_chunks, SIDES * rows["angles"], shape.slope_width)
    return table.reshape(flat).astype(np.int32), sign.reshape(flat)


def _widened(table: np.ndarray, width: int, value: int) -> np.ndarray:
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=value)


def _force_sums(used, place: _Placement, shape: Shape):
    every = kinds(used[0].molecule.user)
    names, rows = list(every), _rows_of(shape, every)
    sizes = [rows[name] for name, _ in _force_rows(every)]
    base = list(np.cumsum([0, *sizes[:-1]]))
    columns = [2 + names.index(name) for name, _ in _force_rows(every)]
    column = 2 + len(names)
    zero = sum(sizes)
    groups = np.full((place.n_chunks, shape.force_groups + 1, sums.WIDTH), zero)
    place.put(groups, column, place.decode([u.forces.rows for u in used], columns, base, zero))
    sign = np.ones((place.n_chunks, shape.force_groups + 1))
    place.put(sign, column, [u.forces.sign for u in used])
    totals = np.full((place.n_chunks, shape.atoms + len(DUMMIES), shape.force_width), -1)
    local = [
        sums.table(np.arange(len(u.forces.target)), u.forces.target, u.molecule.n_atoms, shape.force_width)
        for u in used
    ]
    shifted = [np.where(t < 0, -1, t + s) for t, s in zip(local, place.start[:, column], strict=True)]
    place.put(totals, 0, shifted)
    totals[totals < 0] = shape.force_groups
    return groups.astype(np.int32), sign, totals.astype(np.int32)


def _energy_sums(used, place: _Placement, shape: Shape):
    sizes = list(_rows_of(shape, kinds(used[0].molecule.user)).values())
    n, zero, base = len(sizes), sum(sizes), list(np.cumsum([0, *sizes[:-1]]))
    first = np.full((place.n_chunks, shape.energy_groups[0] + 1, sums.WIDTH), zero)
    place.put(first, n + 3, place.decode([u.energies[0].rows for u in used], list(range(2, 2 + n)), base, zero))
    second = np.full((place.n_chunks, shape.energy_groups[1] + 1, sums.WIDTH), shape.energy_groups[0])
    rows = place.decode([u.energies[1].rows for u in used], [n + 3], [0], shape.energy_groups[0])
    place.put(second, n + 4, rows)
    last = np.full((place.n_chunks, shape.jobs + 1, shape.energy_width), shape.energy_groups[1])
    for job, u in enumerate(used):
        count, begin = len(u.energies[1].rows), place.start[job, n + 4]
        last[place.chunk[job], place.start[job, 1], :count] = begin + np.arange(count)
    return tuple(t.astype(np.int32) for t in (first, second, last))


def _ways(jobs, used, place: _Placement, shape: Shape, n_conformers: int, n_rows: int):
    """The flat rows of energies and forces in the chunks, and back."""
    slots, atoms = shape.jobs + 1, shape.atoms + len(DUMMIES)
    conformer_of = np.full((place.n_chunks, slots, shape.lanes), n_conformers)
    row_of = np.full((place.n_chunks, atoms, shape.lanes), n_rows)
    conformer = row = 0
    for job, ((_, start, stop), u) in enumerate(zip(jobs, used, strict=True)):
        n, size, c = stop - start, u.molecule.n_atoms, place.chunk[job]
        conformer_of[c, place.start[job, 1], :n] = conformer + np.arange(n)
        first = place.start[job, 0]
        row_of[c, first : first + size, :n] = row + np.arange(n) * size + np.arange(size)[:, None]
        conformer, row = conformer + n, row + n * size
    energy_row = np.full(n_conformers + 1, shape.jobs * shape.lanes)
    energy_row[conformer_of.reshape(-1)] = np.arange(conformer_of.size)
    energy_row[conformer:] = shape.jobs * shape.lanes
    force_row = np.full(n_rows + 1, shape.atoms * shape.lanes)
    force_row[row_of.reshape(-1)] = np.arange(row_of.size)
    force_row[row:] = shape.atoms * shape.lanes
    return tuple(a.astype(np.int32) for a in (energy_row[:-1], force_row[:-1], conformer_of, row_of))


def place_positions(arrays, jobs, chunk, atom_start, shape: Shape, n_chunks: int) -> np.ndarray:
    """Positions as (chunk, atom, 3 lanes); lanes without conformer repeat the last one of the job."""
    dtype = arrays[0].dtype
    x = np.zeros((n_chunks, shape.atoms + len(DUMMIES), 3, shape.lanes), dtype)
    x[:, shape.atoms :] = DUMMIES[:, :, None]
    for (molecule, start, stop), c, first in zip(jobs, chunk, atom_start, strict=True):
        lanes = np.minimum(np.arange(start, start + shape.lanes), stop - 1)
        part = arrays[molecule][lanes]
        x[c, first : first + part.shape[1]] = part.transpose(1, 2, 0)
    return x.reshape(*x.shape[:2], -1)
