"""Arrays that lie in files instead of memory, for data that have no room there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from offjax.interop.records import Problem, Record

BLOCK = 2**26
"""Bytes of records that are written to one file: a file for each would be too many to be mapped."""


def spill(arrays: Sequence[np.ndarray], folder: Path) -> list[np.ndarray]:
    """The same arrays, of one dtype and read-only, in a file of ``folder`` that is mapped into memory: the operating
    system keeps of it what there is room for. The file is removed with the arrays, or with the folder.
    """
    if not sum(a.size for a in arrays):
        return list(arrays)
    handle, path = tempfile.mkstemp(dir=folder, prefix="spilled-")
    with os.fdopen(handle, "wb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
    mapped = np.memmap(path, dtype=arrays[0].dtype, mode="r")
    with contextlib.suppress(PermissionError):  # Windows removes no file that is mapped
        os.unlink(path)
    ends = np.cumsum([a.size for a in arrays])
    return [mapped[end - a.size : end].reshape(a.shape) for a, end in zip(arrays, ends, strict=True)]


def spilled(found: Iterable[Record | Problem], folder: Path) -> Iterator[Record | Problem]:
    """The same, with the positions and forces of records in files of ``folder``, see :func:`spill`."""
    kept: list[Record] = []
    size = 0
    for item in found:
        if not isinstance(item, Record):
            yield item
            continue
        kept.append(item)
        size += item.positions.nbytes
        if size > BLOCK:
            yield from _spilled(kept, folder)
            kept, size = [], 0
    yield from _spilled(kept, folder)


def _spilled(records: Sequence[Record], folder: Path) -> Iterator[Record]:
    positions = spill([r.positions for r in records], folder)
    forces = iter(spill([r.forces for r in records if r.forces is not None], folder))
    for record, x in zip(records, positions, strict=True):
        yield replace(record, positions=x, forces=None if record.forces is None else next(forces))
