"""The objective of a fit, its molecules shared by processes of a Dask cluster.

The objective is a sum over molecules, so each *shard* of them is an objective of its own, without prior; its value,
gradient and J^T J are computed by the worker that holds it, or by one that is free, and added here, always in the
order of the shards: the result does not depend on the number of workers, nor on which of them died. What a shard
needs lies in a file that every worker can read; a worker that takes over from a dead one reads it again, and only the
dead worker's tasks are repeated. Compiled programs and packed data stay in the worker from one iteration to the next,
and so do energies and forces until they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from offjax.batch import SystemBatch
from offjax.errors import InputError, UnsupportedError
from offjax.fit import targets
from offjax.fit.config import FitConfig, Workers
from offjax.fit.free import FreeParameters
from offjax.fit.jobqueue import KEEP_MEMORY, LOOK, Jobs
from offjax.fit.network import Correction
from offjax.fit.objective import ComponentParts, FitObjective, Parts
from offjax.fit.progress import Silent
from offjax.fit.targets import components
from offjax.interop.files import owner, remove_abandoned, write_atomically
from offjax.interop.records import Record
from offjax.md.neural import ElementNetwork

STARTS = 3
"""How often local workers are started before the fit gives up on processes that die as they start."""

ALLOWED_FAILURES = 10
"""How often a task may lose its worker before the fit gives up: what kills every worker is in the data."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Some molecules of a fit, as they are sent to a worker; ``weights`` (molecule,) are 0 for held-out ones."""

    batch: SystemBatch
    records: list[Record]
    weights: np.ndarray
    config: FitConfig
    free: FreeParameters
    network: ElementNetwork | None = None

    def objective(self) -> FitObjective:
        """The part of the objective that these molecules make, without prior."""
        c = self.config
        packed = targets.build(
            self.batch, self.records, self.weights, c.objective, c.relaxation, self.network is not None
        )
        others = components.build(self.batch.systems, self.records, self.weights, c)
        correction = Correction.of(self.network, self.batch.systems, packed, c.network)
        return FitObjective(packed, self.free, 0.0, components=others, network=correction)


class Sums(NamedTuple):
    """What a shard adds to f by energies, forces and each kind of its components."""

    energy: np.ndarray
    force: np.ndarray
    components: dict[str, np.ndarray]


class _Terms(NamedTuple):
    """The sums of a shard and its number of failed minimisations; each molecule's energies and forces; its components
    by kind, with their members.
    """

    sums: Sums
    unconverged: np.ndarray
    energies: list[np.ndarray]
    forces: list[np.ndarray]
    components: dict[str, tuple[tuple[int, ...], ComponentParts]]


@dataclass(frozen=True)
class Held:
    """A shard's file that a worker has read. Its size is what another worker would have to read: the scheduler sends
    a shard's tasks to the worker that holds it, unless others are idle for long.
    """

    path: str

    def __sizeof__(self) -> int:
        return os.path.getsize(self.path)


def hold(path: str) -> Held:
    """On a worker: read a shard."""
    _objective(path)
    return Held(path)


def evaluate(shard: Held, method: str, x: np.ndarray) -> Any:
    """On a worker: one method of a shard's objective, as NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, getattr(_objective(shard.path), method)(jnp.asarray(x)))


@cache
def _objective(path: str) -> FitObjective:
    import cloudpickle

    with jax.enable_x64(True):
        return cloudpickle.loads(Path(path).read_bytes()).objective()


def sums(shard: Held, x: np.ndarray) -> Sums:
    """On a worker: what a shard adds to f. Energies and forces stay there, for :func:`parts`."""
    return _sums(shard, evaluate(shard, "parts", x))


def _sums(shard: Held, found: Parts) -> Sums:
    pairs = zip(_objective(shard.path).data.components, found.components, strict=True)
    return Sums(found.energy, found.force, {component.kind: at.value for component, at in pairs})


def sums_and_gradient(shard: Held, x: np.ndarray) -> tuple[Sums, np.ndarray]:
    """On a worker: what a shard adds to f, and its gradient."""
    _, gradient = evaluate(shard, "value_and_gradient", x)
    return sums(shard, x), gradient


def parts(shard: Held, x: np.ndarray) -> _Terms:
    """On a worker: the terms of a shard."""
    found, data = evaluate(shard, "parts", x), _objective(shard.path).data
    packed = data.targets
    energies, forces = (packed.batch.unpack(v, packed.conformers) for v in (found.energies, found.forces))
    pairs = zip(data.components, found.components, strict=True)
    others = {component.kind: (component.members, at._replace(found=None)) for component, at in pairs}
    return _Terms(_sums(shard, found), found.unconverged, energies, forces, others)


class DistributedObjective(FitObjective):
    """The objective whose terms are computed by the workers of a Dask client.

    ``shards`` are the molecules of each shard, as positions in the batch of ``targets``, ``contents`` their names;
    ``files`` where the workers find them, ``held`` what the scheduler knows of who has read them. Workers begin every
    minimisation of torsion profiles at the reference geometries, so that nothing is lost with one of them.
    """

    starts = ()

    def settle(self, x) -> None:
        """Nothing: see above."""

    def __init__(
        self,
        whole: targets.Targets,
        free: FreeParameters,
        prior_weight: float,
        components,
        network: Correction | None = None,
        *,
        shards: Sequence[np.ndarray],
        contents: Sequence[list[str]],
        files: Sequence[str],
        client,
        jobs: Jobs | None,
    ):
        super().__init__(whole, free, prior_weight, components=components, network=network)
        self.shards, self.files, self.contents, self.client, self.jobs = shards, files, contents, client, jobs
        self.held = [client.submit(hold, file, pure=False) for file in files]
        self.scalar = self._traceable()
        self._points: list[tuple[bytes, dict[Any, list[Any]]]] = []

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
            # with names of their own, for of tasks of one name the scheduler does not ask who holds the shard
            tasks = [
                self.client.submit(function, shard, *arguments, x, key=f"{function.__name__}-{k}-{uuid.uuid4()}")
                for k, shard in enumerate(self.held)
            ]
            found[key] = self._gathered(tasks)
        return found[key]

    def _gathered(self, tasks) -> list[Any]:
        """The results of tasks; jobs that end in the meantime are replaced."""
        from distributed import KilledWorker, wait

        if self.jobs is not None:
            _waited(self.jobs, lambda seconds: wait(tasks, timeout=seconds))
        try:
            return self.client.gather(tasks)
        except KilledWorker as error:
            shards = zip(self.contents, tasks, self.held, strict=True)
            names = next((names for names, *own in shards if error.task in [task.key for task in own]), [])
            raise InputError(
                f"workers: {error.allowed_failures + 1} workers died computing the same {len(names)} molecules "
                f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}). Most often this is too little memory: "
                "raise workers.options.memory, or workers.shards for fewer molecules at once"
            ) from None

    def _priors(self, x) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The residuals of the priors and their derivatives."""
        return jax.tree.map(np.asarray, self.data.priors(jnp.asarray(x, jnp.float64)))

    def value_and_gradient(self, x, data=None):
        """f(x) and its gradient."""
        if data is not None and data is not self.data:
            raise UnsupportedError("workers share whole batches only; leave out optimizer.minibatch or [workers]")
        found = self._all(sums_and_gradient, x)
        total, gradients = self._total([one for one, _ in found], x), [gradient for _, gradient in found]
        residual, slope = self._priors(x)
        return jnp.asarray(total), jnp.asarray(sum(gradients) + slope * residual)

    def value(self, x):
        """f(x)."""
        known = self._at(np.asarray(x, dtype=np.float64))
        if (sums_and_gradient, ()) in known:
            found = [one for one, _ in self._all(sums_and_gradient, x)]
        elif (parts, ()) in known:
            found = [terms.sums for terms in self._all(parts, x)]
        else:
            found = self._all(sums, x)
        return jnp.asarray(self._total(found, x))

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
        """The terms of f, and energies and forces of all molecules in the layout of the whole batch."""
        found = self._all(parts, x)
        whole = self.data.targets
        order = np.argsort(np.concatenate(self.shards))

        def flat(quantity):
            molecules = [v for terms in found for v in getattr(terms, quantity)]
            return whole.batch.flatten([molecules[m] for m in order], whole.conformers)

        columns = ((t.sums.energy for t in found), (t.sums.force for t in found), (t.unconverged for t in found))
        energy, force, unconverged = (jnp.asarray(sum(column)) for column in columns)
        prior = jnp.asarray(0.5 * np.sum(self._priors(x)[0] ** 2))
        others = tuple(
            self._merged(component, [terms.components for terms in found]) for component in self.data.components
        )
        value = jnp.asarray(self._total([terms.sums for terms in found], x))
        return Parts(energy, force, prior, flat("energies"), flat("forces"), None, unconverged, others, value)

    def component_normals(self, x):
        """Workers add up all kinds of data."""
        raise UnsupportedError("the blocks of single kinds of data are not computed by workers; leave out [workers]")

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
        """f as a function that JAX can trace and differentiate once: its value and gradient come from the workers."""

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


@contextlib.contextmanager
def shared(config: FitConfig, prepared, progress: Silent | None = None) -> Iterator[FitObjective]:
    """The objective of a :class:`offjax.fit.driver.Prepared`, computed by the workers that ``[workers]`` asks for.

    Raises
    ------
    InputError
        The cluster cannot be reached or started as the options say.
    UnsupportedError
        Dask, or dask-jobqueue for a queueing system, is not installed.
    """
    if not config.workers.n_shards:
        yield prepared.objective(config)
        return
    cloudpickle = _required("cloudpickle", "distributed")
    cost = [r.n_conformers * r.positions.shape[1] ** 2 for r in prepared.records]
    shards = balanced(cost, config.workers.n_shards)
    remove_abandoned(config.output.directory, "workers-")
    with (
        tempfile.TemporaryDirectory(prefix=f"workers-{owner()}.", dir=config.output.directory) as folder,
        _client(config, Silent() if progress is None else progress) as (client, jobs),
    ):
        files = []
        for k, chosen in enumerate(shards):
            shard = Shard(
                SystemBatch.from_systems([prepared.systems[m] for m in chosen]),
                [prepared.records[m] for m in chosen],
                prepared.weights[chosen],
                config,
                prepared.free,
                prepared.network,
            )
            files.append(os.path.abspath(os.path.join(folder, f"shard-{k}")))
            write_atomically(files[-1], cloudpickle.dumps(shard))
        yield DistributedObjective(
            prepared.targets,
            prepared.free,
            config.objective.prior_weight,
            prepared.components,
            prepared.correction(config),
            shards=shards,
            contents=[[prepared.records[m].name for m in chosen] for chosen in shards],
            files=files,
            client=client,
            jobs=jobs,
        )


def balanced(cost: Sequence[float], n: int) -> list[np.ndarray]:
    """Indices of at most n parts of about equal cost, each sorted; the largest first, each to the cheapest part.

    >>> [part.tolist() for part in balanced([5, 1, 1, 4, 3], 2)]
    [[0, 1, 2], [3, 4]]
    """
    parts: list[list[int]] = [[] for _ in range(min(n, len(cost)))]
    filled = np.zeros(len(parts))
    for item in np.argsort(-np.asarray(cost), kind="stable"):
        chosen = int(np.argmin(filled))
        parts[chosen].append(int(item))
        filled[chosen] += cost[item]
    return [np.sort(part) for part in parts]


def _required(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UnsupportedError(
            f"[workers] needs {module}, which is not installed: pip install 'offjax[{extra}]'"
        ) from None


@contextlib.contextmanager
def _client(config: FitConfig, progress: Silent) -> Iterator[tuple[Any, Jobs | None]]:
    """A Dask client with workers, and the jobs of a queueing system in which they run.

    The cluster ends with the fit, a scheduler given by its address does not.
    """
    workers = config.workers
    distributed = _required("distributed", "distributed")
    jobs = None
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}
        settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in KEEP_MEMORY.items()}
        stack.enter_context(_required("dask", "distributed").config.set(settings))
        if workers.address is not None:
            try:
                client = stack.enter_context(distributed.Client(workers.address, timeout=30))
            except OSError as error:
                raise InputError(f"workers.address: no Dask scheduler answers at {workers.address}: {error}") from None
        elif workers.cluster == "local":
            # one core each: XLA would give every worker all cores
            environment = {"NPROC": "1"}
            if jax.config.jax_compilation_cache_dir:
                environment["JAX_COMPILATION_CACHE_DIR"] = str(jax.config.jax_compilation_cache_dir)
            cluster = _local_cluster(workers, environment)
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        else:
            queues = _required("dask_jobqueue", "jobqueue")
            made = {"slurm": queues.SLURMCluster, "pbs": queues.PBSCluster, "lsf": queues.LSFCluster}
            jobs = stack.enter_context(Jobs(workers, made[workers.cluster], config.output.directory, progress))
            client = stack.enter_context(distributed.Client(jobs.cluster))
        _waited(jobs, lambda seconds: client.wait_for_workers(1, timeout=seconds))
        yield client, jobs


def _local_cluster(workers: Workers, environment: dict[str, str]):
    """Worker processes on this machine; when one dies as it starts, all are started again."""
    from distributed import LocalCluster

    for left in reversed(range(STARTS)):
        try:
            return LocalCluster(
                n_workers=workers.count,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=":0",
                env=environment,
                **workers.options,
            )
        except (TypeError, ValueError, RuntimeError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # a worker that fails says why; its nanny only that it did
                cause = cause.__cause__
            died = "failed to start worker process" in str(cause)
            if not died:
                raise InputError(f"workers.options: {cause}") from error
            if not left:
                raise InputError(
                    f"workers: processes died as they started, {STARTS} times; what they printed stands above. Is "
                    "there memory for workers.count processes?"
                ) from error


def _waited(jobs: Jobs | None, wait) -> None:
    """Wait with ``wait(seconds)``, which raises TimeoutError; lost jobs are replaced in the meantime."""
    if jobs is None:
        wait(None)
        return
    while True:
        try:
            wait(LOOK)
        except TimeoutError:
            jobs.keep()
        else:
            return
