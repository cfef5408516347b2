"""Interaction energies of dimers and larger complexes at given geometries.

For record r with conformers c at X_rc,

    I_rc(theta) = U_AB(X_rc) - U_A(X_rc) - U_B(X_rc),        u_rc = (I_rc - E_rc) / (s_rc sqrt(n_c))

in kJ/mol. The molecules have the geometry that they have in the complex, so that everything within one of them cancels
and I is the sum over pairs of atoms of different molecules, which is how it is computed. A scale s can be widened for
repulsive complexes, s_rc = sqrt(s^2 + max(E_rc, 0)^2) (``attenuate``): an error then counts relative to the repulsion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax.batch import PlainBatch
from offjax.batching.instances import Affine, Instances, MoleculeTerms, extract
from offjax.batching.plain import flatten
from offjax.errors import InputError, UnsupportedError
from offjax.fit import config
from offjax.fit.targets.target import Found
from offjax.interop.records import Record
from offjax.nonbonded import PairList
from offjax.parameters import ParameterSet
from offjax.system import System


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class InteractionEnergies:
    """Targets of the kind interaction-energies; ``between`` has the pairs of atoms of different molecules only."""

    between: PlainBatch
    positions: Float[Array, "row 3"]
    energies: Float[Array, " conformer"]
    factor: Float[Array, " conformer"]
    record: Int[Array, " conformer"]
    n_records: int = field(metadata={"static": True})
    starts = None  # nothing is minimised

    @classmethod
    def of(cls, systems: Sequence[System], records: Sequence[Record], settings: config.InteractionEnergies):
        """The targets of records with the property ``interaction``, of Systems with two molecules or more."""
        for system, record in zip(systems, records, strict=True):
            if system.topology.n_molecules < 2:
                raise InputError(f"{record.source}, {record.name}: an interaction energy needs two molecules, not one")
        record_of = np.repeat(np.arange(len(records)), [r.n_conformers for r in records])
        terms = jax.device_put(flatten([intermolecular(s) for s in systems], record_of))
        energies = np.concatenate([r.properties["interaction"] for r in records])
        scale = np.full(len(energies), settings.scale)
        if settings.attenuate:
            scale = np.hypot(scale, np.maximum(energies, 0.0))
        return cls(
            PlainBatch(terms, systems[0].parameters.schema, len(record_of)),
            jnp.asarray(
                np.concatenate([_with_sites(s, r).reshape(-1, 3) for s, r in zip(systems, records, strict=True)])
            ),
            jnp.asarray(energies),
            jnp.asarray(1.0 / (scale * np.sqrt(np.bincount(record_of)[record_of]))),
            jnp.asarray(record_of),
            len(records),
        )

    def evaluate(self, p: ParameterSet) -> Found:
        """The pair sums between molecules."""
        difference = self.between.energies(p, self.positions) - self.energies
        count = jax.ops.segment_sum(jnp.ones(len(difference)), self.record, self.n_records)
        squares = jax.ops.segment_sum(difference**2, self.record, self.n_records) / count
        return Found(self.factor * difference, {"interaction": squares}, None, jnp.zeros((), int))

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """All rows from one reverse pass."""
        rows = self.between.rows(p, self.positions, columns, lambda energies, x: energies(x))[2]
        return self.factor[:, None] * rows


def _with_sites(system: System, record: Record) -> np.ndarray:
    """Positions with rows for virtual sites, which are placed where the energy is computed."""
    missing = system.n_particles - record.positions.shape[1]
    return np.pad(record.positions, ((0, 0), (0, missing), (0, 0)))


def intermolecular(system: System) -> MoleculeTerms:
    """Of the terms of a System the pairs whose atoms belong to different molecules."""
    if system.gbsa is not None:
        raise UnsupportedError(
            "<GBSA>: interaction energies in implicit solvent are not sums over pairs and are not supported; leave the "
            "section out of the force field, or use targets of energies"
        )
    terms, topology = extract(system), system.topology
    of = np.repeat(np.arange(topology.n_molecules), np.diff(topology.offsets))
    of = np.concatenate([of, np.repeat(np.arange(topology.n_molecules), np.diff(topology.site_offsets))])

    def apart(atoms):
        return of[atoms[:, 0]] != of[atoms[:, 1]]

    keep = apart(terms.pairs.atoms)
    pairs = PairList(
        *(column[keep] for column in (terms.pairs.atoms, terms.pairs.vdw_scale, terms.pairs.coulomb_scale))
    )
    kept = ("vdW", "Electrostatics", "VirtualSites")
    sections = {name: terms.sections[name] for name in kept if name in terms.sections}
    for term in terms.user:
        if term.is_pair:
            own = terms.sections[term.section]
            rows = apart(own.atoms)
            values: dict[str, Affine] = {name: value.take(rows) for name, value in own.values.items()}
            sections[term.section] = Instances(own.atoms[rows], values, None)
    return terms._replace(sections=sections, pairs=pairs, user=tuple(t for t in terms.user if t.is_pair))
