"""All chunks: flat energies and forces of term parameters and positions, with their derivative rule.

The loop over chunks is one ``lax.map``, compiled once whatever the number of chunks. The rule is a
``custom_jvp`` whose tangent carries its own transpose: forward mode differentiates the chunks' energies and
forces directly, reverse mode runs :func:`offjax.batching.kernel.parameter_gradient`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from offjax.batching import kernel
from offjax.batching.chunks import Chunks
from offjax.batching.sums import at
from offjax.batching.types import Types
from offjax.linear import linear


def term_parameters(theta, types: Types, chunks: Chunks):
    """Parameters of every term for the force-field vector ``theta``: arrays (chunk, n), for torsions one an order.

    Each of several devices computes the values of all types for its own terms, so that the transpose ends in one sum
    over devices, of vectors like ``theta``, instead of one for every kind of value.
    """
    if chunks.mesh is None:
        return _term_parameters(theta, types, chunks)
    everywhere, share = PartitionSpec(), PartitionSpec(*chunks.mesh.axis_names)
    own = replace(chunks, energy_row=None, force_row=None, conformer_of=None, row_of=None, mesh=None)
    return jax.shard_map(
        _term_parameters, mesh=chunks.mesh, in_specs=(everywhere, everywhere, share), out_specs=share, check_vma=False
    )(theta, types, own)


def _term_parameters(theta, types: Types, chunks: Chunks):
    values = types.values(theta)
    plain = ("bonds", "angles", "pairs", *(term.section for term in chunks.tables.user))
    p = {name: tuple(at(v, chunks.types[name]) for v in values[name]) for name in plain}
    p["torsions"] = tuple(tuple(at(c, chunks.types["torsions"]) for c in v.T) for v in values["torsions"])
    charge = at(values["charges"][0], chunks.charge_type) + chunks.charge_offset
    pairs = jax.vmap(at)(charge, jnp.moveaxis(chunks.tables.atoms["pairs"], 1, 2))
    if chunks.tables.gbsa is not None:
        p["gbsa"] = (charge, *(at(v, chunks.types["gbsa"]) for v in values["gbsa"]))
    p["pairs"] = (*p["pairs"], chunks.coulomb_scale * pairs[..., 0] * pairs[..., 1])
    return p


def evaluate(p, x, chunks: Chunks, forces: bool):
    """Flat energies (n_conformers,), and forces (n_rows, 3) or None, of packed positions (chunk, atom, 3 lanes)."""
    return _evaluate(forces, p, x, chunks)


def _direct(forces: bool, p, x, chunks: Chunks):
    def one(arguments):
        p, x, tables = arguments
        return kernel.energies(p, tables, x, forces)

    energy, force = over_chunks(one, (p, x, chunks.tables), chunks)
    energy = _flat(energy, chunks.energy_row, chunks)
    if not forces:
        return energy, None
    return energy, _rows(force, chunks)


def over_chunks(one, arguments, chunks: Chunks):
    """one(arguments) of every chunk: a loop, on each device over its share."""

    def loop(arguments):
        return jax.lax.map(one, arguments)

    if chunks.mesh is None:
        return loop(arguments)
    share = PartitionSpec(*chunks.mesh.axis_names)
    return jax.shard_map(loop, mesh=chunks.mesh, in_specs=share, out_specs=share, check_vma=False)(arguments)


def from_lanes(packed, chunks: Chunks):
    """Flat rows (n_rows, 3) of packed positions (chunk, atom, 3 lanes)."""
    return _rows(jnp.split(packed, 3, axis=2), chunks)


def _rows(components, chunks: Chunks):
    """Flat rows (n_rows, 3) of three components (chunk, atom, lane)."""
    return jnp.stack([_flat(c, chunks.force_row, chunks) for c in components], axis=-1)


def _flat(values, index, chunks: Chunks):
    """values (chunk, ...) flattened and taken at index (n,). Of several devices each takes its share of the rows, which
    what the user makes of them, as a loss, then keeps to.
    """
    if chunks.mesh is None:
        return at(values.reshape(-1), index)
    shares = NamedSharding(chunks.mesh, PartitionSpec(*chunks.mesh.axis_names))
    n = len(index)
    padded = jnp.pad(index, (0, -n % chunks.mesh.size))  # shares of equal size
    rows = at(_everywhere(values, chunks).reshape(-1), jax.lax.with_sharding_constraint(padded, shares))
    return jax.lax.with_sharding_constraint(rows, shares)[:n]


def _everywhere(values, chunks: Chunks):
    """The values of all chunks on every device that shares them: gathering rows from shards, XLA would add up what
    each device has of all rows, at three times the cost.
    """
    if chunks.mesh is None:
        return values
    return jax.lax.with_sharding_constraint(values, NamedSharding(chunks.mesh, PartitionSpec()))


def components(rows, chunks: Chunks):
    """Flat rows (n_rows, 3) as three components (chunk, atom, lane); padding lanes get zero."""
    flat = _everywhere(rows, chunks).reshape(-1)
    return tuple(spread_rows(flat, 3 * chunks.row_of + axis) for axis in range(3))


def to_lanes(rows, packed, chunks: Chunks):
    """Packed positions with the flat ``rows`` (n_rows, 3) in place of the old ones; other lanes stay as in
    ``packed``.
    """

    def spread(chunks, rows):
        return jnp.concatenate(components(rows, chunks), axis=2)

    # lanes of padding never reach an output, so that taking each row once is the transpose
    moved = linear(spread, lambda chunks, lanes: from_lanes(lanes, chunks), chunks, rows)
    return jnp.where(jnp.tile(chunks.row_of < rows.shape[0], (1, 1, 3)), moved, packed)


def spread_rows(values, index):
    """Flat values at lanes; padding lanes, whose index is beyond the last, get zero."""
    return values.at[index].get(mode="fill", fill_value=0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate(forces, p, x, chunks):
    return _direct(forces, p, x, chunks)


@partial(_evaluate.defjvp, symbolic_zeros=True)
def _rule(forces, primals, tangents):
    p, x, chunks = primals
    dp, dx, _ = tangents
    moving = not isinstance(dx, SymbolicZero)
    dense = jax.tree.map(
        lambda t: jnp.zeros(t.aval.shape, t.aval.dtype) if isinstance(t, SymbolicZero) else t,
        (dp, dx if moving else None),
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )
    out = _direct(forces, p, x, chunks)
    return out, linear(partial(_push, forces), partial(_pull, forces, moving), (p, x, chunks), dense)


def _push(forces, primals, tangents):
    """Tangents of energies and forces along tangents of parameters and positions."""
    p, x, chunks = primals
    dp, dx = tangents
    if dx is None:
        return jax.jvp(lambda p: _direct(forces, p, x, chunks), (p,), (dp,))[1]
    return jax.jvp(lambda p, x: _direct(forces, p, x, chunks), (p, x), (dp, dx))[1]


def _pull(forces, moving, primals, cotangents):
    """Cotangents of parameters and positions of those (w, v) of energies and forces."""
    p, x, chunks = primals
    w, v = cotangents
    w = spread_rows(_everywhere(w, chunks), chunks.conformer_of)
    v = components(v, chunks) if forces else None

    def one(arguments):
        p, x, tables, w, v = arguments
        v = None if v is None else jnp.concatenate(v, axis=1)
        gradient = kernel.parameter_gradient(p, tables, x, w, v)
        return gradient, kernel.position_gradient(p, tables, x, w, v) if moving else None

    return over_chunks(one, (p, x, chunks.tables, w, v), chunks)
