"""Targets: reference energies and forces of molecules, and the residuals of a force field against them.

For molecule m with conformers c, weights a_mc >= 0 with sum_c a_mc = 1, and the weight w_m of its data set,

    r^E_mc   = sqrt(w_m w_E a_mc) [(U_mc - sum_c' b_mc' U_mc') - (E_mc - sum_c' b_mc' E_mc')] / s_E
    r^F_mci  = sqrt(w_m w_F a_mc / (3 n_m)) (f_mci - F_mci) / s_F           for each atom i of n_m and each x, y, z

with the energies U, E in kJ/mol and forces f, F in kJ/mol/nm of force field and reference, and the scales s_E, s_F of
the configuration in the same units. The reference energy is the weighted mean (``b = a``) or the conformer that is
lowest in E (``b`` is 1 there, 0 elsewhere): total energies of force field and quantum chemistry have no common zero.
Every molecule counts equally, however many conformers or atoms it has. Conformers count equally (a_mc = 1/n) or, with
a ``temperature`` T, by exp(-(E_mc - min E_m) / RT).

Targets know no optimiser; they are linear maps of the flat energies and forces that a SystemBatch returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.batch import Conformers, SystemBatch
from offjax.constants import GAS_CONSTANT
from offjax.fit.config import Objective
from offjax.interop.records import Record


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Targets:
    """The reference data in the flat layout of a SystemBatch; padding and held-out molecules have factor 0.

    ``energy_factor`` is sqrt(w_m w_E a_mc) / s_E, ``force_factor`` sqrt(w_m w_F a_mc / 3 n_m) / s_F and
    ``reference`` b_mc. ``energies`` are relative already.
    """

    batch: SystemBatch
    conformers: Conformers
    reference: Float[Array, " conformer"]
    energies: Float[Array, " conformer"]
    energy_factor: Float[Array, " conformer"]
    forces: Float[Array, "row 3"]
    force_factor: Float[Array, " conformer"]

    def relative(self, energies: Float[Array, " conformer"]) -> Float[Array, " conformer"]:
        """U_mc - sum_c' b_mc' U_mc', kJ/mol."""
        molecule = self.conformers.molecule
        zero = jax.ops.segment_sum(self.reference * energies, molecule, self.conformers.n_conformers)
        return energies - zero[molecule]

    def residuals(self, energies, forces) -> tuple[Float[Array, " conformer"], Float[Array, "row 3"]]:
        """r^E and r^F, without unit; 0 in padding and for molecules without weight."""
        energy = self.energy_factor * (self.relative(energies) - self.energies)
        factor = self.force_factor[self.conformers.conformer]
        return energy, factor[:, None] * (forces - self.forces)

    def select(self, molecules: Sequence[int], weights: Float[np.ndarray, " k"]) -> Targets:
        """A minibatch: some molecules, each w_m multiplied by its weight. Outside jit.

        Minibatches of as many molecules have equal shapes, so that programs are compiled once for them.
        """
        batch, conformers = self.batch.select(molecules), self.conformers.select(molecules)

        def moved(values, factor=None):
            parts = self.batch.unpack(values, self.conformers)
            chosen = [parts[m] for m in molecules]
            if factor is not None:
                chosen = [part * np.sqrt(w) for part, w in zip(chosen, factor, strict=True)]
            return jnp.asarray(batch.flatten(chosen, conformers))

        return Targets(
            batch,
            conformers,
            reference=moved(self.reference),
            energies=moved(self.energies),
            energy_factor=moved(self.energy_factor, weights),
            forces=moved(self.forces),
            force_factor=moved(self.force_factor, weights),
        )


def build(
    batch: SystemBatch, records: Sequence[Record], weights: Float[np.ndarray, " molecule"], objective: Objective
) -> Targets:
    """Pack the records, in the batch's order of molecules; ``weights[m]`` is w_m (0: held out)."""
    conformers = batch.pack([record.positions for record in records])
    columns: dict[str, list[np.ndarray]] = {
        k: [] for k in ("reference", "energies", "energy_factor", "forces", "force_factor")
    }
    for record, w in zip(records, weights, strict=True):
        a = conformer_weights(record.energies, objective.temperature)
        b = reference_weights(record.energies, a, objective.energy_reference)
        shifted = record.energies - record.energies[0]
        columns["reference"].append(b)
        columns["energies"].append(shifted - b @ shifted)
        columns["energy_factor"].append(np.sqrt(w * objective.energy_weight * a) / objective.energy_scale)
        columns["forces"].append(np.zeros(record.positions.shape) if record.forces is None else record.forces)
        scale = objective.force_scale * np.sqrt(3 * record.positions.shape[1])
        columns["force_factor"].append(np.sqrt(w * objective.force_weight * a) / scale * (record.forces is not None))
    flat = {name: jnp.asarray(batch.flatten(arrays, conformers)) for name, arrays in columns.items()}
    return Targets(batch, conformers, **flat)


def conformer_weights(energies: np.ndarray, temperature: float | None) -> np.ndarray:
    """a_mc of one molecule, (n,): equal, or Boltzmann at ``temperature`` K."""
    if temperature is None:
        return np.full(len(energies), 1.0 / len(energies))
    weights = np.exp(-(energies - energies.min()) / (GAS_CONSTANT * temperature))
    return weights / weights.sum()


def reference_weights(energies: np.ndarray, a: np.ndarray, kind: str) -> np.ndarray:
    """b_mc of one molecule, (n,)."""
    if kind == "mean":
        return a
    b = np.zeros(len(energies))
    b[np.argmin(energies)] = 1.0
    return b
