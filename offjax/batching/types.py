"""From the force-field vector to the few distinct values that the terms of many molecules share.

Thousands of terms have the same parameters: they refer to a *type*, the values of the types are computed once
a call. A bond or angle type is a (k, equilibrium) pair; a torsion type all cosines on one quadruple of atoms,
as a polynomial in cos and sin of the torsion angle; a pair type two vdW types with the scale of their
interaction. Charges have a type for the part that parameters explain, and an offset for each atom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.polynomial import chebyshev

from offjax.batching.half_planes import NO_PLANES, HalfPlanes, half_planes
from offjax.batching.instances import SECTIONS, Affine, Instances, MoleculeTerms
from offjax.settings import GBSASettings
from offjax.terms import vdw
from offjax.terms.user import UserTerm

NO_FORCE = 0
"""The type of angles and torsions whose energy is zero whatever the parameters. Padding of every kind has type 0; of
other kinds that is an ordinary one, whose energies no sum takes."""


class Typed(NamedTuple):
    """Terms of one kind in one molecule: local atoms (n, body) and type (n,); half-planes of torsions."""

    atoms: np.ndarray
    type: np.ndarray
    planes: HalfPlanes = NO_PLANES


class TypedMolecule(NamedTuple):
    """One molecule: ``terms`` by kind (bonds, angles, torsions, pairs, sections of the user), angles with those that
    only span half-planes (type ``NO_FORCE``); Coulomb scale of the pairs, charges of the atoms; ``user`` are the
    definitions of all molecules of the batch, ``gbsa`` their implicit solvent with a type for every atom.
    """

    n_atoms: int
    terms: Mapping[str, Typed]
    coulomb_scale: np.ndarray
    charge_type: np.ndarray
    charge_offset: np.ndarray
    user: tuple[UserTerm, ...] = ()
    gbsa: GBSASettings | None = None
    gbsa_type: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Types:
    """The distinct values as affine functions of the force-field vector.

    ``bonds`` and ``angles`` (k, equilibrium); torsions: ``cosines`` (k, phase) of each distinct cosine with
    its polynomials ``even`` (cosine, N + 1) and ``odd`` (cosine, N), ``torsions`` (type, width) the cosines
    of each type (-1: none); ``atoms`` (sigma, epsilon), ``pairs`` (type, 2) with ``pair_scale``; ``charges``;
    ``user`` the values of user-defined terms by section; ``gbsa`` (radius, scale), or nothing.
    """

    bonds: tuple[Affine, Affine]
    angles: tuple[Affine, Affine]
    cosines: tuple[Affine, Affine]
    even: Array
    odd: Array
    torsions: Array
    atoms: tuple[Affine, Affine]
    pairs: Array
    pair_scale: Array
    charges: Affine
    user: dict[str, tuple[Affine, ...]]
    gbsa: tuple[Affine, ...] = ()

    def values(self, theta) -> dict[str, tuple]:
        """Values of every type, by kind: arrays with the type as their first axis."""

        theta = jnp.asarray(theta).astype(self.even.dtype)

        def affine(value: Affine):
            return value.at(theta, theta.dtype)

        k, phase = map(affine, self.cosines)
        cosine, sine = (k * jnp.cos(phase))[:, None], (k * jnp.sin(phase))[:, None]
        even = jnp.concatenate(
            [cosine * self.even + k[:, None] * (jnp.arange(self.even.shape[1]) == 0), 0 * self.even[:1]]
        )
        odd = jnp.concatenate([sine * self.odd, 0 * self.odd[:1]])
        sigma, epsilon = map(affine, self.atoms)
        i, j = self.pairs[:, 0], self.pairs[:, 1]
        sigma, epsilon = vdw.combine(sigma[i], sigma[j], epsilon[i], epsilon[j])
        return {
            "bonds": tuple(map(affine, self.bonds)),
            "angles": tuple(map(affine, self.angles)),
            "torsions": (even[self.torsions].sum(axis=1), odd[self.torsions].sum(axis=1)),
            "pairs": vdw.coefficients(sigma, self.pair_scale * epsilon),
            "charges": (affine(self.charges),),
            "gbsa": tuple(map(affine, self.gbsa)),
            **{section: tuple(map(affine, values)) for section, values in self.user.items()},
        }


def classify(molecules: Sequence[MoleculeTerms]) -> tuple[Types, list[TypedMolecule]]:
    """The types of some molecules, and the molecules in terms of them."""
    bonds, bond_of = _terms(molecules, ["Bonds"])
    angles, angle_of = _terms(molecules, ["Angles"])
    cosines, cosine_of, periodicity = _cosines(molecules)
    torsions, torsion_of = _torsion_types(molecules, cosine_of)
    even, odd = _fourier_polynomials(periodicity)
    atoms, atom_of = _distinct([_by_atom(m, "vdW") for m in molecules], SECTIONS["vdW"])
    pairs, scale, pair_of = _pair_types(molecules, atom_of)
    charge = [_by_atom(m, "Electrostatics")["charge"] for m in molecules]
    linear = [{"charge": Affine(c.columns, c.weights, np.zeros_like(c.offset))} for c in charge]
    (charges,), charge_of = _distinct(linear, ("charge",))
    user = {term.section: term for m in molecules for term in m.user}
    own = {section: _user_terms(molecules, section) for section in user}
    own = {section: found for section, found in own.items() if found is not None}
    implicit, radii, radius_of = molecules[0].gbsa, (), [None] * len(molecules)
    if implicit is not None:
        radii, radius_of = _distinct([_by_atom(m, "GBSA") for m in molecules], SECTIONS["GBSA"])
    angles = (Affine.concatenate([Affine.zero(1), angles[0]]), Affine.concatenate([Affine.zero(1), angles[1]]))
    angle_of = [of._replace(type=of.type + 1) for of in angle_of]
    turned = [section for section in own if user[section].kind == "torsion"]
    typed = [
        TypedMolecule(
            n_atoms=m.n_atoms,
            terms=_with_half_planes(
                {
                    "bonds": bond_of[n],
                    "angles": angle_of[n],
                    "torsions": torsion_of[n],
                    "pairs": pair_of[n],
                    **{section: of[n] for section, (_, of) in own.items()},
                },
                ["torsions", *turned],
            ),
            coulomb_scale=m.pairs.coulomb_scale,
            charge_type=charge_of[n],
            charge_offset=charge[n].offset,
            user=tuple(user[section] for section in own),
            gbsa=implicit,
            gbsa_type=radius_of[n],
        )
        for n, m in enumerate(molecules)
    ]
    defined = {section: types for section, (types, _) in own.items()}
    return Types(bonds, angles, cosines, even, odd, torsions, atoms, pairs, scale, charges, defined, radii), typed


def _with_half_planes(terms: dict[str, Typed], torsions: Sequence[str]) -> dict[str, Typed]:
    """The terms with the half-planes of all torsions; angles that span one but have no term have no force."""
    planes, missing = half_planes([terms[name].atoms for name in torsions], terms["angles"].atoms)
    atoms, types = terms["angles"].atoms, terms["angles"].type
    angles = Typed(np.concatenate([atoms, missing]), np.append(types, np.full(len(missing), NO_FORCE)))
    turned = {name: terms[name]._replace(planes=found) for name, found in zip(torsions, planes, strict=True)}
    return {**terms, "angles": angles, **turned}


def _user_terms(molecules: Sequence[MoleculeTerms], section: str):
    """(types, terms of each molecule) of a user-defined section; None if no molecule has such a term."""
    found = [m.sections[section] for m in molecules if section in m.sections]
    if not sum(len(one.atoms) for one in found):
        return None
    empty = Instances(found[0].atoms[:0], {a: Affine.zero(0) for a in found[0].values}, None)
    parts = [m.sections.get(section, empty) for m in molecules]
    types, of = _distinct([part.values for part in parts], tuple(found[0].values))
    return types, [Typed(part.atoms, t) for part, t in zip(parts, of, strict=True)]


def _distinct(parts: Sequence[Mapping[str, Affine]], attributes, extra: Sequence[np.ndarray] | None = None):
    """Distinct rows of some attributes together (and of ``extra``), at least one; and the row of each value."""
    stacked = [Affine.concatenate([p[a] for p in parts]) for a in attributes]
    columns = [np.atleast_2d(c.T).T.astype(float) for s in stacked for c in s]
    if extra is not None:
        columns.append(np.concatenate([np.zeros(0), *extra])[:, None])
    table = np.concatenate(columns, axis=1)
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    counts = [len(p[attributes[0]].offset) for p in parts]
    of = np.split(inverse.reshape(-1), np.cumsum(counts)[:-1])
    types = tuple(s.take(first) if len(first) else Affine.zero(1) for s in stacked)
    return (types, of) if extra is None else (types, of, first)


def _terms(molecules, sections):
    section = sections[0]
    attributes = SECTIONS[section]
    body = {"Bonds": 2, "Angles": 3}[section]
    atoms = [m.sections[section].atoms if section in m.sections else np.zeros((0, body), int) for m in molecules]
    empty = {a: Affine.zero(0) for a in attributes}
    values = [m.sections[section].values if section in m.sections else empty for m in molecules]
    types, of = _distinct(values, attributes)
    return types, [Typed(a, t) for a, t in zip(atoms, of, strict=True)]


def _by_atom(molecule: MoleculeTerms, section: str) -> Mapping[str, Affine]:
    """Values of vdW, Electrostatics or GBSA in the order of the atoms; zero without such a section."""
    if section not in molecule.sections:
        return {a: Affine.zero(molecule.n_atoms) for a in SECTIONS[section]}
    instances = molecule.sections[section]
    order = np.empty(molecule.n_atoms, dtype=int)
    order[instances.atoms[:, 0]] = np.arange(molecule.n_atoms)
    return {a: v.take(order) for a, v in instances.values.items()}


def _cosines(molecules):
    """Distinct (k, phase, periodicity), and for each molecule (atoms, cosine) of all its torsion terms."""
    names = ("ProperTorsions", "ImproperTorsions")
    empty = Affine.zero(0)
    values, atoms, periodicity = [], [], []
    for m in molecules:
        parts = [m.sections[n] for n in names if n in m.sections]
        values.append({a: Affine.concatenate([empty, *(p.values[a] for p in parts)]) for a in ("k", "phase")})
        atoms.append(np.concatenate([np.zeros((0, 4), int), *(p.atoms for p in parts)]))
        periodicity.append(np.concatenate([np.zeros(0, int), *(p.periodicity for p in parts)]))
    types, of, first = _distinct(values, ("k", "phase"), periodicity)
    n = np.concatenate(periodicity)[first] if len(first) else np.ones(1, int)
    return types, list(zip(atoms, of, strict=True)), n.astype(int)


def _torsion_types(molecules, cosine_of):
    """One torsion a quadruple of atoms (or its reverse: the angle is the same); its type is the list of its
    cosines.
    """
    found: dict[tuple[int, ...], int] = {(): NO_FORCE}
    typed = []
    for atoms, cosine in cosine_of:
        forward = np.where(atoms[:, :1] <= atoms[:, 3:], atoms, atoms[:, ::-1])
        quadruples, of = np.unique(forward, axis=0, return_inverse=True)
        lists: list[list[int]] = [[] for _ in quadruples]
        for q, c in zip(of.reshape(-1), cosine, strict=True):
            lists[q].append(int(c))
        types = [found.setdefault(tuple(sorted(one)), len(found)) for one in lists]
        typed.append(Typed(quadruples, np.array(types, dtype=int)))
    width = max(1, *map(len, found))
    table = np.full((len(found), width), -1, dtype=np.int32)
    for key, row in found.items():
        table[row, : len(key)] = key
    return table, typed


def _fourier_polynomials(periodicity: np.ndarray):
    """cos(n phi) = even(cos phi), sin(n phi) = sin(phi) odd(cos phi): Chebyshev polynomials T_n and U_(n-1)."""
    highest = max(int(periodicity.max()), 1)
    even, odd = np.zeros((len(periodicity), highest + 1)), np.zeros((len(periodicity), highest))
    for row, n in enumerate(periodicity):
        first = chebyshev.cheb2poly([0] * n + [1])
        even[row, : len(first)] = first
        second = np.polynomial.polynomial.polyder(first) / max(n, 1)
        odd[row, : len(second) if n else 0] = second[: None if n else 0]
    return even, odd


def _pair_types(molecules, atom_of):
    """Distinct (vdW type, vdW type, scale) of the nonbonded pairs."""
    keys = []
    for m, types in zip(molecules, atom_of, strict=True):
        both = np.sort(types[m.pairs.atoms.reshape(-1, 2)], axis=1)
        keys.append(np.column_stack([both, m.pairs.vdw_scale]))
    table, inverse = np.unique(np.concatenate([np.zeros((1, 3)), *keys]), axis=0, return_inverse=True)
    of = np.split(inverse.reshape(-1)[1:], np.cumsum([len(k) for k in keys])[:-1])
    typed = [Typed(m.pairs.atoms.reshape(-1, 2), t) for m, t in zip(molecules, of, strict=True)]
    return table[:, :2].astype(np.int32), table[:, 2], typed
