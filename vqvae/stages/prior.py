"""Stage 2: a prior on codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.data.codes import CodeBatch
from vqvae.images import Captions, grid
from vqvae.metrics.reconstruction import error_of_mean
from vqvae.metrics.registry import figure
from vqvae.priors.base import Prior, Scored
from vqvae.priors.sampling import Sampling
from vqvae.ranges import LessThanOne, checked
from vqvae.training.stage import Stage

OVERFITTING = 0.01  # validation bits above the best by more than this share, while training bits fall

LOSS = figure(
    "prior/loss", "the loss that the prior is trained on, in nats per code", panel="loss", report=False, dashboard=True
)
for bound, meaning in (("", ""), ("_bound", "an upper bound, of a prior whose likelihood is not known: ")):
    figure(
        f"prior/bits_per_code{bound}",
        f"{meaning}mean negative log2-likelihood of the prior over all codes of the split, teacher-forced"
        + ("" if bound else " (of prior=next_scale and delayed: codes of a scale, or step, are independent)"),
        better="lower",
        panel="bits per code",
        sweep=True,
        dashboard=True,
    )
    figure(f"prior/bits_per_code{bound}_{{m}}", f"{meaning}the same over the codes of one map", "lower", report=False)
    figure(f"prior/bits_per_item{bound}", f"bits_per_code{bound} times codes per item", better="lower")
    figure(
        f"prior/train_bits_per_code{bound}",
        f"bits_per_code{bound} of as many training items as the validation split has, spread over the training set",
        panel="bits per code",
        report=False,
        dashboard=True,
    )
    figure(
        f"prior/bits_per_code{bound}_error",
        f"standard error of bits_per_code{bound}, over the items of the split",
    )
GAP = figure(
    "prior/overfitting_gap",
    "bits per code of the validation split less those of as many training items, spread over the set",
)


@checked
class PriorStage(Stage):
    """Trains a prior on CodeBatches.

    The loss is the prior's own; metrics are in bits of all codes, under the name that the prior gives them (`bits_name`).
    `draw` turns codes into images uint8 (B, 1 or 3, H, W), for previews, `sampling` how they are drawn.
    class_dropout: share of examples whose class is hidden (label -1), or all conditions at once, so that the prior learns
    p(codes) beside p(codes | class). label_smoothing: share of the loss that all codes have in equal parts. class_names:
    captions of previews. condition_dropout: of a prior of several conditions, the share of examples in which each is hidden by
    itself. Raises UserError for values out of range.
    """

    keeps_best = True  # a prior overfits; its best validation step is the one to keep

    def __init__(
        self,
        prior: Prior,
        draw: Callable[[list[Tensor]], Tensor],
        sampling: Sampling,
        class_dropout: LessThanOne = 0.0,
        label_smoothing: LessThanOne = 0.0,
        class_names: Sequence[str] = (),
        condition_dropout: Sequence[float] = (),
    ) -> None:
        self.prior, self.draw, self.sampling, self.class_names = prior, draw, sampling, class_names
        self.class_dropout, self.condition_dropout = class_dropout, condition_dropout
        self.label_smoothing = label_smoothing
        self.monitor, self.train_monitor = f"prior/{prior.bits_name}", f"prior/train_{prior.bits_name}"
        self.headline = (self.monitor, self.train_monitor)
        self.networks: dict[str, nn.Module] = {"prior": prior}
        self.meters = nn.Module()

    def begin_step(self, step: int, steps: int) -> Hashable:
        return self.prior.begin_step(step, steps)

    def training_losses(self, batch: CodeBatch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        scored: Scored = self.forwards["prior"](batch.codes, self._hide_classes(batch.labels), self.label_smoothing)
        nats = torch.cat([nats.detach().flatten() for nats in scored.nats]).mean()
        yield "prior", scored.loss, {LOSS: scored.loss, self.monitor: nats / math.log(2)}

    def window_metrics(self) -> dict[str, float]:
        return {}

    def evaluate(self, batch: CodeBatch) -> dict[str, Tensor]:
        member = F.one_hot(batch.origin, 2).double()  # (B, 2)
        nats = [of_map.double().flatten(1).sum(1) for of_map in self.prior(batch.codes, batch.labels).nats]  # M x (B,)
        return {
            "examples": member.sum(0),
            **{f"nats{m}": of_map @ member for m, of_map in enumerate(nats)},
            "squares": sum(nats).square() @ member,
        }  # each (2,)

    def evaluation_metrics(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        examples, example_codes = sums["examples"].tolist(), self.prior.codes_per_sample
        counts = [math.prod(shape) for shape in self.prior.code_shapes]
        bits = [(sums[f"nats{m}"] / math.log(2)).tolist() for m in range(len(counts))]  # M x (validation, training)
        val, train = (sum(of_set) for of_set in zip(*bits))
        metrics = {
            self.monitor: val / (examples[0] * example_codes),
            self.monitor.replace("per_code", "per_item"): val / examples[0],
        }
        if examples[0] > 1:
            squares = float(sums["squares"][0]) / math.log(2) ** 2
            metrics[f"{self.monitor}_error"] = error_of_mean(val, squares, examples[0]) / example_codes
        for m, ((one, _), count) in enumerate(zip(bits, counts)):
            metrics[f"{self.monitor}_{m}"] = one / (examples[0] * count)
        if examples[1]:
            metrics[self.train_monitor] = train / (examples[1] * example_codes)
            metrics[GAP] = metrics[self.monitor] - metrics[self.train_monitor]
        return metrics

    def warnings(self, metrics: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
        if not best.keys() >= {self.monitor, self.train_monitor}:  # none before
            return {}
        now, train = metrics[self.monitor], metrics[self.train_monitor]
        lowest, train_then = best[self.monitor], best[self.train_monitor]
        if now <= lowest * (1 + OVERFITTING) or train >= train_then:
            return {}
        return {
            "the prior overfits": f"{now:.4g} {self.prior.bits_name} on validation codes, {lowest:.4g} at step {best['step']}, "
            f"while it fell from {train_then:.4g} to {train:.4g} on training codes. The best step's weights are kept; for "
            "better ones try a higher prior.network.dropout, prior.flip=true or a smaller prior.network; "
            "prior.trainer.early_stop_evals=3 saves the time"
        }

    def preview(self, batch: CodeBatch) -> dict[str, Tensor]:
        count = len(batch.labels)
        columns = (count + 1) // 2  # each of one class, or of one value of a condition
        names, labels = self._shown(columns)
        labels = labels.to(batch.labels.device)[torch.arange(count) % columns]
        drawn = self.draw(self.prior.sample(list(range(count)), labels, self.sampling))
        rows = [drawn[:columns], drawn[columns:]] if count > 1 else [drawn]
        return {"samples": grid(rows, Captions(columns=names))}

    def _shown(self, columns: int) -> tuple[list[str], Tensor]:
        """Captions and labels of a preview's columns, whose first are repeated where there are more columns than labels."""
        if self.prior.conditions is None:
            every = torch.arange(self.prior.num_classes) if self.prior.num_classes else torch.full((1,), -1)
            names = list(self.class_names)
        else:
            names, every = self.prior.conditions.examples(columns)
            every = every if names else self.prior.classes.no_labels(1)
        rows = torch.arange(columns) % len(every)
        return [names[row] for row in rows.tolist()] if names else [], every[rows]

    def _hide_classes(self, labels: Tensor) -> Tensor:
        """Labels (B,) of which a share of `class_dropout` is -1; drawn for the global batch, sliced by rank.

        Of labels (B, F), that share is without all conditions, and each condition is hidden by itself with its own share.
        """
        conditions, shares = self.prior.conditions, [self.class_dropout, *self.condition_dropout]
        if not any(shares):
            return labels
        if conditions is None:
            own = distributed.draw_of_rank(lambda rows: torch.rand(rows, device=labels.device), len(labels))
            return labels.masked_fill(own < self.class_dropout, -1)
        own = distributed.draw_of_rank(lambda rows: torch.rand(rows, len(shares), device=labels.device), len(labels))
        all_hidden = own[:, 0] < self.class_dropout  # (B,)
        hidden = [all_hidden | (own[:, i] < share) for i, share in enumerate(self.condition_dropout, 1)]
        return conditions.hide(labels, torch.stack(hidden, dim=1))
