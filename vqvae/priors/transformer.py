"""Causal transformer on codes, in raster order or trained on random orders first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.networks import blocks
from vqvae.networks.attention import angles_of, rotate
from vqvae.networks.blocks import Dropout, attend
from vqvae.networks.marks import mark, mark_matrices
from vqvae.priors.autoregressive import AutoregressivePrior, MapNetwork
from vqvae.priors.context import Positions
from vqvae.priors.heads import Head
from vqvae.ranges import Count, LessThanOne, PositiveInt, Share, checked

# Attention: queries, keys and values (B, heads, N, head_dim) -> what each query reads, of the same shape.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def over_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, causal=False)


def over_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, causal=True)


class Block(blocks.Block):
    """x + attention(norm(x)), then x + MLP(norm(x)): a pre-norm block, (B, N, width) -> same.

    Both norms are scaled and shifted by a vector for the whole sample (adaLN: Peebles & Xie 2022, arXiv 2212.09748, section
    3.2, without its gates). Queries and keys are normalized (arXiv 2302.05442, section 2; here to a root mean square of 1,
    with one factor a head) and rotated by their positions (arXiv 2104.09864). The MLP has 4 width hidden channels and GELU.
    Dropout lies on what both branches add.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))
        self.sharpness = nn.Parameter(torch.ones(heads, 1, 1))  # of each head's attention
        mark(self, "sharpness", "is_factor")  # decay would make attention even
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout, self.draws = Dropout(dropout), dropout > 0

    def modulation(self, style: Tensor) -> tuple[Tensor, ...]:
        """style (B, width) -> scale and shift of both norms, 4 x (B, 1, width)."""
        return self.modulate(style)[:, None].chunk(4, dim=2)

    def compute(self, x: Tensor, style: Tensor, angles: Tensor, attention: Attention) -> Tensor:
        """style (B, width), angles (N, head_dim / 2) or (B, 1, N, head_dim / 2)."""
        modulation = self.modulation(style)
        return self.add(x, attention(*self.attended(x, modulation, angles)), modulation)

    def step(
        self, x: Tensor, modulation: tuple[Tensor, ...], angles: Tensor, keys: Tensor, values: Tensor, position: int
    ) -> Tensor:
        """x (B, 1, width) at `position` -> same, its key and value written into keys, values (B, heads, N, head_dim)."""
        here, past = slice(position, position + 1), slice(0, position + 1)
        q, keys[:, :, here], values[:, :, here] = self.attended(x, modulation, angles[here])
        return self.add(x, attend(q, keys[:, :, past], values[:, :, past], causal=False), modulation)

    def attended(self, x: Tensor, modulation: tuple[Tensor, ...], angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, N, head_dim)."""
        scale, shift = modulation[:2]
        qkv = self.qkv(self.norm(x) * (1 + scale) + shift)
        qkv = qkv.unflatten(2, (3 * self.heads, -1))  # (B, N, 3 heads, head_dim)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)  # 3 x (B, heads, N, head_dim)
        q, k = (F.rms_norm(x, x.shape[-1:]) for x in (q, k))
        return rotate(q * self.sharpness.type_as(q), angles), rotate(k, angles), v

    def add(self, x: Tensor, mixed: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """x (B, N, width), mixed (B, heads, N, head_dim) of the attention -> the block's output (B, N, width)."""
        scale, shift = modulation[2:]
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))  # (B, N, width)
        return x + self.dropout(self.down(F.gelu(self.up(self.mlp_norm(x) * (1 + scale) + shift))))


def make_blocks(width: int, layers: int, heads: int, dropout: float) -> nn.ModuleList:
    """`layers` blocks whose branches start small: 2 x layers of them are summed, and their sum should not grow with depth.

    They start without modulation. Their matrices are what optimizers.Muon is for.
    Raises UserError for a width that heads cannot share in pairs of channels.
    """
    if width % (2 * heads):
        raise UserError(f"heads must divide half of width={width}, got {heads}")
    blocks = [Block(width, heads, dropout) for _ in range(layers)]
    with torch.no_grad():
        for block in blocks:
            nn.init.zeros_(block.modulate[1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(block.modulate[1].bias)  # type: ignore[arg-type]
            for last in (block.out, block.down):
                last.weight /= math.sqrt(2 * layers)
            mark_matrices(block)
    return nn.ModuleList(blocks)


@dataclass
class Cache:
    """Keys and values of every layer (B, heads, N, head_dim), filled as codes are drawn, and what does not change:

    condition (B, N, width), the vectors of places (N, width), and the modulation of every layer.
    """

    keys: list[Tensor]
    values: list[Tensor]
    condition: Tensor
    place: Tensor
    modulations: list[tuple[Tensor, ...]]


class TransformerMap(MapNetwork):
    """The transformer of one code map with dims `grid`, 1 or more; N is their product.

    Token i predicts code i. Its input is the sum of code i-1, where that code lies (`place`), the codes next to the position
    that is predicted (`near`), as far as they come before it, and the condition there: which position it is, the class, and
    coarser maps where there are. Token 0 has a learned start in place of a code, so with its condition it is the class
    token. The mean of the condition over positions modulates every block. Where a token lies, for the attention, is the
    position that it predicts.

    While training, with `random_orders`, a share `random_share` of the examples follow an order of their own, drawn at
    random, of which place and condition tell the network (RAR: Yu et al. 2024, arXiv 2411.00776, section 3.2, target-aware
    positional embedding). Drawn from torch's global generator, for the batch of all ranks, as dropout is.
    """

    blocks: Sequence[Block]
    angles: Tensor
    near: Tensor
    random_share: Tensor

    def __init__(
        self,
        digits: list[int],
        grid: tuple[int, ...],
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        random_orders: bool,
    ) -> None:
        super().__init__()
        self.grid, self.codes_per_map, self.random_orders = grid, math.prod(grid), random_orders
        self.embedding = nn.Embedding(math.prod(digits), width)
        self.start = nn.Parameter(torch.zeros(width))
        self.place = Positions(grid, width)
        self.register_buffer("near", places_near(grid), persistent=False)
        self.mix_near = nn.Linear(self.near.shape[1] * width, width, bias=False)
        self.dropout = Dropout(dropout)
        self.blocks = make_blocks(width, layers, heads, dropout)  # type: ignore[assignment]
        self.norm, self.head = nn.LayerNorm(width), Head(width, digits)
        self.register_buffer("angles", angles_of(grid, width // heads), persistent=False)
        self.register_buffer("random_share", torch.zeros(()), persistent=False)

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        order = self.draw_order(len(codes)) if self.random_orders and self.training else None
        hidden = self.hidden_in_order(codes.flatten(1), condition, order)  # (B, N, width)
        return hidden.transpose(1, 2).unflatten(2, self.grid)  # (B, width, *s)

    def draw_order(self, batch: int) -> Tensor:
        """Orders (batch, N), rows of positions: a random permutation with probability `random_share`, else raster order."""
        device, count = self.random_share.device, self.codes_per_map
        permuted = distributed.draw_of_rank(lambda rows: torch.rand(rows, count, device=device), batch).argsort(1)
        chosen = distributed.draw_of_rank(lambda rows: torch.rand(rows, 1, device=device), batch) < self.random_share
        return torch.where(chosen, permuted, torch.arange(count, device=device))

    def hidden_in_order(self, codes: Tensor, condition: Tensor, order: Tensor | None) -> Tensor:
        """codes (B, N), condition (B, width, *s) -> hidden states (B, N, width), each of the codes before it in

        `order` (B, N), rows of positions; None is raster order. Codes and hidden states themselves lie in raster order.
        """
        condition = condition.flatten(2).transpose(1, 2)  # (B, N, width)
        style, angles = condition.mean(1), self.angles
        place, near = self.place().flatten(1).t(), self.beside(codes, order)  # (N, width), (B, N, width)
        if order is not None:
            codes, place, angles = codes.gather(1, order), F.embedding(order, place), angles[order][:, None]
            condition = condition.take_along_dim(order[:, :, None], dim=1)  # (B, N, width)
        seen = self.embedding(codes[:, :-1]) + place[..., :-1, :]  # (B, N - 1, width)
        x = torch.cat([self.start.expand(len(codes), 1, -1), seen], dim=1) + near + condition
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, style, angles, over_past)
        if order is not None:  # back to raster order
            x = x.take_along_dim(order.argsort(1)[:, :, None], dim=1)  # (B, N, width)
        return self.norm(x)

    def beside(self, codes: Tensor, order: Tensor | None) -> Tensor:
        """codes (B, N) -> what lies next to each position in `order`, of codes before it (B, N, width)."""
        count = self.codes_per_map
        vectors = F.pad(self.embedding(codes), (0, 0, 0, 1))  # (B, N + 1, width), zeros for what is outside
        near = vectors[:, self.near]  # (B, N, neighbors, width)
        if order is not None:
            rank = F.pad(order.argsort(1), (0, 1), value=count)  # (B, N + 1)
            known = rank[:, self.near] < rank[:, :count, None]  # (B, N, neighbors)
            near = (near * known[..., None]).take_along_dim(order[:, :, None, None], dim=1)
        return self.mix_near(near.flatten(2))  # (B, N, width)

    def begin(self, condition: Tensor) -> Cache:
        heads = self.blocks[0].heads
        shape = (len(condition), heads, self.codes_per_map, condition.shape[1] // heads)
        keys, values = ([condition.new_empty(shape) for _ in self.blocks] for _ in range(2))
        condition = condition.flatten(2).transpose(1, 2)  # (B, N, width)
        modulations = [block.modulation(condition.mean(1)) for block in self.blocks]
        return Cache(keys, values, condition, self.place().flatten(1).t(), modulations)

    def next_hidden(self, cache: Cache, codes: Tensor, position: int) -> Tensor:
        i = position
        seen = self.embedding(codes[:, i - 1]) + cache.place[i - 1] if i else self.start  # (B, width) or (width,)
        near = self.near[i]  # (neighbors,)
        beside = self.embedding(codes[:, near % self.codes_per_map]) * (near < self.codes_per_map)[:, None]
        x = (seen + self.mix_near(beside.flatten(1)) + cache.condition[:, i])[:, None]  # (B, 1, width)
        for block, modulation, keys, values in zip(self.blocks, cache.modulations, cache.keys, cache.values):
            x = block.step(x, modulation, self.angles, keys, values, i)
        return self.norm(x[:, 0])  # (B, width)


def places_near(grid: tuple[int, ...]) -> Tensor:
    """Dims *s -> (N, neighbors): flat positions next to each one, corners too, that come before it in raster order.

    N stands for those outside of the grid.
    """
    place = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1).flatten(0, -2)  # (N, dims)
    before = [step for step in itertools.product((-1, 0, 1), repeat=len(grid)) if step < (0,) * len(grid)]
    near = place[:, None] + torch.tensor(before)  # (N, neighbors, dims)
    inside = ((near >= 0) & (near < torch.tensor(grid))).all(2)
    strides = torch.tensor([math.prod(grid[axis + 1 :]) for axis in range(len(grid))])
    return torch.where(inside, (near * strides).sum(2), math.prod(grid))


@checked
class Transformer(AutoregressivePrior):
    """One causal transformer per code map (Esser et al. 2020, arXiv 2012.09841), coarser maps and the class as conditions.

    Unlike there, what conditions is no prefix of tokens but is added to the input at every position, as in
    TransformerMap.

    Args:
        code_shapes, digits, num_classes: as in Prior; maps of any number of dims.
        width, layers, heads: of each transformer.
        dropout: share of the input's and of every branch's channels that are dropped.
        random_order_until: share of the training steps during which orders are random, with a probability that falls
            linearly from 1 to 0 (RAR, arXiv 2411.00776, section 3.2; there it first stays at 1 for half of them). 0: always
            raster order. Evaluation and sampling always follow raster order.

    Raises UserError for sizes that make no network.
    """

    networks: Sequence[TransformerMap]

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        layers: Count,
        heads: Count,
        dropout: LessThanOne,
        random_order_until: Share = 0.0,
    ) -> None:

        def network(digits: list[int], shape: tuple[int, ...]) -> TransformerMap:
            return TransformerMap(digits, shape, width, layers, heads, dropout, random_orders=random_order_until > 0)

        super().__init__(code_shapes, digits, num_classes, width, network)
        self.random_order_until = random_order_until

    def begin_step(self, step: int, steps: int) -> None:
        if self.random_order_until:
            share = max(0.0, 1 - step / (self.random_order_until * steps))
            for network in self.networks:
                network.random_share.fill_(share)
