"""Where the pictures lie in a WebDataset shard (a .tar of <key>.jpg, <key>.cls, ...): an index, so that any can be read.

Nothing is unpacked: a member's bytes are read where they lie. Members that are no plain files (links, devices), or whose names
lead out of the archive, are left out.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from vqvae.data.base import fingerprint
from vqvae.data.folder import SUFFIXES, printable
from vqvae.errors import UserError
from vqvae.storage.files import write_bytes

INDEX_FORMAT = 1
SAMPLE = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$")  # key, extension, as WebDataset splits names
MOST_LABEL_BYTES = 2**16  # of a .cls or .json
log = logging.getLogger(__name__)


@dataclass
class Rows:
    """What is being read of a shard: for each sample with a picture, where that lies, its name and its label, if any."""

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def table(self) -> np.ndarray:
        """-> structured array: offset, size, name (UTF-8), label (UTF-8, empty for none)."""
        labels = [label.encode() for label in self.labels]
        kinds = [f"S{max(1, *map(len, texts))}" if texts else "S1" for texts in (self.names, labels)]
        table = np.empty(len(self.offsets), [("offset", "i8"), ("size", "i8"), ("name", kinds[0]), ("label", kinds[1])])
        table["offset"], table["size"], table["name"], table["label"] = self.offsets, self.sizes, self.names, labels
        return table


def index_file(shard: Path, cache_dir: Path) -> Path:
    """The file in `cache_dir` with the index of a shard, see `Rows.table`; made now for a new path, size or time.

    Raises ValueError for a file that is no whole tar.
    """
    about = shard.stat()
    key = fingerprint([INDEX_FORMAT, str(shard.resolve()), about.st_size, about.st_mtime_ns])
    file = cache_dir / f"{key}-shard.npy"
    if not file.is_file():
        table = scan(shard)
        data = io.BytesIO()
        np.save(data, table, allow_pickle=False)
        write_bytes(file, data.getvalue())
    return file


def read_index(file: Path) -> np.ndarray:
    """See `Rows.table`. Raises ValueError for anything else."""
    try:
        table = np.load(file, allow_pickle=False)
        table["offset"], table["size"], table["name"], table["label"]
    except Exception as error:  # of a damaged header numpy raises whatever it runs into
        raise UserError(f"{file} is no index of a shard ({error}); delete it to have it made again") from error
    return table


def scan(shard: Path) -> np.ndarray:
    """Reads the headers and labels of all members -> see `Rows.table`."""
    rows = Rows()
    try:
        with tarfile.open(shard, "r:") as tar:
            collect(tar, rows)
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error) or type(error).__name__
        raise UserError(f"{shard} is not a whole, uncompressed tar ({reason}): copy or make it again") from error
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):  # tarfile takes this for the end
        raise UserError(f"{shard} is cut off or damaged at byte {end}: copy or make it again")
    if rows.left_out:
        shown = f"such as {printable(rows.left_out[0])[:80]}"
        log.warning(
            "%s: %d members are links, devices or lead out of it, %s: left out", shard, len(rows.left_out), shown
        )
    return rows.table()


def collect(tar: tarfile.TarFile, rows: Rows) -> None:
    """Goes through the members; those of one key, which follow each other, are one sample with one picture."""
    current, label, picture = "", "", None
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        if not member.isreg() or member.issparse() or path.is_absolute() or ".." in path.parts:
            rows.left_out.append(member.name)
            continue
        match = SAMPLE.match(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if key != current:
            add(rows, picture, label)
            current, label, picture = key, "", None
        if f".{extension}" in SUFFIXES and picture is None:
            picture = member
        elif extension == "cls" or (extension == "json" and not label):
            label = read_label(tar, member, extension) or label
    add(rows, picture, label)


def add(rows: Rows, picture: tarfile.TarInfo | None, label: str) -> None:
    if picture is not None:
        rows.offsets.append(picture.offset_data)
        rows.sizes.append(picture.size)
        rows.names.append(picture.name.encode("utf-8", "surrogateescape"))
        rows.labels.append(label)


def read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> str:
    """The text of a .cls, or `cls` or `label` of a .json -> the label as it is written there; empty where there is none."""
    stream = tar.extractfile(member)
    assert stream is not None, "a plain file"
    text = stream.read(MOST_LABEL_BYTES).decode("utf-8", "replace").strip()
    if extension == "cls":
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    value = found.get("cls", found.get("label")) if isinstance(found, dict) else None
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""


def read_bytes(shard: Path, offset: int, size: int) -> bytes:
    """Raises OSError where the shard has fewer."""
    with shard.open("rb") as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise OSError(f"{shard} has {len(data)} of {size} bytes at {offset}")
    return data
