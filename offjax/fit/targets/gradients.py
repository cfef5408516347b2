"""Gradients at minima of quantum chemistry, where the forces of the force field should vanish too.

For record r with conformers c at X_rc and atoms i of n,

    u_rci = F_rci(theta, X_rc) / (s sqrt(3 n n_c))          for each of x, y, z

with the scale s in kJ/mol/nm. Nothing is minimised: this is the cheapest way to fit geometries, and asks for less
than the minimum itself, since a force of one size moves a stiff bond little and a soft torsion far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offjax.fit import config
from offjax.fit.targets.sample import Sample
from offjax.fit.targets.target import Found, forward
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.system import System


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MinimumGradients:
    """Targets of the kind minimum-gradients; ``scale`` in kJ/mol/nm."""

    sample: Sample
    scale: Array
    n_records: int = field(metadata={"static": True})
    starts = None  # nothing is minimised

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record], settings: config.MinimumGradients):
        """The targets of records, whose geometries are the minima of quantum chemistry."""
        return cls(Sample.of(systems, records), jnp.asarray(settings.scale), len(records))

    @property
    def record(self) -> Int[Array, " j"]:
        """The record of each deviation."""
        return jnp.repeat(self._record_of_row, 3)

    @property
    def _record_of_row(self) -> Int[Array, " row"]:
        conformers = self.sample.conformers
        return conformers.molecule[conformers.conformer]

    def _deviations(self, p: ParameterSet) -> Float[Array, " j"]:
        forces = self.sample.batch.energies_and_forces(p, self.sample.conformers)[1]
        of = self._record_of_row
        count = 3 * jax.ops.segment_sum(self.sample.is_atom.astype(forces.dtype), of, self.n_records)
        return (forces / (self.scale * jnp.sqrt(count[of])[:, None])).ravel()

    def evaluate(self, p: ParameterSet) -> Found:
        """The forces at the geometries as they are."""
        u = self._deviations(p)
        squares = jax.ops.segment_sum(u**2, self.record, self.n_records) * self.scale**2
        return Found(u, {"gradient": squares}, None, jnp.zeros((), int))

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """Columns by forward mode."""
        return forward(self._deviations, p, columns)
