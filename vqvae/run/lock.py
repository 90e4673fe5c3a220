"""The lock of a run folder: one process at a time writes there."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vqvae import distributed
from vqvae.config.sweep import new_folder
from vqvae.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps a second process out
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
NAME = "lock"
HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what disks say that have none
mine: dict[str, int] = {}  # folder -> the process that holds it: this one, or the one that it was forked from


class Held(NamedTuple):
    """A lock that this process holds: the folder, and its open file."""

    folder: Path
    file: int


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[Path]:
    """Context in which no other process writes to a run folder; yields it. Call it on all ranks: rank 0 holds the lock.

    None: a new folder, runs/<date and time>. A folder that was made here is removed again if nothing was left in it. Within
    the context of another lock of this process it does nothing. Raises UserError on all ranks if a living process holds
    the lock.
    """
    place, error, held, made = folder, None, None, False
    if distributed.is_main():
        try:
            if folder is not None and folder.is_file():
                raise UserError(f"run_dir={folder} is a file: name a folder for the run")
            made = folder is None or not folder.is_dir()
            place = new_folder(Path("runs")) if folder is None else folder
            held = acquire(place)
        except (UserError, OSError) as refused:
            error = refused
    try:
        place, error = distributed.broadcast_object((place, error))
        if error is not None:
            raise error
        assert place is not None
        yield place
    finally:
        if held is not None:
            release(held, made)


def acquire(folder: Path) -> Held | None:
    """Take the lock; None if this process has it already.

    Raises UserError if another process has it. It is a record lock of the system (`fcntl.lockf`): the kernel, or the server
    of a network disk, releases it when the process ends, however it ends, and workers do not inherit it. Such a lock is lost
    when its process closes the file anywhere, so a file of this process's own is never opened twice.
    """
    key = os.path.realpath(folder)
    if mine.get(key) == os.getpid():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            take(file, folder)
        except BaseException:
            os.close(file)
            raise
        if is_still(file, folder / NAME):
            break
        os.close(file)  # the one before has removed it meanwhile
    mine[key] = os.getpid()
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return Held(folder, file)


def take(file: int, folder: Path) -> None:
    """Lock an open file. Raises UserError that names the process that holds it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            owner = holder(file)
            gone = "" if owner.endswith(f" {socket.gethostname()}") else f" (if that is gone, remove {folder / NAME})"
            raise UserError(
                f"run_dir={folder} is in use by {owner}{gone}: wait until it ends, or name another run_dir"
            ) from None
        if error.errno not in NO_LOCKS:
            raise
        log.warning("the disk of %s has no locks (%s): see to it that only one process writes there", folder, error)


def holder(file: int) -> str:
    """The process that holds a lock, as it has written it there."""
    for _ in range(10):  # it may be about to write it
        text = os.pread(file, 300, 0).decode("ascii", "replace")
        if match := re.fullmatch(r"process (\d+) on ([\w.-]+)\n", text):
            return f"process {match[1]} on {match[2]}"
        time.sleep(0.05)
    return "another process"


def is_still(file: int, path: Path) -> bool:
    """True if an open file is the one that lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def release(held: Held, made: bool) -> None:
    """Give up the lock and remove its file, then the folder if it was made for the lock and is empty."""
    mine.pop(os.path.realpath(held.folder), None)
    with contextlib.suppress(OSError):
        (held.folder / NAME).unlink()
    os.close(held.file)
    if made:
        with contextlib.suppress(OSError):
            held.folder.rmdir()
