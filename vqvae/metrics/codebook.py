"""Use of codes: how many, and how evenly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.metrics.registry import figure

USE = {  # figures of one code map's counts: name -> protocol, better direction
    "perplexity": ("exp of the entropy of the code counts summed over {}", "higher"),
    "usage": ("share of codes that occur in {}", "higher"),
    "used_codes": ("codes that occur in {}", "higher"),
    "dead_codes": ("codes that do not occur in {}", "lower"),
    "count_histogram": ("codes by their share of use times K over {}; 1 is uniform use", "none"),
}

DASHBOARD = ("perplexity", "usage", "dead_codes")  # of a whole split; of training steps the first


def count_codes(codes: Tensor, codebook_size: int, passed: Tensor | None = None) -> Tensor:
    """Codes of any shape -> the number of uses of each (K,) int64; no host synchronisation.

    passed: a mask of the same shape. Vectors that were passed on unquantized have a code, but do not use it.
    """
    flat = codes.reshape(-1)
    uses = torch.ones_like(flat) if passed is None else passed.reshape(-1).logical_not().long()
    return torch.zeros(codebook_size, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, uses)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies: 1 if one code is used, K if all are used equally. counts (K,) -> 0-d."""
    p = counts.double() / counts.sum().clamp_min(1)  # clamp: no codes at all give perplexity 1
    return torch.exp(torch.special.entr(p).sum()).float()


class CodeCounts(nn.Module):
    """Integer counts of M code maps over several spans of steps at once; part of a checkpoint.

    Every batch counts towards all `spans`; `reset` begins one anew. Each rank counts its own vectors. What a checkpoint holds
    is the sum over ranks, and rank 0 takes it up again, so that a run may go on with another number of ranks: hence
    `state_dict` is called on all of them.
    """

    counts: Tensor  # (spans, sum of K_m): one addition a batch

    def __init__(self, codebook_sizes: list[int], spans: tuple[str, ...]) -> None:
        super().__init__()
        self.sizes, self.spans = list(codebook_sizes), spans
        self.register_buffer("counts", torch.zeros(len(spans), sum(codebook_sizes), dtype=torch.int64))
        self.register_state_dict_pre_hook(move_to_main)
        self.register_load_state_dict_post_hook(keep_on_main)

    def total(self) -> dict[str, list[Tensor]]:
        """Span -> M x (K_m,) int64, summed over ranks by one collective."""
        rows = distributed.all_reduce_sum([self.counts])[0]
        return {span: list(row.split(self.sizes)) for span, row in zip(self.spans, rows)}

    def add(self, batch_counts: list[Tensor]) -> None:
        """Counts of a batch, M x (K_m,)."""
        if batch_counts:
            self.counts += torch.cat(batch_counts)

    def reset(self, span: str) -> None:
        self.counts[self.spans.index(span)].zero_()


def move_to_main(counts: CodeCounts, *_: object) -> None:
    """Moves the counts of all ranks to rank 0, which alone writes checkpoints; their sum stays."""
    total = distributed.all_reduce_sum([counts.counts])[0]
    counts.counts.copy_(total if distributed.is_main() else torch.zeros_like(total))


def keep_on_main(counts: CodeCounts, *_: object) -> None:
    """All ranks have loaded the sum: all but rank 0 drop it."""
    if not distributed.is_main():
        counts.counts.zero_()


def declare_use(span: str, where: str, main: bool) -> None:
    """Declare the figures of `describe` and `histogram` over some items, as codebook/<span><name>_{m}.

    main: True shows perplexity, usage and dead codes in dashboards, and the perplexity among the curves.
    """
    whole = span == ""
    for name, (protocol, better) in USE.items():
        figure(
            f"codebook/{span}{name}_{{m}}",
            protocol.format(where),
            better,  # type: ignore[arg-type]
            panel="perplexity" if main and name == "perplexity" else None,
            report=whole and name != "count_histogram",
            sweep=whole and name in ("perplexity", "usage"),
            dashboard=main and name in (DASHBOARD if whole else DASHBOARD[:1]),
        )


declare_use("", "the whole split", main=True)


def describe(counts: Tensor) -> dict[str, float]:
    """Whole-set figures of one code map from its counts (K,), summed over ranks."""
    used = int((counts > 0).sum())
    return {
        "perplexity": float(perplexity(counts)),
        "usage": used / len(counts),
        "used_codes": used,
        "dead_codes": len(counts) - used,
    }


def histogram(counts: Tensor, bins: int = 16) -> dict[str, list[float]]:
    """Histogram over codes of their share of use times K (1: used as often as the average). -> bin edges, counts of codes."""
    relative = counts.double() * len(counts) / counts.sum().clamp_min(1)
    values, edges = torch.histogram(relative.cpu(), bins=bins)
    return {"edges": [round(e, 4) for e in edges.tolist()], "counts": [int(v) for v in values.tolist()]}


def binned(counts: Tensor, low: float, high: float) -> dict[str, list[float]]:
    """Counts (bins,) of bins of equal width over [low, high], in the same format."""
    edges = torch.linspace(low, high, len(counts) + 1, dtype=torch.float64)
    return {"edges": [round(e, 4) + 0.0 for e in edges.tolist()], "counts": [int(v) for v in counts.tolist()]}
