"""A cache on disk for computed charges and bond orders: small ``.npz`` files, written to a temporary name and renamed.

The directory is ``$OFFJAX_CACHE``, else ``$XDG_CACHE_HOME/offjax``, else ``~/.cache/offjax``; ``OFFJAX_CACHE=off``
disables it. A file that cannot be read (truncated, of another release) counts as absent and is written again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np


def directory() -> Path | None:
    """Where the cache lives, or None when it is off."""
    chosen = os.environ.get("OFFJAX_CACHE")
    if chosen is not None and chosen.lower() in ("", "0", "off", "no", "none", "false"):
        return None
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offjax"


def writable() -> bool:
    """Whether entries can be stored."""
    folder = directory()
    if folder is None:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def key(kind: str, *parts: str) -> str:
    """The name of an entry: ``kind`` and the SHA-256 of everything it depends on."""
    return f"{kind}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"


def read(name: str) -> dict[str, np.ndarray] | None:
    """The arrays of an entry, or None."""
    folder = directory()
    if folder is None:
        return None
    try:
        with np.load(folder / name[-2:] / f"{name}.npz", allow_pickle=False) as data:
            return {k: data[k] for k in data.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Store an entry; a cache that cannot be written (full or read-only disk) is not an error."""
    folder = directory()
    if folder is None:
        return
    temporary = None
    try:
        target = folder / name[-2:]
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, target / f"{name}.npz")
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
