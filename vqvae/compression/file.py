"""The .vqz file: what decodes it, names of images, their entropy-coded codes, and a checksum."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqvae.errors import UserError
from vqvae.storage.files import write_bytes

MAGIC, VERSION = b"vqz\x00", 1
MOST_HEADER = 2**28  # bytes of a header
WORD = 4  # bytes that the range coder writes at once
START = struct.Struct("<4sBI")  # magic, version, bytes of the header


@dataclass(frozen=True)
class Archive:
    """Images as codes.

    Args:
        names: of the images, in order.
        tokenizer, prior: fingerprints of the weights that decode it.
        batch: images that went through the prior at once.
        computed: versions and device whose rounding the probabilities depend on.
        codes_sha256: of the codes, by which a decoder knows that it found the right ones.
        data: the entropy-coded codes.
    """

    names: list[str]
    tokenizer: str
    prior: str
    batch: int
    computed: dict[str, str]
    codes_sha256: str
    data: bytes

    def write(self, file: Path) -> int:
        """Write the file, whole or not at all -> its bytes."""
        about = {key: value for key, value in asdict(self).items() if key != "data"}
        header = zlib.compress(json.dumps(about).encode(), 9)
        content = START.pack(MAGIC, VERSION, len(header)) + header + self.data
        content += hashlib.sha256(content).digest()
        write_bytes(file, content)
        return len(content)

    @classmethod
    def read(cls, file: Path) -> Archive:
        """Raises UserError for a file that is not there, is another kind of file, or is damaged."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"in={file} cannot be read: {error.strerror}") from error
        if not content.startswith(MAGIC):
            raise UserError(f"in={file} is no file of scripts/compress.py")
        body, checksum = content[:-32], content[-32:]
        if len(content) < START.size + 32 or hashlib.sha256(body).digest() != checksum:
            raise UserError(f"in={file} is damaged: it does not have its checksum")
        _, version, size = START.unpack_from(body)
        if version != VERSION:
            raise UserError(f"in={file} is of version {version}, and this program reads version {VERSION}")
        fields, data = read_header(file, body[START.size : START.size + size]), body[START.size + size :]
        if len(data) % WORD:
            raise UserError(f"in={file} is damaged: its codes are no whole words of {WORD} bytes")
        return cls(**fields, data=data)


def read_header(file: Path, header: bytes) -> dict[str, Any]:
    """The header's fields, checked: a stranger's file has a right checksum, too."""
    try:
        inflate = zlib.decompressobj()
        fields = json.loads(inflate.decompress(header, MOST_HEADER))
        names, computed = fields["names"], fields["computed"]
        good = (
            set(fields) == {"names", "tokenizer", "prior", "batch", "computed", "codes_sha256"}
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and all(isinstance(fields[key], str) for key in ("tokenizer", "prior", "codes_sha256"))
            and type(fields["batch"]) is int
            and 1 <= fields["batch"] <= 2**16
            and isinstance(computed, dict)
            and all(isinstance(value, str) for value in computed.values())
        )
    except (ValueError, LookupError, TypeError, RecursionError, zlib.error):
        good = False
    if not good:
        raise UserError(f"in={file} is damaged: its header cannot be read")
    return fields
