"""Optimised geometries: where the force field has its minimum, starting from that of quantum chemistry.

For record r with conformers c, from the geometry X_rc,

    x_rc(theta) = the minimum of U_r(theta, x) that is reached from X_rc (in a fit from that of the last iteration),
    u_rcq = [q(x_rc) - q(X_rc)] / (s_T sqrt(n_c n_T))

for each internal coordinate q of the type T: bond, angle, torsion and improper, of which the molecule has n_T;
differences of torsions and impropers are taken in (-180, 180] degrees. So |u|^2 of a record is the sum over types of
(RMSD_T / s_T)^2, as in ForceBalance's optimised-geometry targets
(https://github.com/leeping/forcebalance, ``src/opt_geo_target.py``; Y. Qiu et al., J. Chem. Theory Comput. 17, 6262
(2021)). The root mean square distance of all atoms after superposition is reported and not fitted.

Derivatives are those of the minima (:mod:`offjax.fit.targets.sample`), du/d theta = du/dx H^+ dF/d theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax import constants, geometry
from offjax.fit import config
from offjax.fit.targets import internal
from offjax.fit.targets.sample import Sample
from offjax.fit.targets.target import Found
from offjax.interop.records import Record
from offjax.parameters import ParameterSet
from offjax.system import System

VALUE = {
    "bond": lambda x: geometry.norm(x[1] - x[0]),
    "angle": lambda x: geometry.angle(*x),
    "torsion": lambda x: geometry.dihedral(*x),
    "improper": lambda x: geometry.dihedral(*x),
}
"""q of the positions of its atoms, nm or rad."""
SHOWN = {"bond": 1.0, "angle": constants.DEGREE, "torsion": constants.DEGREE, "improper": constants.DEGREE}
"""Units of the reported errors: nm and degrees."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Coordinates:
    """Internal coordinates of one type, of all conformers: ``atoms`` (q, 2 to 4) as atom rows; ``index`` (q,) counts
    the coordinates of a conformer over all types; ``factor`` (q,) is 1 / (s_T sqrt(n_c n_T)).
    """

    atoms: Int[Array, "q body"]
    conformer: Int[Array, " q"]
    record: Int[Array, " q"]
    index: Int[Array, " q"]
    reference: Float[Array, " q"]
    factor: Float[Array, " q"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OptimizedGeometries:
    """Targets of the kind optimized-geometries; ``coordinates`` by type, ``tolerance`` in kJ/mol/nm.

    ``starts`` (row, 3) is where minimisations begin, nm: at the QM geometries, in a fit at the last iteration's minima.
    """

    sample: Sample
    starts: Float[Array, "row 3"]
    coordinates: dict[str, Coordinates]
    tolerance: Array
    max_steps: int = field(metadata={"static": True})
    n_records: int = field(metadata={"static": True})
    n_internal: int = field(metadata={"static": True})

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record], settings: config.OptimizedGeometries):
        """The targets of records, whose geometries are the minima of quantum chemistry."""
        columns: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in VALUE}
        conformer, row, largest = 0, 0, 0
        for r, (system, record) in enumerate(zip(systems, records, strict=True)):
            own = internal.coordinates(system, record.positions)
            n, n_rows = record.n_conformers, system.n_particles
            count = 0
            for name, scale in settings.scales.items():
                atoms = own[name]
                every = np.concatenate([atoms + row + c * n_rows for c in range(n)])
                factor = 1.0 / (scale * np.sqrt(max(len(every), 1))) if scale else 0.0
                entry = {
                    "atoms": every,
                    "conformer": np.repeat(np.arange(conformer, conformer + n), len(atoms)),
                    "record": np.full(len(every), r),
                    "index": np.tile(np.arange(count, count + len(atoms)), n),
                    "factor": np.full(len(every), factor),
                }
                for key, values in entry.items():
                    columns[name].setdefault(key, []).append(values)
                count += len(atoms)
            conformer, row, largest = conformer + n, row + n * n_rows, max(largest, count)
        sample = Sample.of(systems, records)
        x = sample.conformers.positions
        coordinates = {}
        for name, entry in columns.items():
            arrays = {key: jnp.asarray(np.concatenate(parts)) for key, parts in entry.items()}
            coordinates[name] = Coordinates(reference=jax.vmap(VALUE[name])(x[arrays["atoms"]]), **arrays)
        tolerance = jnp.asarray(settings.tolerance)
        return cls(sample, x, coordinates, tolerance, settings.max_steps, len(records), largest)

    @property
    def record(self) -> Int[Array, " j"]:
        """The record of each deviation."""
        return jnp.concatenate([c.record for c in map(self.coordinates.__getitem__, VALUE)])

    def evaluate(self, p: ParameterSet) -> Found:
        """Minimise, then measure."""
        conformers = self.sample.conformers
        found = self.sample.minimize(p, self.starts, self.tolerance, self.max_steps)
        deviations, errors = [], {}
        for name in VALUE:
            own = self.coordinates[name]
            change = jax.vmap(VALUE[name])(found.positions[own.atoms]) - own.reference
            if name in ("torsion", "improper"):
                change = jnp.pi - jnp.mod(jnp.pi - change, 2 * jnp.pi)
            deviations.append(own.factor * change)
            errors[name] = mean((change / SHOWN[name]) ** 2, own.record, self.n_records)
        record = conformers.molecule
        errors["position"] = mean(self._superposed(jax.lax.stop_gradient(found.positions)), record, self.n_records)
        return Found(jnp.concatenate(deviations), errors, found.positions, jnp.sum(~found.converged))

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """One response of the minima; one product with the derivatives of the internal coordinates."""
        assert (x := at.positions) is not None
        response = self.sample.response(p, x, columns)
        shape = (len(self.sample.rows), self.n_internal, self.sample.n_coordinates)
        slopes = jnp.zeros(shape, x.dtype)
        for name in VALUE:
            own = self.coordinates[name]
            slope = own.factor[:, None, None] * jax.vmap(jax.grad(VALUE[name]))(x[own.atoms])
            coordinate = 3 * self.sample.place[own.atoms][..., None] + jnp.arange(3)
            slopes = slopes.at[own.conformer[:, None, None], own.index[:, None, None], coordinate].add(slope)
        rows = slopes @ response
        return jnp.concatenate([rows[own.conformer, own.index] for own in map(self.coordinates.__getitem__, VALUE)])

    def _superposed(self, x: Float[Array, "row 3"]) -> Float[Array, " conformer"]:
        """Mean square distance of the atoms from the reference after superposition, nm^2."""
        sample = self.sample
        conformer, reference = sample.conformers.conformer, sample.centred(sample.conformers.positions)
        turned = jnp.einsum("rde,re->rd", sample.turns(x)[conformer], reference)
        squares = jnp.sum((sample.centred(x) - turned) ** 2, axis=1)
        member = jnp.where(sample.is_atom, conformer, len(sample.rows))
        return mean(squares, member, len(sample.rows))


def mean(squares, member, n: int):
    """Of the squares of each of n groups; not-a-number for one that has none."""
    count = jax.ops.segment_sum(jnp.ones_like(squares), member, n)
    total = jax.ops.segment_sum(squares, member, n)
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), jnp.nan)
