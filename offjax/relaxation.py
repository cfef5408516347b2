"""Minimisation of all conformers of a :class:`offjax.SystemBatch` at once, with the derivative of the minima.

Each chunk of the batch is one loop of :func:`offjax.md.minimizers.run` in which every conformer has its own line
search, its own memory and its own end; the loop of a chunk ends with its last conformer. What is minimised is

    W(x) = U(theta, x) + sum_i k_i/2 |x_i - a_i|^2          over the atoms that are not frozen,

with the force constants k_i and anchors a_i of a weak restraint. The derivative is that of
:func:`offjax.md.minimizers.implicit`: one batch of linear equations with the Hessian of W, solved by conjugate
residuals conformer by conformer, in memory that does not depend on the number of steps. A conformer without frozen
atoms and restraints is free: its translations and rotations are projected out of the equations.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offjax.batch import Conformers, SystemBatch, compiler_options
from offjax.batching import evaluate as chunked
from offjax.batching import kernel
from offjax.batching.kernel import ChunkTables
from offjax.devices import matmul
from offjax.errors import InputError, UnsupportedError
from offjax.md.minimizers import Descent, Minimum, Systems, implicit, lbfgs, run, solve_iteratively
from offjax.parameters import ParameterSet

METHOD = lbfgs(history=10, max_step=0.02)
"""What molecules are minimised with: L-BFGS that moves no atom farther than 0.02 nm in a step."""

LEVEL = 1e-10
"""Residual, relative to the right-hand side, at which the linear equations of a derivative count as solved."""


class Relaxed(NamedTuple):
    """The minima of a batch's conformers; only ``positions`` and ``energies`` have derivatives.

    ``positions`` (n_rows, 3) nm; ``energies`` (n_conformers,) kJ/mol, without those of the restraints;
    ``largest_force`` (n_conformers,) kJ/mol/nm on an atom that may move; ``steps`` and ``converged`` (n_conformers,).
    A conformer that became not-a-number is not converged.
    """

    positions: Float[Array, "row 3"]
    energies: Float[Array, " conformer"]
    largest_force: Float[Array, " conformer"]
    steps: Int[Array, " conformer"]
    converged: Bool[Array, " conformer"]


class _Problem(NamedTuple):
    """Everything that W depends on besides x: the force-field vector, and flat rows (n_rows,) and (n_rows, 3).

    ``tolerance`` is where minimisations end.
    """

    theta: Array
    conformers: Conformers
    free: Bool[Array, " row"]
    stiffness: Float[Array, " row"]
    anchors: Float[Array, "row 3"]
    tolerance: Float[Array, ""]


def minimize(
    batch: SystemBatch,
    p: ParameterSet,
    conformers: Conformers,
    *,
    frozen: Bool[Array, " row"] | None = None,
    restraint: Float[Array, " row"] | float = 0.0,
    anchors: Float[Array, "row 3"] | None = None,
    method: Descent | None = None,
    tolerance: float = 1e-2,
    max_steps: int = 5000,
) -> Relaxed:
    """The minimum that each conformer reaches from where it is: see :meth:`offjax.SystemBatch.minimize`."""
    problem = _problem(batch, p, conformers, frozen, restraint, anchors, tolerance)
    settings = (METHOD if method is None else method, int(max_steps))
    if any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(problem)):
        return _relaxed(conformers.positions, problem, settings)
    return _compiled(tuple(compiler_options().items()))(conformers.positions, problem, settings)


def respond(
    batch: SystemBatch,
    p: ParameterSet,
    conformers: Conformers,
    v: Float[Array, "row 3"],
    *,
    frozen: Bool[Array, " row"] | None = None,
    restraint: Float[Array, " row"] | float = 0.0,
) -> Float[Array, "row 3"]:
    """H^+ v with the Hessian H of W at the positions of ``conformers``, nm for v in kJ/mol/nm.

    At a minimum this is how far a weak force v moves the atoms; and the derivative of any function O of the minimum
    of one conformer is dO/d theta + (H^+ dO/dx) . dF/d theta.
    """
    problem = _problem(batch, p, conformers, frozen, restraint, None, 0.0)
    return _solve(None, v, conformers.positions, problem)


def _problem(batch, p, conformers: Conformers, frozen, restraint, anchors, tolerance) -> _Problem:
    if conformers.sites is not None:
        raise UnsupportedError(
            "<VirtualSites>: the minima of molecules with virtual sites cannot be found in a batch; use "
            "offjax.minimize with system.to_jax()"
        )
    n = conformers.n_rows
    frozen = jnp.zeros(n, bool) if frozen is None else jnp.asarray(frozen)
    anchors = conformers.positions if anchors is None else jnp.asarray(anchors, conformers.dtype)
    stiffness = jnp.asarray(restraint, conformers.dtype)
    if frozen.shape != (n,) or frozen.dtype != bool:
        raise InputError(f"frozen must be boolean of shape ({n},), one for each atom row, got {frozen.shape}")
    if stiffness.shape not in ((), (n,)):
        raise InputError(f"restraint must be a number or have shape ({n},), got {stiffness.shape}")
    if anchors.shape != (n, 3):
        raise InputError(f"anchors must have shape ({n}, 3), got {anchors.shape}")
    return _Problem(
        batch._theta(p, conformers),
        conformers,
        ~frozen & conformers.row_mask,
        jnp.broadcast_to(stiffness, (n,)),
        anchors,
        jnp.asarray(tolerance, conformers.dtype),
    )


@cache
def _compiled(options):
    return jax.jit(_relaxed, static_argnums=2, compiler_options=dict(options))


def _relaxed(start, problem: _Problem, settings) -> Relaxed:
    def find(x, problem):
        return _find(x, problem, settings)

    found = implicit(find, _evaluate, _solve)(jax.lax.stop_gradient(start), problem)
    energies = found.energy - _restraint_energies(found.positions, problem)
    return Relaxed(found.positions, energies, found.largest_force, found.steps, found.converged)


# --- the rows of a batch ----------------------------------------------------------------------------------------


def _evaluate(x, problem: _Problem):
    """W (n_conformers,) and its forces (n_rows, 3)."""
    conformers = jax.lax.stop_gradient(problem.conformers).with_positions(x)
    energies, forces = chunked.evaluate(_terms(problem), conformers.packed, conformers.chunks, True)
    forces = forces - problem.stiffness[:, None] * (x - problem.anchors)
    return energies + _restraint_energies(x, problem), jnp.where(problem.free[:, None], forces, 0.0)


def _restraint_energies(x, problem: _Problem):
    each = 0.5 * problem.stiffness * jnp.sum((x - problem.anchors) ** 2, axis=1)
    each = jnp.where(problem.free, each, 0.0)
    return jax.ops.segment_sum(
        each, problem.conformers.conformer, problem.conformers.n_conformers, indices_are_sorted=True
    )


def _terms(problem: _Problem):
    conformers = jax.lax.stop_gradient(problem.conformers)
    return chunked.term_parameters(problem.theta, conformers.types, conformers.chunks)


# --- one chunk --------------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """What one chunk is minimised with: term parameters, tables, and rows as (atom, 1, lane) and (atom, 3, lane)."""

    p: dict
    tables: ChunkTables
    free: Array
    stiffness: Array
    anchors: Array
    tolerance: Array

    def evaluate(self, x):
        """W (job, lane) and its forces (atom, 3, lane)."""
        energy, forces = kernel.energies(self.p, self.tables, x.reshape(x.shape[0], -1), True)
        shift = x - self.anchors
        each = jnp.where(self.free, 0.5 * self.stiffness * shift**2, 0.0)
        forces = jnp.where(self.free, jnp.stack(forces, axis=1) - self.stiffness * shift, 0.0)
        return energy + self.systems(energy.shape[0]).total(each), forces

    def systems(self, n_jobs: int) -> Systems:
        """Atoms (rows) belong to jobs: a sum over the few atoms of each is a product with a matrix of 0 and 1."""
        member = self.tables.job_of_atom == jnp.arange(n_jobs)[:, None]
        matrix = member.astype(self.anchors.dtype)

        def total(v):
            v = jnp.sum(v, axis=1)
            # 0 times not-a-number would reach the other jobs of the lane; its own job has it in energy and forces
            return matmul(matrix, jnp.where(jnp.isfinite(v), v, 0.0))

        def largest(v):
            square = jnp.sum(v * v, axis=1)
            return jnp.sqrt(jnp.max(jnp.where(member[..., None], square, 0.0), axis=1))

        def spread(value):
            return chunked.at(value, self.tables.job_of_atom)[:, None]

        return Systems(total, largest, spread)


def _over_chunks(one, problem: _Problem, *rows):
    """one(chunk, *lanes) of all chunks, where ``rows`` (n_rows, 3) become lanes (atom, 3, lane)."""
    conformers = problem.conformers
    chunks = conformers.chunks
    packed = [_by_component(chunked.to_lanes(r, filler, chunks)) for r, filler in rows]
    anchors = _by_component(chunked.to_lanes(problem.anchors, conformers.packed, chunks))
    # lanes of padding are frozen: they are minimised at once
    free, stiffness = (
        chunked.spread_rows(v.astype(anchors.dtype), chunks.row_of)[:, :, None]
        for v in (problem.free, problem.stiffness)
    )
    tolerance = jnp.full(len(anchors), problem.tolerance)
    parts = _Chunk(_terms(problem), chunks.tables, free > 0, stiffness, anchors, tolerance)
    return chunked.over_chunks(lambda a: one(*a), (parts, *packed), chunks)


def _by_component(lanes):
    """(chunk, atom, 3 lanes) as (chunk, atom, 3, lane)."""
    return lanes.reshape(*lanes.shape[:2], 3, -1)


def _to_rows(found, chunks):
    """Rows (n_rows, 3) of (chunk, atom, 3, lane)."""
    return chunked.from_lanes(found.reshape(*found.shape[:2], -1), chunks)


def _find(x, problem: _Problem, settings) -> Minimum:
    conformers, (method, max_steps) = problem.conformers, settings
    chunks = conformers.chunks
    n_jobs = chunks.conformer_of.shape[1]

    def one(chunk: _Chunk, x):
        return run(chunk.evaluate, x, method, chunk.tolerance, max_steps, chunk.systems(n_jobs))

    found = _over_chunks(one, problem, (x, conformers.packed))
    each = (chunked.at(v.reshape(-1), chunks.energy_row) for v in found[1:])
    return Minimum(_to_rows(found.positions, chunks), *each)


def _solve(product, b, x, problem: _Problem):
    """H^+ b; the same products as ``product``, chunk by chunk, so that each chunk ends when its conformers do."""
    conformers = problem.conformers
    n_jobs = conformers.chunks.conformer_of.shape[1]
    nothing = jnp.zeros_like(conformers.packed)

    def one(chunk: _Chunk, x, b):
        systems = chunk.systems(n_jobs)
        _, along = jax.linearize(lambda y: chunk.evaluate(y)[1], x)
        project = _projection(chunk, x, systems)

        def product(v):
            return -project(along(v))

        return solve_iteratively(product, project(jnp.where(chunk.free, b, 0.0)), systems, LEVEL)

    found = _over_chunks(one, problem, (x, conformers.packed), (b, nothing))
    return _to_rows(found, conformers.chunks)


def _projection(chunk: _Chunk, x, systems: Systems):
    """v without the translations and rotations of the jobs that nothing holds."""
    total, _, spread = systems
    held = total(jnp.where(chunk.free & (chunk.stiffness == 0), 0.0, 1.0))
    one = jnp.ones_like(x[:, :1])
    unit = jnp.eye(3, dtype=x.dtype)[:, None, :, None] * one
    count = jnp.maximum(total(one), 1.0)
    centre = jnp.concatenate([spread(total(c) / count) for c in jnp.split(x, 3, axis=1)], axis=1)
    basis: list[Array] = []
    for motion in [*unit, *(jnp.cross(u, x - centre, axis=1) for u in unit)]:
        for other in basis:
            motion = motion - other * spread(total(other * motion))
        size = total(motion * motion)
        # none for rotations about the axis of a linear molecule
        keep = (held == 0) & (size > 1e-12 * total((x - centre) ** 2)) & (size > 0)
        basis.append(motion * spread(jnp.where(keep, 1.0 / jnp.sqrt(jnp.where(keep, size, 1.0)), 0.0)))

    def project(v):
        for motion in basis:
            v = v - motion * spread(total(motion * v))
        return v

    return project
