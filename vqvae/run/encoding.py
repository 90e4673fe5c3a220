"""Codes of a whole split."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.data.items import center_crop
from vqvae.data.loader import ItemLoader
from vqvae.data.sampler import chunks_of_rank
from vqvae.images import x_of
from vqvae.inference.trained_model import TrainedModel

CHUNK = 256  # items


def encode(
    tokenizer: TrainedModel, loader: ItemLoader, size: tuple[int, ...], flipped: bool
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Encode this rank's items of a split, or their mirror images, in chunks of (indices, code maps, labels)."""
    chunks = chunks_of_rank(len(loader), CHUNK)
    bar = tqdm(
        total=sum(map(len, chunks)),
        desc=f"encoding {loader.split.name}",
        unit="item",
        disable=distributed.bar_hidden(),
    )
    for indices, (images, labels) in zip(chunks, loader.batches(chunks)):
        x = x_of(center_crop(images, size))  # (b, C, *S)
        yield indices, tokenizer.encode(x.flip(-1) if flipped else x), labels.cpu()
        bar.update(len(indices))
    bar.close()
