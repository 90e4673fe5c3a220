"""Atomic files: written to a temporary name, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from vqvae.errors import UserError

TEMPORARY = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,9})-[0-9a-f]{8}\.vqvae\.tmp$")
FOREIGN_SECONDS = 24 * 3600  # what a process on another machine writes is taken for left over after that
PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(
    os, "O_NONBLOCK", 0
)  # no link, no waiting for a pipe; Windows has neither
LONGEST, MOST_TEXT = 120, 2**24  # bytes of a part of a path, and of a text file


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
        with temporary.open("xb") as file:
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
    """Temporary name beside `path` that nobody else uses: it tells this machine and this process."""
    return path.with_name(f"{path.name}.{machine()}-{os.getpid()}-{secrets.token_hex(4)}.vqvae.tmp")


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove what processes that were killed left of files and folders `pattern`, by its `temporary_name`.

    A process of another machine is taken for dead when its file is a day old.
    """
    for path in folder.glob(f"{pattern}.*.vqvae.tmp"):
        made = TEMPORARY.search(path.name)
        with contextlib.suppress(OSError):  # another process may remove it first
            if made is not None and not is_in_use(made["machine"], int(made["pid"]), path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def is_in_use(maker: str, pid: int, path: Path) -> bool:
    if maker != machine() or os.name != "posix":  # elsewhere, os.kill does more than ask
        return time.time() - path.lstat().st_mtime < FOREIGN_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return pid != os.getpid()


@functools.cache
def machine() -> str:
    """Where process numbers mean the same: a digest of this machine's name, and of the container on it."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def path_part(name: str) -> str:
    """A name out of data as one part of a path: itself where it is plain, else readable with a digest that keeps it unique.

    So a class called ../x, /etc or with a line end stays below the folder that it is written to.
    """
    readable = "".join(letter if letter.isalnum() or letter in " ._,=+-" else "-" for letter in name).strip(" ")
    readable = readable.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    if readable == name and name.strip("."):
        return name
    return f"{readable.strip('.')}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def read_own_text(path: Path) -> str | None:
    """A text file of someone's data, in UTF-8; None if there is none.

    Raises UserError for a link, because it may lead to a private file, and for what is not a text of moderate size.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | PLAIN)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is not a file")
            data = file.read(MOST_TEXT + 1)
        if len(data) > MOST_TEXT:
            raise UserError(f"{path} has more than {MOST_TEXT} bytes")
        return data.decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link: replace it by the file that it points to") from error
        raise


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
