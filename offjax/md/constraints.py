"""Rigid distances in dynamics: pure functions that correct positions (SHAKE) and velocities (RATTLE).

Constraints that share particles form a cluster. A cluster of three particles with all three distances fixed, rigid
water, is solved analytically (SETTLE) if symmetric; the others by Newton's method on all Lagrange multipliers of the
cluster at once (M-SHAKE), a small dense linear system that converges quadratically. Clusters do not know of each
other, so all are solved side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.devices import matmul
from offjax.errors import InputError

NEWTON_STEPS = 8
"""Enough for full double precision from displacements of a tenth of the distance; a fixed number has derivatives."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Clusters:
    """Clusters of one size: particles (cluster, particle), constrained local pairs, lengths and numbers (cluster, pair)
    of the constraints.
    """

    particles: Array
    pairs: Array
    lengths: Array
    used: Array
    numbers: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["triangles", "triangle_lengths", "triangle_numbers", "clusters"],
    meta_fields=["count"],
)
@dataclass(frozen=True, eq=False)
class Constraints:
    """Fixed distances between particles; make them with :func:`distance_constraints`."""

    triangles: Array
    triangle_lengths: Array
    triangle_numbers: Array
    clusters: tuple[_Clusters, ...]
    count: int

    def with_lengths(self, lengths: Float[Array, " constraint"]) -> Constraints:
        """The same constraints at other lengths, in the order of the pairs: traced ones have derivatives.

        The particles must be brought there: ``positions(x, x, masses)``. The two equal sides of a rigid triangle both
        take the mean of their two lengths.

        Raises
        ------
        InputError
            Not one length for each constraint, or lengths that are known and not positive.
        """
        lengths = jnp.asarray(lengths)
        if lengths.shape != (self.count,):
            raise InputError(f"with_lengths needs one length for each of {self.count} constraints, got {lengths.shape}")
        if not isinstance(lengths, jax.core.Tracer) and not np.all(np.asarray(lengths) > 0):
            raise InputError("constraints need positive lengths")
        return replace(
            self,
            triangle_lengths=lengths[self.triangle_numbers],
            clusters=tuple(replace(c, lengths=jnp.where(c.used, lengths[c.numbers], 1.0)) for c in self.clusters),
        )

    def within(self, groups) -> bool:
        """Whether all constraints join particles of one group; ``groups`` (n,)."""
        groups = np.asarray(groups)
        together = [np.asarray(self.triangles), *(np.asarray(c.particles) for c in self.clusters)]
        return all(np.all(groups[p] == groups[p][:, :1]) for p in together if len(p))

    @jax.jit
    def positions(self, moved, reference, masses):
        """Positions that obey the constraints, reached from ``moved`` along the directions at ``reference``.

        ``reference`` obeys them; ``masses`` is a number or (n, 1). The centre of mass of each cluster stays.
        Both must be unwrapped: the particles of a cluster are near each other.
        """
        masses = jnp.broadcast_to(masses, (moved.shape[0], 1))
        x = moved
        if len(self.triangles):
            if moved.shape[1] != 3:
                raise InputError("rigid triangles are solved analytically in three dimensions only: leave out masses")
            t = self.triangles
            new = jax.vmap(_settle)(moved[t], reference[t], masses[t][..., 0], self.triangle_lengths)
            x = x.at[t].set(new)
        for group in self.clusters:
            p = group.particles
            new = jax.vmap(_shake)(moved[p], reference[p], masses[p][..., 0], group.pairs, group.lengths, group.used)
            x = x.at[p].add(jnp.where(_mine(group)[..., None], new - moved[p], 0.0))
        return x

    @jax.jit
    def velocities(self, velocities, positions, masses):
        """Velocities without a component along the constraints at ``positions`` (which must obey them)."""
        masses = jnp.broadcast_to(masses, (positions.shape[0], 1))
        v = velocities
        if len(self.triangles):
            t = self.triangles
            pairs = jnp.array([[0, 1], [0, 2], [1, 2]])
            project = jax.vmap(partial(_project, pairs=pairs, used=jnp.ones(3, bool)))
            v = v.at[t].set(project(velocities[t], positions[t], masses[t][..., 0]))
        for group in self.clusters:
            p = group.particles
            new = jax.vmap(_project)(velocities[p], positions[p], masses[p][..., 0], group.pairs, group.used)
            v = v.at[p].add(jnp.where(_mine(group)[..., None], new - velocities[p], 0.0))
        return v

    @jax.jit
    def deviation(self, positions) -> Float[Array, ""]:
        """The largest relative deviation of a distance from its length."""
        found = [jnp.zeros(())]
        if len(self.triangles):
            x = positions[self.triangles]
            for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
                found.append(_relative(x[:, i] - x[:, j], self.triangle_lengths[:, k]))
        for group in self.clusters:
            x = positions[group.particles]
            difference = jax.vmap(lambda x, pairs: x[pairs[:, 0]] - x[pairs[:, 1]])(x, group.pairs)
            found.append(jnp.where(group.used, _relative(difference, group.lengths), 0.0))
        return jnp.stack([jnp.max(jnp.abs(f), initial=0.0) for f in found]).max()


def distance_constraints(pairs, lengths, masses=None) -> Constraints:
    """Constraints that keep the distances of ``pairs`` (n, 2) at ``lengths`` (n,).

    With ``masses`` (particle,) the rigid triangles of water's kind (two equal sides, two equal masses, three
    dimensions) are solved analytically. A System's pairs are ``system.terms["Constraints"].atoms``, and its lengths
    ``system.slots(p)["Constraints"]["distance"][system.terms["Constraints"].slot]``. For derivatives in the lengths see
    :meth:`Constraints.with_lengths`.

    Raises
    ------
    InputError
        A pair that occurs twice or joins a particle with itself, or lengths that are not positive, or traced.
    """
    if isinstance(lengths, jax.core.Tracer):
        raise InputError(
            "which triangles are rigid water follows from the lengths, which must be known: make the constraints "
            "outside jit and grad, and take constraints.with_lengths(lengths) inside"
        )
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    lengths = np.broadcast_to(np.asarray(lengths, dtype=float), pairs.shape[:1])
    ordered = np.sort(pairs, axis=1)
    if np.any(ordered[:, 0] == ordered[:, 1]) or len(np.unique(ordered, axis=0)) != len(ordered):
        raise InputError("a constraint joins two different particles, and each pair occurs once")
    if np.any(pairs < 0) or not np.all(lengths > 0):
        raise InputError("constraints need particle numbers from 0 and positive lengths")
    triangles: list[list[int]] = []
    triangle_numbers: list[list[int]] = []
    groups: dict[tuple[int, int], list] = {}
    for atoms, members in _connected(ordered):
        water = None if masses is None else _water(atoms, members, ordered, lengths, masses)
        if water is not None:
            triangles.append(water[0])
            triangle_numbers.append(water[1])
        else:
            groups.setdefault((_padded(len(atoms)), _padded(len(members))), []).append((atoms, members))
    numbers = np.array(triangle_numbers, dtype=np.int32).reshape(-1, 3)
    return Constraints(
        np.array(triangles, dtype=np.int32).reshape(-1, 3),
        lengths[numbers],
        numbers,
        tuple(_group(size, found, ordered, lengths) for size, found in sorted(groups.items())),
        len(pairs),
    )


def _water(atoms, members, pairs, lengths, masses):
    """(apex, base, base) of an isosceles triangle with equal masses at the base and the numbers of its constraints, or
    None.
    """
    if len(atoms) != 3 or len(members) != 3:
        return None
    by_pair = {tuple(pairs[m]): m for m in members}
    for apex in atoms:
        i, j = (a for a in atoms if a != apex)
        sides = [by_pair[tuple(sorted(p))] for p in ((apex, i), (apex, j), (i, j))]
        if np.isclose(lengths[sides[0]], lengths[sides[1]], rtol=1e-10) and masses[i] == masses[j]:
            return [apex, i, j], sides
    return None


def _connected(pairs):
    """The clusters: their particles and the numbers of their constraints."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return
    particles, local = np.unique(pairs, return_inverse=True)
    local = local.reshape(-1, 2)
    n = len(particles)
    graph = coo_array((np.ones(len(pairs)), (local[:, 0], local[:, 1])), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    of_pair = label[local[:, 0]]
    atoms_by = np.split(particles[np.argsort(label, kind="stable")], np.cumsum(np.bincount(label))[:-1])
    pairs_by = np.split(np.argsort(of_pair, kind="stable"), np.cumsum(np.bincount(of_pair))[:-1])
    yield from zip(map(list, atoms_by), map(list, pairs_by), strict=True)


def _padded(n: int) -> int:
    """Sizes up to 4 as they are, then the next multiple of 4: few shapes, little padding."""
    return n if n <= 4 else 4 * -(-n // 4)


def _group(size, found, pairs, lengths) -> _Clusters:
    n_particles, n_pairs = size
    particles = np.zeros((len(found), n_particles), np.int32)
    local = np.zeros((len(found), n_pairs, 2), np.int32)
    length = np.ones((len(found), n_pairs))
    used = np.zeros((len(found), n_pairs), bool)
    numbers = np.zeros((len(found), n_pairs), np.int32)
    for row, (atoms, members) in enumerate(found):
        where = {a: k for k, a in enumerate(atoms)}
        particles[row] = atoms + [atoms[0]] * (n_particles - len(atoms))
        for k, m in enumerate(members):
            local[row, k] = [where[a] for a in pairs[m]]
            length[row, k], used[row, k], numbers[row, k] = lengths[m], True, m
        local[row, len(members) :] = [0, 1]
    return _Clusters(particles, local, length, used, numbers)


def _mine(group: _Clusters):
    """Which entries are particles rather than padding (copies of the first)."""
    first = group.particles == group.particles[:, :1]
    return ~first | (jnp.arange(group.particles.shape[1]) == 0)


def _relative(difference, length):
    return jnp.sqrt(jnp.sum(difference * difference, axis=-1)) / length - 1.0


def _incidence(pairs, n, used, dtype):
    """(pair, particle): +1 and -1 at the ends of each constraint."""
    rows = jax.nn.one_hot(pairs[:, 0], n, dtype=dtype) - jax.nn.one_hot(pairs[:, 1], n, dtype=dtype)
    return jnp.where(used[:, None], rows, 0.0)


def _shake(moved, reference, masses, pairs, lengths, used):
    """One cluster: x = moved + M^-1 G^T lambda with G the directions at ``reference``, |x_i - x_j| = length.

    Newton's method on lambda (V. Kraeutler, W. F. van Gunsteren, P. H. Huenenberger, J. Comput. Chem. 22, 501
    (2001)).
    """
    dtype = moved.dtype
    b = _incidence(pairs, moved.shape[0], used, dtype)
    old = matmul(b, reference)
    weights = matmul(b / masses, b.T)
    free = matmul(b, moved)
    target = jnp.where(used, lengths.astype(dtype) ** 2, 0.0)
    idle = jnp.where(used, 0.0, 1.0).astype(dtype)

    def newton(multipliers, _):
        d = free + matmul(weights, multipliers[:, None] * old)
        error = jnp.sum(d * d, axis=-1) - target
        slope = 2.0 * weights * matmul(d, old.T) + jnp.diag(idle)
        return multipliers - jnp.linalg.solve(slope, error), None

    multipliers, _ = jax.lax.scan(newton, jnp.zeros(len(pairs), dtype), length=NEWTON_STEPS)
    return moved + matmul(b.T, multipliers[:, None] * old) / masses[:, None]


def _project(velocities, positions, masses, pairs, used):
    """One cluster: v - M^-1 G^T (G M^-1 G^T)^-1 G v (H. C. Andersen, J. Comput. Phys. 52, 24 (1983))."""
    dtype = velocities.dtype
    b = _incidence(pairs, positions.shape[0], used, dtype)
    d = matmul(b, positions)
    rate = jnp.sum(d * matmul(b, velocities), axis=-1)
    matrix = matmul(b / masses, b.T) * matmul(d, d.T) + jnp.diag(jnp.where(used, 0.0, 1.0).astype(dtype))
    multipliers = jnp.linalg.solve(matrix, rate)
    return velocities - matmul(b.T, multipliers[:, None] * d) / masses[:, None]


def _settle(moved, reference, masses, lengths):
    """One rigid water, analytically (SETTLE: S. Miyamoto and P. A. Kollman, J. Comput. Chem. 13, 952 (1992)).

    In the frame of the reference plane, the heights of the three particles above it are kept, which fixes two angles
    of the rigid triangle; the third, about the normal, makes the torque of the correction vanish.
    """
    total = jnp.sum(masses)
    weight = (masses / total)[:, None]
    centre = jnp.sum(weight * moved, axis=0)
    b0, c0 = reference[1] - reference[0], reference[2] - reference[0]
    a1, b1, c1 = moved - centre
    # frame: z normal to the reference triangle, x normal to z and to the apex's new position
    z = jnp.cross(b0, c0)
    x = jnp.cross(a1, z)
    y = jnp.cross(z, x)
    frame = jnp.stack([v / jnp.sqrt(jnp.sum(v * v)) for v in (x, y, z)])
    shape = _triangle(lengths.astype(moved.dtype), masses / total)  # (3, 2): x along the base, y towards the apex
    b0, c0, a1, b1, c1 = (matmul(frame, v) for v in (b0, c0, a1, b1, c1))
    ra, rb, rc = shape[0, 1], -shape[1, 1], shape[2, 0]
    sin_phi = a1[2] / ra
    cos_phi = jnp.sqrt(1.0 - sin_phi**2)
    sin_psi = (b1[2] - c1[2]) / (2.0 * rc * cos_phi)
    cos_psi = jnp.sqrt(1.0 - sin_psi**2)
    xb = -rc * cos_psi
    ya = ra * cos_phi
    yb = -rb * cos_phi - rc * sin_psi * sin_phi
    yc = -rb * cos_phi + rc * sin_psi * sin_phi
    alpha = xb * (b0[0] - c0[0]) + b0[1] * yb + c0[1] * yc
    beta = xb * (c0[1] - b0[1]) + b0[0] * yb + c0[0] * yc
    gamma = b0[0] * b1[1] - b1[0] * b0[1] + c0[0] * c1[1] - c1[0] * c0[1]
    norm = alpha**2 + beta**2
    sin_theta = (alpha * gamma - beta * jnp.sqrt(norm - gamma**2)) / norm
    cos_theta = jnp.sqrt(1.0 - sin_theta**2)
    new = jnp.stack(
        [
            jnp.stack([-ya * sin_theta, ya * cos_theta, a1[2]]),
            jnp.stack([xb * cos_theta - yb * sin_theta, xb * sin_theta + yb * cos_theta, b1[2]]),
            jnp.stack([-xb * cos_theta - yc * sin_theta, -xb * sin_theta + yc * cos_theta, c1[2]]),
        ]
    )
    return matmul(new, frame) + centre


def _triangle(lengths, weights):
    """Coordinates of an isosceles triangle about its centre of mass: apex above, base parallel to x."""
    half = 0.5 * lengths[2]
    height = jnp.sqrt((0.5 * (lengths[0] + lengths[1])) ** 2 - half**2)
    apex = height * (1.0 - weights[0])
    return jnp.stack(
        [jnp.stack([0.0 * half, apex]), jnp.stack([-half, apex - height]), jnp.stack([half, apex - height])]
    )
