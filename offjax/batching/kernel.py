"""One chunk: energies, forces and parameter gradients of the conformers of a few molecules.

Arrays are (terms, lanes) with the conformers as lanes. Every kind of term is a set of difference vectors, a
coordinate with its rows (:mod:`offjax.batching.coordinates`) and a potential of that coordinate. Forces are
-dU/ds times the rows, written into one buffer and summed by atom (:mod:`offjax.batching.sums`); the gradient
of any function of energies and forces in the parameters of the terms needs only the coordinate s and its
change ds along the cotangent of the forces: d/dp sum(w U(p, s) - dU/ds(p, s) ds), so that nothing is
differentiated twice in reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offjax import geometry
from offjax.batching import coordinates, solvent
from offjax.batching.coordinates import difference, dot, polynomial, scale
from offjax.batching.sums import gather_sum, stack
from offjax.devices import matmul
from offjax.settings import GBSASettings
from offjax.terms import angles, bonds, electrostatics, vdw
from offjax.terms.user import UserTerm


class Kind(NamedTuple):
    """A kind of term: difference vectors from atom i to atom j, their coordinate, its rows, and its
    potential.

    The coordinate is a tuple of arrays, ``unit(s)`` its change when the underlying scalar (r, theta, phi,
    1/r) grows by one.
    """

    vectors: tuple[tuple[int, int], ...]
    coordinate: Callable
    rows: Callable
    unit: Callable
    potential: Callable


def _single(function):
    def coordinate(*vectors):
        value, weights = function(*vectors)
        return (value,), weights

    return coordinate


def _one(s):
    return (jnp.ones_like(s[0]),)


def _quarter_turn(s):
    cosine, sine = s
    return -sine, cosine


def _bond(s, k, length):
    return bonds.potential(s[0], k, length)


def _angle(s, k, angle):
    return angles.potential(s[0], k, angle)


def _fourier(s, even, odd):
    """U = even(cos phi) + sin phi odd(cos phi); a coefficient (torsion, 1) for every order."""
    cosine, sine = s
    return polynomial(even, cosine) + sine * polynomial(odd, cosine)


def _pair(s, repulsion, dispersion, charge_product):
    """Lennard-Jones and Coulomb of 1/r; Coulomb's depends on r only through q q/r."""
    coulomb = electrostatics.potential(1.0, charge_product * s[0])
    return vdw.potential_of_coefficients(s[0] * s[0], repulsion, dispersion) + coulomb


KINDS = {
    "bonds": Kind(((0, 1),), _single(coordinates.distance), coordinates.along, _one, _bond),
    "angles": Kind(((1, 0), (1, 2)), _single(coordinates.angle), coordinates.angle_rows, _one, _angle),
    "torsions": Kind(
        ((0, 1), (1, 2), (2, 3)), coordinates.dihedral, coordinates.dihedral_rows, _quarter_turn, _fourier
    ),
    "pairs": Kind(((0, 1),), _single(coordinates.inverse_distance), coordinates.along, _one, _pair),
}


def kinds(user: Sequence[UserTerm]) -> dict[str, Kind]:
    """All kinds of terms of a batch: user-defined ones, by their sections, before the others."""
    return {**{term.section: _user_kind(term) for term in user}, **KINDS}


def _user_kind(term: UserTerm) -> Kind:
    if term.kind == "torsion":
        return KINDS["torsions"]._replace(
            potential=lambda s, *values: user_energy(term, geometry.safe_arctan2(s[1], s[0]), values)
        )
    kind = KINDS["angles" if term.kind == "angle" else "bonds"]
    if term.kind == "urey-bradley":
        kind = kind._replace(vectors=((0, 2),))
    return kind._replace(potential=lambda s, *values: user_energy(term, s[0], values))


def user_energy(term: UserTerm, s, values):
    """The energy of user-defined terms with coordinate ``s``; the values of pairs begin with their scale."""
    return values[0] * term.of_flat(s, *values[1:]) if term.is_pair else term.of_flat(s, *values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ChunkTables:
    """Indices of one chunk (or, with a leading axis, of all): ``atoms`` of each kind (body, n), ``job`` the
    molecule of each term and ``job_of_atom`` of each atom, sums of forces by atom and of energies by
    molecule; ``occupied`` is False for a chunk without molecules; ``members`` the atoms of each molecule (-1: none) for
    the implicit solvent ``gbsa``; ``user`` are the user-defined terms.
    """

    atoms: dict[str, Int[Array, "body n"]]
    job: dict[str, Int[Array, " n"]]
    job_of_atom: Int[Array, " atom"]
    force_groups: Int[Array, "group width"]
    force_sign: Float[Array, " group"]
    force_sums: Int[Array, "atom width"]
    energy_sums: tuple[Int[Array, "group width"], ...]
    occupied: Bool[Array, ""]
    members: Int[Array, "job width"]
    user: tuple[UserTerm, ...] = field(default=(), metadata={"static": True})
    gbsa: GBSASettings | None = field(default=None, metadata={"static": True})


Positions = Float[Array, "atom 3*lane"]
"""x of all lanes, then y, then z: one gather fetches the three components of an atom."""

Components = tuple[Float[Array, "atom lane"], Float[Array, "atom lane"], Float[Array, "atom lane"]]


def _vectors(x: Positions, kind: Kind, atoms):
    """The difference vectors of all terms, each (n, 3 lanes)."""
    at = [x.at[index].get(mode="promise_in_bounds") for index in atoms]
    return [at[j] - at[i] for i, j in kind.vectors]


def _components(vectors):
    """x, y and z, each (n, lane), of vectors (n, 3 lanes)."""
    return [tuple(jnp.split(v, 3, axis=1)) for v in vectors]


def _differences(v: Components, kind: Kind, atoms):
    """What :func:`_vectors` and :func:`_components` give of positions, of a field given by component."""
    at = [tuple(c.at[index].get(mode="promise_in_bounds") for c in v) for index in atoms]
    return [difference(at[i], at[j]) for i, j in kind.vectors]


def _columns(p, lanes: int):
    """Parameters (..., n) as (..., n, lanes).

    A product with ones, because its transpose, the sum over lanes, then runs at the full width of the vector unit.
    """
    return jax.tree.map(lambda v: matmul(v[..., None], jnp.ones((1, lanes), v.dtype)), p)


def _stage(tables: ChunkTables, function, *arguments):
    """function(*arguments), or zeros in an empty chunk.

    The branch is also a border for the compiler, which without it recomputes what is in ``function`` for
    every component of every row that uses it.
    """
    shapes = jax.eval_shape(function, *arguments)

    def empty(*_):
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    return jax.lax.cond(tables.occupied, function, empty, *arguments)


def energies(p, tables: ChunkTables, x: Positions, forces: bool):
    """Energies (job, lane), and forces by component if asked for."""
    terms: list[Any] = []
    rows: list[Any] = []
    for name, kind in kinds(tables.user).items():

        def term(x, atoms, values, kind=kind):
            vectors = _vectors(x, kind, atoms)
            s, weights = kind.coordinate(*_components(vectors))
            values = _columns(values, s[0].shape[-1])
            if not forces:
                return kind.potential(s, *values)
            u, slope = jax.jvp(lambda s: kind.potential(s, *values), (s,), (kind.unit(s),))
            return u, vectors, weights._replace(scale=scale(-slope, weights.scale))

        if not forces:
            terms.append(term(x, tables.atoms[name], p[name]))
            continue
        u, vectors, weights = _stage(tables, term, x, tables.atoms[name], p[name])
        terms.append(u)
        rows.extend(kind.rows(_components(vectors), weights))
    total = stack(terms)
    for table in tables.energy_sums:
        total = gather_sum(total, table)
    pull: Any = (0.0, 0.0, 0.0)  # minus the forces of the solvent
    if tables.gbsa is not None and forces:
        energy, pull = _stage(tables, partial(_solvation_and_slope, tables, tables.gbsa), p["gbsa"], x)
        total = total + energy
    elif tables.gbsa is not None:
        total = total + _solvation(tables, tables.gbsa, p["gbsa"], x)
    if not forces:
        return total, None
    groups = _stage(tables, partial(_group_sums, tables), [stack([row[axis] for row in rows]) for axis in range(3)])
    return total, tuple(gather_sum(g, tables.force_sums) - p for g, p in zip(groups, pull, strict=True))


def _group_sums(tables: ChunkTables, buffers):
    """Rows of force added in groups of one atom and one sign, for each component."""
    return [tables.force_sign[:, None] * gather_sum(rows, tables.force_groups) for rows in buffers]


def _solvation(tables: ChunkTables, settings: GBSASettings, values, x: Positions):
    """Energies (job, lane) of the implicit solvent; ``values`` are charge, radius and scale of the atoms."""

    def of_lane(x):
        return solvent.energies(settings, tables.members, x, *values)

    return jax.vmap(of_lane, in_axes=2, out_axes=1)(x.reshape(x.shape[0], 3, -1))


def _solvation_and_slope(tables: ChunkTables, settings: GBSASettings, values, x: Positions):
    """Energies (job, lane) of the implicit solvent and their derivative by component."""
    energy, pull = jax.vjp(lambda x: _solvation(tables, settings, values, x), x)
    return energy, tuple(jnp.split(pull(jnp.ones_like(energy))[0], 3, axis=1))


def _solvation_gradient(tables: ChunkTables, settings: GBSASettings, values, x: Positions, w, v):
    """What :func:`parameter_gradient` is for ``values`` of the implicit solvent."""

    def objective(values):
        def energies(x):
            return _solvation(tables, settings, values, x)

        if v is None:
            return jnp.sum(w * energies(x))
        u, du = jax.jvp(energies, (x,), (jnp.concatenate(v, axis=1),))
        return jnp.sum(w * u - du)

    return jax.grad(objective)(values)


def parameter_gradient(p, tables: ChunkTables, x: Positions, w: Float[Array, "job lane"], v: Components | None):
    """Gradient in the parameters of sum(w energies) + sum(v . forces); without v of the first sum alone."""
    result = {}
    for name, kind in kinds(tables.user).items():

        def coordinate(x, v, atoms, kind=kind):
            vectors = _components(_vectors(x, kind, atoms))
            s, weights = kind.coordinate(*vectors)
            if v is None:
                return s, None
            moved = zip(kind.rows(vectors, weights), _differences(v, kind, atoms), strict=True)
            return s, -sum(dot(row, b) for row, b in moved)

        s, change = _stage(tables, coordinate, x, v, tables.atoms[name])
        weight = w.at[tables.job[name]].get(mode="promise_in_bounds")

        def objective(values, kind=kind, s=s, weight=weight, change=change):
            def potential(s):
                return kind.potential(s, *_columns(values, s[0].shape[-1]))

            if change is None:
                return jnp.sum(weight * potential(s))
            u, du = jax.jvp(potential, (s,), (tuple(change * unit for unit in kind.unit(s)),))
            return jnp.sum(weight * u + du)

        result[name] = jax.grad(objective)(p[name])
    if tables.gbsa is not None:
        result["gbsa"] = _stage(tables, partial(_solvation_gradient, tables, tables.gbsa), p["gbsa"], x, w, v)
    return result


def position_gradient(p, tables: ChunkTables, x: Positions, w: Float[Array, "job lane"], v: Components | None):
    """Gradient in the positions of sum(w energies) + sum(v . forces), (atom, 3 lanes).

    The Hessian is symmetric, so its product with v is the change of the forces along v.
    """
    weight = jnp.tile(w.at[tables.job_of_atom].get(mode="promise_in_bounds"), (1, 3))
    if v is None:
        _, forces = energies(p, tables, x, True)
        return -weight * jnp.concatenate(forces, axis=1)
    (_, forces), (_, change) = jax.jvp(lambda x: energies(p, tables, x, True), (x,), (jnp.concatenate(v, axis=1),))
    return jnp.concatenate(change, axis=1) - weight * jnp.concatenate(forces, axis=1)
