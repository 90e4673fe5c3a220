"""Codes of a data set on disk: memory-mapped integers, with the fingerprints of the tokenizer and the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data import arrays
from vqvae.data.resident import mapped
from vqvae.errors import UserError
from vqvae.storage.files import digest, temporary_name, write_bytes

HEADER = "header.json"
MOST_CODES, MOST_PLACES = 2**18, 2**20  # of a codebook, and along a dim of a map


class CodeStore:
    """M code maps of n items and their labels, in a folder: header.json, codes_<m>.npy, labels.npy.

    Header: count, code_shapes, codebook_sizes, the fingerprints `tokenizer` and `data`, `flipped` if the items were mirrored,
    `label_width` and the fingerprint `conditions` if labels are (n, label_width) float32 of several conditions, and the SHA-256
    of each file. Raises UserError if a file is missing or does not match the header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / HEADER).is_file():
            raise UserError(f"{path} holds no code store; make one with scripts/encode.py")
        self.header = read_header(path / HEADER)
        self.code_shapes = [tuple(shape) for shape in self.header["code_shapes"]]
        self.codebook_sizes: list[int] = self.header["codebook_sizes"]
        self.maps = [
            self._load(f"codes_{m}.npy", (len(self), *shape), smallest_dtype(size))
            for m, (shape, size) in enumerate(zip(self.code_shapes, self.codebook_sizes))
        ]
        shape, kind = shape_of_labels(self.header)
        labels = self._load("labels.npy", (len(self), *shape), kind)
        self.labels = mapped(labels) if shape else torch.from_numpy(np.array(labels))

    def __len__(self) -> int:
        return self.header["count"]

    def _load(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        try:
            array = arrays.read(self.path / name, dtype, shape)
            if digest(self.path / name) != self.header["sha256"].get(name):
                raise UserError(f"{self.path / name} is damaged: it does not have the checksum")
        except ValueError as error:
            raise UserError(f"{error} as its header says; delete {self.path} to encode again") from error
        return array

    def codes(self, indices: Tensor) -> list[Tensor]:
        """Code maps of the items at `indices` (b,), M x (b, *s_m) int64. Raises UserError for a code beyond its codebook."""
        rows = indices.numpy()
        maps = [torch.from_numpy(m[rows].astype(np.int64)) for m in self.maps]
        for m, (codes, size) in enumerate(zip(maps, self.codebook_sizes)):
            if len(rows) and int(codes.max()) >= size:
                raise UserError(
                    f"{self.path / f'codes_{m}.npy'} is damaged: it holds code {codes.max()} of {size} codes"
                )
        return maps

    def require(self, **expected: object) -> None:
        """Raise UserError with the differences unless the header holds the expected values."""
        wanted = json.loads(json.dumps(expected))
        differing = [f"{k} is {self.header.get(k)}, not {v}" for k, v in wanted.items() if self.header.get(k) != v]
        if differing:
            raise UserError(
                f"the code store {self.path} does not fit: {'; '.join(differing)}; delete it to encode again"
            )

    @staticmethod
    def write(
        path: Path, header: dict[str, object], count: int, batches: Iterator[tuple[Tensor, list[Tensor], Tensor]]
    ) -> None:
        """Write a store of `count` items from batches (consecutive indices, code maps, labels) of each rank.

        The folder appears under its name when it is complete.
        """
        temporary = path.with_name(distributed.broadcast_object(temporary_name(path).name))
        shapes, sizes = header["code_shapes"], header["codebook_sizes"]
        assert isinstance(shapes, list)
        assert isinstance(sizes, list)
        names = [*(f"codes_{m}.npy" for m in range(len(shapes))), "labels.npy"]
        of_labels, kind_of_labels = shape_of_labels(header)
        kinds = [*map(smallest_dtype, sizes), kind_of_labels]
        if distributed.is_main():
            temporary.mkdir(parents=True)
            for name, kind, shape in zip(names, kinds, [*shapes, of_labels]):
                arrays.create(temporary / name, kind, (count, *shape))
        distributed.barrier()
        for indices, maps, labels in batches:
            for name, kind, codes in zip(names, kinds, [*maps, labels]):
                arrays.write_rows(temporary / name, int(indices[0]), codes.cpu().numpy().astype(kind))
        distributed.barrier()
        if distributed.is_main():
            whole = {"count": count, **header, "sha256": {name: digest(temporary / name) for name in names}}
            write_bytes(temporary / HEADER, (json.dumps(whole, indent=2) + "\n").encode())
            temporary.rename(path)
        distributed.barrier()


def read_header(file: Path) -> dict[str, Any]:
    """Read the header of a store. Raises UserError unless it describes code maps."""
    try:
        header = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error})") from error
    header = header if isinstance(header, dict) else {}
    shapes, sizes = header.get("code_shapes", []), header.get("codebook_sizes", [])
    good = (
        isinstance(shapes, list)
        and all(isinstance(shape, list) and are_integers(shape, 1, MOST_PLACES) for shape in shapes)
        and are_integers(sizes, 1, MOST_CODES)
        and len(shapes) == len(sizes) > 0
        and are_integers([header.get("count")], 0, 2**40)
        and are_integers([header.get("label_width", 1)], 1, MOST_PLACES)
        and isinstance(header.get("sha256"), dict)
    )
    if not good:
        raise UserError(f"{file} does not describe maps of codes; delete {file.parent} to encode again")
    return header


def shape_of_labels(header: dict[str, Any]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape of an item's labels, and their type: of a class, or of several conditions."""
    width = header.get("label_width")
    return ((), np.dtype(np.int64)) if width is None else ((width,), np.dtype(np.float32))


def are_integers(values: Any, low: int, high: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and low <= value <= high for value in values)


def smallest_dtype(codebook_size: int) -> np.dtype:
    """Smallest unsigned integer type that holds codes 0 .. K - 1."""
    return np.min_scalar_type(codebook_size - 1)
