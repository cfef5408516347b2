"""One chunk: energies, forces and parameter gradients of the conformers of a few molecules.

Arrays are (terms, lanes) with the conformers as lanes. Every kind of term is a set of difference vectors, a
coordinate with its rows (:mod:`offjax.batching.coordinates`) and a potential of that coordinate; torsions have no
vectors, but two half-planes each that the angles span (:mod:`offjax.batching.half_planes`). Forces are
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
from offjax.batching.coordinates import dot, polynomial, scale
from offjax.batching.half_planes import SIDES
from offjax.batching.sums import at, gather_sum, stack
from offjax.devices import matmul
from offjax.settings import GBSASettings
from offjax.terms import angles, bonds, electrostatics, vdw
from offjax.terms.user import UserTerm


class Kind(NamedTuple):
    """A kind of term: difference vectors from atom i to atom j, their coordinate, its rows, and its potential;
    torsions, which lie between half-planes, have only unit and potential.

    ``lengths`` are the inverse lengths of which coordinate and weights are made. The coordinate is a tuple of arrays,
    ``unit(s)`` its change when the underlying scalar (r, theta, phi, 1/r) grows by one.
    """

    vectors: tuple[tuple[int, int], ...]
    lengths: Callable | None
    coordinate: Callable | None
    rows: Callable | None
    unit: Callable
    potential: Callable


def _single(function):
    def coordinate(vectors, inverse):
        value, weights = function(vectors, inverse)
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


def _zero_if_collinear(s):
    """(1, 0), phi = 0, for the (0, 0) of three atoms in a line."""
    cosine, sine = s
    return jnp.where(cosine * cosine + sine * sine > 0.5, cosine, 1.0), sine


def _fourier(s, even, odd):
    """U = even(cos phi) + sin phi odd(cos phi); a coefficient (torsion, 1) for every order."""
    cosine, sine = _zero_if_collinear(s)
    return polynomial(even, cosine) + sine * polynomial(odd, cosine)


def _pair(s, repulsion, dispersion, charge_product):
    """Lennard-Jones and Coulomb of 1/r; Coulomb's depends on r only through q q/r."""
    coulomb = electrostatics.potential(1.0, charge_product * s[0])
    return vdw.potential_of_coefficients(s[0] * s[0], repulsion, dispersion) + coulomb


KINDS = {
    "bonds": Kind(((0, 1),), coordinates.inverse_length, _single(coordinates.distance), coordinates.along, _one, _bond),
    "angles": Kind(
        ((1, 0), (1, 2)),
        coordinates.inverse_lengths_of_angle,
        _single(coordinates.angle),
        coordinates.angle_rows,
        _one,
        _angle,
    ),
    "torsions": Kind((), None, None, None, _quarter_turn, _fourier),
    "pairs": Kind(
        ((0, 1),),
        coordinates.inverse_lengths_of_pair,
        _single(coordinates.inverse_distance),
        coordinates.along,
        _one,
        _pair,
    ),
}


def kinds(user: Sequence[UserTerm]) -> dict[str, Kind]:
    """All kinds of terms of a batch: user-defined ones, by their sections, before the others."""
    return {**{term.section: _user_kind(term) for term in user}, **KINDS}


def _user_kind(term: UserTerm) -> Kind:
    if term.kind == "torsion":
        return KINDS["torsions"]._replace(potential=lambda s, *values: user_energy(term, _user_torsion(s), values))
    kind = KINDS["angles" if term.kind == "angle" else "bonds"]
    if term.kind == "urey-bradley":
        kind = kind._replace(vectors=((0, 2),))
    return kind._replace(potential=lambda s, *values: user_energy(term, s[0], values))


def _user_torsion(s):
    cosine, sine = _zero_if_collinear(s)
    return geometry.safe_arctan2(sine, cosine)


def user_energy(term: UserTerm, s, values):
    """The energy of user-defined terms with coordinate ``s``; the values of pairs begin with their scale."""
    return values[0] * term.of_flat(s, *values[1:]) if term.is_pair else term.of_flat(s, *values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ChunkTables:
    """Indices of one chunk (or, with a leading axis, of all): ``atoms`` of each kind with vectors (body, n), ``planes``
    of each kind of torsions (2, n) with ``plane_sign``, ``job`` the molecule of each term and ``job_of_atom`` of each
    atom, sums of slopes by half-plane, of forces by atom and of energies by molecule; ``occupied`` is False for a chunk
    without molecules; ``members`` the atoms of each molecule (-1: none) for the implicit solvent ``gbsa``; ``user`` are
    the user-defined terms.

    Of n angles, half-planes a, n + a and 2 n + a are those of angle a: see
    :class:`offjax.batching.half_planes.HalfPlanes`.
    """

    atoms: dict[str, Int[Array, "body n"]]
    planes: dict[str, Int[Array, "2 n"]]
    plane_sign: dict[str, Float[Array, "2 n"]]
    job: dict[str, Int[Array, " n"]]
    job_of_atom: Int[Array, " atom"]
    slope_sums: Int[Array, "plane width"]
    slope_sign: Float[Array, "plane width"]
    force_groups: Int[Array, "group width"]
    force_sign: Float[Array, " group"]
    force_sums: Int[Array, "atom width"]
    energy_sums: tuple[Int[Array, "group width"], ...]
    occupied: Bool[Array, ""]
    members: Int[Array, "job width"]
    user: tuple[UserTerm, ...] = field(default=(), metadata={"static": True})
    gbsa: GBSASettings | None = field(default=None, metadata={"static": True})


Positions = Float[Array, "atom 3*lane"]
"""x of all lanes, then y, then z, so that one gather fetches the three components of an atom; other vectors too."""

Components = tuple[Float[Array, "atom lane"], Float[Array, "atom lane"], Float[Array, "atom lane"]]


def _vectors(kind: Kind, x: Positions, atoms):
    """The difference vectors of all terms, (m n, 3 lanes): the first of each term, then the second."""
    start, end = (jnp.concatenate([atoms[v[which]] for v in kind.vectors]) for which in (0, 1))
    return at(x, end) - at(x, start)


def _components(vectors, kind: Kind):
    """x, y and z, each (n, lane), of each of the vectors (m n, 3 lanes)."""
    return [tuple(jnp.split(v, 3, axis=1)) for v in jnp.split(vectors, len(kind.vectors))]


class _Planes(NamedTuple):
    """The half-planes of n angles: ``arms`` (2 n, 3 lanes), ``normal`` of the angles by component, ``levers``."""

    arms: Float[Array, "plane 3*lane"]
    normal: Components
    levers: coordinates.Levers


def _dihedral(planes: _Planes, index, sign):
    """The coordinate of torsions between half-planes ``index`` (2, n)."""
    n = len(planes.normal[0])
    normals = [tuple(at(c, which) for c in planes.normal) for which in index % n]
    arm = tuple(jnp.split(at(planes.arms, index[0] % (2 * n)), 3, axis=1))
    return coordinates.dihedral(*normals, arm, _of_side(planes.levers.reach, index[0]), *sign[:, :, None])


def _of_side(values, index):
    """Rows ``index`` of the values, each (n, lane), of all first, all second and all third half-planes."""
    n = len(values[0])
    first, second, third = (at(v, index % n) for v in values)
    return jnp.where((index < n)[:, None], first, jnp.where((index < 2 * n)[:, None], second, third))


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
    terms: dict[str, Any] = {}
    slopes: list[Any] = []
    weighted: dict[str, Any] = {}
    every = kinds(tables.user)
    measured, angle, angle_weights, planes = _measured(tables, x)
    for name, (vectors, inverse) in measured.items():
        kind = every[name]
        if name == "angles":
            terms[name], slope = _stage(tables, partial(_potential_and_slope, kind, forces), angle, p[name])
            weights = _weighted(angle_weights, slope)
        else:
            terms[name], weights = _stage(tables, partial(_term, kind, forces), vectors, inverse, p[name])
        weighted[name] = vectors, weights
    for name, kind in every.items():
        if kind.vectors:
            continue
        s = _stage(tables, _dihedral, planes, tables.planes[name], tables.plane_sign[name])
        terms[name], slope = _stage(tables, partial(_potential_and_slope, kind, forces), s, p[name])
        slopes.append(slope)
    total = stack([terms[name] for name in every])
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
    rows: list[Any] = []
    for name, (vectors, weights) in weighted.items():
        own = every[name].rows(_components(vectors, every[name]), weights)
        if name == "angles":
            push = _push_normals(tables, slopes, planes.levers)
            own = [
                tuple(a + f * n for a, n in zip(r, angle_weights.normal, strict=True))
                for r, f in zip(own, push, strict=True)
            ]
        rows.extend(own)
    groups = _stage(tables, partial(_group_sums, tables), [stack([row[axis] for row in rows]) for axis in range(3)])
    return total, tuple(gather_sum(g, tables.force_sums) - p for g, p in zip(groups, pull, strict=True))


def _measured(tables: ChunkTables, x: Positions):
    """Difference vectors and inverse lengths of each kind that has vectors; coordinate of the angles, weights of their
    rows, and their half-planes.
    """
    found = {}
    for name, kind in kinds(tables.user).items():
        if kind.vectors:
            vectors = _stage(tables, partial(_vectors, kind), x, tables.atoms[name])
            found[name] = vectors, _stage(tables, partial(_lengths, kind), vectors)
    angle, weights, levers = _stage(tables, _angle_and_levers, *found["angles"])
    return found, angle, weights, _Planes(found["angles"][0], weights.normal, levers)


def _lengths(kind: Kind, vectors):
    """The inverse lengths."""
    return kind.lengths(*_components(vectors, kind))


def _weighted(weights, slope):
    """The weights that make of the vectors forces; None without forces."""
    return None if slope is None else weights._replace(scale=scale(-slope, weights.scale))


def _angle_and_levers(vectors, inverse):
    """The coordinate of angles, the weights of its rows, and the levers of the half-planes."""
    parts = _components(vectors, KINDS["angles"])
    return *KINDS["angles"].coordinate(parts, inverse), coordinates.levers(parts, inverse)


def _term(kind: Kind, forces: bool, vectors, inverse, values):
    """U and, for forces, the weights that make of the vectors forces."""
    s, weights = kind.coordinate(_components(vectors, kind), inverse)
    u, slope = _potential_and_slope(kind, forces, s, values)
    return u, _weighted(weights, slope)


def _potential_and_slope(kind: Kind, forces: bool, s, values):
    """U of the coordinate and, for forces, its slope."""
    values = _columns(values, s[0].shape[-1])
    if not forces:
        return kind.potential(s, *values), None
    return jax.jvp(lambda s: kind.potential(s, *values), (s,), (kind.unit(s),))


def _push_normals(tables: ChunkTables, slopes, levers: coordinates.Levers):
    """What torsions add, along the angles' normals, to the rows of the first and the last arm."""
    total = stack(slopes) if len(slopes) > 1 else slopes[0]

    def by_side(total, index, sign):
        return sum(sign[:, k, None] * at(total, index[:, k]) for k in range(index.shape[1]))

    sides = jnp.split(_stage(tables, by_side, total, tables.slope_sums, tables.slope_sign), SIDES)

    def push(sides, levers):
        return tuple(-sum(s * c for s, c in zip(sides, of, strict=True)) for of in (levers.first, levers.last))

    return _stage(tables, push, sides, levers)


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
        u, du = jax.jvp(energies, (x,), (v,))
        return jnp.sum(w * u - du)

    return jax.grad(objective)(values)


def parameter_gradient(p, tables: ChunkTables, x: Positions, w: Float[Array, "job lane"], v: Positions | None):
    """Gradient in the parameters of sum(w energies) + sum(v . forces); without v of the first sum alone."""
    every = kinds(tables.user)
    measured, angle, weights, planes = _measured(tables, x)
    found, change, turns = {}, None, None
    for name, (vectors, inverse) in measured.items():
        kind = every[name]
        if name == "angles":
            s = angle
            if v is not None:
                moved = _stage(tables, partial(_vectors, kind), v, tables.atoms[name])
                change, along = _stage(tables, _angle_changes, vectors, weights, moved)
                turns = _stage(tables, _turns, planes.levers, along)
        else:
            s, _ = kind.coordinate(_components(vectors, kind), inverse)
            if v is not None:
                change = _stage(tables, partial(_change, kind), vectors, inverse, v, tables.atoms[name])
        found[name] = s, change
    for name, kind in every.items():
        if kind.vectors:
            continue
        found[name] = _stage(tables, _torsion_and_change, planes, turns, tables.planes[name], tables.plane_sign[name])
    result = {}
    for name, kind in every.items():
        s, change = found[name]
        weight = at(w, tables.job[name])

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


def _torsion_and_change(planes: _Planes, turns, index, sign):
    """The coordinate of torsions and, if their half-planes turn, minus its change."""
    s = _dihedral(planes, index, sign)
    if turns is None:
        return s, None
    first, second = (_of_side(turns, which) for which in index)
    return s, sign[1, :, None] * second - sign[0, :, None] * first


def _change(kind: Kind, vectors, inverse, v: Positions, atoms):
    """Minus the change of the coordinate along ``v``."""
    parts, moved = (_components(b, kind) for b in (vectors, _vectors(kind, v, atoms)))
    rows = kind.rows(parts, kind.coordinate(parts, inverse)[1])
    return -sum(dot(row, b) for row, b in zip(rows, moved, strict=True))


def _angle_changes(vectors, weights, moved):
    """Minus the change of angles when their arms move, and how far the arms move along the normal."""
    kind = KINDS["angles"]
    moved = _components(moved, kind)
    rows = kind.rows(_components(vectors, kind), weights)
    return -sum(map(dot, rows, moved)), tuple(dot(weights.normal, arm) for arm in moved)


def _turns(levers: coordinates.Levers, moved):
    """How far the half-planes of each angle turn when its arms move by ``moved`` along the normal."""
    first, last = moved
    return tuple(a * first + b * last for a, b in zip(levers.first, levers.last, strict=True))


def position_gradient(p, tables: ChunkTables, x: Positions, w: Float[Array, "job lane"], v: Positions | None):
    """Gradient in the positions of sum(w energies) + sum(v . forces), (atom, 3 lanes).

    The Hessian is symmetric, so its product with v is the change of the forces along v.
    """
    weight = jnp.tile(at(w, tables.job_of_atom), (1, 3))
    if v is None:
        _, forces = energies(p, tables, x, True)
        return -weight * jnp.concatenate(forces, axis=1)
    (_, forces), (_, change) = jax.jvp(lambda x: energies(p, tables, x, True), (x,), (v,))
    return jnp.concatenate(change, axis=1) - weight * jnp.concatenate(forces, axis=1)
