"""Stage 1: a VQ-VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.data.items import ItemBatch
from vqvae.images import Show, grid, to_uint8
from vqvae.losses.reconstruction import ReconstructionLoss
from vqvae.metrics.codebook import CodeCounts, binned, count_codes, describe, histogram
from vqvae.metrics.reconstruction import reconstruction_metrics, reconstruction_sums
from vqvae.metrics.spacing import spacing, spacing_with_histogram
from vqvae.model import VQVAE, Output
from vqvae.training.stage import Stage

COLLAPSED_SHARE = 0.05  # a whole-set perplexity below this share of K is called a collapse
SPANS = ("batch", "window", "epoch", "run")  # the last step; since the last log; since the epoch began; since step 0
HISTOGRAM_RANGES = {"similarity": (-1.0, 1.0), "relative_error": (0.0, 2.0)}  # of quantizers.base.Quantized.histograms


class AutoencoderStage(Stage):
    """Batches are (x (B, C, *S) in [-1, 1], labels). Loss: reconstruction + every loss of the quantizers, weighted.

    `variance` is that of the training data in [-1, 1]. `show` draws items for previews. `epoch_steps`: steps that one pass
    over the training data takes; None where nothing is trained.
    """

    meters: CodeCounts
    monitor = "mse"
    headline = ("psnr_db", "bits_per_dim_reconstruction", "codebook0/perplexity", "codebook0/usage")
    keeps_best = False  # the last weights: no choice is made on the validation set

    def __init__(
        self,
        model: VQVAE,
        reconstruction: ReconstructionLoss,
        variance: float,
        show: Show,
        epoch_steps: Fraction | None = None,
    ) -> None:
        self.model, self.reconstruction, self.variance, self.show = model, reconstruction, variance, show
        self.epoch_steps, self.epochs = epoch_steps, Fraction(0)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.meters = CodeCounts(model.codebook_sizes, SPANS)
        self.counted: list[list[Tensor]] = []  # of the step at hand, a micro-batch each: M x (K_m,)

    def begin_run(self, batches: Iterator[ItemBatch]) -> None:
        self.model.begin_run(batch.x for batch in batches)

    def begin_step(self, step: int, steps: int) -> None:
        self.model.begin_step(step, steps)
        self.meters.reset("batch")
        if self.epoch_steps is not None:
            self.epochs = (step + 1) / self.epoch_steps  # when this step is done
            if step // self.epoch_steps != (step - 1) // self.epoch_steps:
                self.meters.reset("epoch")  # a batch across the border counts towards the epoch that ends

    def training_losses(self, batch: ItemBatch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        output: Output = self.forwards["model"](batch.x)
        terms = self._weigh(self.reconstruction(output.decoded, batch.x), output)
        self.counted.append(self._count(output))
        yield "model", terms["loss"], terms

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        self.meters.add([sum(counts) * applied for counts in zip(*self.counted)])
        self.counted = []
        return self.model.after_step(applied)

    def window_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {"epoch": float(self.epochs)}
        for span, maps in self.meters.total().items():
            for m, counts in enumerate(maps):
                metrics |= {f"codebook{m}/{span}_{name}": value for name, value in describe(counts).items()}
                metrics[f"codebook{m}/{span}_count_histogram"] = histogram(counts)
        self.meters.reset("window")
        return metrics | self._of_codebooks(spacing)

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        x, output = batch.x, self.model(batch.x)
        sums = reconstruction_sums(self.reconstruction.to_image(output.decoded), x)
        terms = self._weigh(self.reconstruction(output.decoded, x), output)
        sums |= {f"term/{name}": value.double() * len(x) for name, value in terms.items()}
        sums |= {f"histogram/{name}": counts for name, counts in output.histograms.items()}
        return sums | {f"counts{m}": counts for m, counts in enumerate(self._count(output))}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        metrics: dict[str, Any] = reconstruction_metrics(sums, self.variance)
        for name, value in sums.items():
            if name.startswith("term/"):
                metrics[name.removeprefix("term/")] = float(value / sums["pictures"])
            elif name.startswith("histogram/"):
                low, high = HISTOGRAM_RANGES[name.split("/")[-1]]
                metrics[f"{name.removeprefix('histogram/')}_histogram"] = binned(value, low, high)
        metrics |= self.reconstruction.figures(metrics[f"reconstruction_{self.reconstruction.name}"])
        for m in range(len(self.model.codebook_sizes)):
            counts = sums[f"counts{m}"]
            metrics |= {f"codebook{m}/{name}": value for name, value in describe(counts).items()}
            metrics[f"codebook{m}/count_histogram"] = histogram(counts)
        return metrics | self._of_codebooks(spacing_with_histogram)

    def preview(self, batch: ItemBatch) -> dict[str, Tensor]:
        x_hat = self.reconstruction.to_image(self.model(batch.x).decoded)
        return {"reconstructions": grid([self.show(to_uint8(row)) for row in (batch.x, x_hat)])}

    def warnings(self, metrics: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
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

    def _weigh(self, reconstruction: Tensor, output: Output) -> dict[str, Tensor]:
        """Every loss term, plain and weighted, and their weighted sum `loss`."""
        plain = {f"reconstruction_{self.reconstruction.name}": (reconstruction, self.reconstruction.weight)}
        plain |= {name: (loss.value, loss.weight) for name, loss in output.losses.items()}
        terms = {name: value for name, (value, _) in plain.items()}
        weighted = {f"{name}_weighted": value * weight for name, (value, weight) in plain.items()}
        return {"loss": torch.stack(list(weighted.values())).sum(), **terms, **weighted, **output.stats}

    def _count(self, output: Output) -> list[Tensor]:
        maps = zip(output.codes, self.model.codebook_sizes, output.passed)
        return [count_codes(codes, size, passed) for codes, size, passed in maps]

    @torch.no_grad()
    def _of_codebooks(self, figures: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
        """figures(codes (K, d)) of every map with a codebook; of one that several maps share, computed once."""
        metrics: dict[str, Any] = {}
        known: list[tuple[Tensor, dict[str, Any]]] = []
        for m, codes in enumerate(self.model.codebooks()):
            if codes is None or len(codes) < 2:  # one code has no distance to others
                continue
            found = next((one for other, one in known if torch.equal(other, codes)), None)
            if found is None:
                found = figures(codes)
                known.append((codes, found))
            metrics |= {f"codebook{m}/{name}": value for name, value in found.items()}
        return metrics
