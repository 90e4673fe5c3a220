"""WaveNet on codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.networks.blocks import Block, Dropout
from vqvae.priors.autoregressive import AutoregressivePrior, MapNetwork
from vqvae.priors.heads import Head
from vqvae.ranges import Count, LessThanOne, PositiveInt, checked

SKIP = 4  # channels of the head over those of a layer: 256 over 64 in nv-wavenet; the paper names no number


class GatedLayer(Block):
    """A gated dilated causal convolution (van den Oord et al. 2016, arXiv 1609.03499, sections 2.1, 2.3 to 2.5).

    x (B, N, width), condition (B, N, 2 width) -> x with the residual added, and the gated (B, N, width) for the skip
    connections. Position t sees t - dilation and t: a kernel of 2, as one matrix product of both taps side by side. Biases
    come with the condition.
    """

    def __init__(self, width: int, dilation: int, last: bool, dropout: float) -> None:
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Linear(2 * width, 2 * width, bias=False)  # columns of t - dilation, then of t
        self.residual = None if last else nn.Linear(width, width, bias=False)  # nothing comes after the last layer's
        self.dropout, self.draws = Dropout(dropout), dropout > 0

    def compute(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        before = F.pad(x, (0, 0, self.dilation, 0))[:, : x.shape[1]]  # (B, N, width), zeros before the first
        a, b = (self.taps(torch.cat([before, x], dim=-1)) + condition).chunk(2, dim=-1)
        gated = self.dropout(torch.tanh(a) * torch.sigmoid(b))  # (B, N, width)
        return (x if self.residual is None else x + self.residual(gated)), gated


class LayerCache:
    """The last inputs of one layer while codes are drawn (fast WaveNet: Le Paine et al. 2016, arXiv 1611.09482).

    A ring of `dilation` pairs: t and t - dilation fall on the same pair, and take its two places in turn, so that both taps
    always lie side by side and go into one matrix product, with its columns in either order. The batch is the last
    dim, so that a pair (2 width, B) is contiguous. `gated` (width, B) is where the layer's output is written.
    """

    def __init__(self, layer: GatedLayer, gated: Tensor) -> None:
        width, batch = gated.shape
        self.dilation, self.gated = layer.dilation, gated
        before, now = layer.taps.weight.chunk(2, dim=1)
        self.weights = torch.cat([now, before], dim=1), layer.taps.weight  # t in the pair's first place, in its second
        self.weight_out = None if layer.residual is None else layer.residual.weight
        pairs = gated.new_zeros(layer.dilation, 2, width, batch)
        self.pairs = pairs.flatten(1, 2).unbind(0)  # dilation x (2 width, B)
        self.places = [place for turn in pairs.unbind(1) for place in turn.unbind(0)]  # 2 dilation x (width, B)
        self.sum = gated.new_empty(2 * width, batch)  # before the gate
        self.half = self.sum[:width]

    def place(self, position: int) -> Tensor:
        """Place (width, B) of the layer's input at `position`."""
        return self.places[position % len(self.places)]

    def code(self, position: int, condition: Tensor, out: Tensor | None) -> None:
        """The layer at `position`, its input in place; the next layer's input goes to `out`. condition (2 width, B)."""
        turn, index = divmod(position, self.dilation)
        torch.addmm(condition, self.weights[turn % 2], self.pairs[index], out=self.sum)
        self.half.tanh_()
        torch.ops.aten.glu.out(self.sum, 0, out=self.gated)  # the first half times sigmoid of the second
        if self.weight_out is not None:
            torch.addmm(self.place(position), self.weight_out, self.gated, out=out)


class MapCache:
    """The past of a WaveNetMap: a LayerCache a layer, and the gated outputs of all layers at one position.

    condition (B, N, width).
    """

    def __init__(self, network: WaveNetMap, condition: Tensor) -> None:
        batch, _, width = condition.shape
        self.project = network.project
        self.gated = condition.new_empty(len(network.layers) * width, batch)
        self.layers = [LayerCache(layer, part) for layer, part in zip(network.layers, self.gated.split(width))]
        self.conditions = condition.permute(1, 2, 0).contiguous().unbind(0)  # N x (width, B)
        self.sums = condition.new_empty(len(network.layers) * 2 * width, batch)  # of every layer, before its taps
        self.parts = self.sums.split(2 * width)

    def begin_position(self, position: int) -> None:
        """The condition at `position`, for the gates of all layers in one matrix product."""
        torch.addmm(self.project.bias[:, None], self.project.weight, self.conditions[position], out=self.sums)


class WaveNetMap(MapNetwork):
    """The WaveNet of one code map, whose codes in raster order are one sequence of length N.

    dilations 1, 2, 4, ... double `cycle` times, or until they reach beyond the sequence, and then begin again.
    """

    layers: Sequence[GatedLayer]

    def __init__(
        self, digits: list[int], grid: tuple[int, ...], width: int, layers: int, cycle: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid = grid
        cycle = min(cycle, max(1, (math.prod(grid) - 2).bit_length()))  # the last position has N - 1 codes before it
        self.embedding = nn.Embedding(math.prod(digits), width)
        self.project = nn.Linear(width, layers * 2 * width)  # the condition, for the gates of all layers
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            GatedLayer(width, 2 ** (index % cycle), index == layers - 1, dropout) for index in range(layers)
        )
        self.skip = nn.Linear(layers * width, SKIP * width)  # the sum of a 1x1 of every layer
        self.hidden, self.out = nn.Linear(SKIP * width, SKIP * width), Head(SKIP * width, digits)

    @property
    def head(self) -> Head:  # type: ignore[override]  # older checkpoints call it out
        return self.out

    @property
    def receptive_field(self) -> int:
        """The number of codes before a position that its logits can see."""
        return 1 + sum(layer.dilation for layer in self.layers)  # the input is one code behind already

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        sequence = self.embedding(codes.flatten(1))  # (B, N, width)
        x = F.pad(sequence, (0, 0, 1, 0))[:, :-1]  # a code never sees itself
        conditions = self.project(self._as_sequence(condition)).chunk(len(self.layers), dim=-1)
        outputs = []
        for layer, part in zip(self.layers, conditions):
            x, gated = layer(x, part)
            outputs.append(gated)
        summed = self.skip(torch.cat(outputs, dim=-1))  # (B, N, SKIP width)
        hidden = F.relu(self.hidden(F.relu(summed)))  # (B, N, SKIP width)
        return hidden.transpose(1, 2).unflatten(2, self.grid)  # (B, SKIP width, *s)

    def begin(self, condition: Tensor) -> MapCache:
        return MapCache(self, self._as_sequence(condition))

    def next_hidden(self, cache: MapCache, codes: Tensor, position: int) -> Tensor:
        if position > 0:
            cache.layers[0].place(position).copy_(self.embedding(codes[:, position - 1]).t())
        cache.begin_position(position)
        for index, (layer, condition) in enumerate(zip(cache.layers, cache.parts)):
            following = cache.layers[index + 1] if index + 1 < len(cache.layers) else None
            layer.code(position, condition, out=following.place(position) if following else None)
        x = torch.addmm(self.skip.bias[:, None], self.skip.weight, cache.gated)  # (SKIP width, B)
        x = torch.addmm(self.hidden.bias[:, None], self.hidden.weight, x.relu_())
        return x.relu_().t()  # (B, SKIP width)

    def _as_sequence(self, condition: Tensor) -> Tensor:
        return condition.flatten(2).transpose(1, 2)  # (B, N, width)


@checked
class WaveNet(AutoregressivePrior):
    """One WaveNet per code map, the class and coarser maps as conditions of every gate (arXiv 1609.03499).

    It is meant for 1-D codes, and reads maps of 2 or 3 dims in raster order as one sequence, so that it takes every list of
    maps. A code costs the same wherever it stands (fast WaveNet, arXiv 1611.09482), so sampling is linear in their number.

    Deviations from the paper: the first causal convolution is the embedding of the one code before, as wide as the layers;
    the skip connections of all layers are one matrix product of their concatenated outputs, which is the same sum;
    dilations that would reach beyond the sequence are left out of the cycle.

    Args:
        code_shapes, digits, num_classes: see Prior.
        width: channels of a layer; the head has 4 times as many.
        layers: of each map's network.
        cycle: how many layers it takes until the dilations 1, 2, 4, ... begin again. Together 2^cycle codes long.
        dropout: of the gated outputs.

    Raises UserError for sizes that make no network.
    """

    def __init__(
        self,
        code_shapes: list[tuple[int, ...]],
        digits: list[list[int]],
        num_classes: int,
        width: PositiveInt,
        layers: Count,
        cycle: Count,
        dropout: LessThanOne,
    ) -> None:

        def network(digits: list[int], shape: tuple[int, ...]) -> WaveNetMap:
            return WaveNetMap(digits, shape, width, layers, cycle, dropout)

        super().__init__(code_shapes, digits, num_classes, width, network)
