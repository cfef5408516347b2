"""Writing files so that a reader never finds half of one.

What is unfinished has a temporary name that ends in ``PID@HOST.random``, so that what a process left behind that was
killed can be told from what another one is writing now.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from offjax.errors import InputError


def write_atomically(path, content: bytes) -> None:
    """Write a file that has all of ``content`` or is not there; see :func:`written_atomically`."""
    with written_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def written_atomically(path) -> Iterator[BinaryIO]:
    """A file to be written, under a temporary name in the same directory; when the context ends it is renamed: ``path``
    has its old or new content, never a part.

    What earlier writers of the file left behind when they were killed is removed.

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
    remove_abandoned(path.parent, f".{path.name}.")
    temporary = None
    try:
        prefix = f".{path.name}.{owner()}."
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, suffix=".tmp", delete=False) as file:
            temporary = file.name
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)  # not there any more if all went well


def owner() -> str:
    """This process, as temporary names have it."""
    return f"{os.getpid()}@{socket.gethostname()}"


def remove_abandoned(directory: Path, prefix: str) -> None:
    """Remove the files and folders ``{prefix}{owner}.random`` whose owners were on this machine and are gone."""
    own = re.compile(rf"{re.escape(prefix)}(\d+)@{re.escape(socket.gethostname())}\.\w+(\.tmp)?")
    for path in directory.glob(f"{glob.escape(prefix)}*"):
        if (found := own.fullmatch(path.name)) and not _runs(int(found[1])):
            with contextlib.suppress(OSError):  # another process may be removing it too
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(pid: int) -> bool:
    """Whether there is such a process, or may be."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def read_text(path: Path, errors: str = "strict") -> tuple[str, str | None]:
    """The text of a file, that of a ``.gz`` unpacked; and what is wrong with one that is not whole, else None.

    ``errors`` says what becomes of bytes that are no UTF-8, as in :meth:`bytes.decode`.

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
        return content.decode("utf-8-sig", "ignore" if wrong and errors == "strict" else errors), wrong
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
