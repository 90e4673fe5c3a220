"""Stage 2: an autoregressive prior on codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.images import grid, to_uint8
from vqvae.priors.base import AutoregressivePrior, Sampling
from vqvae.stages.base import Batch, Stage


class PriorStage(Stage):
    """Batches are (M code maps..., labels). Loss: mean negative log-likelihood of all codes, in nats.

    `decode` turns codes into pictures (B, C, *S) in [-1, 1], for previews.
    """

    monitor = "bits_per_code"
    headline = ("bits_per_code",)
    keeps_best = True  # a prior overfits; its best validation step is the one to keep

    def __init__(self, prior: AutoregressivePrior, decode: Callable[[list[Tensor]], Tensor]) -> None:
        self.prior, self.decode = prior, decode
        self.networks: dict[str, nn.Module] = {"prior": prior}
        self.meters = nn.Module()

    def training_losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        *codes, labels = batch
        nats = self.forwards["prior"](codes, self._hide_classes(labels))
        loss = sum(one.sum() for one in nats) / sum(one.numel() for one in nats)
        yield "prior", loss, {"loss": loss, "bits_per_code": loss / math.log(2)}

    def window_metrics(self) -> dict[str, float]:
        return {}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        *codes, labels = batch
        nats = self.prior(codes, labels)
        sums = {f"nats{m}": one.double().sum() for m, one in enumerate(nats)}
        return sums | {f"codes{m}": sums[f"nats{m}"].new_tensor(float(one.numel())) for m, one in enumerate(nats)}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        maps = range(len(self.prior.code_shapes))
        bits = [float(sums[f"nats{m}"]) / math.log(2) for m in maps]
        counts = [float(sums[f"codes{m}"]) for m in maps]
        metrics = {
            "bits_per_code": sum(bits) / sum(counts),
            "bits_per_picture": sum(bits) / (sum(counts) / self.prior.codes_per_sample),
        }
        return metrics | {f"map{m}/bits_per_code": b / n for m, (b, n) in enumerate(zip(bits, counts))}

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        count = len(batch[-1])
        labels = torch.arange(count, device=batch[-1].device) % max(1, self.prior.num_classes)
        labels = labels if self.prior.num_classes else labels - 1
        codes = self.prior.sample(list(range(count)), labels, Sampling())
        pictures = to_uint8(self.decode(codes))
        rows = [pictures[: (count + 1) // 2], pictures[(count + 1) // 2 :]] if count > 1 else [pictures]
        return {"samples": grid(rows)}

    def _hide_classes(self, labels: Tensor) -> Tensor:
        """Sets labels (B,) to -1 with the prior's `class_dropout`; drawn for the global batch, sliced by rank."""
        if not self.prior.class_dropout:
            return labels
        draws = torch.rand(len(labels) * distributed.world_size(), device=labels.device)
        own = draws[distributed.slice_of_rank(len(draws))]
        return labels.masked_fill(own < self.prior.class_dropout, -1)
