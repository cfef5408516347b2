"""The geometries of one kind of data, and how their minima and Hessians depend on the force field.

With the Hessian H_c of conformer c at a minimum x_c of U,

    dx_c/d theta = H_c^+ dF_c/d theta,

where H^+ leaves out translations and rotations. Molecules are small, so H_c and dF_c/d theta are built as matrices: 3n
derivatives along unit vectors, each of which serves all conformers at once, whatever the number of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offjax.batch import Conformers, PlainBatch, SystemBatch
from offjax.fit.targets.modes import RIGID
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.relaxation import Relaxed
from offjax.system import System

SINGULAR = 1e-9
"""Eigenvalues of a Hessian below this times the largest belong to directions in which nothing acts."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sample:
    """All conformers of some records. ``rows`` (conformer, width) are the rows of the atoms of each, n_rows in padding;
    ``place`` (row,) is the place of each atom in its conformer, -1 for virtual sites. ``width`` is the largest number
    of atoms.
    """

    batch: SystemBatch
    conformers: Conformers
    plain: PlainBatch
    rows: Int[Array, "conformer width"]
    place: Int[Array, " row"]

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record]) -> Sample:
        """Pack the records' geometries, on one device; outside jit."""
        batch = SystemBatch.from_systems(systems)
        conformers = batch.pack([r.positions for r in records], devices=jax.local_devices()[:1])
        n = [r.n_conformers for r in records]
        atoms = np.repeat([s.topology.n_atoms for s in systems], n)
        sizes = np.repeat([s.n_particles for s in systems], n)
        start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        slot = np.arange(atoms.max())
        rows = np.where(slot < atoms[:, None], start[:, None] + slot, sizes.sum())
        place = np.arange(sizes.sum()) - np.repeat(start, sizes)
        place = np.where(place < np.repeat(atoms, sizes), place, -1)
        return cls(batch, conformers, batch.plain(conformers), jnp.asarray(rows), jnp.asarray(place))

    @property
    def n_coordinates(self) -> int:
        """3 x width."""
        return 3 * self.rows.shape[1]

    def by_conformer(self, v: Float[Array, "row 3"]) -> Float[Array, "conformer coordinate"]:
        """Rows as one vector a conformer, 0 in padding."""
        table = v.at[self.rows].get(mode="fill", fill_value=0.0)
        return table.reshape(len(self.rows), -1)

    def by_row(self, v: Float[Array, "conformer coordinate"]) -> Float[Array, "row 3"]:
        """The inverse of :meth:`by_conformer`; 0 for virtual sites."""
        rows = v.reshape(len(v), -1, 3)[self.conformers.conformer, self.place]
        return jnp.where(self.is_atom[:, None], rows, 0.0)

    @property
    def is_atom(self) -> Bool[Array, " row"]:
        """Rows that are no virtual sites."""
        return self.place >= 0

    def unit(self, k) -> Float[Array, "row 3"]:
        """The unit vector of coordinate k in every conformer that has it."""
        one = (self.place == k // 3)[:, None] & (jnp.arange(3) == k % 3)
        return one.astype(self.conformers.dtype)

    def root_masses(self, systems: Sequence[System]) -> Float[Array, "conformer coordinate"]:
        """sqrt(mass) of every coordinate, amu^1/2; 1 in padding. ``systems`` are those the sample was made of."""
        masses = [s.topology.masses for s in systems]
        flat = np.concatenate([masses[m] for m in np.asarray(self.conformers.molecule)])
        table = jnp.sqrt(jnp.asarray(flat)).at[self.rows].get(mode="fill", fill_value=1.0)
        return jnp.repeat(table, 3, axis=1)

    def centred(self, x: Float[Array, "row 3"]) -> Float[Array, "row 3"]:
        """Positions of atoms relative to the centroid of their conformer; 0 for virtual sites."""
        conformer, n, atom = self.conformers.conformer, len(self.rows), self.is_atom[:, None]
        count = jax.ops.segment_sum(self.is_atom.astype(x.dtype), conformer, n)
        centroid = jax.ops.segment_sum(jnp.where(atom, x, 0.0), conformer, n) / count[:, None]
        return jnp.where(atom, x - centroid[conformer], 0.0)

    def turns(self, x: Float[Array, "row 3"]) -> Float[Array, "conformer 3 3"]:
        """The rotation of each conformer's reference geometry that brings it closest to x (W. Kabsch, Acta Cryst. A 34,
        827 (1978)). Not to be differentiated: it is singular for linear molecules.
        """
        a, b = self.centred(x), self.centred(self.conformers.positions)
        covariance = jax.ops.segment_sum(a[:, :, None] * b[:, None, :], self.conformers.conformer, len(self.rows))
        left, _, right = jnp.linalg.svd(covariance)
        handed = jnp.linalg.det(left @ right)[:, None] * jnp.array([0.0, 0.0, 1.0]) + jnp.array([1.0, 1.0, 0.0])
        return (left * handed[:, None, :]) @ right

    def minimize(self, p: ParameterSet, starts: Float[Array, "row 3"], tolerance: Array, max_steps: int) -> Relaxed:
        """The minima that all conformers reach from ``starts`` (nm)."""
        conformers = self.conformers.with_positions(starts)
        return self.batch.minimize(p, conformers, tolerance=tolerance, max_steps=max_steps)

    def hessian(self, p: ParameterSet, x: Float[Array, "row 3"]) -> Float[Array, "conformer coordinate coordinate"]:
        """d2U/dx2 of every conformer, kJ/mol/nm^2; 0 in padding. Not differentiable further."""

        def forces(y):
            return self.batch.energies_and_forces(p, self.conformers.with_positions(y))[1]

        _, linear = jax.linearize(forces, x)
        columns = jax.lax.map(lambda k: -self.by_conformer(linear(self.unit(k))), jnp.arange(self.n_coordinates))
        return jnp.swapaxes(columns, 0, 1)

    def response(
        self, p: ParameterSet, x: Float[Array, "row 3"], columns: Int[Array, " k"]
    ) -> Float[Array, "conformer coordinate k"]:
        """dx/d theta of the minima x in some entries of ``p.to_vector()``, nm for MD units."""

        def along(k):
            v = self.unit(k)
            _, pull, rows = self.plain.rows(p, x, columns, lambda u, y: jax.jvp(u, (y,), (v,))[1])
            return self.by_conformer(pull), -rows

        hessian, slopes = (jnp.swapaxes(a, 0, 1) for a in jax.lax.map(along, jnp.arange(self.n_coordinates)))
        rigid = self.rigid(x)
        free = jnp.eye(self.n_coordinates, dtype=x.dtype) - rigid @ jnp.swapaxes(rigid, 1, 2)
        values, vectors = jnp.linalg.eigh(free @ hessian @ free)
        size = jnp.max(jnp.abs(values), axis=1, keepdims=True, initial=0.0)
        solid = jnp.abs(values) > SINGULAR * size
        inverse = jnp.where(solid, 1.0 / jnp.where(solid, values, 1.0), 0.0)
        return vectors @ (inverse[..., None] * (jnp.swapaxes(vectors, 1, 2) @ (free @ slopes)))

    def rigid(
        self, x: Float[Array, "row 3"], masses: Float[Array, " row"] | None = None
    ) -> Float[Array, "conformer coordinate 6"]:
        """Orthonormal translations and rotations, in coordinates weighted by sqrt(mass) if masses are given.

        A column that a linear molecule or a single atom does not have is 0.
        """
        masses = self.is_atom.astype(x.dtype) if masses is None else masses

        def total(v):
            return jax.ops.segment_sum(v, self.conformers.conformer, len(self.rows))

        centre = total(masses[:, None] * x) / total(masses)[:, None]
        arm = x - centre[self.conformers.conformer]
        axes = jnp.eye(3, dtype=x.dtype)
        motions = [jnp.broadcast_to(axis, x.shape) for axis in axes] + [jnp.cross(axis, arm) for axis in axes]
        basis = jnp.stack([self.by_conformer(jnp.sqrt(masses)[:, None] * m) for m in motions], axis=-1)
        size = jnp.linalg.norm(basis, axis=1, keepdims=True)
        there = size > 0
        left, values, _ = jnp.linalg.svd(jnp.where(there, basis / jnp.where(there, size, 1.0), 0.0), False)
        return jnp.where((values > RIGID * values[:, :1])[:, None, :], left, 0.0)
