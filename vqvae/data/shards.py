"""Index of a WebDataset shard (a .tar of <key>.jpg, <key>.cls, ...), for random access to its images.

Nothing is unpacked: bytes are read at their offset. Members that are not plain files (links, devices), or whose names lead
out of the archive, are skipped.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from vqvae.data.base import fingerprint
from vqvae.data.cache import claim
from vqvae.data.formats import SUFFIXES
from vqvae.data.tar import Damaged, Member, members
from vqvae.data.tree import is_hidden
from vqvae.errors import UserError
from vqvae.storage.files import write_bytes
from vqvae.surroundings.terminal import printable

INDEX_FORMAT = 2
SAMPLE = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$")  # key, extension, as WebDataset splits names
MOST_LABEL_BYTES = 2**16  # of a .cls or .json
MOST_IMAGE_BYTES = 2**31
MOST_SHOWN = 80  # characters of a name in a message
log = logging.getLogger(__name__)


@dataclass
class Rows:
    """Index rows while a shard is scanned: offset, size, name and label of each sample's image."""

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    labels: list[bytes] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # the beginnings of names
    without_image: list[str] = field(default_factory=list)

    def table(self) -> np.ndarray:
        """Structured array of offset, size, name (UTF-8) and label (UTF-8, empty for none)."""
        kinds = [
            ("offset", "i8"),
            ("size", "i8"),
            ("name", f"S{longest(self.names)}"),
            ("label", f"S{longest(self.labels)}"),
        ]
        table = np.empty(len(self.offsets), kinds)
        table["offset"], table["size"], table["name"], table["label"] = (
            self.offsets,
            self.sizes,
            self.names,
            self.labels,
        )
        return table

    def bytes_of_table(self) -> int:
        return len(self.offsets) * (16 + longest(self.names) + longest(self.labels))


def longest(texts: list[bytes]) -> int:
    return max(map(len, texts), default=0) or 1


def index_file(shard: Path, cache_dir: Path) -> Path:
    """Index file of a shard in `cache_dir` (see `Rows.table`), made if path, size or time of the shard are new.

    Raises UserError if the file is not a complete tar.
    """
    about = shard.stat()
    key = fingerprint([INDEX_FORMAT, str(shard.resolve()), about.st_size, about.st_mtime_ns])
    file = cache_dir / f"{key}-shard.npy"
    if not file.is_file():
        table = scan(shard)
        data = io.BytesIO()
        np.save(data, table, allow_pickle=False)
        claim(cache_dir)
        write_bytes(file, data.getvalue())
    return file


def read_index(file: Path) -> np.ndarray:
    """Read an index (see `Rows.table`). Raises UserError for any other file."""
    try:
        table = np.load(file, allow_pickle=False)
        table["offset"], table["size"], table["name"], table["label"]
    except Exception as error:  # numpy raises many kinds for a damaged header
        raise UserError(f"{file} is not a shard index ({error}); delete it to have it made again") from error
    return table


def identity(name: bytes) -> bytes:
    """Name of an image's file in a shard -> what its sample is called, wherever it lies: the key, or the file it was made from.

    scripts/make_shards.py makes the key of a file's path, with dots and the like as %2E.
    """
    folder, slash, file = name.rpartition(b"/")
    return unquote_to_bytes(folder + slash + file.split(b".")[0])


def member_key(file: str) -> str:
    """Path of a file -> the key of its sample, unique and without dots: see `identity`."""
    return quote(os.fsencode(file), safe="/").replace(".", "%2E")


def scan(shard: Path) -> np.ndarray:
    """Read the headers and labels of all members. Returns the table of `Rows.table`."""
    rows, size = Rows(), shard.stat().st_size
    try:
        with shard.open("rb") as file:
            collect(file, rows)
    except Damaged as error:
        if error.place:
            raise UserError(
                f"{shard} is cut off or damaged at byte {error.place} ({error}): copy or make it again"
            ) from error
        raise UserError(f"{shard} is not a complete, uncompressed tar ({error}): copy or make it again") from error
    if rows.bytes_of_table() > size:  # every row is as long as the longest
        raise UserError(f"{shard} has names or labels that are far too long: copy or make it again")
    if rows.left_out:
        shown = f"such as {printable(rows.left_out[0])[:MOST_SHOWN]}"
        log.warning(
            "%s: skipped %d members that are links, devices or lead out of it, %s", shard, len(rows.left_out), shown
        )
    if rows.without_image:
        shown = f"such as {printable(rows.without_image[0])[:MOST_SHOWN]}"
        log.warning("%s: skipped %d samples without an image that is read, %s", shard, len(rows.without_image), shown)
    return rows.table()


def collect(file: BinaryIO, rows: Rows) -> None:
    """Go through the members. Consecutive members with one key are one sample with one image."""
    current, label, image, name = "", "", None, ""
    for member in members(file):
        path = PurePosixPath(member.name)
        if not member.plain or path.is_absolute() or ".." in path.parts:
            rows.left_out.append(member.name[:MOST_SHOWN])
            continue
        match = SAMPLE.match(member.name)
        if match is None or any(map(is_hidden, path.parts[:-1])):
            continue
        key, extension = match[1], match[2].lower()
        if key != current:
            add(rows, image, label, name)
            current, label, image, name = key, "", None, member.name
        if f".{extension}" in SUFFIXES and image is None:
            image = member
        elif extension == "cls" or (extension == "json" and not label):
            label = read_label(file, member, extension) or label
    add(rows, image, label, name)


def add(rows: Rows, image: Member | None, label: str, name: str) -> None:
    """Take down a sample, whose first member is `name`; empty before the first sample."""
    if image is None and name:
        rows.without_image.append(name[:MOST_SHOWN])
    if image is not None:
        rows.offsets.append(image.offset)
        rows.sizes.append(image.size)
        rows.names.append(image.name.encode("utf-8", "surrogateescape"))
        rows.labels.append(label.encode("utf-8", "replace"))


def read_label(file: BinaryIO, member: Member, extension: str) -> str:
    """Label as written in a .cls file, or in `cls` or `label` of a .json file; empty if there is none."""
    file.seek(member.offset)
    text = file.read(min(member.size, MOST_LABEL_BYTES)).decode("utf-8", "replace").strip()
    if extension == "cls":
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    value = content.get("cls", content.get("label")) if isinstance(content, dict) else None
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""


def read_bytes(shard: Path, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset`. Raises OSError if the shard has fewer, or that is more than any image has."""
    if not 0 <= size <= MOST_IMAGE_BYTES or offset < 0:
        raise OSError(f"{shard} has an image of {size} bytes")
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"{shard} has {len(data)} of {size} bytes at {offset}")
    return data
