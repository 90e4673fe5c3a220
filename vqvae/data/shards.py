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
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from vqvae.data.base import fingerprint
from vqvae.data.cache import claim
from vqvae.data.formats import SUFFIXES
from vqvae.data.tree import is_hidden, printable
from vqvae.errors import UserError
from vqvae.storage.files import write_bytes

INDEX_FORMAT = 2
SAMPLE = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$")  # key, extension, as WebDataset splits names
MOST_LABEL_BYTES = 2**16  # of a .cls or .json
log = logging.getLogger(__name__)


@dataclass
class Rows:
    """Index rows while a shard is scanned: offset, size, name and label of each sample's image."""

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)

    def table(self) -> np.ndarray:
        """Structured array of offset, size, name (UTF-8) and label (UTF-8, empty for none)."""
        labels = [label.encode() for label in self.labels]
        kinds = [f"S{max(1, *map(len, texts))}" if texts else "S1" for texts in (self.names, labels)]
        table = np.empty(len(self.offsets), [("offset", "i8"), ("size", "i8"), ("name", kinds[0]), ("label", kinds[1])])
        table["offset"], table["size"], table["name"], table["label"] = self.offsets, self.sizes, self.names, labels
        return table


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
    rows = Rows()
    try:
        with tarfile.open(shard, "r:") as tar:
            collect(tar, rows)
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error) or type(error).__name__
        raise UserError(f"{shard} is not a complete, uncompressed tar ({reason}): copy or make it again") from error
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):  # tarfile takes this for the end of the archive
        raise UserError(f"{shard} is cut off or damaged at byte {end}: copy or make it again")
    if rows.left_out:
        shown = f"such as {printable(rows.left_out[0])[:80]}"
        log.warning(
            "%s: skipped %d members that are links, devices or lead out of it, %s", shard, len(rows.left_out), shown
        )
    if rows.without_image:
        shown = f"such as {printable(rows.without_image[0])[:80]}"
        log.warning("%s: skipped %d samples without an image that is read, %s", shard, len(rows.without_image), shown)
    return rows.table()


def collect(tar: tarfile.TarFile, rows: Rows) -> None:
    """Go through the members. Consecutive members with one key are one sample with one image."""
    current, label, image, name = "", "", None, ""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every member in memory
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        if not member.isreg() or member.issparse() or path.is_absolute() or ".." in path.parts:
            rows.left_out.append(member.name)
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
            label = read_label(tar, member, extension) or label
    add(rows, image, label, name)


def add(rows: Rows, image: tarfile.TarInfo | None, label: str, name: str) -> None:
    """Take down a sample, whose first member is `name`; empty before the first sample."""
    if image is None and name:
        rows.without_image.append(name)
    if image is not None:
        rows.offsets.append(image.offset_data)
        rows.sizes.append(image.size)
        rows.names.append(image.name.encode("utf-8", "surrogateescape"))
        rows.labels.append(label)


def read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> str:
    """Label as written in a .cls file, or in `cls` or `label` of a .json file; empty if there is none."""
    stream = tar.extractfile(member)
    assert stream is not None, "a plain file"
    text = stream.read(MOST_LABEL_BYTES).decode("utf-8", "replace").strip()
    if extension == "cls":
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    value = content.get("cls", content.get("label")) if isinstance(content, dict) else None
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""


def read_bytes(shard: Path, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset`. Raises OSError if the shard has fewer."""
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"{shard} has {len(data)} of {size} bytes at {offset}")
    return data
