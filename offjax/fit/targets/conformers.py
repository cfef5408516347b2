"""Targets: reference energies, forces and torsion profiles, and the residuals of a force field against them.

For molecule m with conformers c, weights a_mc >= 0 with sum_c a_mc = 1, and the weight w_m of its data set,

    r^E_mc   = sqrt(w_m w_E a_mc) [(U_mc - sum_c' b_mc' U_mc') - (E_mc - sum_c' b_mc' E_mc')] / s_E
    r^F_mci  = sqrt(w_m w_F a_mc / (3 n_m)) (f_mci - F_mci) / s_F           for each atom i of n_m and each x, y, z

with the energies U, E in kJ/mol and forces f, F in kJ/mol/nm of force field and reference, and the scales s_E, s_F of
the configuration in the same units. The reference energy is the weighted mean (``b = a``) or the conformer that is
lowest in E (``b`` is 1 there, 0 elsewhere): total energies of force field and quantum chemistry have no common zero.
Every molecule counts equally, however many conformers or atoms it has.

In a *torsion profile* the points are minimised first, each from the reference geometry X_mc, with the atoms of the
driven dihedral D frozen and all others held weakly, as ForceBalance does:

    x_mc(theta) = argmin_x  U_m(theta, x) + sum_{i not in D} k/2 |x_i - X_mci|^2,    x_i = X_mci for i in D,

and U_mc = U_m(theta, x_mc(theta)) is the energy without the restraints: it is not what was minimised, so that its
derivative contains that of the minimum (:mod:`offjax.relaxation`). Its forces have no residuals.

Conformers count equally (a_mc = 1/n) or, with
a ``temperature`` T, by exp(-(E_mc - min E_m) / RT).

Targets know no optimiser; they are linear maps of the flat energies and forces that a SystemBatch returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax.batch import Conformers, Frame, PlainBatch, SystemBatch
from offjax.constants import GAS_CONSTANT
from offjax.fit import config
from offjax.fit.config import Objective
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.relaxation import respond

CONFORMERS = ("energies", "torsion-profiles")
"""Kinds that are energies and forces of a :class:`Targets`; all others have a component."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Relaxation:
    """Which atoms are moved to the minimum before the energy counts, and how.

    ``movable`` (row, 3) is 1 for atoms that move, 0 for frozen ones and for conformers that are taken as they are;
    ``starts`` (row, 3) is where the minimisation begins, nm; ``restraint`` k, kJ/mol/nm^2; ``tolerance``
    the largest force at the end, kJ/mol/nm. ``forces`` tells whether
    other conformers have forces to be fitted.
    """

    movable: Float[Array, "row 3"]
    starts: Float[Array, "row 3"]
    restraint: Array
    tolerance: Array
    max_steps: int = field(metadata={"static": True})
    forces: bool = field(metadata={"static": True})

    @property
    def frozen(self):
        """(row,) bool."""
        return self.movable[:, 0] == 0


class Evaluated(NamedTuple):
    """Energies, kJ/mol, and forces, kJ/mol/nm, at ``positions`` (row, 3) nm; None: the conformers as they are.

    ``unconverged`` counts the conformers whose minimisation did not end.
    """

    energies: Float[Array, " conformer"]
    forces: Float[Array, "row 3"]
    positions: Float[Array, "row 3"] | None
    unconverged: Int[Array, ""]


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
    relaxation: Relaxation | None = None

    def evaluate(self, p: ParameterSet) -> Evaluated:
        """Energies and forces of the force field, torsion profiles relaxed; differentiable once."""
        how = self.relaxation
        if how is None:
            return Evaluated(*self.batch.energies_and_forces(p, self.conformers), None, jnp.zeros((), int))
        found = self.batch.minimize(
            p,
            self.conformers.with_positions(how.starts),
            frozen=how.frozen,
            restraint=how.restraint,
            anchors=self.conformers.positions,
            tolerance=how.tolerance,
            max_steps=how.max_steps,
        )
        moved = self.conformers.with_positions(found.positions)
        unconverged = jnp.sum(~found.converged & self.conformers.mask)
        return Evaluated(*self.batch.energies_and_forces(p, moved), found.positions, unconverged)

    def energy_jacobian(
        self, p: ParameterSet, at: Evaluated, plain: PlainBatch, columns
    ) -> Float[Array, "conformer k"]:
        """dr^E/d theta in some entries of ``p.to_vector()``, at relaxed positions.

        With the Hessian H of what was minimised, one batch of equations H l = dU/dx gives the rows of all conformers:
        dU_c/d theta = dU_c/d theta|_x + l_c . dF_c/d theta.
        """
        assert (how := self.relaxation) is not None
        moved = self.conformers.with_positions(at.positions)
        pull = -how.movable * at.forces
        along = respond(self.batch, p, moved, pull, frozen=how.frozen, restraint=how.restraint)
        rows = plain.gradients(p, at.positions, along, columns)
        return jax.vmap(lambda column: self.energy_factor * self.relative(column), in_axes=1, out_axes=1)(rows)

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
            return batch.flatten(chosen, conformers)

        return Targets(
            batch,
            conformers,
            reference=moved(self.reference),
            energies=moved(self.energies),
            energy_factor=moved(self.energy_factor, weights),
            forces=moved(self.forces),
            force_factor=moved(self.force_factor, weights),
            relaxation=None
            if (how := self.relaxation) is None
            else replace(how, movable=moved(how.movable), starts=moved(how.starts)),
        )


def build(
    batch: SystemBatch,
    records: Sequence[Record],
    weights: Float[np.ndarray, " molecule"],
    objective: Objective,
    relaxation: config.Relaxation | None = None,
    network: bool = False,
    frame: Frame | None = None,
) -> Targets:
    """Pack the records, in the batch's order of molecules; ``weights[m]`` is w_m (0: held out). A ``frame`` is that of
    :meth:`SystemBatch.pack`.

    Records with a driven dihedral are torsion profiles, minimised as ``relaxation`` says. Those of other kinds have
    weight 0 here, and keep everything on one device; so does a ``network``.
    """
    # On several CPU devices the collective operations of components' linear equations wait for each other without end,
    # and XLA aborts where it compiles a network for small minibatches (jax 0.10.1).
    alone = network or any(record.kind not in CONFORMERS for record in records)
    devices = jax.local_devices()[:1] if alone else None
    conformers = batch.pack([record.positions for record in records], devices=devices, frame=frame)
    columns: dict[str, list[np.ndarray]] = {
        k: [] for k in ("reference", "energies", "energy_factor", "forces", "force_factor")
    }
    for record, weight in zip(records, weights, strict=True):
        w = weight if record.kind in CONFORMERS else 0.0
        a = conformer_weights(record.energies, objective.temperature)
        b = reference_weights(record.energies, a, objective.energy_reference)
        shifted = record.energies - record.energies[0]
        columns["reference"].append(b)
        columns["energies"].append(shifted - b @ shifted)
        columns["energy_factor"].append(np.sqrt(w * objective.energy_weight * a) / objective.energy_scale)
        columns["forces"].append(np.zeros(record.positions.shape) if record.forces is None else record.forces)
        scale = objective.force_scale * np.sqrt(3 * record.positions.shape[1])
        columns["force_factor"].append(np.sqrt(w * objective.force_weight * a) / scale * (record.forces is not None))
    flat = {name: batch.flatten(arrays, conformers) for name, arrays in columns.items()}
    how = None
    if any(record.driven for record in records):
        movable = batch.flatten([_movable(record) for record in records], conformers)
        settings = config.Relaxation() if relaxation is None else relaxation
        restraint, tolerance = jnp.asarray(settings.restraint), jnp.asarray(settings.tolerance)
        forces = bool(np.any(np.asarray(flat["force_factor"]) > 0))
        how = Relaxation(movable, conformers.positions, restraint, tolerance, settings.max_steps, forces)
    return Targets(batch, conformers, **flat, relaxation=how)


def _movable(record: Record) -> np.ndarray:
    """(n, atoms, 3): 1 for the atoms of a torsion drive that are not in its driven dihedrals, else 0."""
    movable = np.full(record.positions.shape, float(bool(record.driven)))
    movable[:, [atom for dihedral in record.driven for atom in dihedral]] = 0.0
    return movable


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
