"""The codes of a data set: memory-mapped integers that know which tokenizer and which pictures they came from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data import arrays
from vqvae.data.loader import Batch
from vqvae.data.sampler import chunks_of_rank, rank_batches, training_indices
from vqvae.errors import UserError
from vqvae.seeding import mix
from vqvae.storage.files import digest, temporary_name, write_bytes

HEADER = "header.json"
MOST_CODES, MOST_PLACES = 2**18, 2**20  # of a codebook, and along a dim of a map
VALIDATION, TRAINING = 0, 1  # where an example of an evaluation is from


class CodeStore:
    """M code maps of n pictures and their labels, in a folder: header.json, codes_<m>.npy, labels.npy.

    Header: count, code_shapes, codebook_sizes, the fingerprints `tokenizer` and `data`, `flipped` where the pictures were
    mirrored, and the SHA-256 of each file. Raises ValueError where a file is missing or not what the header says.
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
        self.labels = torch.from_numpy(np.array(self._load("labels.npy", (len(self),), np.dtype(np.int64))))

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
        """indices (b,) -> M maps (b, *s_m) int64. Raises ValueError for a code that its codebook does not have."""
        rows = indices.numpy()
        maps = [torch.from_numpy(m[rows].astype(np.int64)) for m in self.maps]
        for m, (codes, size) in enumerate(zip(maps, self.codebook_sizes)):
            if len(rows) and int(codes.max()) >= size:
                raise UserError(
                    f"{self.path / f'codes_{m}.npy'} is damaged: it holds code {codes.max()} of {size} codes"
                )
        return maps

    def require(self, **expected: object) -> None:
        """Raises ValueError, saying what differs, unless the header holds exactly the expected values."""
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
        """Writes a store of `count` pictures from (indices, code maps, labels) of each rank, indices following each other.

        The folder appears under its name when it is whole.
        """
        temporary = path.with_name(distributed.broadcast_object(temporary_name(path).name))
        shapes, sizes = header["code_shapes"], header["codebook_sizes"]
        assert isinstance(shapes, list)
        assert isinstance(sizes, list)
        names = [*(f"codes_{m}.npy" for m in range(len(shapes))), "labels.npy"]
        kinds = [*map(smallest_dtype, sizes), np.dtype(np.int64)]
        if distributed.is_main():
            temporary.mkdir(parents=True)
            for name, kind, shape in zip(names, kinds, [*shapes, ()]):
                arrays.create(temporary / name, kind, (count, *shape))
        distributed.barrier()
        for indices, maps, labels in batches:
            for name, kind, codes in zip(names, kinds, [*maps, labels]):
                arrays.write_rows(temporary / name, int(indices[0]), codes.cpu().numpy().astype(kind))
        distributed.barrier()
        if distributed.is_main():
            whole = {"count": count, **header, "sha256": {name: digest(temporary / name) for name in names}}
            write_bytes(temporary / HEADER, (json.dumps(whole, indent=2) + "\n").encode())
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
        distributed.barrier()


def read_header(file: Path) -> dict[str, Any]:
    """The header of a store. Raises ValueError unless it describes maps of codes."""
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
        and isinstance(header.get("sha256"), dict)
    )
    if not good:
        raise UserError(f"{file} does not describe maps of codes; delete {file.parent} to encode again")
    return header


def are_integers(values: Any, low: int, high: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and low <= value <= high for value in values)


def smallest_dtype(codebook_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes 0 .. K - 1."""
    return np.min_scalar_type(codebook_size - 1)


class CodeFeed:
    """What the trainer reads in stage 2: batches of (M code maps..., labels); those of evaluation end with the set (B,) that
    an example is from, VALIDATION or TRAINING.

    `train` holds the same pictures encoded in several ways, the plain one first; it is empty where nothing is trained.
    """

    def __init__(
        self, train: list[CodeStore], val: CodeStore, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.train, self.val, self.device = train, val, device
        self.batch_size, self.seed = batch_size, seed
        self.train_size = len(train[0]) if train else 0

    def training_batches(self, start_step: int, parts: int) -> Iterator[Batch]:
        """Endless batches of this rank from `start_step` on, in order of `parts` micro-batches; the step's seed draws the
        store of each example."""
        own = distributed.rows_of_rank(self.batch_size, parts)
        batches = rank_batches(self.seed, start_step, self.batch_size, self.train_size, parts)
        for step, indices in enumerate(batches, start_step):
            generator = torch.Generator().manual_seed(mix(self.seed + 1, step))
            chosen = torch.randint(len(self.train), (self.batch_size,), generator=generator)[own]
            yield self._to_device([*self._mixed(chosen, indices), self.train[0].labels[indices]])

    def training_indices(self, step: int) -> Tensor:
        """The examples (batch_size,) of a step's global batch."""
        return training_indices(self.seed, step, self.batch_size, self.train_size)

    def evaluation_batches(self, chunk: int) -> Iterator[Batch]:
        """The validation codes, once, in order, and as many of training, spread over the set; this rank's share."""
        for indices in chunks_of_rank(len(self.val), chunk):
            yield self._evaluation_batch(self.val, indices, VALIDATION)
        if self.train:
            count = min(len(self.val), self.train_size)
            for places in chunks_of_rank(count, chunk):
                yield self._evaluation_batch(self.train[0], places * self.train_size // count, TRAINING)

    def preview_batch(self, count: int) -> Batch:
        """The first validation codes."""
        return self._evaluation_batch(self.val, torch.arange(min(count, len(self.val))), VALIDATION)

    def _mixed(self, chosen: Tensor, indices: Tensor) -> list[Tensor]:
        """Example `indices[i]` from the store `chosen[i]` -> M maps (B, *s_m)."""
        rows = torch.arange(len(indices))
        every = [store.codes(indices) for store in self.train]
        return [torch.stack(maps)[chosen, rows] for maps in zip(*every)]  # of (stores, B, *s_m)

    def _evaluation_batch(self, store: CodeStore, indices: Tensor, origin: int) -> Batch:
        return self._to_device([*store.codes(indices), store.labels[indices], torch.full_like(indices, origin)])

    def _to_device(self, parts: list[Tensor]) -> Batch:
        return tuple(part.to(self.device, non_blocking=True) for part in parts)


def bits_of_uniform(codebook_sizes: list[int], code_shapes: list[tuple[int, ...]]) -> float:
    """Bits per code of a prior that knows nothing: the mean of log2 K over all codes."""
    counts = [math.prod(shape) for shape in code_shapes]
    return sum(n * math.log2(k) for n, k in zip(counts, codebook_sizes)) / sum(counts)
