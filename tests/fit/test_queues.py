"""Fits whose workers are jobs of SLURM or PBS; where these do not run, their tests are skipped.

Nodes must see the directory of the tests: on more than one machine give pytest a shared one with ``--basetemp``. PBS
may also be SLURM with the commands of PBS, as Debian's slurm-wlm-torque has them. LSF is played by two small scripts.
"""

import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from offjax import InputError
from offjax.fit import FitConfig, jobqueue, run
from offjax.fit.progress import Silent

dask_jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")


def answer(*command):
    """What a command prints; nothing where its server does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        return ""


def partition():
    """A SLURM partition whose nodes take jobs; None where there is none."""
    if not all(map(shutil.which, ("sbatch", "squeue", "scancel", "sinfo"))):
        return None
    found = answer("sinfo", "-h", "-o", "%P %t")
    ready = [name for name, state in map(str.split, found.splitlines()) if state in ("idle", "mix")]
    return ready[0].rstrip("*") if ready else None


def queue():
    """A queue of PBS that takes jobs, if all its commands are there; None where there is none."""
    if not all(map(shutil.which, ("qsub", "qstat", "qdel"))):
        return None
    blocks = [b for b in answer("qstat", "-Q", "-f").split("Queue:")[1:] if re.search("started = (True|yes)", b)]
    return blocks[0].split()[0] if blocks else None


QUEUES = {"slurm": partition(), "pbs": queue()}
CANCEL = {"slurm": "scancel", "pbs": "qdel"}
WORKERS = """
[workers]
count = 2
shards = 3
cluster = "{system}"
options = {{queue = "{queue}", walltime = "{walltime}", memory = "2GB"{more}}}
"""


@pytest.fixture(
    params=[
        pytest.param(s, marks=pytest.mark.skipif(q is None, reason=f"no {s} with a free node on this machine"))
        for s, q in QUEUES.items()
    ]
)
def system(request, tmp_path, monkeypatch):
    """The name of a queueing system that runs; PBS may write into the directory from where a job was submitted."""
    monkeypatch.chdir(tmp_path)
    return request.param


def workers(system, queue=None, walltime="00:20:00", more=""):
    return WORKERS.format(system=system, queue=queue or QUEUES.get(system, "short"), walltime=walltime, more=more)


class Cancels(Silent):
    """Cancels all jobs once, after the first iteration."""

    def __init__(self, system):
        self.system, self.notes, self.jobs = system, [], []

    def stage(self, text, total=None):
        if f"{self.system} jobs" in text:
            self.jobs = text.split("jobs ")[1].split(";")[0].split(", ")

    def note(self, text):
        self.notes.append(text)

    def iteration(self, entry, maximum):
        if entry["iteration"] == 1:
            subprocess.run([CANCEL[self.system], *self.jobs], check=True, timeout=60)


def test_cancelled_jobs_are_replaced_and_the_fit_is_that_of_one_process(make_config, system):
    options = {"iterations": 3, "prior": "20.0"}
    alone = run(FitConfig.load(make_config(**options, output="alone", name="alone.toml")))
    seen = Cancels(system)
    config = FitConfig.load(make_config(**options, output="shared", name="s.toml", extra=workers(system)))
    shared = run(config, progress=seen)
    # both at once or one after the other: qdel takes them in turn
    counts = [int(re.fullmatch(rf"(\d) of 2 {system} jobs ended and were submitted again", n)[1]) for n in seen.notes]
    assert len(seen.jobs) == 2 and sum(counts) == 2
    np.testing.assert_allclose(shared.fitted.to_vector(), alone.fitted.to_vector(), rtol=1e-9)
    if system == "slurm":
        assert len(list((shared.directory / "jobs").glob("*.err"))) == 4
    assert not set(seen.jobs) & present(system)


def present(system):
    return jobqueue.Jobs._present(SimpleNamespace(system=system))


def test_what_the_queueing_system_refuses_ends_the_fit_at_once(make_config, system):
    with pytest.raises(InputError, match=f"{system} does not take the jobs: .*([Ii]nvalid partition|[Uu]nknown queue)"):
        run(FitConfig.load(make_config(extra=workers(system, "there-is-no-such-queue"))))


def test_jobs_that_end_before_a_worker_runs_end_the_fit(make_config, monkeypatch, system):
    monkeypatch.setattr(jobqueue, "ASK", 3.0)
    # SLURM's qsub lets jobs print elsewhere
    said = {"slurm": "No such file", "pbs": "(No such file|nothing of what they printed)"}[system]
    with pytest.raises(InputError, match=f"jobs in a row ended before a Dask worker ran in them; .*{said}"):
        run(FitConfig.load(make_config(extra=workers(system, more=', python = "/there/is/no/python"'))))


def test_an_option_that_dask_jobqueue_does_not_have(make_config, system):
    with pytest.raises(InputError, match=r"workers.options: .*unexpected keyword argument 'partitoin'"):
        run(FitConfig.load(make_config(extra=workers(system, more=', partitoin = "x"'))))


@pytest.mark.parametrize(
    "printed, numbers",
    [
        ("12\n345\n", {"12", "345"}),
        ("\nJob id  Name  User  Time Use S Queue\n----- ---- - --\n7.srv  a  me  0 R short\n8.srv b me 0 F q\n", {"7"}),
        ("Job ID Username Queue Name SessID NDS TSK Mem Time S Elap\n--\n31[].s me q w -- 1 1 -- 00:20 Q --\n", {"31"}),
    ],
)
def test_jobs_that_are_still_there(printed, numbers, tmp_path, monkeypatch):
    (tmp_path / "jobs.txt").write_text(printed)
    monkeypatch.setitem(jobqueue.PRESENT, "pbs", f"cat {tmp_path / 'jobs.txt'}")
    assert present("pbs") == numbers
    monkeypatch.setitem(jobqueue.PRESENT, "pbs", "there-is-no-such-command")
    assert present("pbs") is None


@pytest.mark.parametrize("name, command", [("slurm", "sbatch"), ("pbs", "qsub"), ("lsf", "bsub")])
def test_commands_that_are_not_there_are_named(make_config, monkeypatch, tmp_path, name, command):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=f'cluster = "{name}" needs the command {command}, which is not on'):
        run(FitConfig.load(make_config(extra=workers(name, "short"))))


@pytest.fixture
def lsf(tmp_path, monkeypatch):
    """``bsub`` and ``bkill`` that know one queue and run jobs at once; the script of the last job is kept."""
    commands = {
        "bsub": f'cat > {tmp_path}/script\ngrep -q "BSUB -q short" {tmp_path}/script || '
        '{ echo "No such queue. Job not submitted." >&2; exit 255; }\n'
        f'bash {tmp_path}/script > /dev/null 2>&1 &\necho "Job <$!> is submitted to queue <short>."\n',
        "bkill": 'kill "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "script"


def test_jobs_of_lsf_are_given_the_options(make_config, lsf):
    extra = workers("lsf", "short", "00:20", ', cores = 2, job_extra_directives = ["-G people"]')
    result = run(FitConfig.load(make_config(iterations=1, prior="20.0", extra=extra)))
    assert result.history[-1]["iteration"] == 1
    script = lsf.read_text()
    for line in ("-q short", "-n 2", '-R "span[hosts=1]"', "-M 2000000", "-W 00:20", "-G people"):
        assert f"#BSUB {line}\n" in script
    assert f"#BSUB -o {result.directory.absolute() / 'jobs'}/" in script and "export NPROC=2\n" in script


def test_what_lsf_refuses_ends_the_fit_with_its_words(make_config, lsf):
    with pytest.raises(InputError, match=r"lsf does not take the jobs: No such queue. Job not submitted.$"):
        run(FitConfig.load(make_config(extra=workers("lsf", "long", "00:20"))))
