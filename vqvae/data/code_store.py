"""The codes of a data set: memory-mapped integers that know which tokenizer and which pictures they came from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.loader import Batch
from vqvae.data.sampler import chunks_of_rank, rank_batches

HEADER = "header.json"


class CodeStore:
    """M code maps of n pictures and their labels, in a folder: header.json, codes_<m>.npy, labels.npy.

    Header: count, code_shapes, codebook_sizes, and the fingerprints `tokenizer` and `data`. Raises ValueError where
    a file is missing or not of the size that the header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / HEADER).is_file():
            raise ValueError(f"{path} holds no code store; make one with scripts/encode.py")
        self.header = json.loads((path / HEADER).read_text())
        self.code_shapes = [tuple(shape) for shape in self.header["code_shapes"]]
        self.codebook_sizes: list[int] = self.header["codebook_sizes"]
        self.maps = [self._load(f"codes_{m}.npy", (len(self), *shape)) for m, shape in enumerate(self.code_shapes)]
        self.labels = torch.from_numpy(np.array(self._load("labels.npy", (len(self),))))

    def __len__(self) -> int:
        return int(self.header["count"])

    def _load(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path / name} is damaged ({error}); delete {self.path} to have it made again"
            ) from error
        if array.shape != shape:
            raise ValueError(f"{self.path / name} has shape {array.shape}, its header says {shape}")
        return array

    def codes(self, indices: Tensor) -> list[Tensor]:
        """indices (b,) -> M maps (b, *s_m) int64."""
        rows = indices.numpy()
        return [torch.from_numpy(m[rows].astype(np.int64)) for m in self.maps]

    def require(self, **expected: object) -> None:
        """Raises ValueError, saying what differs, unless the header holds exactly the expected values."""
        wanted = json.loads(json.dumps(expected))
        differing = [f"{k} is {self.header.get(k)}, not {v}" for k, v in wanted.items() if self.header.get(k) != v]
        if differing:
            raise ValueError(
                f"the code store {self.path} does not fit: {'; '.join(differing)}; delete it to encode again"
            )

    @staticmethod
    def write(
        path: Path, header: dict[str, object], count: int, batches: Iterator[tuple[Tensor, list[Tensor], Tensor]]
    ) -> None:
        """Writes a store of `count` pictures from (indices, code maps, labels) of each rank.

        The folder appears under its name when it is whole.
        """
        temporary = path.with_name(path.name + ".tmp")
        shapes, sizes = header["code_shapes"], header["codebook_sizes"]
        assert isinstance(shapes, list)
        assert isinstance(sizes, list)
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for m, (shape, size) in enumerate(zip(shapes, sizes)):
                np.lib.format.open_memmap(temporary / f"codes_{m}.npy", "w+", smallest_dtype(size), (count, *shape))
            np.lib.format.open_memmap(temporary / "labels.npy", "w+", np.int64, (count,))
            (temporary / HEADER).write_text(json.dumps({"count": count, **header}, indent=2) + "\n")
        distributed.barrier()
        names = [*(f"codes_{m}.npy" for m in range(len(shapes))), "labels.npy"]
        files = [np.lib.format.open_memmap(temporary / name, "r+") for name in names]
        for indices, maps, labels in batches:
            for file, codes in zip(files, [*maps, labels]):
                file[indices.numpy()] = codes.cpu().numpy()
        for file in files:
            file.flush()
        distributed.barrier()
        if distributed.is_main():
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
        distributed.barrier()


def smallest_dtype(codebook_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes 0 .. K - 1."""
    return np.min_scalar_type(codebook_size - 1)


class CodeFeed:
    """What the trainer reads in stage 2: batches of (M code maps..., labels), from stores of training and validation."""

    def __init__(self, train: CodeStore, val: CodeStore, batch_size: int, seed: int, device: torch.device) -> None:
        self.train, self.val, self.device = train, val, device
        self.batch_size, self.seed, self.train_size = batch_size, seed, len(train)

    def training_batches(self, start_step: int) -> Iterator[Batch]:
        """Endless batches of this rank from `start_step` on."""
        for indices in rank_batches(self.seed, start_step, self.batch_size, self.train_size):
            yield self._batch(self.train, indices)

    def evaluation_batches(self, chunk: int) -> Iterator[Batch]:
        """The validation codes, once, in order, this rank's share."""
        for indices in chunks_of_rank(len(self.val), chunk):
            yield self._batch(self.val, indices)

    def preview_batch(self, count: int) -> Batch:
        """The first validation codes."""
        return self._batch(self.val, torch.arange(min(count, len(self.val))))

    def _batch(self, store: CodeStore, indices: Tensor) -> Batch:
        parts = [*store.codes(indices), store.labels[indices]]
        return tuple(part.to(self.device, non_blocking=True) for part in parts)


def bits_of_uniform(codebook_sizes: list[int], code_shapes: list[tuple[int, ...]]) -> float:
    """Bits per code of a prior that knows nothing: the mean of log2 K over all codes."""
    counts = [math.prod(shape) for shape in code_shapes]
    return sum(n * math.log2(k) for n, k in zip(counts, codebook_sizes)) / sum(counts)
