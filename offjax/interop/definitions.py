"""User-defined terms by the names of the Python files or modules that define them, for configurations and commands.

    my_terms.py:   MORSE = offjax.UserTerm("MorseBonds", "bond", ...)

``read(["my_terms.py"])`` runs the file and takes every :class:`offjax.UserTerm` that it has at top level; a name that
does not end in ``.py`` is a module, such as ``offjax.terms.library``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from offjax.errors import InputError
from offjax.terms.user import UserTerm


def read(names: Sequence[str]) -> tuple[UserTerm, ...]:
    """The definitions of Python files or modules, in the order in which these have them.

    Raises
    ------
    InputError
        No such file or module, one that cannot be imported, or without definitions.
    """
    return tuple({id(term): term for name in names for term in _terms(str(name), sha256(name))}.values())


def sha256(name: str) -> str:
    """SHA-256, in hexadecimal, of the file or of the module's file."""
    return hashlib.sha256(_file(str(name)).read_bytes()).hexdigest()


def absolute(name: str) -> str:
    """The name by which the file or module is found from any working directory."""
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _file(name: str) -> Path:
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError(f"terms: {name}: no such file")
        return Path(name)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputError(f"terms: {name} is neither a module that can be imported nor a file that ends in .py")
    return Path(spec.origin)


@lru_cache(maxsize=32)
def _terms(name: str, digest: str) -> tuple[UserTerm, ...]:
    """Of one file or module: the same objects until the file changes, so that force fields read with them are too."""
    try:
        module = _run(Path(name), digest) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        raise InputError(f"terms: {name} cannot be imported: {type(error).__name__}: {error}") from error
    found = tuple(value for value in vars(module).values() if isinstance(value, UserTerm))
    if not found:
        raise InputError(f"terms: {name} defines no offjax.UserTerm at top level: see docs/howto/user-terms.md")
    return found


def _run(path: Path, digest: str) -> ModuleType:
    """The file as a module that is not in sys.modules: its functions then travel to other processes as they are."""
    spec = importlib.util.spec_from_file_location(f"offjax_terms_{digest[:12]}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
