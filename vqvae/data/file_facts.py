"""What takes long to find out about a file, kept in the cache until the file changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqvae.data.base import fingerprint
from vqvae.data.cache import claim
from vqvae.storage.files import remove_leftovers, write_bytes

log = logging.getLogger(__name__)
VERSION = 1  # of the file; raise it when entries have another form


class FileFacts:
    """File -> a plain value, in <fingerprint>-facts.json of a folder for caches.

    An entry holds as long as size and time of change of its file stay. Several processes may write at once.

    Args:
        folder: of the caches.
        about: what the values are, and the settings that they depend on.
    """

    def __init__(self, folder: Path, about: Sequence[object]) -> None:
        self.file = folder / f"{fingerprint(['facts', VERSION, *about])}-facts.json"
        self.known, self.is_new = self._read(), False

    def get(self, file: Path, find: Callable[[Path], Any]) -> Any:
        """What is known of a file, or what `find` tells, which may raise OSError."""
        about = file.stat()
        key, state = os.path.realpath(file), [about.st_size, about.st_mtime_ns]
        entry = self.known.get(key)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != state:
            self.known[key], self.is_new = [state, find(file)], True
        return self.known[key][1]

    def save(self) -> None:
        """Write what is new. Where that cannot be done, a warning says that it will be found out again."""
        if not self.is_new:
            return
        try:
            claim(self.file.parent)
            remove_leftovers(self.file.parent, "*-facts.json")
            self.known = {**self._read(), **self.known}
            write_bytes(self.file, json.dumps(self.known).encode())
        except OSError as error:
            log.warning(
                "%s cannot be written, and all files are looked at again at the next start: %s", self.file, error
            )
        self.is_new = False

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.file.read_bytes())
        except (OSError, ValueError, RecursionError):  # not there, or damaged
            return {}
        return found if isinstance(found, dict) else {}
