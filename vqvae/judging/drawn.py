"""Samples that a model has drawn, kept as codes, so that they are drawn once for all that judges them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae import distributed
from vqvae.data.code_store import smallest_dtype
from vqvae.data.items import ItemBatch
from vqvae.data.sampler import chunks_of_rank
from vqvae.inference.trained_model import TrainedModel
from vqvae.storage.checkpoint import fingerprint
from vqvae.storage.files import write_bytes


@dataclass
class DrawnSamples:
    """The samples of seeds 0 .. count - 1 of a model with a prior, classes in turn: an image set.

    They lie in shards of as many codes as the prior draws at once, in a folder of their own for each model and each way to
    draw. Shards that are there are not drawn again.

    Args:
        trained: the model.
        count: number of samples.
        settings: of sampling, where they differ from the model's own.
        below: folder of all such folders.
    """

    trained: TrainedModel
    count: int
    settings: dict[str, Any]
    below: Path

    def __post_init__(self) -> None:
        prior = self.trained.prior
        assert prior is not None
        self.sampling = self.trained.sampling_with(self.settings)
        self.at_once = self.sampling.chunk or prior.samples_at_a_time
        about = {
            "tokenizer": self.trained.fingerprint,
            "prior": fingerprint(prior.state_dict()),
            "classes": len(self.trained.class_names),
            "at_once": self.at_once,
            **asdict(self.sampling),
        }
        self.folder = self.below / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self._read = lru_cache(maxsize=2)(self._shard)

    def draw(self) -> None:
        """Draw the shards that are not there. Call it on all ranks, which share them."""
        missing = [
            seeds
            for seeds in chunks_of_rank(self.count, self.at_once)
            if self._shard(int(seeds[0]), len(seeds)) is None
        ]
        if missing:
            seeds = torch.cat(missing)
            drawn = self.trained.draw_chunks(seeds.tolist(), self.labels(seeds), **self.settings)
            for part, maps in zip(missing, drawn):
                file = io.BytesIO()
                sizes = self.trained.codebook_sizes
                np.savez(file, *(codes.numpy().astype(smallest_dtype(size)) for codes, size in zip(maps, sizes)))
                write_bytes(self._file(int(part[0])), file.getvalue())
        distributed.barrier()

    def labels(self, seeds: Tensor) -> Tensor:
        """Seeds (n,) -> the class of each (n,), -1 where samples have none."""
        classes = len(self.trained.sampled_classes)
        return seeds % classes if classes else torch.full_like(seeds, -1)

    def batches(self, chunk: int) -> Iterator[ItemBatch]:
        """Decoded samples, this rank's share."""
        for seeds in chunks_of_rank(self.count, chunk):
            images = self.trained.in_chunks(lambda maps: [self.trained.decode(maps)], self.codes(seeds))[0]
            yield ItemBatch(images.to(self.trained.device), self.labels(seeds))

    def codes(self, seeds: Tensor) -> list[Tensor]:
        """Code maps of consecutive seeds (n,) that were drawn, M x (n, *s_m)."""
        first, last = int(seeds[0]), int(seeds[-1])
        parts = []
        for start in range(first // self.at_once * self.at_once, last + 1, self.at_once):
            maps = self._read(start, min(self.at_once, self.count - start))
            assert maps is not None
            parts.append([codes[max(first - start, 0) : last + 1 - start] for codes in maps])
        return [torch.cat(maps) for maps in zip(*parts)]

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npz"

    def _shard(self, start: int, count: int) -> list[Tensor] | None:
        """Code maps of `count` samples from seed `start` on; None where the shard is missing, short or damaged."""
        shapes, sizes = self.trained.code_shapes, self.trained.codebook_sizes
        try:
            with np.load(self._file(start), allow_pickle=False) as arrays:
                maps = [torch.from_numpy(arrays[f"arr_{m}"].astype(np.int64))[:count] for m in range(len(shapes))]
        except Exception:  # numpy and zipfile raise many kinds
            return None
        fits = (
            m.shape == (count, *shape) and int(m.min()) >= 0 and int(m.max()) < size
            for m, shape, size in zip(maps, shapes, sizes)
        )
        return maps if all(fits) else None
