"""Electrostatic potentials on grids around molecules, for charge increments and library charges.

For record r, conformer c and grid points R_g with weights w_g (1 if the file has none),

    V_rcg(theta) = 1/(4 pi eps0) sum_i q_i(theta) / |R_g - X_rci|,
    u_rcg = sqrt(w_g / sum_g' w_g') (V_rcg - V^QM_rcg) / (s sqrt(n_c))

in kJ/mol/e, over atoms and virtual sites. Charges are linear in the force field, so is V, and Levenberg-Marquardt is
done in one step, unless the places of virtual sites are fitted too. Charges that
the force field does not hold itself (AM1-BCC or NAGL charges before increments, charges given with the molecule) are
constants. Source: C. I. Bayly et al., J. Phys. Chem. 97, 10269 (1993), eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax.constants import COULOMB
from offjax.fit import config
from offjax.fit.targets.sample import Sample
from offjax.fit.targets.target import Found, forward
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.system import System


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ElectrostaticPotentials:
    """Targets of the kind electrostatic-potentials; ``factor`` (conformer, point) is 0 in padding; ``particles``
    (conformer, width) are the rows of atoms and virtual sites, the number of rows in padding.
    """

    sample: Sample
    particles: Int[Array, "conformer width"]
    points: Float[Array, "conformer point 3"]
    values: Float[Array, "conformer point"]
    factor: Float[Array, "conformer point"]
    scale: Array
    n_records: int = field(metadata={"static": True})
    starts = None  # nothing is minimised

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record], settings: config.ElectrostaticPotentials):
        """The targets of records with the properties ``grid`` and ``potential``, and perhaps ``grid_weights``."""
        most = max(r.properties["grid"].shape[1] for r in records)
        points, values, factors = [], [], []
        for r in records:
            missing = most - r.properties["grid"].shape[1]
            weights = r.properties.get("grid_weights", np.ones(r.properties["potential"].shape))
            factor = np.sqrt(weights / weights.sum(axis=1, keepdims=True) / r.n_conformers) / settings.scale
            # padding lies at the first point: no atom is there
            points.append(np.pad(r.properties["grid"], ((0, 0), (0, missing), (0, 0)), mode="edge"))
            values.append(np.pad(r.properties["potential"], ((0, 0), (0, missing))))
            factors.append(np.pad(factor, ((0, 0), (0, missing))))
        arrays = (jnp.asarray(np.concatenate(a)) for a in (points, values, factors))
        sizes = np.repeat([s.n_particles for s in systems], [r.n_conformers for r in records])
        slot, start = np.arange(sizes.max()), np.cumsum(sizes) - sizes
        particles = jnp.asarray(np.where(slot < sizes[:, None], start[:, None] + slot, sizes.sum()))
        return cls(Sample.of(systems, records), particles, *arrays, jnp.asarray(settings.scale), len(records))

    @property
    def record(self) -> Int[Array, " j"]:
        """The record of each deviation."""
        return jnp.repeat(self.sample.conformers.molecule, self.points.shape[1])

    def _deviations(self, p: ParameterSet) -> Float[Array, " j"]:
        sample = self.sample
        there = self.particles < len(sample.place)
        charges, x = sample.plain.charges(p, sample.conformers.positions)
        atoms = x.at[self.particles].get(mode="fill", fill_value=0.0)
        charges = charges.at[self.particles].get(mode="fill", fill_value=0.0)
        distance = jnp.linalg.norm(self.points[:, :, None, :] - atoms[:, None, :, :], axis=-1)
        inverse = jnp.where(there[:, None, :], 1.0 / jnp.where(there[:, None, :], distance, 1.0), 0.0)
        potential = COULOMB * jnp.einsum("cgi,ci->cg", inverse, charges)
        return (self.factor * (potential - self.values)).ravel()

    def evaluate(self, p: ParameterSet) -> Found:
        """The potential of the charges."""
        u = self._deviations(p)
        squares = jax.ops.segment_sum(u**2, self.record, self.n_records) * self.scale**2
        return Found(u, {"potential": squares}, None, jnp.zeros((), int))

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """Columns by forward mode."""
        return forward(self._deviations, p, columns)
