"""Members of an uncompressed tar, in one pass that takes no more than the file's own size, whatever its headers say.

Python's tarfile follows them: negative sizes send it in circles, chains of headers into deep recursion, and fields of digits
into hours. Only its reading of a single header is used here.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
MOST_NAME, MOST_RECORDS = 2**16, 2**20  # bytes of a long name, and of the records of one pax header
LONG = {tarfile.GNUTYPE_LONGNAME: MOST_NAME, tarfile.GNUTYPE_LONGLINK: MOST_NAME}
PAX = {tarfile.XHDTYPE: MOST_RECORDS, tarfile.SOLARIS_XHDTYPE: MOST_RECORDS, tarfile.XGLTYPE: MOST_RECORDS}


class Member(NamedTuple):
    """Plain is False for links, devices, sparse files and the like; folders are left out altogether."""

    name: str
    offset: int
    size: int
    plain: bool


class Damaged(ValueError):
    """Tar that is cut off or damaged at a byte."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


def members(file: BinaryIO) -> Iterator[Member]:
    """Members in order. Raises Damaged; each step goes forward, within the file."""
    end, place = os.fstat(file.fileno()).st_size, 0
    records: dict[str, bytes] = {}  # what headers say about the member that follows them
    is_sparse = False
    while True:
        file.seek(place)
        header = read_header(file.read(BLOCK), place)
        if header is None:
            return
        data = place + BLOCK
        if header.type in LONG or header.type in PAX:
            content = extension(file, header, data, end)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                records["path"] = content.split(b"\0")[0]
            elif header.type in PAX and header.type != tarfile.XGLTYPE:  # global ones say nothing that matters here
                found = pax_records(content, place)
                records |= {key: value for key, value in found.items() if key in ("path", "size")}
                is_sparse = is_sparse or any(key.startswith("GNU.sparse.") for key in found)
            place = after(header.size, data, end)
            continue
        size = number(records["size"], place) if "size" in records else header.size
        is_sparse = is_sparse or header.type == tarfile.GNUTYPE_SPARSE
        while header.type == tarfile.GNUTYPE_SPARSE and header.extended:
            file.seek(data)
            more = file.read(BLOCK)
            header.extended, data = len(more) == BLOCK and bool(more[504]), data + BLOCK
        has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        place = after(size, data, end) if has_data else data
        name = records["path"].decode("utf-8", "surrogateescape") if "path" in records else header.name
        if not header.isdir():
            yield Member(name, data, size, has_data and header.isreg() and not is_sparse)
        records, is_sparse = {}, False


class Header(tarfile.TarInfo):
    """A single header; extended: whether a map of holes goes on in the next block."""

    extended = False


def read_header(block: bytes, place: int) -> Header | None:
    """The header in a block, None at the end of the archive. Raises Damaged."""
    if len(block) == BLOCK and not any(block):
        return None
    try:
        header = Header.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Damaged(place, str(error)) from error
    assert isinstance(header, Header)
    header.extended = header.type == tarfile.GNUTYPE_SPARSE and bool(block[482])
    return header


def after(size: int, data: int, end: int) -> int:
    """Where the next header lies. Raises Damaged where it would not lie behind this one, and within the file."""
    if size < 0:
        raise Damaged(data, f"a member has the size {size}")
    if size > end - data:
        raise Damaged(data, "unexpected end of data")
    return data + -(-size // BLOCK) * BLOCK


def extension(file: BinaryIO, header: Header, data: int, end: int) -> bytes:
    """What an extended header holds. Raises Damaged."""
    after(header.size, data, end)
    most = LONG.get(header.type) or PAX[header.type]
    if header.size > most:
        raise Damaged(data, f"a header has more than {most} bytes")
    file.seek(data)
    return file.read(header.size)


def pax_records(content: bytes, place: int) -> dict[str, bytes]:
    """{keyword: value} of records "<length> <keyword>=<value>\\n". Raises Damaged."""
    records, start = {}, 0
    while start < len(content) and content[start]:
        length = number(content[start : start + 8].split(b" ")[0], place)
        record = content[start : start + length]
        keyword, equals, value = record.partition(b" ")[2].partition(b"=")
        if length < 5 or len(record) != length or not equals or not value.endswith(b"\n"):
            raise Damaged(place, "a pax header that is not made of records")
        records[keyword.decode("utf-8", "replace")] = value[:-1]
        start += length
    return records


def number(digits: bytes, place: int) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise Damaged(place, "a number that is none")
    return int(digits)
