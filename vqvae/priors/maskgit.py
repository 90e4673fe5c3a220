"""Masked bidirectional transformer on codes (MaskGIT): many codes are drawn at a time, in any order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.devices.graphs import captures_on
from vqvae.errors import UserError
from vqvae.networks.attention import angles_of
from vqvae.networks.blocks import Dropout
from vqvae.priors.base import Prior, Scored
from vqvae.priors.heads import Head
from vqvae.priors.sampling import Drawing, Known, OnProgress, Way
from vqvae.priors.transformer import Block, make_blocks
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked

EVALUATION_SEED = 0
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, lie evenly wherever they start
GUMBEL_SCALE = 4.5  # of the noise on confidences, as in MaskGIT's published configuration


class MaskedMap(nn.Module):
    """p(each hidden code | known codes, condition) of one code map with dims `grid`, 1 or more; N is their product.

    A transformer without a causal mask (MaskGIT, arXiv 2202.04200, section 3): pre-norm blocks, the condition, which knows the
    position, added to every token. (In the paper: post-norm as in BERT, and an output layer tied to the embedding.)
    """

    angles: Tensor
    halton_rank: Tensor
    blocks: Sequence[Block]

    def __init__(
        self, digits: list[int], grid: tuple[int, ...], width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid, self.mask_token = grid, math.prod(digits)
        self.embedding = nn.Embedding(self.mask_token + 1, width)
        self.dropout = Dropout(dropout)
        self.blocks = make_blocks(width, layers, heads, dropout)  # type: ignore[assignment]
        self.norm, self.head = nn.LayerNorm(width), Head(width, digits)
        self.register_buffer("angles", angles_of(grid, width // heads), persistent=False)
        self.register_buffer("halton_rank", halton_order(grid).argsort(), persistent=False)

    def forward(self, codes: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        """codes (B, N), bool known (B, N), condition (B, width, *s) -> hidden states (B, N, width).

        Codes that are not known have no influence.
        """
        tokens = self.embedding(codes.masked_fill(~known, self.mask_token))  # (B, N, width)
        condition = condition.flatten(2).transpose(1, 2)  # (B, N, width)
        style, x = condition.mean(1), self.dropout(tokens + condition)
        for block in self.blocks:
            x = block(x, style, self.angles, causal=False)  # every position sees all
        return self.norm(x)


@checked
class MaskGIT(Prior):
    """One masked transformer per code map; coarser maps and the class as conditions (arXiv 2202.04200).

    Its likelihood is that of the mixture over all orders in which codes can be drawn one by one, of which `forward` gives
    an upper bound (ARDM: Hoogeboom et al. 2021, arXiv 2110.02037, equations 2 and 3). Two ways of sampling:

    - `halton`: positions in the order of a low-discrepancy sequence, so that codes drawn together lie far apart
      (Halton-MaskGIT: Besnier et al. 2025, arXiv 2503.17076). With as many steps as codes it draws exactly from the model
      in that order.
    - `confidence`: a code is drawn for every unknown position, and the most probable are kept, Gumbel noise added to their
      log-probabilities (MaskGIT, section 3.2); these are with guidance, before temperature, top_k and top_p. The noise
      falls with the share of codes that stay unknown (in MaskGIT linearly with the steps).

    Args:
        code_shapes, digits, num_classes: as in Prior; maps of any number of dims.
        width, layers, heads: of each transformer.
        dropout: share of the input's and of every branch's channels that are dropped.
        steps: network calls to draw a map, where Sampling has none; fewer where fewer codes are unknown.

    Raises UserError for sizes that make no network.
    """

    bits_name = "bits_per_code_bound"
    draws = None
    methods = ("confidence", "halton")
    networks: Sequence[MaskedMap]

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        layers: Count,
        heads: Count,
        dropout: LessThanOne,
        steps: Count,
    ) -> None:

        if any(len(of_map) > 1 for of_map in digits):
            raise UserError("a masked prior predicts each code whole: take prior/head=flat, or an autoregressive prior")

        def network(digits: list[int], shape: tuple[int, ...]) -> MaskedMap:
            return MaskedMap(digits, shape, width, layers, heads, dropout)

        super().__init__(code_shapes, digits, num_classes, width, network)
        self.steps = steps

    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        """The bound: of every map n codes are hidden, n uniform on 1 .. N, and cost N / n times their nats; others cost 0.

        Its expectation over the draws is the mean over all orders of the nats of the codes drawn one by one, which is no
        less than those of the orders' mixture (Jensen). In training draws come from torch's global generator, for the
        batch of all ranks, as dropout does. In evaluation they come from a fixed one, so that the bound depends on the batch
        alone, on whatever rank: on 2,000 images of 8x8 codes in batches of 250, other seeds moved 7.72 bits by 0.017 (one
        standard deviation).
        """
        generator = None if self.training else torch.Generator().manual_seed(EVALUATION_SEED)
        nats, losses = [], []
        for m, (network, target) in enumerate(zip(self.networks, codes)):
            flat = target.flatten(1)  # (B, N)
            weight = draw_weights(flat, generator)
            hidden = network(flat, weight == 0, self.condition(m, codes, labels))  # (B, N, width)
            cost, loss = network.head.score(hidden, flat, label_smoothing, dim=2)  # (B, N)
            nats.append((weight * cost).view(target.shape))  # (B, *s)
            losses.append((weight * loss).sum())
        return Scored(sum(losses) / sum(map(torch.numel, codes)), nats)  # type: ignore[arg-type]

    def rounds(self, way: Way) -> list[int]:
        """How often a position of each map is drawn."""
        counts, steps = map(math.prod, self.code_shapes), way.steps or self.steps
        redrawn = (way.method or self.methods[0]) == "confidence"
        return [min(steps, count) if redrawn else 1 for count in counts]

    def noise_count(self, way: Way) -> int:
        return sum(2 * rounds * math.prod(shape) for rounds, shape in zip(self.rounds(way), self.code_shapes))

    def sample_chunk(
        self, noise: Tensor, labels: Tensor, drawing: Drawing, known: Known | None, on_progress: OnProgress | None
    ) -> list[Tensor]:
        way = drawing.way
        steps, rounds = way.steps or self.steps, self.rounds(way)
        scores_of = {"halton": in_halton_order, "confidence": by_confidence}[way.method or self.methods[0]]
        codes, done = self.start_codes(labels, known)
        copies = 2 if way.guided else 1  # with the class, and without
        counts = [math.prod(shape) for shape in self.code_shapes]
        noises = noise.split([2 * r * count for r, count in zip(rounds, counts)], dim=1)
        for m, network in enumerate(self.networks):
            condition = self.sampling_condition(m, codes, labels, way)
            flat, here = codes[m].view(len(labels), -1), done[m].view(len(labels), -1)  # (B, N)
            unknown = here.logical_not().sum(1)  # (B,)
            some_known = known is not None and not captures_on(
                labels.device
            )  # where the host can look, it needs fewer calls
            calls = min(steps, int(unknown.max()) if some_known else counts[m])
            of_map = noises[m].unflatten(1, (rounds[m], 2, -1))  # (B, rounds, 2, N)
            for step, remaining in enumerate(plan(unknown, steps, calls)):
                for_code, for_order = of_map[:, min(step, rounds[m] - 1)].unbind(1)  # (B, N)
                hidden = network(flat.repeat(copies, 1), here.repeat(copies, 1), condition)
                logits = network.head.logits(hidden, dim=2)  # (copies B, N, K)
                progress = (sum(counts[:m]) + here.sum(1)) / self.codes_per_sample  # (B,)
                logits = drawing.guide(logits, progress[:, None, None])  # (B, N, K)
                drawn = drawing.draw(logits.flatten(0, 1), for_code.flatten()).view_as(flat)  # (B, N)
                scores = scores_of(network.halton_rank, logits, drawn, remaining / counts[m], for_order)
                scores = scores.masked_fill(here, -torch.inf)
                rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)  # (B, N)
                chosen = (rank < (here.logical_not().sum(1) - remaining)[:, None]) & ~here
                flat.copy_(torch.where(chosen, drawn, flat))
                here |= chosen
                if on_progress is not None:
                    on_progress(codes, done)
        return codes


# Orders of drawing: -> scores (B, N) or (N,); of the unknown positions those with the highest become known. They are given
# each position's halton_rank (N,), logits (B, N, K), the drawn codes (B, N), the share (B,) of the map's codes that will
# still be unknown after this step, and noise (B, N) uniform in [0, 1).


def in_halton_order(rank: Tensor, logits: Tensor, drawn: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    return -rank.double().expand(drawn.shape)


def by_confidence(rank: Tensor, logits: Tensor, drawn: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    log_p = logits.log_softmax(2).gather(2, drawn[:, :, None])[:, :, 0]  # (B, N)
    gumbel = -torch.log(-torch.log1p(-noise))  # never minus infinity, which marks known codes
    return log_p + GUMBEL_SCALE * share[:, None] * gumbel


def plan(unknown: Tensor, steps: int, rounds: int) -> list[Tensor]:
    """unknown (B,) codes, at most `steps` network calls a sample -> after each of `rounds` calls, how many remain (B,).

    A cosine, as in MaskGIT, but every sample's calls give it at least one code each, and a sample needs no more calls than it
    has unknown codes; what others need has no influence.
    """
    calls = unknown.clamp(max=steps)
    rows = []
    for call in range(1, rounds + 1):
        share = (call / calls.clamp(min=1).double()).clamp(max=1)  # a sample without unknown codes has no calls
        cosine = (unknown * torch.cos(math.pi / 2 * share)).floor().long()
        rows.append(torch.minimum(cosine, (unknown - call).clamp(min=0)))  # (B,)
    return rows


def draw_weights(codes: Tensor, generator: torch.Generator | None) -> Tensor:
    """codes (B, N) -> weights (B, N): N / n for the n codes of each example that are hidden, 0 for the others.

    n is uniform on 1 .. N for each example, and spread evenly over them: a golden-ratio sequence with one random start
    (as Kingma et al. 2021, arXiv 2107.00630, spread diffusion times, at equal distances; this one is even over any part of
    the batch too). generator: where None, torch's global one draws for the batch of all ranks.
    """
    count = codes.shape[1]
    device = codes.device if generator is None else generator.device

    def draw(batch: int) -> Tensor:
        start = torch.rand((), dtype=torch.float64, device=device, generator=generator)
        places = (start + torch.arange(batch, device=device, dtype=torch.float64) * GOLDEN) % 1  # (batch,), float64
        hidden = 1 + (places * count).long()  # (batch,), n
        rank = torch.rand(batch, count, device=device, generator=generator).argsort(1).argsort(1)
        return ((rank < hidden[:, None]) * (count / hidden[:, None])).float()  # (batch, N)

    weights = draw(len(codes)) if generator is not None else distributed.draw_of_rank(draw, len(codes))
    return weights.to(codes.device)  # (B, N)


def halton_order(grid: tuple[int, ...]) -> Tensor:
    """Dims *s -> flat positions (N,) as a Halton sequence of as many dims (bases 2, 3, 5...) first hits them.

    Points start at index 1, as in Halton-MaskGIT; integers make it exact.
    """
    bases = [2, 3, 5, 7][: len(grid)]
    # A cell of the grid is 1 / size wide, so it holds an interval [a, a + 1) / base^digits wherever base^digits >= 2 size;
    # among any product of base^digits successive points one lies in each box of such intervals: every cell is hit.
    count = math.prod(next(b**i for i in itertools.count() if b**i >= 2 * size) for b, size in zip(bases, grid))
    position = torch.zeros(count, dtype=torch.int64)
    for base, size in zip(bases, grid):
        rest, mirrored, scale = torch.arange(1, count + 1), torch.zeros(count, dtype=torch.int64), 1
        while rest.any():
            mirrored, rest, scale = mirrored * base + rest % base, rest // base, scale * base  # the radical inverse
        position = position * size + mirrored * size // scale
    return torch.tensor(list(dict.fromkeys(position.tolist())))
