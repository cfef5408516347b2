"""Sums of many rows into few, as a tree of gathers.

A scatter-add runs one row after the other on a CPU; gathering eight rows at a time and adding them runs at
full width. Each row has a target and a sign. Stage one adds up to eight rows of one target and one sign,
later stages add what the stage before left over. The tables are made once, on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 8
"""Rows added in one stage."""


class Groups(NamedTuple):
    """Stage one of some molecule: ``rows`` (n_groups, WIDTH) with -1 for nothing, ``sign`` and ``target``
    (n_groups,).
    """

    rows: np.ndarray
    sign: np.ndarray
    target: np.ndarray


def group(rows: np.ndarray, sign: np.ndarray, target: np.ndarray) -> Groups:
    """Put rows of equal target and sign together, at most WIDTH in a group; groups sorted by target."""
    order = np.lexsort((rows, sign, target))
    rows, sign, target = rows[order], sign[order], target[order]
    if not len(rows):
        return Groups(np.zeros((0, WIDTH), np.int64), np.zeros(0), np.zeros(0, np.int64))
    new = np.concatenate([[True], (np.diff(target) != 0) | (np.diff(sign) != 0)])
    run_start = np.nonzero(new)[0]
    within = np.arange(len(rows)) - np.repeat(run_start, np.diff(np.append(run_start, len(rows))))
    first = within % WIDTH == 0
    group_of = np.cumsum(first) - 1
    table = np.full((group_of[-1] + 1, WIDTH), -1, dtype=np.int64)
    table[group_of, within % WIDTH] = rows
    return Groups(table, sign[first], target[first])


def table(values: np.ndarray, target: np.ndarray, n: int, width: int) -> np.ndarray:
    """(n, width) table with the ``values`` of each target, which come sorted by target; -1 for nothing."""
    counts = np.bincount(target, minlength=n)
    within = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    result = np.full((n, width), -1, dtype=np.int64)
    result[target, within] = values
    return result


def at(values, index):
    """values[index] along the first axis, without a test of the bounds."""
    return values.at[index].get(mode="promise_in_bounds")


def gather_sum(rows, table):
    """sum_k rows[table[:, k]], shape (n, ...); rows that stand for nothing must be zero."""
    total = 0.0
    for k in range(table.shape[1]):
        total = total + at(rows, table[:, k])
    return total


def stack(blocks):
    """Blocks of rows and one row of zeros, written one after the other into one array.

    A concatenation would be fused with what computes the blocks, and branch for every element.
    """
    starts = np.cumsum([0, *map(len, blocks)])
    buffer = jnp.zeros((starts[-1] + 1, *blocks[0].shape[1:]), blocks[0].dtype)
    # XLA writes the zeros with what comes first, which is best the largest
    for start, block in sorted(zip(starts[:-1], blocks, strict=True), key=lambda b: -len(b[1])):
        buffer = jax.lax.dynamic_update_slice_in_dim(buffer, block, int(start), axis=0)
    return buffer
