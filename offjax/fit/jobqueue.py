"""Dask workers in the jobs of a queueing system, whose number is kept up.

dask-jobqueue submits jobs. That a submission failed it only logs, and a job that ends before the fit (``scancel``, its
time limit, a lost node) it does not replace, so that a fit could wait for ever. :class:`Jobs` does both.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from offjax.errors import InputError
from offjax.fit.config import Workers
from offjax.fit.progress import Silent

LOOK = 5.0
"""Seconds between two looks at the workers."""

ASK = 30.0
"""Seconds between two questions to the queueing system."""

PATIENCE = 20.0
"""Seconds without any worker of a job until the job counts as lost; its nanny restarts a worker sooner."""

FEWEST = 3
"""How many jobs in a row, at least, must end without a worker before the fit gives up."""

PRESENT = {"slurm": "squeue --me --noheader --format=%A", "pbs": "qstat -u {user}"}
"""Commands that print the user's jobs, one a line that begins with the number; the last column but one of PBS is the
state."""

ENDED = {"C", "F"}
"""States of jobs that PBS still lists: complete, finished."""

KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of workers: glibc keeps freed memory, and asks for large pages. Dask has it give all back, and every
evaluation would fetch its arrays page by page again."""


class Jobs:
    """The jobs of a fit; a context manager that cancels them at its end.

    Parameters
    ----------
    workers
        ``[workers]`` of the configuration.
    cluster_type
        The class of dask-jobqueue.
    directory
        Where jobs write what they print, unless ``options`` say so.
    progress
        Is told about jobs that were replaced.

    Raises
    ------
    InputError
        The queueing system is not there, options that dask-jobqueue does not accept, or the queueing system does not
        accept the jobs.
    """

    def __init__(self, workers: Workers, cluster_type, directory: Path, progress: Silent):
        self.system, self.count, self.progress = workers.cluster, workers.count, progress
        job = cluster_type.job_cls
        for command in (shlex.split(c)[0] for c in (job.submit_command, job.cancel_command)):
            if shutil.which(command) is None:
                raise InputError(
                    f'workers: cluster = "{self.system}" needs the command {command}, which is not on this machine\'s '
                    "PATH: start the fit where jobs can be submitted"
                )
        options: dict[str, Any] = {"cores": 1, "processes": 1, "memory": "4GB"} | workers.options
        logs = os.path.abspath(directory / "jobs")
        if not any(c.isspace() for c in logs):  # directives of job scripts are not quoted
            options.setdefault("log_directory", logs)
        self.logs = Path(options.get("log_directory", "."))
        # the port that dask-jobqueue takes for its web pages may be another user's
        options["scheduler_options"] = {"dashboard_address": ":0"} | options.get("scheduler_options", {})
        try:
            # one task at a time in a process, which may use all its cores: XLA would take those of the whole node
            threads = max(int(options["cores"]) // int(options["processes"]), 1)
            environment = {"NPROC": str(threads)} | KEEP_MEMORY
            exports = [f"export {name}={value}" for name, value in environment.items()]
            options["job_script_prologue"] = [*exports, *options.get("job_script_prologue", [])]
            options["worker_extra_args"] = [*options.get("worker_extra_args", []), "--nthreads", "1"]
            self.cluster = cluster_type(**{"job_cls": _outspoken(job)} | options)
        except (TypeError, ValueError) as error:
            raise InputError(f"workers.options: {str(error).splitlines()[0]}") from None
        self.seen: set[str] = set()
        self.missing: dict[str, float] = {}
        self.submitted = self.ended = 0
        self.asked = time.monotonic()

    def __enter__(self) -> Jobs:
        try:
            self._submit()
        except (OSError, RuntimeError) as error:
            self._forget_unsubmitted()
            self.cluster.close()
            raise InputError(f"workers: {self.system} does not take the jobs: {_reason(error)}") from None
        numbers = ", ".join(str(job.job_id) for job in self.cluster.workers.values())
        self.progress.stage(f"waiting for the first of the {self.system} jobs {numbers}; they print to {self.logs}")
        return self

    def __exit__(self, *error) -> None:
        self.cluster.close()

    def keep(self) -> None:
        """Submit a job for each that was lost.

        Raises
        ------
        InputError
            Job after job ends before a worker runs in it.
        """
        lost, now = [], time.monotonic()
        here = {worker.name for worker in tuple(self.cluster.scheduler.workers.values())}
        self.seen |= here
        if here:
            self.ended = 0
        waiting = {}
        for name, spec in self.cluster.worker_spec.items():
            own = {name + suffix for suffix in spec.get("group", [""])}
            if own & here:
                self.missing.pop(name, None)
            elif name not in self.cluster.workers or now - self.missing.setdefault(name, now) > PATIENCE:
                lost.append(name)
            if not own & self.seen and name in self.cluster.workers:
                self.missing.pop(name, None)  # it waits in the queue
                waiting[name] = self.cluster.workers[name].job_id
        if waiting and now - self.asked > ASK:
            self.asked = now
            present = self._present()
            gone = [name for name, number in waiting.items() if present is not None and number not in present]
            self.ended += len(gone)
            if self.ended >= max(FEWEST, self.count):
                raise InputError(
                    f"workers: {self.ended} {self.system} jobs in a row ended before a Dask worker ran in them; "
                    f"{self._last_words()}"
                )
            lost += gone
        if not lost and len(self.cluster.worker_spec) >= self.count:
            return
        self.cluster.sync(self.cluster.scale_down, lost)
        try:
            self._submit()
        except (OSError, RuntimeError) as error:
            self._forget_unsubmitted()
            self.progress.note(f"{self.system} takes no job now, trying again: {_reason(error)}")
        else:
            self.progress.note(f"{len(lost)} of {self.count} {self.system} jobs ended and were submitted again")

    def _submit(self) -> None:
        async def submit():
            while len(self.cluster.worker_spec) < self.count:
                # new names only: dask may still have a timer that ends the job of an old one
                self.cluster.worker_spec[f"offjax-{self.submitted}"] = self.cluster.new_spec
                self.submitted += 1
            await self.cluster

        self.cluster.sync(submit)

    def _forget_unsubmitted(self) -> None:
        """Jobs that the queueing system refused are no jobs of the cluster any more."""
        from distributed.core import Status

        failed = {name: job for name, job in self.cluster.workers.items() if job.job_id is None}
        self.cluster.sync(self.cluster.scale_down, list(failed))
        for job in failed.values():
            job.status = Status.closed  # dask-jobqueue leaves it open, and dask then refuses to close the cluster

    def _present(self) -> set[str] | None:
        """Numbers of the jobs that the queueing system knows; None where it cannot be asked."""
        if self.system not in PRESENT:
            return None
        with contextlib.suppress(OSError, subprocess.SubprocessError, KeyError):  # KeyError: a user without a name
            command = PRESENT[self.system].format(user=getpass.getuser()).split()
            found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            lines = [line.split() for line in found.stdout.splitlines() if line.strip()[:1].isdigit()]
            return {re.split(r"\D", line[0])[0] for line in lines if not {*line[-2:-1]} & ENDED}
        return None

    def _last_words(self) -> str:
        """The end of what a job printed last."""
        files = sorted((f for f in self.logs.glob("*") if f.is_file()), key=lambda f: f.stat().st_mtime)
        for file in reversed(files):
            lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return f"{file} ends with: {lines[-1].strip()}"
        return f"nothing of what they printed is in {self.logs}"


def _outspoken(job: Any) -> Any:
    """The class of jobs; that of LSF hides what bsub says when it refuses a job."""
    if job.submit_command != "bsub":
        return job

    class Outspoken(job):
        async def _submit_job(self, script_filename):
            if not self.use_stdin:
                return await super()._submit_job(script_filename)
            return await self._call([f"{self.submit_command} < {shlex.quote(script_filename)}"], shell=True)

    return Outspoken


def _reason(error: Exception) -> str:
    """What the queueing system said, in one line."""
    text = str(error)
    parts = re.fullmatch(r".*?stdout:\n(.*)\nstderr:\n(.*)", text, re.DOTALL)
    said = [] if parts is None else [part for part in (parts[2], parts[1]) if part.strip()]
    return " ".join((said[0] if said else text).split())
