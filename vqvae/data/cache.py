"""Decoded pictures on the disk, so that they are decoded once."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from vqvae.storage.files import digest, remove_leftovers, temporary_name, write_bytes

log = logging.getLogger(__name__)


class Cache:
    """<fingerprint>-images.npy, (n, C, *R) uint8, and -used.npy, (n,) int64: the index of the picture that was read for each.

    -sums.json, written last, holds their checksums.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.images, self.used = (folder / f"{fingerprint}-{part}.npy" for part in ("images", "used"))
        self.sums = folder / f"{fingerprint}-sums.json"

    def is_good(self) -> bool:
        """Whether it is there and whole. A damaged one is not, and the log says so."""
        if not self.sums.is_file():
            return False
        try:
            sums = json.loads(self.sums.read_text())
            damaged = [file for file in (self.images, self.used) if digest(file) != sums[file.name]]
        except (OSError, ValueError, LookupError, TypeError):
            damaged = [self.sums]
        for file in damaged:
            log.warning("%s is damaged: it does not match its checksum; pictures are decoded again", file)
        return not damaged

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[Path, Path]]:
        """Yields names to write both files to; they count when the block is left. Two runs may write the same at once."""
        self.images.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.images.parent, "*", hours=24)
        temporary = [temporary_name(file) for file in (self.images, self.used)]
        try:
            yield temporary[0], temporary[1]
            sums = {file.name: digest(one) for file, one in zip((self.images, self.used), temporary)}
            for file, one in zip((self.images, self.used), temporary):
                one.replace(file)
            write_bytes(self.sums, json.dumps(sums).encode())
        finally:
            for one in temporary:
                one.unlink(missing_ok=True)
