"""Hessians: second derivatives of force field and quantum chemistry at the same geometry, in the latter's modes.

With the QM modes l_m of conformer c (:mod:`offjax.fit.targets.modes`), orthonormal in mass-weighted coordinates, and
their eigenvalues omega_m^2,

    K_mn(theta) = l_m^T M^-1/2 H(theta, X_c) M^-1/2 l_n,
    u_cmn = g_mn (K_mn - omega_m^2 delta_mn) / (s n_m sqrt(n_c)),    m <= n,    g = 1 on the diagonal, else sqrt(2)

for the n_m modes and n_c conformers of a record: |u|^2 is the mean square difference of all elements of the two
mass-weighted Hessians without translations and rotations, whatever the basis, in units of s^2. s is in
kJ/mol/nm^2/amu = 1/ps^2; an omega^2 of 10,000 is a wavenumber of 531/cm. The geometry is that of the file, so that no
minimisation is needed and everything is linear in force constants; a force field that has its minimum elsewhere is
judged by its curvature there (I. Cacelli and G. Prampolini, J. Chem. Theory Comput. 3, 1803 (2007), fit the same way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax.fit import config
from offjax.fit.targets import modes
from offjax.fit.targets.sample import Sample
from offjax.fit.targets.target import Found
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.system import System


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Hessians:
    """Targets of the kind hessians. ``directions`` are M^-1/2 l_m; ``pairs`` (pair, 2) are the m <= n; ``factor``
    (conformer, pair) is g_mn / (s n_m sqrt(n_c)), 0 in padding.
    """

    sample: Sample
    eigenvalues: Float[Array, "conformer mode"]
    directions: Float[Array, "conformer mode coordinate"]
    pairs: Int[Array, "pair 2"]
    factor: Float[Array, "conformer pair"]
    scale: Array
    n_records: int = field(metadata={"static": True})
    starts = None  # nothing is minimised

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record], settings: config.Hessians):
        """The targets of records with the property ``hessian``."""
        sample = Sample.of(systems, records)
        values, vectors, there = modes.padded(modes.of_records(systems, records), sample.rows.shape[1])
        pairs = np.array([(m, n) for m in range(values.shape[1]) for n in range(m, values.shape[1])]).reshape(-1, 2)
        both = np.asarray(there)[:, pairs[:, 0]] & np.asarray(there)[:, pairs[:, 1]]
        weight = np.where(pairs[:, 0] == pairs[:, 1], 1.0, np.sqrt(2.0))
        count = np.repeat([r.n_conformers for r in records], [r.n_conformers for r in records])
        size = np.maximum(np.asarray(there).sum(axis=1), 1) * np.sqrt(count) * settings.scale
        return cls(
            sample,
            values,
            vectors / sample.root_masses(systems)[:, None, :],
            jnp.asarray(pairs),
            jnp.asarray(both * weight / size[:, None]),
            jnp.asarray(settings.scale),
            len(records),
        )

    @property
    def record(self) -> Int[Array, " j"]:
        """The record of each deviation."""
        return jnp.repeat(self.sample.conformers.molecule, len(self.pairs))

    def evaluate(self, p: ParameterSet) -> Found:
        """K by one product of the Hessian with each mode."""
        sample, x = self.sample, self.sample.conformers.positions

        def forces(y):
            return sample.plain.energies_and_forces(p, y)[1]

        def row(direction):
            along = jax.jvp(forces, (x,), (sample.by_row(direction),))[1]
            return -jnp.einsum("cmi,ci->cm", self.directions, sample.by_conformer(along))

        matrix = jax.lax.map(row, jnp.swapaxes(self.directions, 0, 1))
        m, n = self.pairs.T
        difference = matrix[m, :, n].T - jnp.where(m == n, self.eigenvalues[:, m], 0.0)
        u = (self.factor * difference).ravel()
        squares = jax.ops.segment_sum(u**2, self.record, self.n_records) * self.scale**2
        return Found(u, {"hessian": squares}, None, jnp.zeros((), int))

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """The rows of all conformers together, one reverse pass a pair of modes."""
        sample, x = self.sample, self.sample.conformers.positions

        def row(pair):
            along, across = (sample.by_row(self.directions[:, pair[end]]) for end in (0, 1))
            return sample.plain.rows(p, x, columns, lambda u, y: curvature(u, y, along, across))[2]

        rows = self.factor[..., None] * jnp.swapaxes(jax.lax.map(row, self.pairs), 0, 1)
        return rows.reshape(-1, len(columns))


def curvature(energies, x: Float[Array, "row 3"], v: Float[Array, "row 3"], w: Float[Array, "row 3"]):
    """v^T H w of every conformer, (conformer,)."""
    return jax.jvp(lambda y: jax.jvp(energies, (y,), (v,))[1], (x,), (w,))[1]
