"""Laws of shards that somebody else made: they are read as tarfile reads whole ones, and bounded by their own size."""

from __future__ import annotations

import io
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from vqvae.data.shards import read_bytes, scan
from vqvae.data.tar import BLOCK, Member, members
from vqvae.errors import UserError


def read(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(members(file))


def as_tarfile_reads(path: Path) -> list[tuple[str, int, int, bool]]:
    with tarfile.open(path, "r:") as tar:
        return [
            (one.name, one.offset_data, one.size if one.isreg() else 0, one.isreg() and not one.issparse())
            for one in tar.getmembers()
            if not one.isdir()
        ]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(kind: int, tmp_path: Path) -> None:
    names = ["0.png", "d/1.png", "caf\u00e9.png", "x" * 99, "y" * 100, "p" * 60 + "/" + "q" * 80, "/abs", "../up"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["z" * 300, "l/" * 400 + "0.cls", "\udc80.png"]
    with tarfile.open(tmp_path / "t.tar", "w", format=kind) as tar:
        for number, name in enumerate(names):
            about = tarfile.TarInfo(name)
            about.size = (0, 1, 511, 512, 513)[number % 5]
            tar.addfile(about, io.BytesIO(bytes([number]) * about.size))
            for type_, target in ((tarfile.DIRTYPE, ""), (tarfile.SYMTYPE, "k" * 200), (tarfile.CHRTYPE, "")):
                about = tarfile.TarInfo(f"{number}-{ord(type_)}")
                about.type, about.linkname = type_, target if kind != tarfile.USTAR_FORMAT else target[:90]
                tar.addfile(about)
    found = [(one.name, one.offset, one.size if one.plain else 0, one.plain) for one in read(tmp_path / "t.tar")]
    assert found == as_tarfile_reads(tmp_path / "t.tar")


def header(name: str = "0.png", size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: bytes) -> bytes:
    """A header with the right checksum; fields: raw bytes of the size, of the sparse map, and of its flag."""
    about = tarfile.TarInfo(name)
    about.type = kind
    block = bytearray(about.tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    block[124:136] = fields.get("digits", size.to_bytes(12, "big") if size >= 2**33 else b"%011o\0" % max(size, 0))
    if size >= 2**33:
        block[124] = 0o200
    if size < 0:
        block[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    for key, place in (("map", 386), ("extended", 482)):
        block[place : place + len(fields.get(key, b""))] = fields.get(key, b"")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def with_content(data: bytes, kind: bytes, name: str = "x") -> bytes:
    return header(name, len(data), kind) + padded(data)


def pax(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    made = [b" %s\n" % record for record in records]
    return with_content(b"".join(b"%d%s" % (len(one) + len(str(len(one) + 3)), one) for one in made), kind)


END = bytes(2 * BLOCK)
GOOD = with_content(b"image", tarfile.REGTYPE, "0.png")
LONG, LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
REFUSED: dict[str, Callable[[], bytes]] = {
    "a negative size": lambda: GOOD + header("1.png", -512) + END,
    "a size that leads back": lambda: GOOD + header("1.png", -2 * len(GOOD)) + END,
    "a size beyond the end": lambda: GOOD + header("1.png", 2**40) + END,
    "a size beyond all": lambda: GOOD + header("1.png", 2**88 - 1) + END,
    "a size of letters": lambda: GOOD + header("1.png", digits=b"abcdefghijkl") + END,
    "a negative size of a long name": lambda: GOOD + header("x", -512, LONG) + END,
    "a name of gigabytes": lambda: GOOD + header("x", 2**40, LONG) + END,
    "a name of megabytes": lambda: GOOD + with_content(b"x" * 2**21, LONG) + GOOD + END,
    "names without a member": lambda: with_content(b"x", LONG) * 5000,
    "digits without end": lambda: GOOD + with_content(b"1" * 900_000, tarfile.XHDTYPE) + GOOD + END,
    "records of megabytes": lambda: GOOD + with_content(b"1" * 2**22, tarfile.XHDTYPE) + GOOD + END,
    "records of length 0": lambda: GOOD + with_content(b"0 path=x\n" * 9, tarfile.XHDTYPE) + GOOD + END,
    "records of any length": lambda: GOOD + with_content(b"99999999999999999999 a=b\n", tarfile.XHDTYPE) + GOOD + END,
    "a size of many digits": lambda: GOOD + pax(b"size=" + b"9" * 5000) + GOOD + END,
    "a negative size in a record": lambda: GOOD + pax(b"size=-512") + GOOD + END,
    "a size beyond the end in a record": lambda: GOOD + pax(b"size=999999999999") + GOOD + END,
    "holes without end": lambda: GOOD + header("1.png", 0, tarfile.GNUTYPE_SPARSE, extended=b"\1") + b"\1" * 3000,
    "cut off": lambda: GOOD,
    "a half of a header": lambda: GOOD + header()[:100],
    "a wrong checksum": lambda: GOOD + bytes([1]) + header()[1:] + END,
}
TAKEN: dict[str, Callable[[], bytes]] = {
    "a chain of names": lambda: with_content(b"0.png\0", LONG) * 5000 + GOOD + END,
    "a chain of links": lambda: with_content(b"target", LINK) * 5000 + GOOD + END,
    "a chain of records": lambda: pax(b"path=0.png", b"comment=" + b"x" * 200) * 5000 + GOOD + END,
    "a chain of global records": lambda: pax(b"size=999999", b"path=x", kind=tarfile.XGLTYPE) * 5000 + GOOD + END,
    "a name as long as a path": lambda: with_content(b"d/" * 2000 + b"0.png\0", LONG) + GOOD * 40 + END,
}


@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_a_hostile_shard_ends_in_no_time_and_takes_no_more_than_its_size(name: str, tmp_path: Path) -> None:
    data = {**REFUSED, **TAKEN}[name]()
    (tmp_path / "t.tar").write_bytes(data)
    started = time.process_time()
    tracemalloc.start()
    try:
        if name in REFUSED:
            with pytest.raises(UserError, match=r"t\.tar is (cut off or damaged at byte \d+|not a complete)") as error:
                scan(tmp_path / "t.tar")
            assert "\n" not in str(error.value)
        else:
            assert len(scan(tmp_path / "t.tar")) in (1, 2)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5


def test_sparse_members_are_left_out_and_those_behind_them_are_found(tmp_path: Path) -> None:
    holes = header("1.png", 5, tarfile.GNUTYPE_SPARSE, extended=b"\1") + b"\1" * 504 + b"\1" + bytes(7) + bytes(BLOCK)
    newer = pax(b"GNU.sparse.major=1", b"GNU.sparse.realsize=999999999999") + with_content(b"12345", tarfile.REGTYPE)
    (tmp_path / "t.tar").write_bytes(GOOD + holes + padded(b"12345") + newer + GOOD + END)
    found = read(tmp_path / "t.tar")
    assert [one.plain for one in found] == [True, False, False, True]
    assert found[1].size == 5


def test_one_long_name_does_not_make_every_row_long(tmp_path: Path) -> None:
    """Rows are as long as the longest: a name of 60 KB in 2,000 rows would take 120 MB out of a file of 2 MB."""
    short = b"".join(with_content(b"x", tarfile.REGTYPE, f"{number}.png") for number in range(2000))
    (tmp_path / "t.tar").write_bytes(with_content(b"d/" * 30_000 + b"0.png\0", LONG) + GOOD + short + END)
    with pytest.raises(UserError, match="names or labels that are far too long"):
        scan(tmp_path / "t.tar")


def test_labels_of_any_content_and_images_of_any_size_are_no_tracebacks(tmp_path: Path) -> None:
    labels = [b'{"cls": "\\ud800"}', b"\xff\xfe", b"[" * 60_000, b"{", b'{"cls": ' + b"9" * 6000 + b"}", b"\0"]
    data = b""
    for number, label in enumerate(labels):
        kind = "cls" if label[:1] not in (b"{", b"[") else "json"
        data += with_content(b"x", tarfile.REGTYPE, f"{number}.png")
        data += with_content(label, tarfile.REGTYPE, f"{number}.{kind}")
    (tmp_path / "t.tar").write_bytes(data + END)
    assert len(scan(tmp_path / "t.tar")) == len(labels)
    for offset, size in ((0, 2**40), (0, -1), (-512, 512), (0, len(data) + 9999)):
        with pytest.raises(OSError, match=r"t\.tar has"):
            read_bytes(tmp_path / "t.tar", offset, size)
