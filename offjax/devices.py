"""What depends on the machine: how much is computed at once, the precision of products of matrices, freed memory.

Few things at once stay in the cache of a CPU, many fill a GPU.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp


def on_cpu() -> bool:
    """Whether JAX computes on CPUs unless told otherwise; functions are written for that platform when traced."""
    return jax.default_backend() == "cpu"


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(on_a_cpu: int, elsewhere: int) -> int:
    """How many things a step of a loop takes, on either kind of device."""
    return on_a_cpu if on_cpu() else elsewhere


def mapped(function: Callable, arguments, elsewhere: int):
    """``jax.lax.map(function, arguments)``: one after the other on a CPU, ``elsewhere`` at once on other devices."""
    if on_cpu():
        return jax.lax.map(function, arguments)
    if len(jax.tree.leaves(arguments)[0]) <= elsewhere:
        return jax.vmap(function)(arguments)
    return jax.lax.map(function, arguments, batch_size=elsewhere)


def matmul(*factors):
    """The product of matrices (and vectors), from the left, in their own precision.

    Of ``@`` GPUs make products of float32 numbers rounded to 10 bits (TF32), unless told otherwise.
    """
    result = factors[0]
    for factor in factors[1:]:
        result = jnp.matmul(result, factor, precision="highest")
    return result


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Have the C library of this process keep memory that is freed instead of giving it back; whether it will.

    XLA allocates the working arrays of a program anew at each call. glibc fetches those above a threshold (which moves
    with what was freed, up to 32 MB) from the operating system, page by page: on a virtual machine this took 10 of the
    49 ms of a loss gradient. The process keeps up to 2 GB of arrays below 32 MB that it frees; larger ones come
    and go as before. The command line does this by itself; without effect, and False, with other C libraries or where
    the environment sets MALLOC_ variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**25) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
