"""An objective as a sum over shards: parts of the molecules that are computed apart, and added in their order.

Each shard is an objective of its own, without prior. Processes of a cluster compute them side by side
(:mod:`offjax.fit.distributed`); one process computes them one after the other (:class:`AccumulatedObjective`), and
then only the arrays of one shard are in memory at a time, while those of the others lie in files.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from offjax.batch import SystemBatch
from offjax.errors import UnsupportedError
from offjax.fit import targets
from offjax.fit.config import FitConfig
from offjax.fit.free import FreeParameters
from offjax.fit.network import Correction
from offjax.fit.objective import ComponentParts, FitData, FitObjective, Parts
from offjax.fit.targets import Targets, components
from offjax.interop.records import Record
from offjax.interop.spill import spill
from offjax.md.neural import ElementNetwork


@dataclass(frozen=True, eq=False)
class Shard:
    """Some molecules of a fit; ``weights`` (molecule,) are 0 for held-out ones. With a ``frame``
    (:meth:`SystemBatch.frame`) the energies and forces of several shards have arrays of the same shapes.
    """

    batch: SystemBatch
    records: list[Record]
    weights: np.ndarray
    config: FitConfig
    free: FreeParameters
    network: ElementNetwork | None = None
    frame: Any = None

    def objective(self) -> FitObjective:
        """The part of the objective that these molecules make, without prior."""
        c = self.config
        packed = targets.build(
            self.batch, self.records, self.weights, c.objective, c.relaxation, self.network is not None, self.frame
        )
        others = components.build(self.batch.systems, self.records, self.weights, c)
        correction = Correction.of(self.network, self.batch.systems, packed, c.network)
        return FitObjective(packed, self.free, 0.0, components=others, network=correction)


class Sums(NamedTuple):
    """What a shard adds to f by energies, forces and each kind of its components."""

    energy: np.ndarray
    force: np.ndarray
    components: dict[str, np.ndarray]


class Terms(NamedTuple):
    """The sums of a shard and its number of failed minimisations; each molecule's energies and forces; its components
    by kind, with their members.
    """

    sums: Sums
    unconverged: np.ndarray
    energies: list[np.ndarray]
    forces: list[np.ndarray]
    components: dict[str, tuple[tuple[int, ...], ComponentParts]]


def evaluate(objective: FitObjective, method: str, x: np.ndarray) -> Any:
    """One method of a shard's objective, as NumPy arrays."""
    return jax.tree.map(np.asarray, getattr(objective, method)(jnp.asarray(x)))


def sums(objective: FitObjective, x: np.ndarray) -> Sums:
    """What a shard adds to f. Energies and forces stay with it, for :func:`parts`."""
    return _sums(objective, evaluate(objective, "parts", x))


def _sums(objective: FitObjective, found: Parts) -> Sums:
    pairs = zip(objective.data.components, found.components, strict=True)
    return Sums(found.energy, found.force, {component.kind: at.value for component, at in pairs})


def sums_and_gradient(objective: FitObjective, x: np.ndarray) -> tuple[Sums, np.ndarray]:
    """What a shard adds to f, and its gradient."""
    _, gradient = evaluate(objective, "value_and_gradient", x)
    return sums(objective, x), gradient


def parts(objective: FitObjective, x: np.ndarray) -> Terms:
    """The terms of a shard."""
    found, data = evaluate(objective, "parts", x), objective.data
    packed = data.targets
    energies, forces = (packed.batch.unpack(v, packed.conformers) for v in (found.energies, found.forces))
    pairs = zip(data.components, found.components, strict=True)
    others = {component.kind: (component.members, at._replace(found=None)) for component, at in pairs}
    return Terms(_sums(objective, found), found.unconverged, energies, forces, others)


def parts_and_gradient(objective: FitObjective, x: np.ndarray) -> tuple[Terms, np.ndarray]:
    """The terms of a shard and its gradient."""
    _, gradient = evaluate(objective, "value_and_gradient", x)
    return parts(objective, x), gradient


class ShardedObjective(FitObjective, ABC):
    """The objective as a sum over shards.

    ``shards`` are the molecules of each shard, as positions among those of the fit. Every minimisation of torsion
    profiles begins at the reference geometries, so that what a shard gives does not depend on who computed it before.
    """

    starts = ()

    def settle(self, x) -> None:
        """Nothing: see above."""

    def __init__(
        self,
        whole: Targets | None,
        free: FreeParameters,
        prior_weight: float,
        components,
        network: Correction | None = None,
        *,
        shards: Sequence[np.ndarray],
    ):
        # what is computed of the targets, the shards compute
        super().__init__(cast(Targets, whole), free, prior_weight, components=components, network=network)
        self.shards = shards
        self.scalar = self._traceable()
        self._points: list[tuple[bytes, dict[Any, list[Any]]]] = []

    @abstractmethod
    def _results(self, function: Callable, x: np.ndarray, arguments: tuple) -> list[Any]:
        """function(objective, *arguments, x) of the objective of each shard."""

    def _by_molecule(self, values: list[np.ndarray]) -> Any:
        """Energies or forces of all molecules in the form that :class:`Parts` has them."""
        return values

    def _at(self, x: np.ndarray) -> dict[Any, list[Any]]:
        """What was computed at a point; that of two points is remembered, as in :meth:`FitObjective.parts`."""
        point = x.tobytes()
        known = next((item for item in self._points if item[0] == point), (point, {}))
        self._points = [known, *(item for item in self._points if item[0] != point)][:2]
        return known[1]

    def _all(self, function, x, *arguments) -> list[Any]:
        """The results of all shards, in their order."""
        x = np.asarray(x, dtype=np.float64)
        found, key = self._at(x), (function, arguments)
        if key not in found:
            found[key] = self._results(function, x, arguments)
        return found[key]

    def _sums_and_gradients(self, x) -> tuple[list[Sums], list[np.ndarray]]:
        found = self._all(sums_and_gradient, x)
        return [one for one, _ in found], [gradient for _, gradient in found]

    def _sums(self, x) -> list[Sums]:
        known = self._at(np.asarray(x, dtype=np.float64))
        if (sums_and_gradient, ()) in known:
            return self._sums_and_gradients(x)[0]
        if (parts, ()) in known:
            return [terms.sums for terms in self._all(parts, x)]
        return self._all(sums, x)

    def _priors(self, x) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The residuals of the priors and their derivatives."""
        return jax.tree.map(np.asarray, self.data.priors(jnp.asarray(x, jnp.float64)))

    def value_and_gradient(self, x, data=None):
        """f(x) and its gradient."""
        if data is not None and data is not self.data:
            raise UnsupportedError("shards are computed whole; leave out optimizer.minibatch or the shards")
        found, gradients = self._sums_and_gradients(x)
        residual, slope = self._priors(x)
        return jnp.asarray(self._total(found, x)), jnp.asarray(sum(gradients) + slope * residual)

    def value(self, x):
        """f(x)."""
        return jnp.asarray(self._total(self._sums(x), x))

    def _total(self, found: Sequence[Sums], x):
        """f(x) of the sums of all shards, added as :func:`offjax.fit.objective.parts` adds."""
        kinds = [component.kind for component in self.data.components]
        others = [sum(one.components[kind] for one in found if kind in one.components) for kind in kinds]
        prior = 0.5 * np.sum(self._priors(x)[0] ** 2)
        return sum(one.energy for one in found) + sum(one.force for one in found) + prior + sum(others)

    def gauss_newton(self, x):
        """f, J^T r and J^T J."""
        found = self._all(evaluate, x, "gauss_newton")
        residual, slope = self._priors(x)
        value, gradient, matrix = (sum(column) for column in zip(*found, strict=True))
        return (
            jnp.asarray(value + 0.5 * np.sum(residual**2)),
            jnp.asarray(gradient + slope * residual),
            jnp.asarray(matrix + np.diag(slope**2)),
        )

    def parts(self, x) -> Parts:
        """The terms of f, and energies and forces of all molecules."""
        found = self._all(parts, x)
        order = np.argsort(np.concatenate(self.shards))

        def of_all(quantity):
            molecules = [v for terms in found for v in getattr(terms, quantity)]
            return self._by_molecule([molecules[m] for m in order])

        columns = ((t.sums.energy for t in found), (t.sums.force for t in found), (t.unconverged for t in found))
        energy, force, unconverged = (jnp.asarray(sum(column)) for column in columns)
        prior = jnp.asarray(0.5 * np.sum(self._priors(x)[0] ** 2))
        others = tuple(
            self._merged(component, [terms.components for terms in found]) for component in self.data.components
        )
        value = jnp.asarray(self._total([terms.sums for terms in found], x))
        return Parts(energy, force, prior, of_all("energies"), of_all("forces"), None, unconverged, others, value)

    def component_normals(self, x):
        """Shards add up all kinds of data."""
        raise UnsupportedError("the blocks of single kinds of data are not computed by shards; leave out the shards")

    def _merged(self, component, found: list[dict[str, Any]]) -> ComponentParts:
        """One component from its parts in the shards."""
        place = {m: i for i, m in enumerate(component.members)}
        value, unconverged = 0.0, 0
        losses = np.zeros(len(place))
        errors: dict[str, np.ndarray] = {}
        for shard, others in zip(self.shards, found, strict=True):
            if component.kind in others:
                members, at = others[component.kind]
                at_record = [place[shard[m]] for m in members]
                value, unconverged = value + at.value, unconverged + at.unconverged
                losses[at_record] = at.losses
                for quantity, squares in at.errors.items():
                    errors.setdefault(quantity, np.full(len(place), np.nan))[at_record] = squares
        return ComponentParts(jnp.asarray(value), losses, errors, jnp.asarray(unconverged), None)

    def _traceable(self):
        """f as a function that JAX can trace and differentiate once: its value and gradient come from the shards."""

        def call(x):
            return jax.tree.map(np.asarray, self.value_and_gradient(x))

        def both(x):
            shapes = (jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype))
            return jax.pure_callback(call, shapes, x)

        @jax.custom_jvp
        def scalar(x, data):
            return both(x)[0]

        @scalar.defjvp
        def rule(primals, tangents):
            value, gradient = both(primals[0])
            return value, gradient @ tangents[0]

        return scalar


class AccumulatedObjective(ShardedObjective):
    """The objective whose shards one process computes one after the other, each read from a file of ``folder``.

    Energies and forces of :class:`Parts` are lists by molecule, which lie in files too.
    """

    def __init__(self, free: FreeParameters, prior_weight: float, components, *, shards, objectives, folder: Path):
        super().__init__(None, free, prior_weight, components, shards=shards)
        self._folder = folder
        self._stored = [_Stored(objective, folder / f"shard-{k}") for k, objective in enumerate(objectives)]

    def _results(self, function, x, arguments):
        found = []
        for stored in self._stored:
            with stored.loaded() as objective:
                found.append(self._spilled(function(objective, *arguments, x)))
        return found

    def _spilled(self, result):
        """A result with its energies and forces in a file."""
        if isinstance(result, Terms):
            return result._replace(forces=spill(result.forces, self._folder))
        return (self._spilled(result[0]), result[1]) if isinstance(result[0], Terms) else result

    def _sums(self, x):
        return [terms.sums for terms in self._all(parts, x)]

    def _sums_and_gradients(self, x):
        found = self._all(parts_and_gradient, x)
        known = self._at(np.asarray(x, dtype=np.float64))
        known[parts, ()] = [terms for terms, _ in found]  # an optimiser asks for them next
        return self._sums(x), [gradient for _, gradient in found]


class _Stored:
    """An objective whose arrays lie in a file while it is not used."""

    def __init__(self, objective: FitObjective, path: Path):
        self._objective, self._path = objective, path
        self._batch = objective.data.targets.batch
        leaves, self._tree = jax.tree.flatten(objective.data)
        self._places = [leaf.sharding if getattr(leaf, "committed", False) else None for leaf in leaves]
        with open(path, "wb") as file:
            for leaf in leaves:
                np.save(file, np.asarray(leaf))
        self._put_away()

    def _put_away(self) -> None:
        self._objective.data = cast(FitData, None)
        self._objective._last = []
        self._objective.__dict__.pop("_plain", None)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[FitObjective]:
        """The objective with its arrays, as long as the context lasts."""
        with open(self._path, "rb") as file:
            leaves = [self._placed(np.load(file), place) for place in self._places]
        data = jax.tree.unflatten(self._tree, leaves)
        # a batch that went through a pytree has lost its molecules
        self._objective.data = replace(data, targets=replace(data.targets, batch=self._batch))
        try:
            yield self._objective
        finally:
            self._put_away()

    @staticmethod
    def _placed(array: np.ndarray, place):
        return jnp.asarray(array) if place is None else jax.device_put(array, place)


def accumulated(config: FitConfig, prepared) -> AccumulatedObjective:
    """The objective of a :class:`offjax.fit.driver.Prepared` in ``objective.parts`` parts, in its folder."""
    shards = balanced(prepared.records, config.objective.parts or 1)
    counts = np.array([r.n_conformers for r in prepared.records])
    batch = prepared.batch
    frame = batch.frame(shards, counts)

    def objectives():
        for chosen in shards:
            records = [prepared.records[m] for m in chosen]
            yield Shard(
                batch.select(chosen), records, prepared.weights[chosen], config, prepared.free, frame=frame
            ).objective()

    return AccumulatedObjective(
        prepared.free,
        config.objective.prior_weight,
        prepared.components,
        shards=shards,
        objectives=objectives(),
        folder=prepared.folder,
    )


def balanced(records: Sequence[Record], n: int) -> list[np.ndarray]:
    """At most n parts of the records, of about equal cost; each are sorted indices."""
    return shared_out([r.n_conformers * r.positions.shape[1] ** 2 for r in records], n)


def shared_out(cost: Sequence[float], n: int) -> list[np.ndarray]:
    """Indices of at most n parts of about equal cost, each sorted; the largest first, each to the cheapest part.

    >>> [part.tolist() for part in shared_out([5, 1, 1, 4, 3], 2)]
    [[0, 1, 2], [3, 4]]
    """
    found: list[list[int]] = [[] for _ in range(min(n, len(cost)))]
    filled = np.zeros(len(found))
    for item in np.argsort(-np.asarray(cost), kind="stable"):
        chosen = int(np.argmin(filled))
        found[chosen].append(int(item))
        filled[chosen] += cost[item]
    return [np.sort(part) for part in found]
