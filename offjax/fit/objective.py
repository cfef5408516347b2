"""The objective of a fit as a function of scaled variables, with the derivatives that optimisers ask for.

    f(x) = 1/2 ( sum r^E^2 + sum r^F^2 + sum r^2 + w_P sum_k u_k^2 ),   u = x scale / width,   theta = theta0 + scale x

with the residuals of :mod:`offjax.fit.targets`, energies and forces first and then those of all other kinds of data;
theta0 are the values in the force-field file and the last sum is minus
twice the logarithm of a Gaussian prior. Entries with the transform ``log`` have theta = theta0 exp(scale x / theta0)
instead, which is never negative and the same to first order. Entries with the prior ``l1`` have in place of u^2 / 2 the
hyperbola (u^2 + b^2)^(1/2) - b, b = L1_CORNER, which is |u| but for the corner; as a residual it is
u [2 / ((u^2 + b^2)^(1/2) + b)]^(1/2). There is one compiled program a kind of derivative; scales,
priors, weights and starting values are its arguments, so that changing them compiles nothing.

With a network (:mod:`offjax.fit.network`) its weights follow the entries of the force field in x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offjax.batch import PlainBatch, compiler_options
from offjax.fit.free import FreeParameters
from offjax.fit.network import Correction
from offjax.fit.targets import Component, Evaluated, Found, Targets
from offjax.md.neural import ElementNetwork
from offjax.parameters import ParameterSet

L1_CORNER = 0.01
"""Shifts of this many prior widths and more count about linearly in an l1 prior."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FitData:
    """Everything that f depends on besides x: targets, the whole force field, and which entries x moves.

    ``scales`` (k,) are in MD units, for the k of the n variables that belong to the force field; ``log`` (k,) are the
    entries with that transform. ``prior`` (n,) is sqrt(w_P) scale / width, 0 without prior; ``corner`` (n,) is
    L1_CORNER width / scale for an l1 prior, else 0. ``components`` are the data of other kinds than energies, forces
    and torsion profiles. ``network`` has the other n - k variables.
    """

    targets: Targets
    parameters: ParameterSet
    indices: Int[Array, " k"]
    scales: Float[Array, " k"]
    prior: Float[Array, " n"]
    log: Bool[Array, " k"]
    corner: Float[Array, " n"]
    components: tuple[Component, ...] = ()
    network: Correction | None = None

    def at(self, x: Float[Array, " n"]) -> ParameterSet:
        """The ParameterSet at x."""
        theta = jnp.asarray(self.parameters.to_vector(), x.dtype)
        return self.parameters.from_vector(theta.at[self.indices].add(self.shift(x)))

    def shift(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """theta - theta0 of the free entries, MD units; not linear in x where ``log`` is set."""
        x = x[: len(self.indices)]
        start = jnp.asarray(self.parameters.to_vector(), x.dtype)[self.indices]
        safe = jnp.where(self.log, start, 1.0)
        grown = safe * jnp.expm1(jnp.where(self.log, self.scales * x / safe, 0.0))
        return jnp.where(self.log, grown, self.scales * x)

    def prior_residuals(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The residuals of the priors; not linear in x where ``corner`` is set."""
        l1 = self.corner > 0
        corner = jnp.where(l1, self.corner, 1.0)
        bent = jnp.sqrt(2 * corner / L1_CORNER / (jnp.sqrt(x**2 + corner**2) + corner))
        return self.prior * x * jnp.where(l1, bent, 1.0)

    @property
    def starts(self) -> tuple[Array | None, ...]:
        """Where minimisations begin, (n_rows, 3) nm: those of torsion profiles and of each component, None without."""
        how = self.targets.relaxation
        return (None if how is None else how.starts, *(c.target.starts for c in self.components))

    def begin(self, starts: Sequence[Array | None]) -> FitData:
        """The same with other ``starts``; what is None there stays."""
        packed, (profiles, *others) = self.targets, starts
        if packed.relaxation is not None and profiles is not None:
            packed = replace(packed, relaxation=replace(packed.relaxation, starts=profiles))

        def begun(component: Component, own: Array | None) -> Component:
            target: Any = component.target
            return component if own is None else replace(component, target=replace(target, starts=own))

        return replace(self, targets=packed, components=tuple(map(begun, self.components, others)))

    def priors(self, x: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The residuals of the priors and their derivatives in x."""
        return jax.jvp(self.prior_residuals, (x,), (jnp.ones_like(x),))

    def residuals(self, x: Float[Array, " n"]) -> tuple[Array, Array, Array, Array, Array]:
        """(energy, force and prior residuals, flat energies, flat forces)."""
        energy, force, prior, found = self.evaluate(x)
        return energy, force, prior, found.energies, found.forces

    def evaluate(self, x: Float[Array, " n"]) -> tuple[Array, Array, Array, Evaluated]:
        """(energy, force and prior residuals, what they were computed from)."""
        found = self.targets.evaluate(self.at(x))
        if self.network is not None:
            y = x[len(self.indices) :]
            energies, forces = self.network.energies_and_forces(y, self.targets.conformers)
            found = found._replace(energies=found.energies + energies, forces=found.forces + forces)
        energy, force = self.targets.residuals(found.energies, found.forces)
        return energy, force.ravel(), self.prior_residuals(x), found


class ComponentParts(NamedTuple):
    """What one component adds to f (``value``), by record 1/2 |u|^2 (``losses``) and mean square ``errors``.

    ``found`` is what the derivatives start from; None where workers have it.
    """

    value: Array
    losses: Float[Array, " record"]
    errors: dict[str, Float[Array, " record"]]
    unconverged: Array
    found: Found | None


class Parts(NamedTuple):
    """The sums of the objective, each with its factor 1/2, and flat energies (kJ/mol) and forces (kJ/mol/nm).

    ``positions`` are those of relaxed torsion profiles (None without), ``unconverged`` counts failed minimisations;
    ``value`` is f.
    """

    energy: Array
    force: Array
    prior: Array
    energies: Array
    forces: Array
    positions: Array | None
    unconverged: Array
    components: tuple[ComponentParts, ...]
    value: Array

    @property
    def failures(self) -> int:
        """How many minimisations did not end, of all kinds."""
        return int(self.unconverged) + sum(int(c.unconverged) for c in self.components)


def residuals(x: Float[Array, " n"], data: FitData) -> Float[Array, " residual"]:
    """The residuals of energies, forces and priors, in this order."""
    return jnp.concatenate(data.residuals(x)[:3])


def scalar(x: Float[Array, " n"], data: FitData) -> Float[Array, ""]:
    """f(x)."""
    p = data.at(x)
    others = sum(0.5 * jnp.sum(c.residuals(p) ** 2) for c in data.components)
    return 0.5 * jnp.sum(residuals(x, data) ** 2) + others


def parts(x, data: FitData) -> Parts:
    """The terms of f, and what they were computed from."""
    *r, found = data.evaluate(x)
    components = tuple(_component_parts(data.at(x), c) for c in data.components)
    sums = [0.5 * jnp.sum(a**2) for a in r]
    return Parts(*sums, *found, components, sum(sums) + sum(c.value for c in components))


def _component_parts(p: ParameterSet, component: Component) -> ComponentParts:
    found = component.target.evaluate(p)
    u = found.deviations
    value = 0.5 * jnp.sum(component.weighted(u) ** 2)
    return ComponentParts(value, component.losses(u), found.errors, found.unconverged, found)


def component_normal(x, data: FitData, component: Component, found: Found):
    """1/2 |r|^2, J^T r and J^T J of one component; ``found`` is what its target gives at x."""
    _, scales = jax.jvp(data.shift, (x,), (jnp.ones_like(x),))
    rows = component.weighted(component.target.jacobian(data.at(x), found, data.indices) * scales)
    r = component.weighted(found.deviations)
    return 0.5 * jnp.sum(r**2), rows.T @ r, rows.T @ rows


def gauss_newton(x, data: FitData):
    """f, J^T r and J^T J without components; the columns of J by forward mode, one after the other."""
    r, linear = jax.linearize(lambda y: residuals(y, data), x)
    transposed = jax.lax.map(linear, jnp.eye(len(x), dtype=x.dtype))
    return 0.5 * jnp.sum(r**2), transposed @ r, transposed @ transposed.T


def gauss_newton_relaxed(x, data: FitData, found: Evaluated, plain: PlainBatch):
    """The same where torsion profiles are relaxed: ``found`` is what :meth:`FitData.evaluate` gives at x.

    Rows of energies come from one batch of linear equations (:meth:`Targets.energy_jacobian`); forces are those of
    conformers that are not relaxed, columns by forward mode.
    """
    targets = data.targets
    energy, force = targets.residuals(found.energies, found.forces)
    force = force.ravel()
    _, scales = jax.jvp(data.shift, (x,), (jnp.ones_like(x),))
    columns = targets.energy_jacobian(data.at(x), found, plain, data.indices) * scales
    prior, slope = data.priors(x)
    value = 0.5 * (jnp.sum(energy**2) + jnp.sum(force**2) + jnp.sum(prior**2))
    gradient = columns.T @ energy + slope * prior
    hessian = columns.T @ columns + jnp.diag(slope**2)
    if targets.relaxation is not None and targets.relaxation.forces:
        moved = targets.conformers.with_positions(found.positions)

        def forces(y):
            return targets.residuals(*targets.batch.energies_and_forces(data.at(y), moved))[1].ravel()

        rows = jax.lax.map(jax.linearize(forces, x)[1], jnp.eye(len(x), dtype=x.dtype))
        gradient, hessian = gradient + rows @ force, hessian + rows @ rows.T
    return value, gradient, hessian


def parts_and_gradient(x, data: FitData) -> tuple[Parts, Float[Array, " n"]]:
    """The terms of f and its gradient."""

    def both(y):
        found = parts(y, data)
        return found.value, found

    (_, found), gradient = jax.value_and_grad(both, has_aux=True)(x)
    return found, gradient


value_and_gradient = jax.value_and_grad(scalar)


@cache
def compiled(function: Callable) -> Callable:
    """The program of one of the functions above."""
    return jax.jit(function, compiler_options=compiler_options())


class _Known(NamedTuple):
    """What was computed at a point; ``gradient`` may not have been."""

    data: FitData
    point: bytes
    parts: Parts
    gradient: Array | None


class FitObjective:
    """f for one data set and one choice of free parameters: an optimisers' Problem.

    ``lower`` and ``upper`` (n,) are the bounds of x; ``start`` (n,) the free entries at x = 0 in MD units. ``subset``
    makes the components of some molecules, their weights multiplied by a factor: minibatches need it where there are
    components. A ``network`` adds its weights to x, without bounds.
    """

    scalar = staticmethod(scalar)

    def __init__(
        self,
        targets: Targets,
        free: FreeParameters,
        prior_weight: float = 1.0,
        minibatch: int | None = None,
        training: np.ndarray | None = None,
        seed: int = 0,
        components: tuple[Component, ...] = (),
        subset: Callable[[np.ndarray, float], tuple[Component, ...]] | None = None,
        network: Correction | None = None,
    ):
        self.free, self._subset = free, subset
        self.start, self.scales = np.asarray(free.selection.to_vector()), free.scales
        weights = np.ones(0 if network is None else network.start.n_weights)
        self.lower = np.append(free.x(free.lower), -np.inf * weights)
        self.upper = np.append(free.x(free.upper), np.inf * weights)
        prior = np.where(np.isinf(free.widths), 0.0, self.scales / free.widths)
        if network is not None:
            prior = np.append(prior, weights * np.asarray(network.scale / network.width))
        prior = np.sqrt(prior_weight) * prior
        whole = jax.tree.map(jnp.asarray, free.selection.parameters)
        indices = jnp.asarray(free.selection.indices)
        corner = L1_CORNER * np.where(free.l1, free.widths / self.scales, 0.0)
        # not committed to devices: minibatches may be shared by fewer than the whole
        arrays = (self.scales, prior, free.log, np.append(corner, 0.0 * weights))
        self.data = FitData(targets, whole, indices, *map(jnp.asarray, arrays), components, network)
        self.minibatch, self.seed = minibatch, seed
        self.training = np.arange(0) if training is None else np.asarray(training)
        self._last: list[_Known] = []

    def __len__(self) -> int:
        """The number of variables, weights of a network included."""
        return len(self.lower)

    def theta(self, x) -> np.ndarray:
        """The free entries at x, MD units, on the host; bounds hold to the last bit and x = 0 is the start exactly."""
        return np.clip(self.free.theta(x[: len(self.free)]), self.free.lower, self.free.upper)

    def network(self, x) -> ElementNetwork | None:
        """The network at x, if one is fitted."""
        return None if self.data.network is None else self.data.network.at(jnp.asarray(x)[len(self.free) :])

    def value(self, x):
        """f(x), by the program of :meth:`parts`."""
        return self.parts(x).value

    def value_and_gradient(self, x, data: FitData | None = None):
        """f(x) and its gradient by reverse mode, of all training data or of one minibatch."""
        if data is not None and data is not self.data:
            return compiled(value_and_gradient)(x, data)
        known = self._known(x)
        if known is None or known.gradient is None:
            known = _Known(self.data, np.asarray(x).tobytes(), *self.parts_and_gradient(x))
        self._remember(known)
        return known.parts.value, known.gradient

    def parts_and_gradient(self, x) -> tuple[Parts, Float[Array, " n"]]:
        """The terms of f and its gradient, of all training data at once."""
        return compiled(parts_and_gradient)(x, self.data)

    def gauss_newton(self, x):
        """f, J^T r and J^T J."""
        blocks = [self.conformer_normal(x), *self.component_normals(x)]
        return tuple(sum(column) for column in zip(*blocks, strict=True))

    def component_normals(self, x) -> list[tuple[Array, Array, Array]]:
        """1/2 |r|^2, J^T r and J^T J of each component."""
        if not self.data.components:
            return []
        pairs = zip(self.data.components, self.parts(x).components, strict=True)
        return [compiled(component_normal)(x, self.data, component, at.found) for component, at in pairs]

    def conformer_normal(self, x):
        """The same of energies, forces and priors."""
        if not self.has_conformers:
            residual, slope = self.data.priors(x)
            return 0.5 * jnp.sum(residual**2), slope * residual, jnp.diag(slope**2)
        if self.data.targets.relaxation is None:
            return compiled(gauss_newton)(x, self.data)
        at = self.parts(x)
        found = Evaluated(at.energies, at.forces, at.positions, at.unconverged)
        return compiled(gauss_newton_relaxed)(x, self.data, found, self._plain)

    def parts(self, x) -> Parts:
        """The terms of f, and energies and forces of all molecules, held-out ones too."""
        known = self._known(x) or _Known(self.data, np.asarray(x).tobytes(), compiled(parts)(x, self.data), None)
        self._remember(known)
        return known.parts

    def _known(self, x) -> _Known | None:
        point = np.asarray(x).tobytes()
        return next((item for item in self._last if item.data is self.data and item.point == point), None)

    def _remember(self, known: _Known) -> None:
        # two points: the one that an optimiser stands at is asked for again after a trial that is rejected
        self._last = [known, *(item for item in self._last if item.point != known.point)][:2]

    @cached_property
    def _lasting_minibatches(self) -> list[FitData]:
        """The minibatches that all epochs share, each with its part of every kind of data."""
        assert self._subset is not None and self.minibatch is not None
        n = -(-len(self.training) // self.minibatch)
        order = np.random.default_rng(self.seed).permutation(self.training)
        kind = np.zeros(1 + int(self.training.max()), int)
        for number, component in enumerate(self.data.components, start=1):
            kind[[m for m in component.members if m < len(kind)]] = number
        order = order[np.argsort(kind[order], kind="stable")]
        found = []
        for members in (np.sort(order[i::n]) for i in range(n)):
            packed = self.data.targets.select(members.tolist(), np.full(len(members), float(n)))
            found.append(replace(self.data, targets=packed, components=self._subset(members, float(n))))
        return found

    @cached_property
    def has_conformers(self) -> bool:
        """Whether any energy or force has a weight."""
        targets = self.data.targets
        return any(np.any(np.asarray(factor) > 0) for factor in (targets.energy_factor, targets.force_factor))

    @cached_property
    def _plain(self) -> PlainBatch:
        return self.data.targets.batch.plain(self.data.targets.conformers)

    @property
    def starts(self) -> tuple[Array | None, ...]:
        """:attr:`FitData.starts`; to be kept in a checkpoint: minima depend on it, to within their tolerance."""
        return self.data.starts

    @starts.setter
    def starts(self, positions):
        self.data = self.data.begin(positions)

    def settle(self, x) -> None:
        """The next minimisations begin at the minima that belong to x."""
        found = self.parts(x)
        minima = (found.positions, *(c.found and c.found.positions for c in found.components))
        if any(own is not None for own in minima):
            known, self.starts = self._known(x), minima
            if known is not None and not found.failures:  # minima that are begun at stay
                self._last = [known._replace(data=self.data)]

    def minibatches(self, epoch: int) -> list[FitData]:
        """The training molecules of an epoch in an order given by seed and epoch, in parts of ``minibatch`` molecules.

        Each part is so weighted that the mean of f over the parts is f, priors included. With components the parts are
        the same in every epoch, and only their order changes: each has arrays of other sizes, and a program of its own.
        """
        if self.minibatch is None or self.minibatch >= len(self.training):
            return [self.data]
        k, m = self.minibatch, len(self.training)
        n = -(-m // k)
        random = np.random.default_rng([self.seed, epoch])
        if self.data.components:
            return [self._lasting_minibatches[i] for i in random.permutation(n)]
        order = random.permutation(self.training)
        # the last part is filled with molecules of weight 0: all parts have one shape
        filled, weights = np.resize(order, n * k), np.where(np.arange(n * k) < m, float(n), 0.0)
        parts = zip(filled.reshape(n, k), weights.reshape(n, k), strict=True)
        return [self._part(chosen.tolist(), w) for chosen, w in parts]

    def _part(self, molecules: list[int], weights: np.ndarray) -> FitData:
        """The energies and forces of some molecules, each with its weight multiplied."""
        targets, network = self.data.targets.select(molecules, weights), self.data.network
        if network is not None:
            network = network.select(self.data.targets, targets, molecules)
        return replace(self.data, targets=targets, network=network)
