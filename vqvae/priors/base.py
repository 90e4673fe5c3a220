"""What every prior offers: likelihood and sampling of code maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_CHUNK = 32  # samples are drawn in padded chunks of this size, so that none depends on how many are asked for


@dataclass
class Sampling:
    """How codes are drawn from their distribution.

    temperature: logits are divided by it (0 draws the most likely code). top_k: only the k most likely codes (0: all).
    top_p: only the most likely codes whose probabilities sum to p. Raises ValueError for values out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k} (0 keeps all codes)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """logits (B, K), noise (B,) uniform in [0, 1), float64 -> codes (B,) by inverting the cumulative distribution."""
        if self.temperature == 0:
            return logits.argmax(1)
        probabilities = (logits.double() / self.temperature).softmax(1)  # (B, K)
        if self.top_k or self.top_p < 1:
            ranked, order = probabilities.sort(stable=True, dim=1, descending=True)
            kept = ranked.cumsum(1) - ranked < self.top_p  # the code that crosses p is kept
            if self.top_k:
                kept[:, self.top_k :] = False
            probabilities = torch.zeros_like(probabilities).scatter_(1, order, ranked * kept)
        cumulative = probabilities.cumsum(1)  # (B, K)
        target = noise.to(cumulative)[:, None] * cumulative[:, -1:]
        codes = torch.searchsorted(cumulative, target, right=True)[:, 0]  # right: skips codes of probability 0
        return codes.clamp_max(logits.shape[1] - 1)  # noise just below 1 may round up to the whole sum


class Prior(nn.Module):
    """A distribution over M code maps (B, *s_m), given a class where the data has classes.

    Args:
        code_shapes: dims of each map, coarse to fine.
        codebook_sizes: K of each map.
        num_classes: 0 for data without classes.
        class_dropout: share of training examples whose class is hidden (label -1), so that the network learns p(codes)
            beside p(codes | class); the stage does it.
    """

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        codebook_sizes: list[int],
        num_classes: int,
        class_dropout: float,
    ) -> None:
        super().__init__()
        if not code_shapes:
            raise ValueError("a prior needs codes, and quantizer=identity has none: train with stages=[autoencoder]")
        if not 0 <= class_dropout < 1:
            raise ValueError(f"class_dropout must lie in [0, 1), got {class_dropout}")
        self.class_dropout = class_dropout
        self.code_shapes = [tuple(shape) for shape in code_shapes]
        self.codebook_sizes, self.num_classes = list(codebook_sizes), num_classes
        self.codes_per_sample = sum(math.prod(shape) for shape in self.code_shapes)

    @abstractmethod
    def sample(self, seeds: list[int], labels: Tensor, sampling: Sampling) -> list[Tensor]:
        """Draws one set of maps per seed, from float32 logits; labels (n,) int64, -1 for no class.

        -> M maps (n, *s_m). Sample i depends on seed i, label i and `sampling` alone.
        """


class AutoregressivePrior(Prior):
    """p(codes) as a product over an order of (map, position).

    A variant writes `logits`, and may keep a cache by overriding `begin_sampling` and `next_logits`.
    """

    @abstractmethod
    def logits(self, codes: list[Tensor], labels: Tensor) -> list[Tensor]:
        """M maps (B, *s_m), labels (B,) -> M logits (B, K_m, *s_m), aligned: those of a code see only codes before it."""

    def forward(self, codes: list[Tensor], labels: Tensor) -> list[Tensor]:
        """-> negative log-likelihood in nats of every code: M maps (B, *s_m), float32."""
        logits = self.logits(codes, labels)
        return [F.cross_entropy(one.float(), target, reduction="none") for one, target in zip(logits, codes)]

    def order(self) -> Iterator[tuple[int, int]]:
        """(map, flat position in it) in the order of generation: maps coarse to fine, positions in raster order."""
        for index, shape in enumerate(self.code_shapes):
            for position in range(math.prod(shape)):
                yield index, position

    def begin_sampling(self, labels: Tensor) -> Any:
        """Labels (B,) -> a state that is handed to every `next_logits` of this chunk."""
        return None

    def next_logits(self, state: Any, codes: list[Tensor], labels: Tensor, at: tuple[int, int]) -> Tensor:
        """Logits (B, K) of the code `at` (map, position), given the codes before it. Here: the whole network again."""
        index, position = at
        return self.logits(codes, labels)[index].flatten(2)[:, :, position]

    @torch.no_grad()
    def sample(self, seeds: list[int], labels: Tensor, sampling: Sampling) -> list[Tensor]:
        chunks = []
        for start in range(0, len(seeds), SAMPLE_CHUNK):
            chosen = seeds[start : start + SAMPLE_CHUNK]
            padding = SAMPLE_CHUNK - len(chosen)
            chunk_labels = F.pad(
                labels[start : start + SAMPLE_CHUNK], (0, padding), value=0 if self.num_classes else -1
            )
            maps = self._sample_chunk([*chosen, *[0] * padding], chunk_labels, sampling)
            chunks.append([m[: len(chosen)] for m in maps])
        return [torch.cat(maps) for maps in zip(*chunks)]

    def _sample_chunk(self, seeds: list[int], labels: Tensor, sampling: Sampling) -> list[Tensor]:
        noise = torch.stack([uniform_noise(seed, self.codes_per_sample) for seed in seeds])  # (B, codes)
        codes = [labels.new_zeros(len(seeds), *shape) for shape in self.code_shapes]
        with torch.autocast(labels.device.type, enabled=False):
            state = self.begin_sampling(labels)
            for count, at in enumerate(self.order()):
                drawn = sampling.draw(self.next_logits(state, codes, labels, at), noise[:, count].to(labels.device))
                codes[at[0]].view(len(seeds), -1)[:, at[1]] = drawn
        return codes


def uniform_noise(seed: int, count: int) -> Tensor:
    """(count,) float64 in [0, 1) that depends on the seed alone: drawn on the CPU."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
