"""Stage 1: a VQ-VAE on pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.images import grid, to_uint8
from vqvae.losses.reconstruction import ReconstructionLoss
from vqvae.metrics.codebook import CodeCounts, count_codes, describe, histogram, perplexity, usage
from vqvae.metrics.reconstruction import reconstruction_metrics, reconstruction_sums
from vqvae.model import VQVAE, Output
from vqvae.stages.base import Batch, Stage

COLLAPSED_SHARE = 0.05  # a whole-set perplexity below this share of K is called a collapse


class AutoencoderStage(Stage):
    """Batches are (x (B, C, *S) in [-1, 1], labels). Loss: reconstruction + every loss of the quantizers, weighted.

    `variance` is that of the training data in [-1, 1].
    """

    meters: CodeCounts
    monitor = "mse"
    headline = ("psnr_db", "codebook0/perplexity", "codebook0/usage")
    keeps_best = False  # the last weights: no choice is made on the validation set

    def __init__(self, model: VQVAE, reconstruction: ReconstructionLoss, variance: float) -> None:
        self.model, self.reconstruction, self.variance = model, reconstruction, variance
        self.networks: dict[str, nn.Module] = {"model": model}
        self.meters = CodeCounts(model.codebook_sizes)

    def begin_run(self, batches: Iterator[Batch]) -> None:
        self.model.begin_run(x for x, _ in batches)

    def begin_step(self, step: int, steps: int) -> None:
        self.model.begin_step(step, steps)

    def training_losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        x, _ = batch
        output: Output = self.forwards["model"](x)
        terms = self._terms(output, x)
        loss = terms["loss"]
        counts = self._count(output.codes)
        self.meters.add(counts)
        for m, one in enumerate(counts):
            terms[f"codebook{m}/batch_perplexity"] = perplexity(one)
            terms[f"codebook{m}/batch_usage"] = usage(one)
        yield "model", loss, terms

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        return self.model.after_step(applied)

    def window_metrics(self) -> dict[str, float]:
        metrics = {
            f"codebook{m}/window_{name}": value
            for m, counts in enumerate(self.meters.total())
            for name, value in describe(counts).items()
        }
        self.meters.reset()
        return metrics

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        x, _ = batch
        output = self.model(x)
        sums = reconstruction_sums(self.reconstruction.to_image(output.decoded), x)
        sums |= {f"term/{name}": value.double() * len(x) for name, value in self._terms(output, x).items()}
        return sums | {f"counts{m}": counts for m, counts in enumerate(self._count(output.codes))}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        metrics: dict[str, Any] = reconstruction_metrics(sums, self.variance)
        for name, value in sums.items():
            if name.startswith("term/"):
                metrics[name.removeprefix("term/")] = float(value / sums["pictures"])
        for m in range(len(self.model.codebook_sizes)):
            counts = sums[f"counts{m}"]
            metrics |= {f"codebook{m}/{name}": value for name, value in describe(counts).items()}
            metrics[f"codebook{m}/count_histogram"] = histogram(counts)
        return metrics

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        x, _ = batch
        x_hat = self.reconstruction.to_image(self.model(x).decoded)
        return {"reconstructions": grid([to_uint8(x), to_uint8(x_hat)])}

    def warnings(self, metrics: dict[str, Any]) -> dict[str, str]:
        found = {}
        for m, size in enumerate(self.model.codebook_sizes):
            value = metrics[f"codebook{m}/perplexity"]
            if value < COLLAPSED_SHARE * size:
                found[f"codebook {m} has collapsed"] = (
                    f"its perplexity over the validation set is {value:.1f} of {size} codes "
                    f"({metrics[f'codebook{m}/dead_codes']} never used). Try quantizer/revival=random, "
                    "quantizer/init=data, a smaller quantizer.codebook.size or quantizer.codebook.dim=8, "
                    "a lower learning rate, or quantizer=fsq, which cannot collapse"
                )
        return found

    def _terms(self, output: Output, x: Tensor) -> dict[str, Tensor]:
        """Every loss term, plain and weighted, and their weighted sum `loss`."""
        reconstruction = self.reconstruction(output.decoded, x)
        plain = {f"reconstruction_{self.reconstruction.name}": (reconstruction, self.reconstruction.weight)}
        plain |= {name: (loss.value, loss.weight) for name, loss in output.losses.items()}
        terms = {name: value for name, (value, _) in plain.items()}
        weighted = {f"{name}_weighted": value * weight for name, (value, weight) in plain.items()}
        return {"loss": torch.stack(list(weighted.values())).sum(), **terms, **weighted, **output.stats}

    def _count(self, codes: list[Tensor]) -> list[Tensor]:
        return [count_codes(one, size) for one, size in zip(codes, self.model.codebook_sizes)]
