"""Disk cache of decoded items, in a folder that is marked as one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from vqvae.storage.files import digest, read_own_text, remove_leftovers, temporary_name, write_bytes

log = logging.getLogger(__name__)
WHOLE = 4 * 2**30  # bytes of a file that is read whole for its checksum
PARTS, BLOCK = 64, 2**20  # of a larger one: so many blocks of so many bytes, evenly spread
MARK = "vqvae_cache"  # the file that names its own folder


class Cache:
    """Cache of one split: <fingerprint>-images.npy (n, C, *R) and -used.npy (n,) int64, the index read for each row.

    -sums.json is written last and holds the checksums.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.images, self.used = (folder / f"{fingerprint}-{part}.npy" for part in ("images", "used"))
        self.sums = folder / f"{fingerprint}-sums.json"

    def is_good(self) -> bool:
        """True if the cache exists and its checksums match. Logs a warning if they do not."""
        if not self.sums.is_file():
            return False
        try:
            sums = json.loads(self.sums.read_text())
            damaged = [file for file in (self.images, self.used) if checksum(file) != sums[file.name]]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            damaged = [self.sums]
        for file in damaged:
            log.warning("%s is damaged: it does not match its checksum; decoding again", file)
        return not damaged

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[Path, Path]]:
        """Yield temporary names for both files, which replace the cache when the block ends. Safe if two runs write at once."""
        claim(self.images.parent)
        remove_leftovers(self.images.parent, "*-*.npy")
        temporary = [temporary_name(file) for file in (self.images, self.used)]
        try:
            yield temporary[0], temporary[1]
            sums = {file.name: checksum(new) for file, new in zip((self.images, self.used), temporary)}
            for file, new in zip((self.images, self.used), temporary):
                new.replace(file)
            write_bytes(self.sums, json.dumps(sums).encode())
        finally:
            for new in temporary:
                new.unlink(missing_ok=True)


def checksum(file: Path) -> str:
    """SHA-256 of a file; of one larger than WHOLE its size and that of PARTS blocks, because reading it would take minutes."""
    size = file.stat().st_size
    if size <= WHOLE:
        return digest(file)
    total = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for part in range(PARTS):
            opened.seek((size - BLOCK) * part // (PARTS - 1))
            total.update(opened.read(BLOCK))
    return total.hexdigest()


def claim(folder: Path) -> None:
    """Make a folder for caches, with the mark that this program writes there."""
    if not is_claimed(folder):
        write_bytes(folder / MARK, place(folder).encode())


def is_claimed(folder: Path) -> bool:
    """True if this program has written caches there before, for somebody of this machine: a folder that came from elsewhere has
    another place than its mark says."""
    try:
        return read_own_text(folder / MARK) == place(folder)
    except (OSError, ValueError):  # no such folder, or another file
        return False


def place(folder: Path) -> str:
    return f"caches of vqvae in {os.path.realpath(folder)}\n"
