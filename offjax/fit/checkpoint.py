"""The checkpoint of a fit: one ``.npz`` file with a JSON header and the arrays of the optimiser's state.

``header`` is UTF-8 JSON as uint8 with ``format`` ("offjax-fit-checkpoint"), ``version``, ``iteration``, ``config`` (the
canonical configuration), ``data`` (digest of molecules, charges and reference data) and ``history`` (the log so far);
``state_0000``, ``state_0001``, ... are the leaves of the state pytree in JAX's order, bit for bit. No pickle.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError
from offjax.interop.files import write_atomically

FORMAT, VERSION = "offjax-fit-checkpoint", 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A stored fit; ``leaves`` are the arrays of the optimiser's state."""

    iteration: int
    config: dict[str, Any]
    data: str
    history: list[dict[str, Any]]
    leaves: list[np.ndarray]

    @classmethod
    def of(cls, state, iteration: int, config: dict[str, Any], data: str, history) -> Checkpoint:
        """Take the arrays of a state."""
        leaves = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(eqx.filter(state, eqx.is_array))]
        return cls(iteration, config, data, history, leaves)

    def save(self, path: Path) -> None:
        """Write to a temporary file and rename: the previous checkpoint stands until then."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "iteration": self.iteration,
            "config": self.config,
            "data": self.data,
            "history": self.history,
        }
        arrays: dict[str, Any] = {f"state_{i:04d}": leaf for i, leaf in enumerate(self.leaves)}
        encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, header=encoded, **arrays)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        InputError
            No such file, a truncated or foreign file, or another version.
        """
        if not path.is_file():
            raise InputError(f"{path}: there is no checkpoint to resume from; run without --resume to start")
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(bytes(file["header"]).decode())
                names = sorted(name for name in file.files if name.startswith("state_"))
                leaves = [file[name] for name in names]
            if header["format"] != FORMAT:
                raise KeyError("format")
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: not a complete checkpoint of offjax fit ({type(error).__name__}: {error}); "
                "delete it and run without --resume to start again"
            ) from error
        if header["version"] != VERSION:
            raise InputError(
                f"{path}: checkpoint version {header['version']}, this release of offjax reads version {VERSION}; "
                "run without --resume to start again"
            )
        return cls(header["iteration"], header["config"], header["data"], header["history"], leaves)

    def restore(self, template, path: Path):
        """The state with the structure of ``template`` and the stored arrays."""
        arrays, static = eqx.partition(template, eqx.is_array)
        leaves, structure = jax.tree_util.tree_flatten(arrays)
        stored = [(leaf.shape, leaf.dtype) for leaf in self.leaves]
        if stored != [(leaf.shape, leaf.dtype) for leaf in leaves]:
            raise InputError(
                f"{path}: the stored state does not fit this version of the optimiser; run without --resume to "
                "start again"
            )
        return eqx.combine(jax.tree_util.tree_unflatten(structure, [jnp.asarray(a) for a in self.leaves]), static)


MAY_CHANGE = ("optimizer.max_iterations",)
"""Keys that a resumed run may change."""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every dotted key that differs and may not."""
    found = []
    for key in sorted({*old, *new}):
        name = f"{prefix}{key}"
        a, b = old.get(key), new.get(key)
        if a == b or name in MAY_CHANGE:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True), start=1):
                if isinstance(x, dict) and isinstance(y, dict):
                    found += differences(x, y, f"{name}[{i}].")
                elif x != y:
                    found.append(f"{name}[{i}]: {x!r} -> {y!r}")
        else:
            found.append(f"{name}: {_short(a)} -> {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
