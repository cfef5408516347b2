"""Vibrational frequencies at the minima of the force field, matched with the normal modes of quantum chemistry.

For conformer c of record r, x_c(theta) is the minimum reached from the QM geometry (in a fit from that of the last
iteration), l_j and omega_j^2 are the normal modes there (:mod:`offjax.fit.targets.modes`), without the 6 (5)
translations and rotations, and j(m) is the mode that belongs to the QM mode m:

    u_cm = (nu_j(m) - nu_m) / (s sqrt(n_m n_c))

with wavenumbers nu and the scale s in 1/cm, for n_m modes and n_c conformers. Modes are matched by their squared
overlap in mass-weighted coordinates, the molecule turned onto the QM geometry: the largest of all decides first, and
each mode is used once. ForceBalance's vibration targets minimise and match likewise
(https://github.com/leeping/forcebalance, ``src/vibration.py``).

omega_j^2 = l_j^T M^-1/2 H M^-1/2 l_j is differentiated at constant l_j, which for an eigenvector is exact,
d omega^2 = l^T dD l, and has no term with 1 / (omega_i^2 - omega_j^2): modes of equal frequency are harmless. H depends
on theta directly and through the minimum, d omega^2/d theta = l^T (dD/d theta) l + (d omega^2/dx) H^+ dF/d theta.
Which modes are matched changes in jumps; a step that loses by it is rejected by the optimiser.
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
from offjax.fit.targets.hessians import curvature
from offjax.fit.targets.sample import Sample
from offjax.fit.targets.target import Found
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.system import System

OUTSIDE = 1e8
"""Eigenvalue that translations, rotations and padding are given, 1/ps^2: far above any vibration."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Vibrations:
    """Targets of the kind vibrations. ``reference`` are the QM modes, mass-weighted; ``factor`` (conformer, mode) is
    1 / (s sqrt(n_m n_c)), 0 in padding; ``root_masses`` (conformer, coordinate) are 1 in padding. ``starts``
    (row, 3) is where minimisations begin, nm.
    """

    sample: Sample
    starts: Float[Array, "row 3"]
    wavenumbers: Float[Array, "conformer mode"]
    reference: Float[Array, "conformer mode coordinate"]
    factor: Float[Array, "conformer mode"]
    root_masses: Float[Array, "conformer coordinate"]
    scale: Array
    tolerance: Array
    max_steps: int = field(metadata={"static": True})
    n_records: int = field(metadata={"static": True})

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record], settings: config.Vibrations):
        """The targets of records with the property ``hessian``, or ``frequencies`` and ``modes``."""
        sample = Sample.of(systems, records)
        values, vectors, there = modes.padded(modes.of_records(systems, records), sample.rows.shape[1])
        count = np.repeat([r.n_conformers for r in records], [r.n_conformers for r in records])
        size = settings.scale * np.sqrt(np.maximum(np.asarray(there).sum(axis=1), 1) * count)
        return cls(
            sample,
            sample.conformers.positions,
            modes.wavenumbers(values),
            vectors,
            there / jnp.asarray(size)[:, None],
            sample.root_masses(systems),
            jnp.asarray(settings.scale),
            jnp.asarray(settings.tolerance),
            settings.max_steps,
            len(records),
        )

    @property
    def record(self) -> Int[Array, " j"]:
        """The record of each deviation."""
        return jnp.repeat(self.sample.conformers.molecule, self.factor.shape[1])

    def evaluate(self, p: ParameterSet) -> Found:
        """Minimise, find the modes and match them; one second derivative a mode."""
        sample = self.sample
        found = sample.minimize(p, self.starts, self.tolerance, self.max_steps)
        x = found.positions
        directions = self.directions(p, x)

        def value(direction):
            v = sample.by_row(direction)
            return curvature(lambda y: sample.plain.energies(p, y), x, v, v)

        values = jax.lax.map(jax.checkpoint(value), jnp.swapaxes(directions, 0, 1)).T
        u = (self.factor * (modes.wavenumbers(values) - self.wavenumbers)).ravel()
        squares = jax.ops.segment_sum(u**2, self.record, self.n_records) * self.scale**2
        return Found(u, {"frequency": squares}, x, jnp.sum(~found.converged), directions)

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """One response of the minima; the rows of all conformers together, one reverse pass a mode."""
        sample = self.sample
        assert (x := at.positions) is not None and at.directions is not None
        response = sample.response(p, x, columns)

        def row(direction):
            v = sample.by_row(direction)
            value, pull, rows = sample.plain.rows(p, x, columns, lambda u, y: curvature(u, y, v, v))
            rows = rows + jnp.einsum("ci,cik->ck", sample.by_conformer(pull), response)
            return jax.vmap(jax.grad(modes.wavenumbers))(value)[:, None] * rows

        rows = jax.lax.map(row, jnp.swapaxes(at.directions, 0, 1))
        return (self.factor[..., None] * jnp.swapaxes(rows, 0, 1)).reshape(-1, len(columns))

    def directions(self, p: ParameterSet, x: Float[Array, "row 3"]) -> Float[Array, "conformer mode coordinate"]:
        """M^-1/2 l_j(m) at the minima x, constants of the derivatives; 0 for a mode without partner, which then counts
        as one of wavenumber 0: a linear molecule that is bent in the force field has one vibration less.
        """
        p, x = jax.lax.stop_gradient((p, x))
        sample, root = self.sample, self.root_masses
        masses = sample.by_row(root**2)[:, 0]
        rigid = sample.rigid(x, masses)
        outside = rigid @ jnp.swapaxes(rigid, 1, 2)
        n = root.shape[1]
        padding = jnp.eye(n, dtype=x.dtype) * (jnp.repeat(sample.rows, 3, axis=1) >= len(x))[:, None, :]
        free = jnp.eye(n, dtype=x.dtype) - outside
        weighted = sample.hessian(p, x) / (root[:, :, None] * root[:, None, :])
        values, vectors = jnp.linalg.eigh(free @ weighted @ free + OUTSIDE * (outside + padding))
        overlap = jnp.einsum("cmi,cij->cmj", self._turned(x), vectors) ** 2
        usable = (self.factor > 0)[:, :, None] & (values < 0.5 * OUTSIDE)[:, None, :]
        chosen = jax.vmap(matched)(jnp.where(usable, overlap, -1.0))
        partners = jnp.take_along_axis(jnp.swapaxes(vectors, 1, 2), jnp.maximum(chosen, 0)[:, :, None], axis=1)
        return jnp.where((chosen >= 0)[:, :, None], partners, 0.0) / root[:, None, :]

    def _turned(self, x: Float[Array, "row 3"]) -> Float[Array, "conformer mode coordinate"]:
        """The QM modes, turned as x is turned against the QM geometry (W. Kabsch, Acta Cryst. A 34, 827 (1978))."""
        turns = self.sample.turns(x)
        each = self.reference.reshape(*self.reference.shape[:2], -1, 3)
        return jnp.einsum("cde,cmae->cmad", turns, each).reshape(self.reference.shape)


def matched(score: Float[Array, "m j"]) -> Int[Array, " m"]:
    """A column for each row, none twice, from the largest score downwards; -1 for rows without any score above -1."""

    def choose(_, carry):
        left, chosen = carry
        m, j = jnp.divmod(jnp.argmax(left), left.shape[1])
        there = left[m, j] > -1.0
        chosen = jnp.where(there, chosen.at[m].set(j), chosen)
        left = jnp.where(there, left.at[m, :].set(-1.0).at[:, j].set(-1.0), left)
        return left, chosen

    return jax.lax.fori_loop(0, len(score), choose, (score, jnp.full(len(score), -1)))[1]
