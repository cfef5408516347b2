"""Writing files: what a killed writer left behind goes, what others are writing stays."""

import os
import signal
import subprocess
import sys

from offjax.interop.files import owner, remove_abandoned, write_atomically

WRITER = """
import os, signal, sys
from offjax.interop import files
files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(sys.argv[1], b"new")
"""


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "[a] b.npz"
    path.write_bytes(b"old")
    died = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL and path.read_bytes() == b"old"
    [left] = tmp_path.glob(".*.tmp")
    others = [
        tmp_path / f".[a] b.npz.{owner()}.aaaaaaaa.tmp",  # a thread of this process
        tmp_path / ".[a] b.npz.99999999@another.machine.aaaaaaaa.tmp",
        tmp_path / ".[a] b.npz.note.tmp",
        left.with_name(left.name.replace("b.npz", "c.npz")),
    ]
    for other in others:
        other.write_bytes(b"")
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer" and not left.exists()
    assert all(other.exists() for other in others)


def test_folders_of_processes_that_are_gone_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f"workers-{owner().replace(str(os.getpid()), str(gone.pid), 1)}.abc_1234"
    here = tmp_path / f"workers-{owner()}.abc_1234"
    for folder in (left, here):
        folder.mkdir()
        (folder / "shard-0").write_bytes(b"")
    remove_abandoned(tmp_path, "workers-")
    assert not left.exists() and here.exists()
