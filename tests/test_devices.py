"""Memory that is freed stays with the process once it is asked to."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, os, resource
from offjax.devices import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
kept = keep_freed_memory()
size = 24 * 2**20
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = libc.malloc(size)
    libc.memset(place, 1, size)
    libc.free(place)
    size += 4096  # above the threshold that glibc moves to what was freed
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "4096"}, False)])
def test_freed_memory_is_kept(variables, kept):
    # Dask leaves such variables in the environment of a process that has started workers
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = inherited | variables
    found = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True, env=environment)
    answer, faults = found.stdout.split()
    assert answer == str(kept)
    assert int(faults) < 100 if kept else int(faults) > 1000
