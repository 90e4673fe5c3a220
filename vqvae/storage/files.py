"""Atomic files: written to a temporary name, flushed, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any


class WriteError(OSError):
    """Failed write: the file, the reason, and the free space. Keeps the system's errno."""

    def __init__(self, path: Path, error: OSError, size: int) -> None:
        super().__init__(error.errno, os.strerror(error.errno or 0))
        self.path, self.size = path, size

    def __str__(self) -> str:
        there = next(folder for folder in self.path.absolute().parents if folder.is_dir())
        free, needed = (f"{size / 2**20:.1f} MiB" for size in (shutil.disk_usage(there).free, self.size))
        return f"cannot write {self.path}: {self.strerror} (it needs {needed}, {free} are free)"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: it appears under its name when it is complete and on disk.

    Raises WriteError; an older file of that name is then unchanged.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise WriteError(path, error, len(data)) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises WriteError."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def temporary_name(path: Path) -> Path:
    """Temporary name beside `path` that no other process uses."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, pattern: str, hours: float) -> None:
    """Remove files and folders `pattern`.tmp older than `hours`, left by processes that were killed."""
    for path in folder.glob(f"{pattern}.tmp"):
        with contextlib.suppress(OSError):  # another process may remove it first
            if time.time() - path.stat().st_mtime > hours * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def append_line(path: Path, line: str) -> None:
    """Append a line to a file. Raises WriteError."""
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise WriteError(path, error, len(line) + 1) from error


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Takes about a second per GiB."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
