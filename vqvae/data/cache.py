"""Disk cache of decoded items."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from vqvae.storage.files import digest, remove_leftovers, temporary_name, write_bytes

log = logging.getLogger(__name__)


class Cache:
    """Cache of one split: <fingerprint>-images.npy (n, C, *R) uint8 and -used.npy (n,) int64, the index read for each row.

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
            damaged = [file for file in (self.images, self.used) if digest(file) != sums[file.name]]
        except (OSError, ValueError, LookupError, TypeError):
            damaged = [self.sums]
        for file in damaged:
            log.warning("%s is damaged: it does not match its checksum; decoding again", file)
        return not damaged

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[Path, Path]]:
        """Yield temporary names for both files, which replace the cache when the block ends. Safe if two runs write at once."""
        self.images.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.images.parent, "*", hours=24)
        temporary = [temporary_name(file) for file in (self.images, self.used)]
        try:
            yield temporary[0], temporary[1]
            sums = {file.name: digest(new) for file, new in zip((self.images, self.used), temporary)}
            for file, new in zip((self.images, self.used), temporary):
                new.replace(file)
            write_bytes(self.sums, json.dumps(sums).encode())
        finally:
            for new in temporary:
                new.unlink(missing_ok=True)
