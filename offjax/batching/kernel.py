"""One chunk: energies, forces and parameter gradients of the conformers of a few molecules.

Arrays are (terms, lanes) with the conformers as lanes. Every kind of term is a set of difference vectors, a coordinate
with its rows (:mod:`offjax.batching.coordinates`) and a potential of that coordinate. Forces are -dU/ds times the rows, written
into one buffer and summed by atom (:mod:`offjax.batching.sums`); the gradient of any function of energies and forces in the
parameters of the terms needs only the coordinate s and its change ds along the cotangent of the forces:
d/dp sum(w U(p, s) - dU/ds(p, s) ds), so that nothing is differentiated twice in reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offjax.batching import coordinates
from offjax.batching.coordinates import difference, dot, polynomial, scale
from offjax.batching.sums import gather_sum, with_zero_row
from offjax.terms import angles, bonds, electrostatics, vdw


class Kind(NamedTuple):
    """A kind of term: difference vectors from atom i to atom j, their coordinate with rows, and its potential.

    The coordinate is a tuple of arrays, ``unit(s)`` its change when the underlying scalar (r, theta, phi, 1/r) grows by one.
    """

    vectors: tuple[tuple[int, int], ...]
    coordinate: Callable
    unit: Callable
    potential: Callable


def _single(function):
    def coordinate(*vectors):
        value, rows = function(*vectors)
        return (value,), rows

    return coordinate


def _one(s):
    return (jnp.ones_like(s[0]),)


def _fourier(s, even, odd):
    """U = even(cos phi) + sin phi odd(cos phi); coefficients (order, torsion, 1)."""
    cosine, sine = s
    return polynomial(even, cosine) + sine * polynomial(odd, cosine)


def _pair(s, sigma, epsilon, charge_product):
    """Lennard-Jones and Coulomb of 1/r: both potentials depend on r only through sigma/r and q q/r."""
    return vdw.potential(1.0, sigma * s[0], epsilon) + electrostatics.potential(1.0, charge_product * s[0])


KINDS = {
    "bonds": Kind(
        ((0, 1),), _single(coordinates.distance), _one, lambda s, k, length: bonds.potential(s[0], k, length)
    ),
    "angles": Kind(
        ((1, 0), (1, 2)), _single(coordinates.angle), _one, lambda s, k, angle: angles.potential(s[0], k, angle)
    ),
    "torsions": Kind(((0, 1), (1, 2), (2, 3)), coordinates.dihedral, lambda s: (-s[1], s[0]), _fourier),
    "pairs": Kind(((0, 1),), _single(coordinates.inverse_distance), _one, _pair),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ChunkTables:
    """Indices of one chunk (or, with a leading axis, of all): ``atoms`` of each kind (body, n), ``job`` the molecule
    of each term and ``job_of_atom`` of each atom, sums of forces by atom and of energies by molecule."""

    atoms: dict[str, Int[Array, "body n"]]
    job: dict[str, Int[Array, " n"]]
    job_of_atom: Int[Array, " atom"]
    force_groups: Int[Array, "group width"]
    force_sign: Float[Array, " group"]
    force_sums: Int[Array, "atom width"]
    energy_sums: tuple[Int[Array, "group width"], ...]


Positions = tuple[Float[Array, "atom lane"], Float[Array, "atom lane"], Float[Array, "atom lane"]]


def _vectors(x: Positions, kind: Kind, atoms):
    """The difference vectors of all terms, each a tuple of (n, lane) components."""
    at = [tuple(c.at[index].get(mode="promise_in_bounds") for c in x) for index in atoms]
    return [difference(at[i], at[j]) for i, j in kind.vectors]


def _columns(p):
    """Parameters (..., n) as (..., n, 1), to go with lanes."""
    return jax.tree.map(lambda v: v[..., None], p)


def energies(p, tables: ChunkTables, x: Positions, forces: bool):
    """Energies (job, lane), and forces as three (atom, lane) components if asked for."""
    terms, rows = [], []
    for name, kind in KINDS.items():
        s, directions = kind.coordinate(*_vectors(x, kind, tables.atoms[name]))
        values = _columns(p[name])
        if forces:
            u, slope = jax.jvp(lambda s, kind=kind, values=values: kind.potential(s, *values), (s,), (kind.unit(s),))
            rows.extend(scale(-slope, direction) for direction in directions)
        else:
            u = kind.potential(s, *values)
        terms.append(u)
    total = with_zero_row(terms)
    for level, table in enumerate(tables.energy_sums):
        total = gather_sum(total, table)
        if level + 1 < len(tables.energy_sums):
            total = with_zero_row([total])
    if not forces:
        return total, None
    sign = tables.force_sign[:, None]
    components = []
    for axis in range(3):
        groups = sign * gather_sum(with_zero_row([row[axis] for row in rows]), tables.force_groups)
        components.append(gather_sum(with_zero_row([groups]), tables.force_sums))
    return total, tuple(components)


def parameter_gradient(p, tables: ChunkTables, x: Positions, w: Float[Array, "job lane"], v: Positions | None):
    """Gradient in the parameters of sum(w energies) + sum(v . forces); without v of the first sum alone."""
    result = {}
    for name, kind in KINDS.items():
        s, directions = kind.coordinate(*_vectors(x, kind, tables.atoms[name]))
        weight = w.at[tables.job[name]].get(mode="promise_in_bounds")
        change = None
        if v is not None:
            along = _vectors(v, kind, tables.atoms[name])
            change = sum(dot(direction, b) for direction, b in zip(directions, along, strict=True))
            change = tuple(-change * unit for unit in kind.unit(s))

        def objective(values, kind=kind, s=s, weight=weight, change=change):
            def potential(s):
                return kind.potential(s, *_columns(values))

            if change is None:
                return jnp.sum(weight * potential(s))
            u, du = jax.jvp(potential, (s,), (change,))
            return jnp.sum(weight * u + du)

        result[name] = jax.grad(objective)(p[name])
    return result


def position_gradient(p, tables: ChunkTables, x: Positions, w: Float[Array, "job lane"], v: Positions | None):
    """Gradient in the positions of sum(w energies) + sum(v . forces), (3, atom, lane).

    The Hessian is symmetric, so its product with v is the change of the forces along v.
    """
    weight = w.at[tables.job_of_atom].get(mode="promise_in_bounds")
    if v is None:
        _, forces = energies(p, tables, x, True)
        return -weight * jnp.stack(forces)
    (_, forces), (_, change) = jax.jvp(lambda x: energies(p, tables, x, True), (x,), (tuple(v),))
    return jnp.stack(change) - weight * jnp.stack(forces)
