"""PixelSNAIL on codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.networks import blocks
from vqvae.networks.blocks import Dropout, attend
from vqvae.priors.autoregressive import AutoregressivePrior, MapNetwork
from vqvae.priors.base import check_heads, check_planes, plane_of
from vqvae.priors.heads import Head
from vqvae.priors.pixelcnn import gate
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked

KERNEL = 3  # of the causal convolutions; the attention sees the rest
FIRST_KERNEL = 5  # a wider first view


class CausalConv2d(nn.Module):
    """Convolution of what lies before a place in raster order.

    Output (r, c) sees kernel // 2 rows above r, from kernel // 2 columns before c to as many after it; and in row r as many
    before c, with `own` also c itself. (B, width_in, H, W) -> (B, width_out, H, W). By padding and cropping, the rows above and
    the row itself apart, in place of masks: no weight is wasted, none has to be zeroed.
    """

    def __init__(self, width_in: int, width_out: int, kernel: int, own: bool) -> None:
        super().__init__()
        half = kernel // 2
        self.above = nn.Conv2d(width_in, width_out, (half, kernel))
        self.beside = nn.Conv2d(width_in, width_out, (1, half + own), bias=False)  # the other has one
        self.pad_above = (half, half, half, -1)  # the last row is above none
        self.pad_beside = (half, 0 if own else -1, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(F.pad(x, self.pad_above)) + self.beside(F.pad(x, self.pad_beside))


class GatedResidual(nn.Module):
    """h + gate(causal convolution(ELU(causal convolution(ELU(h)))) + condition projected), h (B, width, H, W).

    (B, width, H, W) -> same.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = CausalConv2d(width, width, KERNEL, own=True)
        self.second = CausalConv2d(width, 2 * width, KERNEL, own=True)
        self.project = nn.Conv2d(width, 2 * width, 1, bias=False)  # the second convolution has one
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        x = self.second(self.dropout(F.elu(self.first(F.elu(h)))))  # (B, 2 width, H, W)
        return h + gate(x + self.project(condition))


class CausalAttention(nn.Module):
    """h + gate(h and what attention reads at all places before, in raster order).

    Queries are made of h and the condition, which knows the position; keys and values of those and of the code there, which
    h has not seen: so a place may read those strictly before it. Zeros stand before the first, that it too has something to
    read.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.features = nn.Conv2d(width, 3 * width, 1)  # query, key, value
        self.codes = nn.Conv2d(width, 2 * width, 1, bias=False)  # what key and value know of the code
        self.mix = nn.Conv2d(2 * width, 2 * width, 1)

    def forward(self, h: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """h, x, condition (B, width, H, W), x the codes' embeddings -> (B, width, H, W)."""
        width = h.shape[1]
        features = self.features(h + condition).flatten(2).transpose(1, 2)  # (B, N, 3 width)
        query, past = features[..., :width], features[..., width:]
        past = past + self.codes(x).flatten(2).transpose(1, 2)  # (B, N, 2 width)
        past = F.pad(past, (0, 0, 1, -1))  # by one place: what one may read now ends with itself
        mixed = self.read(query, past, causal=True).transpose(1, 2).view_as(h)  # (B, width, H, W)
        return h + gate(self.mix(F.elu(torch.cat([h, mixed], dim=1))))

    def read(self, query: Tensor, past: Tensor, causal: bool) -> Tensor:
        """query (B, n, width), past (B, N, 2 width): keys and values -> (B, n, width)."""
        parts = query, *past.chunk(2, dim=2)
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in parts)  # (B, heads, n, head_dim)
        return attend(query, key, value, causal).transpose(1, 2).flatten(2)


class Block(blocks.Block):
    """Gated residual layers, then attention."""

    layers: list[GatedResidual]

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedResidual(width, dropout) for _ in range(layers))  # type: ignore[assignment]
        self.attention, self.draws = CausalAttention(width, heads), dropout > 0

    def compute(self, h: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        for layer in self.layers:
            h = layer(h, condition)
        return self.attention(h, x, condition)


class ConvCache:
    """The past that a causal convolution needs. All tensors have their channels last.

    The rows above are convolved a row at a time, as soon as the last of them is complete, into `ahead` (B, W, width_out). The
    input of the present row lies position after position, zeros at the left, so that the window of a place is contiguous, and
    its convolution one matrix product.
    """

    def __init__(self, conv: CausalConv2d, columns: int, batch: int) -> None:
        _, width, half, _ = conv.above.weight.shape
        taps = conv.beside.weight.shape[3]
        self.pad = (0, 0, half, half)
        self.weight_above = conv.above.weight.contiguous(memory_format=torch.channels_last)
        self.weight = conv.beside.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()  # (taps width, width_out)
        assert conv.above.bias is not None
        self.bias = conv.above.bias
        self.rows = self.weight.new_zeros(batch, half, columns + 2 * half, width)  # above the present one
        row = self.weight.new_zeros(batch, half + columns, width)
        self.row, flat = row[:, half:], row.flatten(1)  # (B, W, width), (B, (half + W) width)
        self.windows = [flat[:, c * width : (c + taps) * width] for c in range(columns)]
        self.places = [self.row[:, c] for c in range(columns)]  # (B, width)
        self.ahead = self.bias.expand(batch, columns, -1)  # nothing is above the first row

    def end_row(self) -> None:
        self.rows = torch.cat([self.rows[:, 1:], F.pad(self.row, self.pad)[:, None]], dim=1)
        above = F.conv2d(self.rows.permute(0, 3, 1, 2), self.weight_above, self.bias)  # (B, width_out, 1, W)
        self.ahead = above[:, :, 0].transpose(1, 2)  # (B, W, width_out)

    def code(self, c: int) -> Tensor:
        """Column c of the present row, its input in `places` -> (B, width_out)."""
        return torch.addmm(self.ahead[:, c], self.windows[c], self.weight)


class ResidualCache:
    """One GatedResidual."""

    def __init__(self, layer: GatedResidual, columns: int, condition: Tensor) -> None:
        self.first = ConvCache(layer.first, columns, len(condition))
        self.second = ConvCache(layer.second, columns, len(condition))
        self.condition = condition.permute(0, 2, 3, 1)  # (B, H, W, width)
        self.project = layer.project.weight.flatten(1)  # (2 width, width)

    def code(self, r: int, c: int, h: Tensor) -> Tensor:
        """h (B, width) at row r, column c -> (B, width)."""
        if c == 0:
            if r > 0:
                self.first.end_row()
                self.second.end_row()
            self.second.ahead = self.second.ahead + F.linear(self.condition[:, r], self.project)  # (B, W, 2 width)
        torch.ops.aten.elu.out(h, out=self.first.places[c])
        torch.ops.aten.elu.out(self.first.code(c), out=self.second.places[c])
        return h + gate(self.second.code(c))


class AttentionCache:
    """One CausalAttention: `past` (B, N + 1, 2 width) are keys and values, moved by one place."""

    def __init__(self, attention: CausalAttention, condition: Tensor) -> None:
        self.attention, self.condition = attention, condition.flatten(2).transpose(1, 2)  # (B, N, width)
        batch, places, width = self.condition.shape
        self.width = width
        self.weight = attention.features.weight.flatten(1)  # (3 width, width)
        self.weight_codes = attention.codes.weight.flatten(1).t().contiguous()  # (width, 2 width)
        self.weight_mix = attention.mix.weight.flatten(1).t().contiguous()  # (2 width, 2 width)
        assert attention.mix.bias is not None
        self.bias_mix = attention.mix.bias
        self.past = condition.new_zeros(batch, places + 1, 2 * width)

    def code(self, position: int, h: Tensor, x: Tensor | None) -> Tensor:
        """h (B, width) at `position`, x (B, width): the embedding of the code before it -> (B, width)."""
        if x is not None:
            self.past[:, position].addmm_(x, self.weight_codes)
        features = F.linear(h + self.condition[:, position], self.weight, self.attention.features.bias)  # (B, 3 width)
        self.past[:, position + 1] = features[:, self.width :]
        query = features[:, None, : self.width]
        mixed = self.attention.read(query, self.past[:, : position + 1], causal=False)[:, 0]  # (B, width)
        return h + gate(torch.addmm(self.bias_mix, F.elu(torch.cat([h, mixed], dim=1)), self.weight_mix))


class BlockCache:
    """One Block."""

    def __init__(self, block: Block, columns: int, condition: Tensor) -> None:
        self.layers = [ResidualCache(layer, columns, condition) for layer in block.layers]
        self.attention = AttentionCache(block.attention, condition)


class PixelSNAILMap(MapNetwork):
    """The PixelSNAIL of one code map. 1-D maps (T) are grids of one row."""

    blocks: list[Block]

    def __init__(
        self,
        digits: list[int],
        grid: tuple[int, ...],
        width: int,
        blocks: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.grid, self.plane = grid, plane_of(grid)
        self.embedding = nn.Embedding(math.prod(digits), width)
        self.start = CausalConv2d(width, width, FIRST_KERNEL, own=False)  # a code never sees itself
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            Block(width, layers, heads, dropout) for _ in range(blocks)
        )
        self.head = Head(width, digits, planes=True)

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        x = self.embedding(codes.view(-1, *self.plane)).movedim(-1, 1)  # (B, width, H, W)
        h, condition = self.start(x), condition.view(x.shape)
        for block in self.blocks:
            h = block(h, x, condition)
        return F.elu(h).view(len(h), -1, *self.grid)  # (B, width, *s)

    def begin(self, condition: Tensor) -> tuple[ConvCache, list[BlockCache]]:
        condition, columns = condition.view(*condition.shape[:2], *self.plane), self.plane[1]  # (B, width, H, W)
        blocks = [BlockCache(block, columns, condition) for block in self.blocks]
        return ConvCache(self.start, columns, len(condition)), blocks

    def next_hidden(self, cache: tuple[ConvCache, list[BlockCache]], codes: Tensor, position: int) -> Tensor:
        start, blocks = cache
        r, c = divmod(position, self.plane[1])
        x = self.embedding(codes[:, position - 1]) if position else None  # (B, width)
        if x is not None:
            start.places[c - 1].copy_(x)  # of the row above, where c is 0
        if c == 0 and r > 0:
            start.end_row()
        h = start.code(c)  # (B, width)
        for block in blocks:
            for layer in block.layers:
                h = layer.code(r, c, h)
            h = block.attention.code(position, h, x)
        return F.elu(h)  # (B, width)


@checked
class PixelSNAIL(AutoregressivePrior):
    """One PixelSNAIL per code map, in raster order, coarser maps and the class as conditions (arXiv 1712.09763).

    Convolutions see the codes near by, and attention all others. Differs from the paper: a convolution sees 3 codes of the row
    above and 1 before in its own row (paper: 2 and 1, none to the right; then it is the attention that must find the code
    above on the right); gates are tanh times sigmoid (its code: any size times sigmoid, which grows from layer to layer, and
    rounding with it); ELU is not doubled by its negative, weights are not normalized; queries, keys and values are one
    linear map of their inputs, in several heads (gated residual networks, and one head); the gate after the attention has no
    hidden layer. The condition enters the gate of every residual layer.

    Args beside those of Prior:
        blocks: each of gated residual layers and one attention over all codes before.
        layers: residual layers of a block.
        heads: of the attention; they divide width.
        dropout: of the residual layers.

    Raises UserError for 3-D code maps and for sizes that make no network.
    """

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        blocks: Count,
        layers: Count,
        heads: Count,
        dropout: LessThanOne,
    ) -> None:
        check_planes(code_shapes, "a PixelSNAIL")
        check_heads(heads, width)

        def network(digits: list[int], shape: tuple[int, ...]) -> PixelSNAILMap:
            return PixelSNAILMap(digits, shape, width, blocks, layers, heads, dropout)

        super().__init__(code_shapes, digits, num_classes, width, network)
