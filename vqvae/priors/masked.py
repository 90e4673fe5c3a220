"""Networks that see the known codes of a map and predict the others: each code whole, or in groups of bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqvae.networks.attention import angles_of
from vqvae.networks.blocks import Dropout
from vqvae.priors.heads import Head
from vqvae.priors.transformer import Block, make_blocks, over_all


class MaskedMap(nn.Module):
    """p(each hidden group | known groups, condition) of one code map with dims `grid`, 1 or more; N is their product.

    A code is one group, or G groups of as many bits, the lowest first, each of which is hidden and predicted on its own
    (MaskBit: Weber et al. 2024, arXiv 2409.16211, section 3.2). A transformer without a causal mask (MaskGIT, arXiv
    2202.04200, section 3): pre-norm blocks, the condition, which knows the position, added to every token. (In the paper:
    post-norm as in BERT, and an output layer tied to the embedding.)
    """

    angles: Tensor
    halton_rank: Tensor  # of each group: all first groups in Halton order, then all second ones
    places: Tensor
    blocks: Sequence[Block]

    def __init__(
        self, digits: list[int], grid: tuple[int, ...], width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.groups, self.mask_token = len(digits), digits[0]
        whole = self.groups == 1
        self.embedding = nn.Embedding(self.mask_token + 1, width) if whole else BitEmbedding(digits, width)
        self.dropout = Dropout(dropout)
        self.blocks = make_blocks(width, layers, heads, dropout)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, digits) if whole else GroupHeads(width, digits)
        self.register_buffer("angles", angles_of(grid, width // heads), persistent=False)
        starts = torch.arange(self.groups) * math.prod(grid)
        rank = halton_order(grid).argsort()[:, None] + starts  # (N, G)
        self.register_buffer("halton_rank", rank.flatten(), persistent=False)
        self.register_buffer("places", self.mask_token ** torch.arange(self.groups), persistent=False)

    def split(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> their groups (B, N G), those of a code side by side."""
        return (codes[:, :, None] // self.places % self.mask_token).flatten(1)  # (B, N G)

    def join(self, groups: Tensor) -> Tensor:
        """Groups (B, N G) -> codes (B, N)."""
        return (groups.unflatten(1, (-1, self.groups)) * self.places).sum(2)

    def forward(self, groups: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        """groups (B, N G), bool known (B, N G), condition (B, width, *s) -> hidden states (B, N, width).

        Groups that are not known have no influence.
        """
        tokens = self.embedding(groups.masked_fill(~known, self.mask_token))  # (B, N, width)
        condition = condition.flatten(2).transpose(1, 2)  # (B, N, width)
        style, x = condition.mean(1), self.dropout(tokens + condition)
        for block in self.blocks:
            x = block(x, style, self.angles, over_all)
        return self.norm(x)


class BitEmbedding(nn.Module):
    """A projection of a code's bits, -1 or 1, those of hidden groups 0: groups (B, N G) -> (B, N, width).

    A group is hidden where it has the value that no group has, 2^bits.
    """

    powers: Tensor

    def __init__(self, digits: list[int], width: int) -> None:
        super().__init__()
        self.groups, self.size, bits = len(digits), digits[0], digits[0].bit_length() - 1
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)
        self.project = nn.Linear(self.groups * bits, width)
        nn.init.normal_(self.project.weight, std=(self.groups * bits) ** -0.5)  # of variance 1, as nn.Embedding

    def forward(self, groups: Tensor) -> Tensor:
        known = groups[:, :, None] < self.size
        signs = (2 * (groups[:, :, None] // self.powers % 2) - 1) * known  # (B, N G, bits of a group)
        bits = signs.to(self.project.weight.dtype).flatten(1).unflatten(1, (-1, self.project.in_features))
        return self.project(bits)  # (B, N, width)


class GroupHeads(nn.Module):
    """A softmax over the values of each group, of the same hidden state; groups of a code lie side by side."""

    heads: Sequence[Head]

    def __init__(self, width: int, digits: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, [size]) for size in digits)  # type: ignore[assignment]

    def logits(self, hidden: Tensor, dim: int) -> Tensor:
        """Hidden states (B, N, C), of which `dim` is 2 -> logits (B, N G, K)."""
        return torch.stack([head.logits(hidden, dim) for head in self.heads], dim=2).flatten(1, 2)

    def score(self, hidden: Tensor, groups: Tensor, smoothing: float, dim: int) -> tuple[Tensor, Tensor]:
        """`Head.score` of groups (B, N G) -> nats and losses of each, (B, N G)."""
        parts = groups.unflatten(1, (-1, len(self.heads))).unbind(2)  # G x (B, N)
        scored = [head.score(hidden, part, smoothing, dim) for head, part in zip(self.heads, parts)]
        nats, losses = (torch.stack(of_groups, dim=2).flatten(1) for of_groups in zip(*scored))
        return nats, losses  # (B, N G)


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
