"""Pair potentials of model systems, and the energy that any function u(r) of the distance makes.

The scalar functions (:func:`soft_sphere`, :func:`lennard_jones`, :func:`morse`) are there to plot and to combine; a
user's own function of (r, parameters) is used in the same way. :func:`pair_energy` writes U = sum over pairs of
u(r_ij).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float

from offjax import geometry
from offjax.errors import InputError
from offjax.md.space import NearestImage
from offjax.nonbonded import blocks
from offjax.nonbonded.series import distance, inverse


def soft_sphere(r, sigma=1.0, epsilon=1.0, alpha=2.0):
    """u = epsilon/alpha (1 - r/sigma)^alpha for r < sigma, else 0: finite repulsion of overlapping spheres.

    Zero, with zero derivatives, where sigma is zero. Source: C. S. O'Hern et al., Phys. Rev. E 68, 011306 (2003).
    """
    inside = r < sigma
    overlap = jnp.where(inside, 1.0 - r / jnp.where(inside, sigma, 1.0), 0.5)
    return jnp.where(inside, epsilon / alpha * overlap**alpha, 0.0)


def lennard_jones(r, sigma=1.0, epsilon=1.0):
    """u = 4 epsilon [(sigma/r)^12 - (sigma/r)^6]."""
    s6 = (sigma * inverse(r)) ** 6
    return 4.0 * epsilon * s6 * (s6 - 1.0)


def morse(r, sigma=1.0, epsilon=5.0, alpha=5.0):
    """u = epsilon [(1 - exp(-alpha (r - sigma)))^2 - 1]: depth epsilon at r = sigma.

    Source: P. M. Morse, Phys. Rev. 34, 57 (1929).
    """
    return epsilon * ((1.0 - jnp.exp(-alpha * (r - sigma))) ** 2 - 1.0)


def smooth_cutoff(potential: Callable, onset: float, cutoff: float) -> Callable:
    """``potential`` times S(r): 1 below ``onset``, 0 beyond ``cutoff``, with continuous first derivatives.

    S = (rc^2 - r^2)^2 (rc^2 + 2 r^2 - 3 ro^2) / (rc^2 - ro^2)^3, the switching function of CHARMM (B. R. Brooks et
    al., J. Comput. Chem. 4, 187 (1983)).

    Raises
    ------
    InputError
        Not 0 <= onset < cutoff.
    """
    if not 0 <= onset < cutoff:
        raise InputError(f"smooth_cutoff needs 0 <= onset < cutoff, got {onset} and {cutoff}")

    return _SmoothCutoff(potential, onset, cutoff)


@dataclass(frozen=True, eq=False)
class _SmoothCutoff:
    potential: Callable
    onset: float
    cutoff: float

    def __call__(self, r, **parameters):
        c2, o2 = self.cutoff**2, self.onset**2
        r = jnp.minimum(r, self.cutoff)
        r2 = r * r
        left = jnp.maximum(c2 - r2, 0.0)
        s = jnp.where(r < self.onset, 1.0, left * left * (c2 + 2.0 * r2 - 3.0 * o2) * (1.0 / (c2 - o2) ** 3))
        return s * self.potential(r, **parameters)


def pair_energy(
    potential: Callable,
    displacement: Callable,
    *,
    species=None,
    combine: Mapping[str, Callable] | None = None,
    accumulate=None,
) -> Callable:
    """The energy U = 1/2 sum over i != j of ``potential(r_ij, **parameters_ij)`` as a function of the positions.

    Parameters
    ----------
    potential
        Any function of a distance and keyword parameters, elementwise: ``potential(r, sigma=..., epsilon=...)``.
    displacement
        That of a :class:`~offjax.md.space.Space`.
    species
        (n,) integers from 0, or None. With species, a parameter may be a table (n_species, n_species).
    combine
        For parameters given per particle, (n,): a rule for each, for example ``{"sigma": lambda a, b: (a + b) / 2}``,
        the same for (a, b) and (b, a).
    accumulate
        A wider type, such as ``"float64"`` for float32 positions: pairs are evaluated in the type of the positions,
        and energies and forces summed in this one.

    Returns
    -------
    ``energy(positions, box=None, neighbors=None, **parameters)``: positions (n, dimension), any dimension. A
    parameter is a number, a table by species, a value for each particle, or a matrix (n, n). With a table or a matrix
    the pair (i, j) is the mean of u with the elements (i, j) and (j, i), so the derivative of one element is half of
    that of the pair.

    With ``neighbors``, a list of :func:`offjax.nonbonded.neighbors.neighbor_list`, the sum runs over the pairs within
    the list's cutoff; the box, if there is one, must be given in the call. Numbers, tables and values of particles are
    cheap then; with matrices (n, n), and where ``potential`` closes over traced values, derivatives take about four
    times as long. (Tables that are not known to be symmetric, for they are traced, take both their elements: up to
    twice the time.)

    The diagonal i = j is not part of the sum in any derivative: it is evaluated at the values of a neighbouring pair
    and thrown away, so it adds no NaN however the potential behaves at r = 0 and whatever stands on the diagonal
    of a matrix. Two different particles at one point have force zero by convention (if u(0) is finite).

    Raises
    ------
    InputError
        A parameter of another shape, or one value a particle without a rule to combine them, or with one that depends
        on their order; a list whose cutoff is shorter than that of a :func:`smooth_cutoff`, or a box shorter than twice
        that (the energy is not-a-number where the box is traced).
    """
    rules = dict(combine or {})
    for name, rule in rules.items():
        _check_rule(name, rule)
    kinds = None if species is None else np.asarray(species)
    if kinds is not None and (kinds.ndim != 1 or not np.issubdtype(kinds.dtype, np.integer) or kinds.min() < 0):
        raise InputError("species must be (n,) integers from 0")

    def energy(positions: Float[Array, "n dimension"], box=None, neighbors=None, **parameters) -> Float[Array, ""]:
        x = jnp.asarray(positions)
        if neighbors is not None:
            return _of_list(potential, x, box, neighbors, parameters, kinds, rules, accumulate)
        dtype, n = x.dtype, x.shape[0]
        values = {name: _of_pairs(name, value, n, kinds, rules.get(name)) for name, value in parameters.items()}
        if n < 2:
            return jnp.zeros((), accumulate or dtype)
        if accumulate is not None:
            x = x.astype(accumulate)
        extra = {} if box is None else {"box": box}
        itself = jnp.eye(n, dtype=bool)
        values = {
            name: jnp.where(itself, jnp.roll(value, 1, axis=1), value) if jnp.ndim(value) == 2 else value
            for name, value in values.items()
        }
        ways = [values]
        if not _symmetric(parameters):
            ways += [{name: jnp.transpose(value) for name, value in values.items()}]

        def of_pairs(first, second):
            vectors = displacement(first, second, **extra).astype(dtype)
            r = distance(geometry.dot(vectors, vectors))
            u = sum(potential(r, **way) for way in ways) / len(ways)
            return jnp.where(itself, 0.0, u).astype(accumulate or dtype)

        total = _half_sum(*_without_closure(of_pairs, *_all_pairs(x)), x)
        if isinstance(potential, _SmoothCutoff) and isinstance(displacement, NearestImage):
            total *= displacement.reaches(potential.cutoff, box)
        return total

    return energy


def _symmetric(parameters) -> bool:
    """Whether all tables and matrices are known to be symmetric: else a pair is the mean of both its elements."""
    matrices = [value for value in parameters.values() if jnp.ndim(value) == 2]
    return not any(isinstance(m, jax.core.Tracer) or not np.array_equal(m, np.transpose(m)) for m in matrices)


def _all_pairs(x):
    """Either particle of each pair (n, n, dimension); in place of itself, another one is given."""
    n = len(x)
    first = jnp.broadcast_to(x[:, None], (n, *x.shape))
    return first, jnp.where(jnp.eye(n, dtype=bool)[:, :, None], jnp.roll(x, 1, axis=0)[:, None], x)


def _without_closure(function, *arguments):
    """``function(hidden, *arguments)`` and the arrays ``hidden`` that it closed over, traced ones among them."""
    made = jax.make_jaxpr(function)(*arguments)
    return lambda hidden, *arguments: jaxpr_as_fun(ClosedJaxpr(made.jaxpr, hidden))(*arguments)[0], made.consts


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _half_sum(of_pairs, hidden, x):
    """1/2 sum over i, j of ``of_pairs(hidden, x_i, x_j)`` (n, n), which is symmetric.

    Derivatives in the positions come from one pass over the pairs with few arrays in between, so that replicas under
    ``vmap`` stay in the cache; those in ``hidden``, all else that the energy depends on, from plain differentiation.
    """
    return 0.5 * jnp.sum(of_pairs(hidden, *_all_pairs(x)))


@partial(_half_sum.defjvp, symbolic_zeros=True)
def _half_sum_rule(of_pairs, primals, tangents):
    (hidden, x), (of_hidden, dx) = primals, tangents
    energy, gradient = _with_gradient(of_pairs, hidden, x)
    change = jnp.zeros((), energy.dtype) if isinstance(dx, SymbolicZero) else jnp.sum(gradient * dx)
    moving = {k: tangent for k, tangent in enumerate(of_hidden) if not isinstance(tangent, SymbolicZero)}
    if moving:

        def of_moving(values):
            return 0.5 * jnp.sum(of_pairs([values.get(k, v) for k, v in enumerate(hidden)], *_all_pairs(x)))

        change += jax.jvp(of_moving, ({k: hidden[k] for k in moving},), (moving,))[1]
    return energy, change


def _with_gradient(of_pairs, hidden, x):
    first, second = _all_pairs(x)
    u, pull = jax.vjp(lambda first: of_pairs(hidden, first, second), first)
    slopes = pull(jnp.ones_like(u))[0]
    energies, *gradient = _row_sums(u, *(slopes[:, :, k] for k in range(x.shape[1])))
    return 0.5 * jnp.sum(energies), jnp.stack(gradient, axis=1)


@jax.custom_jvp
def _row_sums(*terms):
    """Sums over the second axis, all of them in one loop."""
    zero = tuple(jnp.zeros((), t.dtype) for t in terms)
    return jax.lax.reduce(terms, zero, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), (1,))


@_row_sums.defjvp
def _row_sums_rule(terms, tangents):
    return _row_sums(*terms), tuple(jnp.sum(t, axis=1) for t in tangents)


def _of_list(potential, x, box, neighbors, parameters, species, rules, accumulate):
    """The sum over a neighbour list: parameters become values of particles that combine to those of a pair."""
    if isinstance(potential, _SmoothCutoff) and neighbors.cutoff < potential.cutoff * (1.0 - 1e-6):
        raise InputError(
            f"the list's cutoff {neighbors.cutoff} is shorter than the {potential.cutoff} of smooth_cutoff"
        )
    n = x.shape[0]
    columns: list[Array] = []
    pairs: dict[str, Callable] = {}
    matrices: dict[str, Array] = {}
    constant = {name: value for name, value in parameters.items() if isinstance(value, float | int)}
    for name, value in parameters.items():
        if name in constant:
            continue
        value = jnp.asarray(value, x.dtype)
        if value.shape == (n, n) and not _is_table(value.shape, species):
            matrices[name] = value
            continue
        start = len(columns)
        added, combined = _of_particles(name, value, n, species, rules.get(name))
        columns += added
        pairs[name] = partial(_combined, combined, start, start + len(added))

    one_way = bool(matrices) or _symmetric(parameters)

    def of_r2(r2, first, second, *elements):
        u, r, of_matrices = 0.0, distance(r2), dict(zip(matrices, elements, strict=True))
        ways = [(first, second)] if one_way else [(first, second), (second, first)]
        for way in ways:
            u += potential(r, **constant, **of_matrices, **{name: of(*way) for name, of in pairs.items()}) / len(ways)
        return u

    one = jnp.ones((), x.dtype)
    several = (one,) * len(columns)
    hidden = _without_closure(of_r2, one, several, several, *(one for _ in matrices))[1]
    return blocks.pair_energy(
        of_r2,
        neighbors,
        x,
        box,
        tuple(columns),
        matrices=tuple(matrices.values()),
        plain=any(isinstance(value, jax.core.Tracer) for value in hidden),
        accumulate=accumulate,
    )


def _is_table(shape, species) -> bool:
    return species is not None and shape == (species.max() + 1,) * 2


def _check_rule(name: str, rule: Callable) -> None:
    with jax.ensure_compile_time_eval():
        a, b = jnp.array([0.3, 1.7]), jnp.array([1.1, 0.4])
        there, back = rule(a, b), rule(b, a)
    if not isinstance(there, jax.core.Tracer) and not np.allclose(there, back, equal_nan=True):
        raise InputError(f"the rule that combines {name!r} must not depend on the order of the two particles")


def _check_species(species, n: int) -> None:
    if len(species) != n:
        raise InputError(f"there are {len(species)} species for {n} particles")


def _combined(rule, start, stop, first, second):
    return rule(first[start:stop], second[start:stop])


def _of_particles(name: str, value, n: int, species, rule):
    """Values of particles (n,), and how two particles' values make that of the pair."""
    if value.shape == ():
        return [jnp.broadcast_to(value, (n,))], lambda a, b: 0.5 * (a[0] + b[0])
    if _is_table(value.shape, species):
        _check_species(species, n)
        rows = list(value[species].T)
        kinds = list(jax.nn.one_hot(species, len(rows), dtype=value.dtype).T)
        m = len(rows)

        return rows + kinds, lambda a, b: sum(a[k] * b[m + k] for k in range(m))
    if value.shape == (n,) and rule is not None:
        return [value], lambda a, b: rule(a[0], b[0])
    _of_pairs(name, value, n, species, rule)  # raises the same errors
    raise AssertionError(name)


def _of_pairs(name: str, value, n: int, species, rule):
    """A parameter as a number or an (n, n) matrix."""
    shape = jnp.shape(value)
    if shape == ():
        return value
    value = jnp.asarray(value)
    if _is_table(shape, species):
        _check_species(species, n)
        return value[species[:, None], species[None, :]]
    if shape == (n, n):
        return value
    if shape == (n,):
        if rule is None:
            raise InputError(
                f"parameter {name!r} has one value a particle: say how two combine, for example "
                f'combine={{"{name}": lambda a, b: (a + b) / 2}}'
            )
        return rule(value[:, None], value[None, :])
    tables = "" if species is None else f", a table {(int(species.max()) + 1,) * 2}"
    raise InputError(f"parameter {name!r} has shape {shape}: expected a number{tables}, ({n},) or ({n}, {n})")
