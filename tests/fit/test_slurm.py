"""Fits whose workers are jobs of SLURM; where it does not run, these tests are skipped.

Nodes must see the directory of the tests: on more than one machine give pytest a shared one with ``--basetemp``.
"""

import shutil
import subprocess

import numpy as np
import pytest

from offjax import InputError
from offjax.fit import FitConfig, jobqueue, run
from offjax.fit.progress import Silent

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")


def partition():
    """A SLURM partition whose nodes take jobs; None where there is none."""
    if not all(map(shutil.which, ("sbatch", "squeue", "scancel", "sinfo"))):
        return None
    found = subprocess.run(["sinfo", "-h", "-o", "%P %t"], capture_output=True, text=True, timeout=60)
    ready = [name for name, state in map(str.split, found.stdout.splitlines()) if state in ("idle", "mix")]
    return ready[0].rstrip("*") if ready else None


QUEUE = partition()
pytestmark = pytest.mark.skipif(QUEUE is None, reason="no SLURM with a free node on this machine")
WORKERS = """
[workers]
count = 2
shards = 3
cluster = "slurm"
options = {{queue = "{queue}", walltime = "00:20:00", memory = "2GB"{more}}}
"""


class Cancels(Silent):
    """Cancels all jobs once, after the first iteration."""

    def __init__(self):
        self.notes, self.jobs = [], []

    def stage(self, text, total=None):
        if "slurm jobs" in text:
            self.jobs = text.split("jobs ")[1].split(";")[0].split(", ")

    def note(self, text):
        self.notes.append(text)

    def iteration(self, entry, maximum):
        if entry["iteration"] == 1:
            subprocess.run(["scancel", *self.jobs], check=True, timeout=60)


def test_cancelled_jobs_are_replaced_and_the_fit_is_that_of_one_process(make_config):
    options = {"iterations": 3, "prior": "20.0"}
    alone = run(FitConfig.load(make_config(**options, output="alone", name="alone.toml")))
    workers = WORKERS.format(queue=QUEUE, more="")
    seen = Cancels()
    shared = run(FitConfig.load(make_config(**options, output="shared", name="s.toml", extra=workers)), progress=seen)
    assert len(seen.jobs) == 2 and seen.notes == ["2 of 2 slurm jobs ended and were submitted again"]
    np.testing.assert_allclose(shared.fitted.to_vector(), alone.fitted.to_vector(), rtol=1e-9)
    assert len(list((shared.directory / "jobs").glob("*.err"))) == 4
    left = subprocess.run(jobqueue.PRESENT["slurm"], capture_output=True, text=True, check=True, timeout=60)
    assert not set(seen.jobs) & set(left.stdout.split())


def test_what_slurm_refuses_ends_the_fit_at_once(make_config):
    workers = WORKERS.format(queue="there-is-no-such-partition", more="")
    with pytest.raises(InputError, match="slurm does not take the jobs: .*[Ii]nvalid partition"):
        run(FitConfig.load(make_config(extra=workers)))


def test_jobs_that_end_before_a_worker_runs_end_the_fit(make_config, monkeypatch):
    monkeypatch.setattr(jobqueue, "ASK", 3.0)
    workers = WORKERS.format(queue=QUEUE, more=', python = "/there/is/no/python"')
    with pytest.raises(InputError, match="jobs in a row ended before a Dask worker ran in them; .*No such file"):
        run(FitConfig.load(make_config(extra=workers)))


def test_an_option_that_dask_jobqueue_does_not_have(make_config):
    workers = WORKERS.format(queue=QUEUE, more=', partitoin = "x"')
    with pytest.raises(InputError, match=r"workers.options: .*unexpected keyword argument 'partitoin'"):
        run(FitConfig.load(make_config(extra=workers)))
