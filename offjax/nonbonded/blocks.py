"""Sums over the pairs of a neighbour list: energy, forces and per-atom parameter gradients in one pass.

A potential is one scalar function ``u(r2, first, second)`` of the squared distance and of the parameters of two atoms.
Rows of 128 neighbours meet the 8 atoms of their block in arrays (row, 8, 128). As the list is full, what a lane sums
over the rows of its block is the whole gradient of its atom: nothing is scattered to neighbours, and half the sum of
the energies is the energy. The arithmetic is differentiated as a function of scalars, by its own vector-Jacobian
product.

:func:`pair_energy` has derivatives to any order and in any mode: the first ones from that pass (a ``custom_jvp`` rule),
those of the gradients by plain differentiation of the same sum, which is correct and slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from offjax.devices import at_once, matmul, on_cpu
from offjax.nonbonded.neighbors import (
    CHUNK,
    IMAGES,
    LANES,
    ROW,
    NeighborList,
    image_numbers,
    image_offsets,
    nearest_further,
    shifts,
    slots,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float


Potential = Callable[[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]], jax.Array]


def pair_energy(
    potential: Potential,
    neighbors: NeighborList,
    positions: Float[Array, "atom dimension"],
    box: Float[Array, "dimension dimension"] | None,
    parameters: Sequence[Float[Array, " atom"]] = (),
    *,
    matrices: Sequence[Float[Array, "atom atom"]] = (),
    plain: bool = False,
    accumulate: str | None = None,
) -> Float[Array, ""]:
    """The energy of all pairs i < j of the list that are within its cutoff.

    Parameters
    ----------
    potential
        ``u(r2, first, second)``: elementwise, symmetric in the atoms; ``first`` and ``second`` are tuples as long as
        ``parameters``, with the values of either atom. Called at r2 <= cutoff^2 only, and made of functions of its
        arguments and of constants: whatever is to be differentiated must be in ``parameters``, or ``plain`` be set.
    box
        As in the list: None, (3,) or (3, 3).
    parameters
        Arrays (n_atoms,) of the dtype of the positions.
    matrices
        Arrays (n_atoms, n_atoms): ``u`` takes their elements of the pair after ``second``, and a pair is the mean of
        (i, j) and (j, i).
    plain
        Differentiate the sum as it is written, slower than the one pass: for a ``potential`` that closes over values
        that are to be differentiated, and wherever there are matrices.
    accumulate
        ``"float64"``: pairs are computed in the dtype of the positions and summed in float64.

    Raises
    ------
    NeighborListError
        Outside ``jit``: the list has overflowed, or is stale at these positions. Inside ``jit`` the energy is NaN.
    """
    how = _How(accumulate, _any_order.get())
    if plain or matrices:
        energy = partial(_plain_energy, matrices=tuple(matrices))
        value, bad = _checked(energy, potential, how, positions, box, tuple(parameters), neighbors)
    else:
        value, bad = _checked_energy(potential, how, positions, box, tuple(parameters), neighbors)
    neighbors.refuse(bad)
    return value


class _How(NamedTuple):
    """The dtype of sums, None for that of the positions; whether the compiler may sum in any order."""

    accumulate: str | None
    any_order: bool

    def dtype(self, x) -> jnp.dtype:
        return x.dtype if self.accumulate is None else jnp.dtype(self.accumulate)


@partial(jax.jit, static_argnums=(0, 1))
def _checked_energy(potential, how, positions, box, parameters, neighbors):
    return _checked(_energy, potential, how, positions, box, parameters, neighbors)


def _checked(energy, potential, how, positions, box, parameters, neighbors):
    bad = neighbors.unusable(positions, box)
    x, h = neighbors.unwrapped(positions, box)
    value = energy(potential, how, x, h, parameters, neighbors)
    return value * jnp.where(bad, jnp.nan, 1.0).astype(value.dtype), bad


def compiler_options() -> dict[str, Any]:
    """What :func:`jit` tells the compiler on this platform: ``jax.jit(..., compiler_options=...)``."""
    if not on_cpu():
        return {}
    honored = {f"xla_cpu_fast_math_honor_{what}": True for what in ("nans", "infs", "division", "functions")}
    return {"xla_cpu_enable_fast_math": True, **honored, "xla_cpu_prefer_vector_width": 512}


def jit(function: Callable, **options) -> Callable:
    """``jax.jit(function, **options)`` for functions that sum over lists, for the outermost ``jit`` only.

    On a CPU sums may be taken in another order than written, and are written for a compiler that may do so: without,
    sums in float64 are not vectorized at all. NaN, infinity and division keep their meaning. What ``function`` calls
    is traced as ``jit`` finds it: a part that ``jax.jit`` has traced before stays as it was.
    """

    @wraps(function)
    def in_any_order(*args, **kwargs):
        token = _any_order.set(on_cpu())
        try:
            return function(*args, **kwargs)
        finally:
            _any_order.reset(token)

    return jax.jit(in_any_order, compiler_options=compiler_options(), **options)


_any_order: ContextVar[bool] = ContextVar("any_order", default=False)
"""True while :func:`jit` traces. JAX hands its compiler options to the compiler and not to the functions it traces."""


_IMAGES_IN_CACHE = 2**19
"""Bytes of one coordinate of all images up to which they are tabulated."""

_ROWS = 2**15
"""Rows that are worked on together, on a GPU."""

_PLAIN_ROWS = 2**12
"""The same where derivatives keep what they need of every pair."""


class _Gradients(NamedTuple):
    """dU/dx (atom, d), dU/dparameters, each (atom,), and the strain derivative dU/d(strain) (d, d) or None."""

    positions: Array
    parameters: tuple[Array, ...]
    strain: Array | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _energy(potential, how, x, h, parameters, neighbors):
    return _plain_energy(potential, how, x, h, parameters, neighbors)


@partial(_energy.defjvp, symbolic_zeros=True)
def _energy_rule(potential, how, primals, tangents):
    x, h, parameters, neighbors = primals
    dx, dh, dp, _ = tangents
    strained = h is not None and not isinstance(dh, SymbolicZero)
    energy, gradients = _gradients(potential, how, strained, x, h, parameters, neighbors)
    change = jnp.zeros((), energy.dtype)
    if not isinstance(dx, SymbolicZero):
        change += jnp.sum(gradients.positions * dx)
    if strained:
        # dU/dH at fixed positions: a strain e = H^-1 dH of cell and atoms, less what it does to the atoms
        strain = matmul(jnp.linalg.inv(h), dh)
        change += jnp.sum(gradients.strain * strain) - jnp.sum(gradients.positions * matmul(x, strain))
    for gradient, tangent in zip(gradients.parameters, dp, strict=True):
        if not isinstance(tangent, SymbolicZero):
            change += jnp.sum(gradient * tangent)
    return energy, change


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _gradients(potential, how, strained, x, h, parameters, neighbors):
    """Energy and gradients in one pass."""
    size, steps = _steps(neighbors, _ROWS)
    neighbors = _filled(neighbors, size * steps)
    data = _slot_data(x, h, parameters, neighbors)
    dtype = how.dtype(x)
    n_first, strains = 1 + x.shape[1], _strains(x.shape[1]) if strained else []
    n_sums = n_first + len(parameters) + len(strains)

    def step(k, sums):
        row = _rows(k, size, data)
        return sums.at[row.block].add(
            _row_sums(potential, neighbors.cutoff, strained, row, how.any_order).astype(dtype)
        )

    sums = jnp.zeros((len(neighbors.order) // LANES, LANES, n_sums), dtype)
    sums = jax.lax.fori_loop(0, 1 if steps == 1 else _most(-(-neighbors.n_rows // size)), step, sums)
    by_atom = jnp.zeros((neighbors.n_atoms + 1, n_sums), dtype)
    by_atom = by_atom.at[neighbors.order].set(sums.reshape(-1, n_sums))[:-1]
    strain = None
    if strained:
        virial = dict(zip(strains, 0.5 * jnp.sum(by_atom[:, -len(strains) :], axis=0), strict=True))
        rows = range(x.shape[1])
        strain = jnp.stack([virial[min(a, b), max(a, b)] for a in rows for b in rows]).reshape(h.shape)
    of_parameters = tuple(by_atom[:, n_first + k] for k in range(len(parameters)))
    return 0.5 * jnp.sum(by_atom[:, 0]), _Gradients(by_atom[:, 1:n_first], of_parameters, strain)


def _strains(dimension: int) -> list[tuple[int, int]]:
    """The independent elements of a symmetric tensor."""
    return list(itertools.combinations_with_replacement(range(dimension), 2))


@_gradients.defjvp
def _gradients_rule(potential, how, strained, primals, tangents):
    *primals, neighbors = primals
    plain = partial(_plain_gradients, potential, how, strained, neighbors)
    return jax.jvp(plain, tuple(primals), tuple(tangents[:-1]))


# --- one chunk of rows ----------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """A chunk of rows: the 128 neighbours (row, 128) and the 8 atoms of the block (row, 8)."""

    block: Array
    mask: Array
    theirs: tuple[Array, ...]
    mine: tuple[Array, ...]
    their_parameters: tuple[Array, ...]
    my_parameters: tuple[Array, ...]
    box: Array | None


def _slot_data(x, h, parameters, neighbors):
    """Coordinates and parameters in the order of the slots, those of all images if they are few, box, and list."""
    order = neighbors.order
    filled = jnp.where(order == neighbors.n_atoms, jnp.repeat(order[::LANES], LANES), order)
    columns = [_at(v, filled) for v in (*x.T, *parameters)]
    images = None
    if h is not None and len(IMAGES) * columns[0].nbytes <= _IMAGES_IN_CACHE:
        offsets = image_offsets(h)
        images = [(offsets[:, k, None] + columns[k]).reshape(-1) for k in range(x.shape[1])]
    return images, columns, h, neighbors


def _steps(neighbors, most: int) -> tuple[int, int]:
    """How many rows are worked on together, CHUNK or on a GPU up to ``most``, and in how many steps all of them are."""
    chunks = len(neighbors.block) // CHUNK
    steps = -(-chunks // max(1, at_once(CHUNK, most) // CHUNK))
    return -(-chunks // steps) * CHUNK, steps


def _filled(neighbors, n: int):
    """The list with ``n`` rows: those that are added have no entries."""
    if n == len(neighbors.block):
        return neighbors
    missing = n - len(neighbors.block)
    return replace(
        neighbors,
        entries=jnp.pad(neighbors.entries, ((0, missing), (0, 0))),
        mask=jnp.pad(neighbors.mask, ((0, missing), (0, 0)), constant_values=2**LANES - 1),
        block=jnp.pad(neighbors.block, (0, missing), mode="edge"),
    )


def _rows(k, size, data) -> _Rows:
    images, columns, h, neighbors = data
    dimension = neighbors.positions.shape[1]
    entries, mask, block = (
        jax.lax.dynamic_slice_in_dim(v, k * size, size) for v in (neighbors.entries, neighbors.mask, neighbors.block)
    )
    slot = slots(entries)
    if images is not None:  # one look-up finds coordinate and image together
        place = slot + image_numbers(entries) * len(neighbors.order)
        theirs = tuple(_at(c, place) for c in images)
    else:
        theirs = tuple(_at(c, slot) for c in columns[:dimension])
        if h is not None:
            theirs = tuple(t + offset for t, offset in zip(theirs, shifts(entries, h), strict=True))
    their_parameters = tuple(_at(c, slot) for c in columns[dimension:])
    mine = tuple(_at(c.reshape(-1, LANES), block) for c in columns)
    return _Rows(block, mask, theirs, mine[:dimension], their_parameters, mine[dimension:], h)


def _lanes(value):
    """The block's atoms against all neighbours."""
    return jnp.broadcast_to(value[:, :, None], (len(value), LANES, ROW))


def _neighbors(value):
    """The neighbours against all atoms of the block."""
    return jnp.broadcast_to(value[:, None, :], (len(value), LANES, ROW))


def _geometry(row: _Rows, cutoff):
    """Difference vectors, squared distances (those that do not count replaced), and which count, (row, 8, 128)."""
    difference = [_neighbors(t) - _lanes(m) for t, m in zip(row.theirs, row.mine, strict=True)]
    difference = nearest_further(difference, row.box)
    r2 = sum(d**2 for d in difference)
    far = jnp.asarray(cutoff**2, r2.dtype)
    r2 = jnp.where(_masked(row.mask), far, jnp.minimum(r2, far))
    return difference, r2, r2 < far


def _row_sums(potential, cutoff, strained, row: _Rows, any_order):
    """(row, 8, sums): energy, dU/dx, dU/dparameters and virial of each lane, summed over the row."""
    row = jax.lax.optimization_barrier(row)  # or XLA gathers once a pair
    difference, r2, counts = _geometry(row, cutoff)
    theirs = tuple(map(_neighbors, row.their_parameters))
    u, pull = jax.vjp(lambda r2, *mine: potential(r2, mine, theirs), r2, *map(_lanes, row.my_parameters))
    slope, *of_parameters = pull(jnp.ones_like(u))
    slope = jnp.where(counts, 2.0 * slope, 0.0)
    terms = [jnp.where(counts, u, 0.0), *(-slope * d for d in difference)]
    terms += [jnp.where(counts, g, 0.0) for g in of_parameters]
    if strained:
        terms += [slope * difference[a] * difference[b] for a, b in _strains(len(difference))]
    return jnp.stack(_sum_rows(terms, any_order), axis=-1)


def _sum_rows(terms, any_order):
    """Sums over the last axis, all of them in one loop, which separate sums would compute once each.

    A sum in order cannot be vectorized: where the compiler may not choose another, the halves of the rows are added
    first, elementwise, then the rest in strides of 16. (In float64 the loop over two halves is too long for the
    compiler to unroll, and is no faster than the sum.)
    """
    zero = [jnp.zeros((), t.dtype) for t in terms]

    def add(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    if any_order or terms[0].dtype == jnp.float64:
        return jax.lax.reduce(terms, zero, add, (2,))
    added = jax.lax.reduce([t.reshape(-1, LANES, 2, ROW // 2) for t in terms], zero, add, (2,))
    short = jax.lax.reduce([t.reshape(-1, LANES, ROW // 32, 16) for t in added], zero, add, (2,))
    return [jnp.sum(t, axis=-1) for t in jax.lax.optimization_barrier(short)]


def _at(values, index):
    return values.at[index].get(mode="promise_in_bounds")


@jax.custom_batching.custom_vmap
def _most(n):
    return n


@_most.def_vmap
def _most_of_batch(size, mapped, n):
    """One number of steps for all replicas; rows without entries add nothing."""
    return jnp.max(n), False


# --- the same by plain differentiation ------------------------------------------------------------------------------


def _plain_energy(potential, how, x, h, parameters, neighbors, matrices=()):
    """The definition: differentiable in any mode, to any order."""
    size, steps = _steps(neighbors, _PLAIN_ROWS)
    neighbors = _filled(neighbors, size * steps)
    data = _slot_data(x, h, parameters, neighbors)
    dtype = how.dtype(x)

    @jax.checkpoint
    def chunk(total, step):
        k, elements = step
        row = _rows(k, size, data)
        _, r2, counts = _geometry(row, neighbors.cutoff)
        mine, theirs = tuple(map(_lanes, row.my_parameters)), tuple(map(_neighbors, row.their_parameters))
        u = potential(r2, mine, theirs, *elements)
        return total + jnp.sum(jnp.where(counts, u, 0.0), dtype=dtype), None

    elements = tuple(_elements(m, neighbors).reshape(steps, size, LANES, ROW) for m in matrices)
    return 0.5 * jax.lax.scan(chunk, jnp.zeros((), dtype), (jnp.arange(steps, dtype=jnp.int32), elements))[0]


def _elements(matrix, neighbors):
    """(row, 8, 128) elements of a matrix; pairs that do not count (an atom with itself) take another atom's."""
    first = neighbors.order.reshape(-1, LANES)[neighbors.block][:, :, None]
    second = neighbors.order[slots(neighbors.entries)][:, None, :]
    n = neighbors.n_atoms
    first, second = jnp.minimum(first, n - 1), jnp.minimum(second, n - 1)
    return matrix[first, jnp.where(_masked(neighbors.mask), (first + 1) % n, second)]


def _masked(mask):
    """(row, 8, 128) whether a lane does not interact with an entry."""
    bits = jnp.left_shift(jnp.uint8(1), jnp.arange(LANES, dtype=jnp.uint8))
    return mask[:, None, :] & bits[:, None] != 0


def _plain_gradients(potential, how, strained, neighbors, x, h, parameters):
    def energy(x, parameters, strain):
        if strain is None:
            return _plain_energy(potential, how, x, h, parameters, neighbors)
        return _plain_energy(potential, how, x + matmul(x, strain), h + matmul(h, strain), parameters, neighbors)

    strain = jnp.zeros_like(h) if strained else None
    value, gradients = jax.value_and_grad(energy, argnums=(0, 1) if strain is None else (0, 1, 2))(
        x, parameters, strain
    )
    wide = [jax.tree.map(lambda g: g.astype(value.dtype), g) for g in gradients]
    return value, _Gradients(wide[0], wide[1], wide[2] if strained else None)
