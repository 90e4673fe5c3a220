"""Files that are whole or not there: written aside, flushed, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """What could not be written, why, and how much room there is. Has the errno of what the system said."""

    def __init__(self, path: Path, error: OSError, size: int | None = None) -> None:
        super().__init__(error.errno, os.strerror(error.errno or 0))
        self.path, self.size = path, size

    def __str__(self) -> str:
        there = next(folder for folder in self.path.absolute().parents if folder.is_dir())
        room = f"{shutil.disk_usage(there).free / 2**20:.1f} MiB are free"
        needed = "" if self.size is None else f"it needs {self.size / 2**20:.1f} MiB, "
        return f"cannot write {self.path}: {self.strerror} ({needed}{room})"


@contextlib.contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yields a name to write to; the file appears as `path` when the block is left, complete and on the disk.

    size: bytes it will have, if known. Raises WriteError; what was there before is still there then.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WriteError(path, error, size) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file: see `writing`."""
    with writing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file. Raises WriteError."""
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise WriteError(path, error, len(line) + 1) from error


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex: about a second per GiB."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
