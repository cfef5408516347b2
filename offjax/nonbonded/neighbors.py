"""Neighbour lists: blocks of eight atoms with the atoms near them, built and kept current inside ``jit``.

Atoms are wrapped into the cell and split by a k-d tree into *blocks* of eight; four consecutive blocks are a *part*,
four parts a *group*. Bounding boxes of groups, of the parts and blocks of near ones, then the atoms themselves are
tested against ``cutoff + skin``. What remains is a full list (i in j's and j in i's) of atoms near any of the eight, in
rows of 128 entries; one byte an entry marks the lanes (atoms of the block) that the entry does not interact with:
excluded atoms, the atom itself, padding. An entry names the periodic image that it means, so that boxes little larger
than twice the cutoff and triclinic boxes take no other path. Points of a plane or a line are points of space with
z = 0, y = 0, in a box of sufficient height. In more than three dimensions blocks are cut in the first three; in the
others the nearest image of each neighbour counts, and boxes are orthorhombic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offjax.devices import mapped, matmul
from offjax.errors import InputError, NeighborListError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8


LANES = 8
"""Atoms in a block."""

ROW = 128
"""Entries in a row."""

CHUNK = 64
"""Rows that are worked on together, and the quantum of rows: their arrays stay in the cache."""

SPLIT = 4
"""Blocks in a part, and parts in a group."""

_TOGETHER = 2048
"""Boxes whose neighbours are looked for at once, on a GPU."""

TOLERANCE = 1e-5
"""Lists reach this (relative) farther than they must, so that rounding never decides."""

_BITS = 2**26
"""An entry is ``slot + _BITS * image``: 27 images, 67 million atoms."""

_COORDINATE_BITS = 20
"""Resolution of coordinates in the sort keys of the tree."""

IMAGES = np.array(sorted(itertools.product((-1, 0, 1), repeat=3), key=lambda n: n != (0, 0, 0)), np.int8)
"""Cell offsets by image number; number 0 is the cell itself."""


class Capacity(NamedTuple):
    """Static sizes: groups, parts and blocks near one of their kind, rows of one block, rows of the list."""

    groups: int
    parts: int
    blocks: int
    block_rows: int
    rows: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NeighborList:
    """The neighbours of every atom within ``cutoff + skin`` of ``positions`` in ``box``; made by :func:`neighbor_list`.

    Arrays are leaves, ``cutoff``, ``skin`` (nm, or the unit of the positions) and ``capacity`` are static. Slot
    8 b + l is lane l of block b; ``order`` gives its atom, or n_atoms in the last block's padding. ``entries`` hold the
    slot (:func:`slots`) and image (:func:`images`) of a neighbour of block ``block``.
    """

    order: Int[Array, " slot"]
    entries: Int[Array, "row 128"]
    mask: UInt8[Array, "row 128"]
    block: Int[Array, " row"]
    n_rows: Int[Array, ""]
    positions: Float[Array, "atom dimension"]
    box: Float[Array, "dimension dimension"] | None
    exclusions: Int[Array, "atom excluded"]
    overflow: Bool[Array, ""]
    cutoff: float = field(metadata={"static": True})
    skin: float = field(metadata={"static": True})
    capacity: Capacity = field(metadata={"static": True})

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.exclusions.shape[-2]

    def update(self, positions, box=None, *, rebuild: bool = False) -> NeighborList:
        """The list for new positions and box: itself while it is valid, else (or if ``rebuild``) built anew.

        Never raises inside ``jit``: if the capacity does not suffice, or a position is not finite, ``overflow`` of the
        result is True, and energies that use it are NaN. Under ``vmap`` the lists of a batch are rebuilt together.
        """
        x, h = jax.lax.stop_gradient(_arguments(self, positions, box))
        return _build(self, x, h) if rebuild else _update(self, x, h)

    def stale(self, positions, box=None) -> Bool[Array, ""]:
        """Whether a pair within the cutoff may be missing at these positions in this box.

        With the largest displacement u from the reference (an affine change with the box does not count) and the
        change of the box F, a pair within the cutoff was within |F^-1| (cutoff + 2 u) of each other when the list was
        built. NaN positions make every list stale.
        """
        return _stale(self, *jax.lax.stop_gradient(_arguments(self, positions, box)))

    def excludes(self, pairs: Int[Array, "pair 2"]) -> Bool[Array, ""]:
        """Whether exactly these pairs, each given once, are left out."""
        there = jnp.any(self.exclusions.at[pairs[:, 0]].get() == pairs[:, 1:], axis=1)
        return jnp.all(there) & (jnp.sum(self.exclusions < self.n_atoms) == self.n_atoms + 2 * len(pairs))

    def unusable(self, positions, box=None) -> Bool[Array, ""]:
        """Whether energies at these positions are NaN: the list has overflowed, or is stale."""
        return self.overflow | self.stale(positions, box)

    def refuse(self, unusable) -> None:
        """Raises NeighborListError if ``unusable`` is known (outside ``jit``) and True."""
        if isinstance(unusable, jax.core.Tracer) or not np.any(unusable):
            return
        if np.any(self.overflow):
            raise NeighborListError(
                "the neighbour list has overflowed (too many neighbours, a box too small, or positions that are not "
                "finite): make one of sufficient capacity with neighbors.reallocated(positions, box)"
            )
        raise NeighborListError(
            "the neighbour list is out of date (or a position is NaN): use neighbors.update(positions, box)"
        )

    def unwrapped(self, positions, box=None):
        """The images of the atoms that the entries refer to, next to the wrapped reference positions; and the box.

        Differentiable in positions and box, at fixed images.
        """
        x, h = _arguments(self, positions, box)
        if jnp.result_type(positions) != x.dtype:
            raise InputError(f"positions must be {x.dtype} as in the list, got {jnp.result_type(positions)}")
        if h is None:
            return x, h
        difference = jax.lax.stop_gradient(x - _reference(self, h))
        images = jnp.round(_times(difference, jnp.linalg.inv(jax.lax.stop_gradient(h))))
        return x - _times(images, h), h

    def reallocated(self, positions, box=None, *, headroom: float = 1.25) -> NeighborList:
        """A list of sufficient capacity for these positions; outside ``jit`` only. See :func:`neighbor_list`."""
        x, h = _arguments(self, positions, box)
        if h is not None:
            check_box(np.asarray(h), self.cutoff, self.skin)
        return _allocate(x, h, self.exclusions, self.cutoff, self.skin, headroom)


def neighbor_list(
    positions,
    box=None,
    *,
    cutoff: float,
    skin: float,
    exclusions=None,
    headroom: float = 1.25,
    capacity: Capacity | None = None,
) -> NeighborList:
    """A new list, outside ``jit``: its capacity comes from what these positions need times ``headroom``.

    Parameters
    ----------
    positions
        (n_atoms, dimension), in any number of dimensions. Atoms outside the box are wrapped (in the list, not in the
        caller's array).
    box
        None for open boundaries, the edge of a cube (square, line), (dimension,) edge lengths, or (dimension,
        dimension) rows in reduced form (lower triangular; in more than three dimensions, diagonal).
    cutoff, skin
        In the unit of the positions. Smaller skins make shorter lists and more rebuilds.
    exclusions
        (n, 2) pairs of atoms left out: excluded pairs and 1-4 exceptions alike.
    capacity
        Static sizes of another list, to share its compiled programs; overflow is an error.

    Raises
    ------
    InputError
        Wrong shapes, a box too small for the cutoff.
    NeighborListError
        Positions that are not finite, or too many neighbours for ``capacity``.
    """
    x = jnp.asarray(positions)
    if x.ndim != 2 or x.shape[1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"a neighbour list needs floating-point positions (n_atoms, dimension), got {x.dtype} {x.shape}"
        )
    dimension = x.shape[1]
    x = _in_space(x)
    if not (cutoff > 0 and skin >= 0):
        raise InputError(f"cutoff must be positive and skin not negative, got {cutoff} and {skin}")
    if not headroom >= 1:
        raise InputError(f"headroom must be at least 1, got {headroom}")
    if capacity is not None and not (isinstance(capacity, Capacity) and min(capacity) > 0):
        raise InputError(f"capacity must be that of another list, neighbors.capacity, got {capacity!r}")
    if capacity is not None and capacity.rows % CHUNK:
        raise InputError(f"the rows of a capacity are a multiple of {CHUNK}, got {capacity.rows}")
    excluded = jnp.asarray(exclusion_table(len(x), exclusions))
    h = as_box(box, x.dtype, dimension, cutoff, skin)
    if h is not None:
        check_box(np.asarray(h), cutoff, skin)
    if capacity is None:
        return _allocate(x, h, excluded, float(cutoff), float(skin), headroom)
    result = _build(_empty(x, h, excluded, float(cutoff), float(skin), capacity), x, h)
    return _checked(result, x)


def _in_space(x):
    """Points of a plane or a line as points of space; others as they are."""
    return jnp.pad(x, ((0, 0), (0, 3 - x.shape[1]))) if x.ndim == 2 and x.shape[1] in (1, 2) else x


def as_box(box, dtype, dimension, cutoff, skin):
    """A box as rows, or None; in one or two dimensions with further edges so long that no image is near."""
    if box is None:
        return None
    h = jnp.asarray(box, dtype)
    if h.ndim == 0:
        h = jnp.full(dimension, h)
    if h.ndim == 1:
        h = jnp.diag(h)
    if h.shape == (dimension, dimension) and dimension < 3:
        height = jnp.full(3, 2.0 * (cutoff + skin), dtype).at[:dimension].set(0.0)
        h = jnp.pad(h, ((0, 3 - dimension),) * 2) + jnp.diag(height)
    if h.shape != (max(dimension, 3),) * 2:
        raise InputError(
            f"the box of {dimension}-dimensional positions must be a number, or have shape ({dimension},) or "
            f"({dimension}, {dimension}), got {jnp.shape(box)}"
        )
    return h


def check_box(box: np.ndarray, cutoff: float, skin: float) -> None:
    """Raises InputError unless the box is in reduced form and large enough."""
    if np.any(np.triu(box, 1) != 0) or np.any(np.diag(box) <= 0):
        raise InputError(f"the box must be in reduced form: lower triangular with a positive diagonal, got\n{box}")
    if len(box) > 3 and np.any(np.tril(box, -1) != 0):
        raise InputError(f"the box of a list in more than three dimensions must be orthorhombic, got\n{box}")
    if not np.all(2 * cutoff <= np.diag(box) * (1 + TOLERANCE)):
        raise InputError(f"the cutoff {cutoff} is more than half of the smallest box edge {np.min(np.diag(box))}")
    if not cutoff + skin <= np.min(_heights(box)):
        raise InputError(
            f"cutoff + skin = {cutoff + skin} exceeds the smallest height of the box, {np.min(_heights(box)):g}: "
            "use a smaller skin"
        )


def exclusion_table(n_atoms: int, pairs) -> np.ndarray:
    """(n_atoms, width) partners of each atom, itself among them, padded with n_atoms, from (n, 2) pairs."""
    pairs = np.zeros((0, 2), np.int64) if pairs is None else np.asarray(pairs, np.int64).reshape(-1, 2)
    if pairs.size and not (0 <= pairs.min() and pairs.max() < n_atoms):
        raise InputError(f"exclusions name atoms outside 0 to {n_atoms - 1}")
    own = np.arange(n_atoms)
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1], np.stack([own, own], 1)]), axis=0)
    counts = np.bincount(both[:, 0], minlength=n_atoms)
    table = np.full((n_atoms, counts.max(initial=1)), n_atoms, np.int32)
    table[both[:, 0], np.arange(len(both)) - np.repeat(np.cumsum(counts) - counts, counts)] = both[:, 1]
    return table


def slots(entries):
    """The slot of each entry."""
    return entries & (_BITS - 1)


def image_numbers(entries):
    """The image of each entry, an index into IMAGES."""
    return entries >> 26


def image_offsets(box):
    """The offset (27, dimension) of each image, by number."""
    return matmul(jnp.asarray(IMAGES, box.dtype), box[:3])


def shifts(entries, box):
    """The offset of each entry's image, an array for each dimension."""
    image, table = image_numbers(entries), image_offsets(box)
    return tuple(table[:, k].at[image].get(mode="promise_in_bounds") for k in range(len(box)))


def nearest_further(difference: list, box) -> list:
    """The components of differences, moved to the nearest image along the fourth and further rows of the box."""
    for k in range(3, len(difference) if box is not None else 0):
        whole = jnp.round(difference[k] / box[k, k])
        difference = [d - whole * box[k, c] for c, d in enumerate(difference)]
    return difference


# --- keeping a list current ---------------------------------------------------------------------------------------


def _arguments(neighbors, positions, box):
    x = _in_space(jnp.asarray(positions))
    if x.dtype == jnp.float64:
        x = x.astype(neighbors.positions.dtype)  # a list is of the positions, rounded as those of the energy are
    if x.shape != neighbors.positions.shape:
        raise InputError(f"positions must have shape {neighbors.positions.shape} as in the list, got {x.shape}")
    if x.dtype != neighbors.positions.dtype:
        raise InputError(f"positions must be {neighbors.positions.dtype} as in the list, got {x.dtype}")
    if (box is None) != (neighbors.box is None):
        raise InputError("a list made with a box needs a box, and one made without takes none")
    return x, as_box(box, x.dtype, jnp.shape(positions)[1], neighbors.cutoff, neighbors.skin)


def _reference(neighbors, h):
    """The reference positions, which follow the box."""
    return _times(neighbors.positions, matmul(jnp.linalg.inv(neighbors.box), jax.lax.stop_gradient(h)))


def _times(rows, matrix):
    """rows @ matrix, few columns, written out: one loop with what stands around it, and no call of a library."""
    return sum(rows[:, k : k + 1] * matrix[k] for k in range(len(matrix)))


@jax.jit
def _stale(neighbors, x, h):
    displacement = x - neighbors.positions
    grown = 1.0
    if h is not None:
        displacement = x - _reference(neighbors, h)
        displacement -= _times(jnp.round(_times(displacement, jnp.linalg.inv(h))), h)
        change = matmul(jnp.linalg.inv(h), neighbors.box) - jnp.eye(len(h), dtype=h.dtype)
        grown = 1.0 + jnp.sqrt(jnp.sum(change**2))
    moved = jnp.sqrt(jnp.max(jnp.sum(displacement**2, axis=1), initial=0.0))
    reach = (neighbors.cutoff + neighbors.skin) * (1.0 + 0.5 * TOLERANCE)
    return ~(grown * (neighbors.cutoff + 2.0 * moved) <= reach)


@jax.custom_batching.custom_vmap
def _updated(neighbors, x, h):
    return jax.lax.cond(neighbors.stale(x, h), _build, lambda old, x, h: old, neighbors, x, h)


@_updated.def_vmap
def _updated_batch(size, mapped, neighbors, x, h):
    """One decision for the batch: under a plain vmap, cond would rebuild at every step."""
    neighbors, x, h = jax.tree.map(
        lambda v, m: v if m else jnp.broadcast_to(v, (size, *v.shape)), (neighbors, x, h), tuple(mapped)
    )
    stale = jax.vmap(lambda n, x, h: n.stale(x, h))(neighbors, x, h)

    def rebuild(old, x, h):
        new = jax.vmap(_build)(old, x, h)
        return jax.tree.map(lambda a, b: jnp.where(stale.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)

    result = jax.lax.cond(jnp.any(stale), rebuild, lambda old, x, h: old, neighbors, x, h)
    return result, jax.tree.map(lambda _: True, result)


_update = jax.jit(_updated)


# --- building -------------------------------------------------------------------------------------------------------


@jax.jit
def _build(old: NeighborList, x, h) -> NeighborList:
    """The list at ``x`` in ``h``, in the arrays' shapes of ``old``."""
    tree = _tree(x, h)
    reach = (old.cutoff + old.skin) * (1.0 + TOLERANCE)
    size = old.capacity
    near, levels = _near_blocks(tree, h, reach, size)
    atoms, counts = _near_atoms(tree, near, h, reach, size.block_rows * ROW)
    rows = -(-counts // ROW)
    ends = jnp.cumsum(rows)
    row = jnp.arange(size.rows, dtype=jnp.int32)
    block = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(counts) - 1).astype(jnp.int32)
    k = jnp.clip(row - (ends - rows)[block], 0, size.block_rows - 1)
    entries = atoms.reshape(-1, size.block_rows, ROW)[block, k]
    used = (row < ends[-1])[:, None] & (k[:, None] * ROW + jnp.arange(ROW) < counts[block][:, None])
    overflow = (
        jnp.any(jnp.stack(levels) > jnp.asarray(size[:3]))
        | (jnp.max(rows) > size.block_rows)
        | (ends[-1] > size.rows)
        | ~jnp.all(jnp.isfinite(x))
    )
    if h is not None:
        edge = jnp.min(jnp.diag(h)) * (1.0 + TOLERANCE)
        overflow |= ~((2.0 * old.cutoff <= edge) & (old.cutoff + old.skin <= jnp.min(_heights(h)) * (1 + TOLERANCE)))
        overflow |= (len(h) > 3) & jnp.any(jnp.tril(h, -1) != 0)
    return replace(
        old,
        order=tree.order,
        entries=jnp.where(used, entries, 0),
        mask=_mask(tree.order, block, entries, used, old.exclusions),
        block=block,
        n_rows=jnp.minimum(ends[-1], size.rows).astype(jnp.int32),
        positions=tree.wrapped,
        box=h,
        overflow=overflow,
    )


class _Tree(NamedTuple):
    """Atoms in k-d order; slots of padding are at infinity."""

    order: Array
    x: Array
    wrapped: Array


def _tree(x, h) -> _Tree:
    """k-d order: all segments are sorted along the longest edge of what they were cut from and halved, down to blocks.

    The sort key is one integer, the quantized coordinate above the place in the segment: XLA's CPU backend sorts that
    ten times faster than floating-point keys with a payload. Quantization affects the shape of blocks only.
    """
    wrapped = x if h is None else x - matmul(jnp.floor(matmul(x, jnp.linalg.inv(h))), h)
    n, first = len(x), wrapped[:, :3]
    bits = max(LANES.bit_length() - 1, (n - 1).bit_length())
    low = jnp.min(first, axis=0)
    edge = jnp.max(first, axis=0) - low
    levels = 2**_COORDINATE_BITS - 1  # the last level is for padding, which therefore stays behind all atoms
    level = ((first - low) / jnp.maximum(edge, jnp.finfo(x.dtype).tiny) * (levels - 1)).astype(jnp.int32)
    level = jnp.pad(jnp.clip(level, 0, levels - 1).T, ((0, 0), (0, 2**bits - n)), constant_values=levels)
    index = jnp.arange(2**bits, dtype=jnp.int32)
    while 2**bits > LANES:
        axis = jnp.argmax(edge)
        edge = edge.at[axis].multiply(0.5)
        key = level[axis].at[index].get(mode="promise_in_bounds").reshape(-1, 2**bits)
        key = (key >> max(0, _COORDINATE_BITS + bits - 31)) << bits
        place = jax.lax.sort(key + jnp.arange(2**bits, dtype=jnp.int32), dimension=1) & (2**bits - 1)
        index = jnp.take_along_axis(index.reshape(place.shape), place, 1, mode="promise_in_bounds").reshape(-1)
        bits -= 1
    order = jnp.minimum(index[: -(-n // LANES) * LANES], n)
    return _Tree(order, jnp.pad(wrapped, ((0, 1), (0, 0)), constant_values=jnp.inf)[order], wrapped)


def _bounds(x, size):
    """Lower and upper corners of boxes around every ``size`` slots; empty ones are inside out at infinity."""
    part = x.reshape(-1, size, 3)
    real = jnp.isfinite(part)
    return jnp.min(jnp.where(real, part, jnp.inf), axis=1), jnp.max(jnp.where(real, part, -jnp.inf), axis=1)


def _gap2(first, second, shift):
    """Squared distance of boxes (lower, upper), the second moved by ``shift``, as three components."""
    total = 0.0
    for k in range(3):
        (low1, high1), (low2, high2) = ([b[..., k] for b in box] for box in (first, second))
        gap = jnp.maximum(jnp.maximum(low2 + shift[k] - high1, low1 - high2 - shift[k]), 0.0)
        total = total + gap * gap
    return total


def _near_blocks(tree, h, reach, size: Capacity):
    """Entries (block + image) near each block, from level to level, and the most that any box has on each level."""
    near, groups = _near_groups(tree, h, reach, size.groups)
    near, parts = _near_children(tree, near, LANES * SPLIT, h, reach, size.parts)
    near, blocks = _near_children(tree, near, LANES, h, reach, size.blocks)
    return near[: len(tree.order) // LANES], (groups, parts, blocks)


def _near_groups(tree, h, reach, capacity):
    """Entries (group + image) near each group, (group, capacity), -1 is none; and the largest number."""
    low, high = _bounds(_padded(tree.x[:, :3]), LANES * SPLIT**2)
    n = len(low)
    images = 1 if h is None else len(IMAGES)
    entry = (np.arange(images, dtype=np.int32)[:, None] * _BITS + np.arange(n, dtype=np.int32)).reshape(-1)
    entry = jnp.asarray(np.pad(entry, (0, -len(entry) % 32), constant_values=-1).reshape(-1, 32))
    other = jnp.maximum(slots(entry), 0)
    first = low[:, None, None], high[:, None, None]
    near = (entry >= 0) & (_gap2(first, (low[other], high[other]), _shifts(entry, h)) <= reach**2)
    lists, counts = _compact(near, entry, capacity)
    return lists, jnp.max(counts)


def _near_children(tree, parents, size, h, reach, capacity):
    """Entries near each box of ``size`` slots, from those near the box that it is a part of; and the largest number."""
    low, high = (v.reshape(-1, SPLIT, 3) for v in _bounds(_padded(tree.x[:, :3]), size))

    def of_parent(arguments):
        entry, *first = arguments
        other = jnp.maximum(slots(entry), 0)
        shift = tuple(s if h is None else s[:, None] for s in _shifts(entry, h))
        gap2 = _gap2([v[:, None, None] for v in first], (low[other], high[other]), shift)
        return _compact((entry >= 0)[:, None] & (gap2 <= reach**2), _children(entry, SPLIT), capacity)

    lists, counts = mapped(of_parent, (parents, low, high), _TOGETHER)
    return lists.reshape(-1, capacity), jnp.max(counts)


def _near_atoms(tree, blocks, h, reach, capacity):
    """Entries (slot + image) within reach of any atom of each block, from the blocks near it; and their numbers."""
    columns = [tree.x[:, k].reshape(-1, LANES) for k in range(tree.x.shape[1])]

    def of_block(arguments):
        entry, mine = arguments
        other = jnp.maximum(slots(entry), 0)
        shift = _shifts(entry, h, len(columns))
        theirs = [c[other] + (s if h is None else s[:, None]) for c, s in zip(columns, shift, strict=True)]
        theirs = jax.lax.optimization_barrier(theirs)  # or XLA gathers once a lane
        near = False
        for lane in range(LANES):  # NaN (infinity - infinity in padding) is not near
            difference = nearest_further([t - mine[lane, k] for k, t in enumerate(theirs)], h)
            near |= sum(d**2 for d in difference) <= reach**2
        keep = (entry >= 0)[:, None] & near
        return jax.tree.map(lambda v: v[0], _compact(keep[None], _children(entry, LANES), capacity))

    return mapped(of_block, (blocks, tree.x.reshape(-1, LANES, len(columns))), _TOGETHER)


def _padded(x):
    """Slots up to whole groups."""
    missing = -len(x) % (LANES * SPLIT**2)
    return jnp.pad(x, ((0, missing), (0, 0)), constant_values=jnp.inf)


def _children(entries, n):
    """Entries of the n parts of each entry, (entry, n)."""
    return slots(entries)[:, None] * n + jnp.arange(n, dtype=jnp.int32) + (entries & ~(_BITS - 1))[:, None]


def _shifts(entries, h, dimension=3):
    return (0.0,) * dimension if h is None else shifts(jnp.maximum(entries, 0), h)


def _compact(keep, values, capacity):
    """The kept ``values`` (n, m) of each row of ``keep`` (row, n, m), in order, in ``capacity`` columns filled up with
    -1; and how many each row keeps.

    The m <= 32 flags of a word are counted by its bits, as XLA's cumulative sums are slow; and from here on the flags
    are those bits, or XLA computes ``keep`` a second time.
    """
    bit = jnp.arange(keep.shape[2], dtype=jnp.uint32)
    word = jnp.sum(keep.astype(jnp.uint32) << bit, axis=2, dtype=jnp.uint32)
    count = jax.lax.population_count(word).astype(jnp.int32)
    total = jnp.cumsum(count, axis=1)
    before = jax.lax.population_count(word[..., None] & ((jnp.uint32(1) << bit) - 1)).astype(jnp.int32)
    rank = (total - count)[..., None] + before
    keep = (word[..., None] >> bit) & 1 == 1
    spare = len(keep) * capacity
    start = jnp.arange(0, spare, capacity, dtype=jnp.int32)[:, None, None]
    place = jnp.where(keep & (rank < capacity), start + rank, spare)
    table = jnp.full(spare + 1, -1, jnp.int32)
    table = table.at[place].set(jnp.broadcast_to(values, place.shape), mode="promise_in_bounds")
    return table[:spare].reshape(-1, capacity), total[:, -1]


def _mask(order, block, entries, used, exclusions):
    """One byte an entry: bit l is set if lane l of the block does not interact with it."""
    n = len(exclusions)
    slot_of = jnp.zeros(n + 1, jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32)).at[n].set(-1)
    padded = jnp.concatenate([exclusions, jnp.full((1, exclusions.shape[1]), n, jnp.int32)])
    partners = slot_of[padded[order]].reshape(-1, LANES, exclusions.shape[1])[block]
    blank = (order == n).reshape(-1, LANES)[block]
    slot = slots(entries)
    mask = jnp.zeros(entries.shape, jnp.uint8)
    for lane in range(LANES):
        out = ~used | blank[:, lane, None]
        for k in range(exclusions.shape[1]):
            out |= slot == partners[:, lane, k, None]
        mask |= out.astype(jnp.uint8) << lane
    return mask


# --- allocation -----------------------------------------------------------------------------------------------------


def _empty(x, h, exclusions, cutoff, skin, capacity):
    """Arrays of the right shapes."""
    n_slots = -(-len(x) // LANES) * LANES
    return NeighborList(
        order=jnp.zeros(n_slots, jnp.int32),
        entries=jnp.zeros((capacity.rows, ROW), jnp.int32),
        mask=jnp.zeros((capacity.rows, ROW), jnp.uint8),
        block=jnp.zeros(capacity.rows, jnp.int32),
        n_rows=jnp.zeros((), jnp.int32),
        positions=x,
        box=h,
        exclusions=exclusions,
        overflow=jnp.zeros((), bool),
        cutoff=cutoff,
        skin=skin,
        capacity=capacity,
    )


@jax.jit
def _sizes(old: NeighborList, x, h):
    """What a list at these positions needs; the sizes of a level are right if the levels above fitted into ``old``."""
    tree = _tree(x, h)
    reach = (old.cutoff + old.skin) * (1.0 + TOLERANCE)
    near, levels = _near_blocks(tree, h, reach, old.capacity)
    counts = _near_atoms(tree, near, h, reach, ROW)[1]
    return *levels, jnp.max(counts), jnp.sum(-(-counts // ROW))


def _allocate(x, h, exclusions, cutoff, skin, headroom) -> NeighborList:
    if not headroom >= 1:
        raise InputError(f"headroom must be at least 1, got {headroom}")
    if not bool(jnp.all(jnp.isfinite(x))):
        raise NeighborListError(_not_finite(x))
    tried = (96, 192, 384)
    while True:
        sizes = _sizes(_empty(x, h, exclusions, cutoff, skin, Capacity(*tried, 1, 1)), x, h)
        *levels, most_atoms, rows = (int(n) for n in sizes)
        if all(n <= m for n, m in zip(levels, tried, strict=True)):
            break
        tried = tuple(max(n, m) for n, m in zip(levels, tried, strict=True))
    # few and discrete: how many groups, parts and blocks are near one changes most when atoms move or a lattice melts
    capacity = Capacity(
        *(math.ceil(n * headroom**2) for n in levels),
        block_rows=max(1, math.ceil(most_atoms * headroom / ROW)),
        rows=max(1, math.ceil(rows * headroom / CHUNK)) * CHUNK,
    )
    return _checked(_build(_empty(x, h, exclusions, cutoff, skin, capacity), x, h), x)


def _checked(result, x):
    if bool(result.overflow):
        if not bool(jnp.all(jnp.isfinite(x))):
            raise NeighborListError(_not_finite(x))
        raise NeighborListError(f"the neighbours do not fit into {result.capacity}; leave capacity out, or enlarge it")
    return result


def _not_finite(x):
    atom = int(jnp.argmin(jnp.all(jnp.isfinite(x), axis=1)))
    return f"the position of atom {atom} is not finite: {np.asarray(x[atom])}"


def _heights(box):
    """Distances of opposite faces of the cell."""
    module = jnp if isinstance(box, jax.Array) else np
    return 1.0 / module.sqrt(module.sum(module.linalg.inv(box) ** 2, axis=0))
