"""The objective of a fit, its molecules shared by processes of a Dask cluster.

The value, gradient and J^T J of each shard (:mod:`offjax.fit.shards`) are computed by the worker that holds it, or by
one that is free, and added here, always in the order of the shards: the result does not depend on the number of
workers, nor on which of them died. What a shard needs lies in a file that every worker can read; a worker that takes
over from a dead one reads it again, and only the dead worker's tasks are repeated. Compiled programs and packed data
stay in the worker from one iteration to the next, and so do energies and forces until they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from offjax.batch import SystemBatch
from offjax.errors import InputError, UnsupportedError
from offjax.fit import targets
from offjax.fit.config import FitConfig, Workers
from offjax.fit.free import FreeParameters
from offjax.fit.jobqueue import KEEP_MEMORY, LOOK, Jobs
from offjax.fit.network import Correction
from offjax.fit.objective import FitObjective
from offjax.fit.progress import Silent
from offjax.fit.shards import Shard, ShardedObjective, accumulated, balanced
from offjax.interop.files import owner, remove_abandoned, write_atomically

STARTS = 3
"""How often local workers are started before the fit gives up on processes that die as they start."""

ALLOWED_FAILURES = 10
"""How often a task may lose its worker before the fit gives up: what kills every worker is in the data."""


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


def on_worker(shard: Held, function: Callable, *arguments) -> Any:
    """On a worker: function(objective, *arguments) of a shard's objective."""
    with jax.enable_x64(True):
        return function(_objective(shard.path), *arguments)


@cache
def _objective(path: str) -> FitObjective:
    import cloudpickle

    with jax.enable_x64(True):
        return cloudpickle.loads(Path(path).read_bytes()).objective()


class DistributedObjective(ShardedObjective):
    """The objective whose shards are computed by the workers of a Dask client.

    ``contents`` are the names of the molecules of each shard, ``files`` where the workers find them; ``held`` is what
    the scheduler knows of who has read them.
    """

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
        super().__init__(whole, free, prior_weight, components, network, shards=shards)
        self.contents, self.client, self.jobs = contents, client, jobs
        self.held = [client.submit(hold, file, pure=False) for file in files]

    def _by_molecule(self, values):
        """Flat, in the layout of the whole batch."""
        return self.data.targets.batch.flatten(values, self.data.targets.conformers)

    def _results(self, function, x, arguments):
        # with names of their own, for of tasks of one name the scheduler does not ask who holds the shard
        name = function.__name__
        tasks = [
            self.client.submit(on_worker, shard, function, *arguments, x, key=f"{name}-{k}-{uuid.uuid4()}")
            for k, shard in enumerate(self.held)
        ]
        return self._gathered(tasks)

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


@contextlib.contextmanager
def shared(config: FitConfig, prepared, progress: Silent | None = None) -> Iterator[FitObjective]:
    """The objective of a :class:`offjax.fit.driver.Prepared`, computed by the workers that ``[workers]`` asks for, or
    in the parts of ``objective.parts``, one after the other.

    Raises
    ------
    InputError
        The cluster cannot be reached or started as the options say.
    UnsupportedError
        Dask, or dask-jobqueue for a queueing system, is not installed.
    """
    if config.objective.parts is not None:
        yield accumulated(config, prepared)
        return
    if not config.workers.n_shards:
        yield prepared.objective(config)
        return
    cloudpickle = _required("cloudpickle", "distributed")
    shards = balanced(prepared.records, config.workers.n_shards)
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
