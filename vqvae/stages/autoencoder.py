"""Stage 1: a VQ-VAE."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vqvae.data.items import ItemBatch
from vqvae.images import Captions, Show, grid
from vqvae.losses.objective import Objective
from vqvae.metrics.codebook import CodeCounts, binned, count_codes, declare_use, describe, histogram
from vqvae.metrics.reconstruction import MSE, PSNR, reconstruction_metrics, reconstruction_sums
from vqvae.metrics.registry import figure
from vqvae.metrics.spacing import spacing, spacing_with_histogram
from vqvae.model import VQVAE, Output
from vqvae.stages.collapse import collapse_warnings
from vqvae.training.stage import Stage

SPANS = {  # of steps that codes are counted over
    "batch": "the last step",
    "window": "the steps since the last log",
    "epoch": "the steps since the epoch began",
    "run": "all steps so far",
}
HISTOGRAM_RANGES = {"similarity": (-1.0, 1.0), "relative_error": (0.0, 2.0)}  # of quantizers.base.Quantized.histograms

for span, steps in SPANS.items():
    declare_use(f"{span}_", steps, main=span == "window")
LOSS = figure("autoencoder/loss", "weighted sum of all loss terms", panel="loss", report=False, dashboard=True)
figure(
    "autoencoder/reconstruction_{loss}",
    "loss term on the reconstruction; ..._weighted: times its weight",
    report=False,
)
figure("autoencoder/{term}_{level}", "loss term of that name of the quantizer; see docs/quantizers.md", report=False)
figure("autoencoder/{term}_weighted_{level}", "the loss term times its weight", report=False)
figure("autoencoder/code_distance_{level}", "mean distance of a vector to its code", report=False)
figure("autoencoder/identity_mapped_{level}", "share of vectors that are passed on unquantized", report=False)
EPOCH = figure("autoencoder/epoch", "passes over the training data", report=False)
figure(
    "autoencoder/similarity_histogram_{level}",
    "vectors of the split by their cosine with their code; where codes vote, with the most similar one",
    panel="cosine of vector and code",
    report=False,
)
figure(
    "autoencoder/relative_error_histogram_{level}",
    "vectors of the split by their distance to their code over their length",
    panel="|vector - code| / |vector|, 2 and beyond at the end",
    report=False,
)


class Observer(Protocol):
    """What else is measured of reconstructions in an evaluation."""

    @property
    def monitor(self) -> str:
        """Name of its figure, of which lower is better."""

    def sums(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]: ...
    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]: ...


class AutoencoderStage(Stage):
    """Trains a VQ-VAE on ItemBatches. Loss: terms of the objective + every loss of the quantizers, weighted.

    `variance` is that of the training data in [-1, 1]. `show` draws x for previews. `epoch_steps`: steps that one pass
    over the training data takes; None where nothing is trained. `observers` add figures to evaluations.
    """

    meters: CodeCounts
    monitor = MSE
    headline = (PSNR, "model/bits_per_dim_reconstruction", "codebook/perplexity_0", "codebook/usage_0")
    keeps_best = False  # the last weights: no choice is made on the validation set

    def __init__(
        self,
        model: VQVAE,
        objective: Objective,
        variance: float,
        show: Show,
        epoch_steps: Fraction | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.model, self.objective, self.variance, self.show = model, objective, variance, show
        self.epoch_steps, self.epochs = epoch_steps, Fraction(0)
        self.observers = list(observers)
        self.networks: dict[str, nn.Module] = {"model": model}
        self.meters = CodeCounts(model.codebook_sizes, tuple(SPANS))
        self.done = 0, 0  # steps, and of how many
        self.vectors: list[int] = []  # that the last evaluation counted, of each map
        self.counted: list[list[Tensor]] = []  # of the step at hand, a micro-batch each: M x (K_m,)

    def begin_run(self, batches: Iterator[ItemBatch]) -> None:
        self.model.begin_run(batch.x for batch in batches)

    def begin_step(self, step: int, steps: int) -> Hashable:
        self.counted, self.done = [], (step + 1, steps)
        self.meters.reset("batch")
        if self.epoch_steps is not None:
            self.epochs = (step + 1) / self.epoch_steps  # when this step is done
            if step // self.epoch_steps != (step - 1) // self.epoch_steps:
                self.meters.reset("epoch")  # a batch across the border counts towards the epoch that ends
        return self.model.begin_step(step, steps)

    def training_losses(self, batch: ItemBatch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        output: Output = self.forwards["model"](batch.x)
        terms = self._weigh(self.objective(output.decoded, batch.x), output)
        self.counted.append(self._count(output))
        yield from self.losses_of(batch.x, output, terms)

    def losses_of(
        self, x: Tensor, output: Output, terms: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """What `training_losses` yields. x (B, C, *S), what the model makes of it, and all loss terms with their sum."""
        yield "model", terms[LOSS], terms

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        self.meters.add([sum(counts) * applied for counts in zip(*self.counted)])
        return self.model.after_step(applied)

    def window_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {EPOCH: float(self.epochs)}
        for span, maps in self.meters.total().items():
            for m, counts in enumerate(maps):
                metrics |= {f"codebook/{span}_{name}_{m}": value for name, value in describe(counts).items()}
                metrics[f"codebook/{span}_count_histogram_{m}"] = histogram(counts)
        self.meters.reset("window")
        return metrics | self._of_codebooks(spacing)

    def evaluate(self, batch: ItemBatch) -> dict[str, Tensor]:
        x, output = batch.x, self.model(batch.x)
        x_hat = self.objective.head.to_image(output.decoded)
        sums = reconstruction_sums(x_hat, x)
        for number, observer in enumerate(self.observers):
            sums |= {f"observed{number}:{name}": value for name, value in observer.sums(x, x_hat).items()}
        terms = self._weigh(self.objective(output.decoded, x), output)
        sums |= {f"term:{name}": value.double() * len(x) for name, value in terms.items()}
        sums |= {f"histogram:{name}": counts for name, counts in output.histograms.items()}
        return sums | {f"counts{m}": counts for m, counts in enumerate(self._count(output))}

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        metrics: dict[str, Any] = reconstruction_metrics(sums, self.variance)
        for name, value in sums.items():
            kind, _, name = name.partition(":")
            if kind == "term":
                metrics[name] = float(value / sums["items"])
            elif kind == "histogram":
                low, high = HISTOGRAM_RANGES[name.split("/")[-1]]
                metrics[of_level(f"{name}_histogram")] = binned(value, low, high)
        for number, observer in enumerate(self.observers):
            own = f"observed{number}:"
            metrics |= observer.figures({name[len(own) :]: sums[name] for name in sums if name.startswith(own)})
        means = {name: metrics[f"autoencoder/reconstruction_{name}"] for name in self.objective.weights}
        metrics |= self.objective.head.figures(means)
        maps = [sums[f"counts{m}"] for m in range(len(self.model.codebook_sizes))]
        self.vectors = [int(counts.sum()) for counts in maps]
        for m, counts in enumerate(maps):
            metrics |= {f"codebook/{name}_{m}": value for name, value in describe(counts).items()}
            metrics[f"codebook/count_histogram_{m}"] = histogram(counts)
        return metrics | self._of_codebooks(spacing_with_histogram)

    def preview(self, batch: ItemBatch) -> dict[str, Tensor]:
        x_hat = self.objective.head.to_image(self.model(batch.x).decoded)
        captions = Captions(rows=("original", "reconstruction"))
        return {"reconstructions": grid([self.show(row) for row in (batch.x, x_hat)], captions)}

    def warnings(self, metrics: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
        return collapse_warnings(self.model, metrics, self.vectors, *self.done)

    def _weigh(self, losses: dict[str, Tensor], output: Output) -> dict[str, Tensor]:
        """Every loss term, plain and weighted, and their weighted sum, by the figures' names. `losses`: of the objective."""
        terms = {f"autoencoder/reconstruction_{n}": value for n, value in losses.items()}
        terms |= {of_level(n): loss.value for n, loss in output.losses.items()}
        weights = self.objective.weights
        weighted = {f"autoencoder/reconstruction_{n}_weighted": value * weights[n] for n, value in losses.items()}
        weighted |= {of_level(f"{n}_weighted"): loss.value * loss.weight for n, loss in output.losses.items()}
        stats = {of_level(n): value for n, value in output.stats.items()}
        total = torch.stack(list(weighted.values())).sum() if weighted else output.decoded.new_zeros(())
        return {LOSS: total, **terms, **weighted, **stats}

    def _count(self, output: Output) -> list[Tensor]:
        maps = zip(output.codes, self.model.codebook_sizes, output.passed)
        return [count_codes(codes, size, passed) for codes, size, passed in maps]

    @torch.no_grad()
    def _of_codebooks(self, figures: Callable[[Tensor, float], dict[str, Any]]) -> dict[str, Any]:
        """figures(codes (K, d), order of their norm) of every map with a codebook; of one that maps share, computed once."""
        metrics: dict[str, Any] = {}
        known: list[tuple[Tensor, float, dict[str, Any]]] = []
        for m, (codes, order) in enumerate(zip(self.model.codebooks(), self.model.orders(), strict=True)):
            if codes is None or len(codes) < 2:  # one code has no distance to others
                continue
            values = next(
                (values for other, norm, values in known if norm == order and torch.equal(other, codes)), None
            )
            if values is None:
                values = figures(codes, order)
                known.append((codes, order, values))
            metrics |= {f"codebook/{name}_{m}": value for name, value in values.items()}
        return metrics


def of_level(name: str) -> str:
    """A name in Output -> the figure's name: level0/commitment -> autoencoder/commitment_0."""
    level, name = name.split("/")
    return f"autoencoder/{name}_{level.removeprefix('level')}"
