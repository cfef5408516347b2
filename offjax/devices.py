"""What depends on the device: how much is computed at once, and the precision of products of matrices.

Few things at once stay in the cache of a CPU, many fill a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def on_cpu() -> bool:
    """Whether JAX computes on CPUs unless told otherwise; functions are written for that platform when traced."""
    return jax.default_backend() == "cpu"


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
