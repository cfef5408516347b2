"""Writing files so that a reader never finds half of one."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

from offjax.errors import InputError


def write_atomically(path, content: bytes) -> None:
    """Write a file under a temporary name in the same directory, then rename it: old or new content, never a part.

    Raises
    ------
    InputError
        The directory does not exist or cannot be written.
    """
    path = Path(os.fspath(path))
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory")
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def read_text(path: Path) -> tuple[str, str | None]:
    """The text of a file, that of a ``.gz`` unpacked; and what is wrong with one that is not whole, else None.

    Raises
    ------
    InputError
        It cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as text: {error.strerror or error}") from error
    wrong = None
    if path.suffix.lower() == ".gz":
        content, whole = _unpacked(path, content)
        wrong = None if whole else f"{path}: the gzip file is truncated; was it copied completely?"
    try:
        return content.decode("utf-8-sig", "strict" if wrong is None else "ignore"), wrong
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from error


def _unpacked(path: Path, content: bytes) -> tuple[bytes, bool]:
    """All that a gzip file still holds, and whether it is whole."""
    found, whole = b"", False
    while content:
        member = zlib.decompressobj(wbits=31)
        try:
            found += member.decompress(content)
        except zlib.error as error:
            raise InputError(f"{path}: not a gzip file, or a damaged one ({error})") from error
        content, whole = member.unused_data, member.eof
    return found, whole


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
