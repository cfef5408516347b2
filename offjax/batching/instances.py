"""The terms of one System as plain host arrays: atoms, and parameter values as affine functions of the force field.

This is where a batch leaves SMIRNOFF behind: what follows sees bonds, angles, torsions, atoms and pairs with affine
values, and no force field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from offjax.assignment import weighted_sums
from offjax.energy import exceptions, pairs, separated_pairs
from offjax.errors import InputError, UnsupportedError
from offjax.nonbonded import PairList, molecule_pairs
from offjax.settings import GBSASettings
from offjax.system import System
from offjax.terms.user import UserTerm

SECTIONS = {
    "Bonds": ("k", "length"),
    "Angles": ("k", "angle"),
    "ProperTorsions": ("k", "phase"),
    "ImproperTorsions": ("k", "phase"),
    "vdW": ("sigma", "epsilon"),
    "Electrostatics": ("charge",),
    "GBSA": ("radius", "scale"),
}


class Affine(NamedTuple):
    """value[i] = sum_w weights[i, w] * theta[columns[i, w]] + offset[i], for n values."""

    columns: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

    def take(self, rows) -> Affine:
        """The values of some rows."""
        return Affine(self.columns[rows], self.weights[rows], self.offset[rows])

    def at(self, theta, dtype):
        """The values (n,) for the force-field vector ``theta``, which may be traced."""
        linear = weighted_sums(jnp.asarray(self.weights, dtype), theta, self.columns)
        return linear + jnp.asarray(self.offset, dtype)

    @classmethod
    def zero(cls, n: int) -> Affine:
        """n values that are zero whatever the parameters."""
        return cls(np.zeros((n, 1), np.int32), np.zeros((n, 1)), np.zeros(n))

    @staticmethod
    def concatenate(parts: Sequence[Affine]) -> Affine:
        """Stack values; narrower tables are padded with weight zero at column 0."""
        width = max((part.columns.shape[1] for part in parts), default=1)
        columns = [np.zeros((0, width), np.int32), *(_widened(part.columns, width) for part in parts)]
        weights = [np.zeros((0, width)), *(_widened(part.weights, width) for part in parts)]
        offset = [np.zeros(0), *(part.offset for part in parts)]
        return Affine(*map(np.concatenate, (columns, weights, offset)))


def _widened(table: np.ndarray, width: int) -> np.ndarray:
    missing = width - table.shape[1]
    return np.pad(table, ((0, 0), (0, missing))) if missing else table


class Instances(NamedTuple):
    """Terms of one section that contribute energy: atoms (n, body), values by attribute, periodicity for torsions.

    Virtual sites stand among them with their ``kind``; their atoms (n, 5) are the site itself and those of its frame.
    """

    atoms: np.ndarray
    values: Mapping[str, Affine]
    periodicity: np.ndarray | None
    kind: np.ndarray | None = None


class MoleculeTerms(NamedTuple):
    """Everything in the energy of one System without box; ``sections`` has vdW, Electrostatics and GBSA by atom."""

    n_atoms: int
    sections: Mapping[str, Instances]
    pairs: PairList
    user: tuple[UserTerm, ...] = ()
    gbsa: GBSASettings | None = None


def extract(system: System) -> MoleculeTerms:
    """The terms of one System.

    Raises
    ------
    InputError
        The System has a box.
    UnsupportedError
        A section or nonbonded setting that a batch does not support; the message names it.
    """
    if system.box is not None:
        raise InputError(
            "it has a periodic box; a SystemBatch is for molecules in vacuum: build the System without box"
        )
    method = system.nonbonded.vdw_nonperiodic_method
    if method != "no-cutoff":
        raise UnsupportedError(f'<vdW nonperiodic_method="{method}"> is not supported in a batch; use system.to_jax()')
    unknown = set(system.terms) - set(SECTIONS) - {"Constraints", "VirtualSites"} - set(system.user_terms)
    if unknown := sorted(name for name in unknown if system.terms[name].n_slots):
        raise UnsupportedError(f"section {', '.join(unknown)} is not supported in a batch; use system.to_jax()")
    sections = {}
    for name, attributes in SECTIONS.items():
        if name not in system.terms:
            continue
        term = system.terms[name]
        keep = system.active[name][term.slot]
        slot = term.slot[keep]
        values = {}
        for attribute in attributes:
            matrix = system.assignment[name][attribute]
            values[attribute] = Affine(*matrix.table, matrix.offset).take(slot)
        periodicity = None if term.periodicity is None else np.asarray(term.periodicity)[slot].astype(np.int32)
        sections[name] = Instances(term.atoms[keep], values, periodicity)
    if system.n_particles > system.topology.n_atoms:
        sites = system.terms["VirtualSites"]
        values = {a: Affine(*m.table, m.offset).take(sites.slot) for a, m in system.assignment["VirtualSites"].items()}
        own = np.arange(system.topology.n_atoms, system.n_particles)
        kind = np.asarray(sites.kind)[sites.slot]
        sections["VirtualSites"] = Instances(np.column_stack([own, sites.atoms]), values, None, kind)
    both = [np.concatenate(columns) for columns in zip(*pairs(system), strict=True)]
    user = tuple(system.user_terms.values())
    sections.update({term.section: _user_instances(system, term) for term in user})
    return MoleculeTerms(system.n_particles, sections, PairList(*both), user, system.gbsa)


def _user_instances(system: System, term: UserTerm) -> Instances:
    """The user-defined terms of one kind; those of a pair potential are pairs with a scale and both atoms' values."""
    own, matrices = system.terms[term.section], system.assignment[term.section]
    values = {name: Affine(*m.table, m.offset).take(own.slot) for name, m in matrices.items()}
    if not term.is_pair:
        return Instances(own.atoms, values, None)
    full = molecule_pairs(system.n_particles, *exceptions(system))[0].atoms
    scale14 = system.scale14[term.section]
    separated = separated_pairs(system)[: None if scale14 else 0]
    scale = np.repeat([1.0, scale14], [len(full), len(separated)])
    place = np.full(system.n_particles, -1)
    place[own.atoms[:, 0]] = np.arange(own.n_instances)
    pairs = np.concatenate([full, separated])
    both = np.all(place[pairs] >= 0, axis=1)
    pairs = pairs[both]
    of_pair = [Affine.zero(len(pairs))._replace(offset=scale[both])]
    for end in (0, 1):
        of_pair += [values[name].take(place[pairs[:, end]]) for name in term.attributes]
    of_pair += [values[name].take(place[pairs[:, 0]]) for name in term.constants]
    return Instances(pairs, dict(zip(user_values(term), of_pair, strict=True)), None)


def user_values(term: UserTerm) -> list[str]:
    """The names of the values of a user-defined term, in the order in which its potential takes them."""
    if not term.is_pair:
        return list(term.names)
    return ["scale", *(f"{name} {n}" for n in (1, 2) for name in term.attributes), *term.constants]
