"""Decoders that say how likely the data is: p(x | codes) of 8-bit data, so that a model is worth a number of bits."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.losses.heads import Head
from vqvae.metrics.registry import figure
from vqvae.ranges import Count, NonNegativeFloat, checked

BITS = figure(
    "model/bits_per_dim_reconstruction",
    "mean -log2 p(x | codes) over channels times positions, x in 0 .. 255",
    better="lower",
)
LEVELS = 256
HALF_STEP = 1 / (LEVELS - 1)  # half the distance of two levels in [-1, 1]
CHUNK = 2**14  # softmaxes at a time where no gradient is kept: 16 MB of logits
# Bounds of a logistic's log scale in [-1, 1]. Below: a level's share of a peak is 0.97 there, and gradients grow with 1 / scale
# (the same bound as PixelCNN++). Above: flat over all levels, and exp(-log scale) stays far from 0.
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 7.0


def to_levels(x: Tensor) -> Tensor:
    """x in [-1, 1], made of 0 .. 255 -> those integers, int64. (Rounded: x / 127.5 - 1 is not exact in float32.)"""
    return ((x.float() + 1) * 127.5).round().long()


@checked
class Likelihood(Head):
    """Base. Its loss is -log p(x | codes) in nats per dimension; dimensions are the C prod(S) numbers of an item.

    x must come from 8-bit data: its integers are recovered by rounding.

    Args:
        weight: factor of that loss in the total.
    """

    name: str

    def __init__(self, weight: NonNegativeFloat, variance: float) -> None:
        super().__init__(variance)
        self.weight = weight

    @abstractmethod
    def nats(self, output: Tensor, x: Tensor) -> Tensor:
        """Decoder output in float32, x (B, C, *S) -> -log p(x | codes) of each image, (B,)."""

    def losses(self, output: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {self.name: self.nats(output, x).sum() / x.numel()}

    def weights(self) -> dict[str, float]:
        return {self.name: self.weight}

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return {BITS: means[self.name] / math.log(2)}


class Categorical(Likelihood):
    """A softmax over the 256 levels for every dimension, all independent given the codes.

    The likelihood of PixelRNN (arXiv 1601.06759, section 3.4), there autoregressive; an author of the VQ-VAE paper names it
    as that paper's (github.com/google-deepmind/sonnet, issue 131). Output (B, C 256, *S): logits, level by level of each
    channel. Nothing tells the loss that neighboring levels are alike, and the last layer is wide.
    """

    name = "categorical"

    def decoder_channels(self, channels: int) -> int:
        return channels * LEVELS

    def nats(self, output: Tensor, x: Tensor) -> Tensor:
        logits, targets = rows_of(output), to_levels(x).movedim(1, -1).flatten()  # (n, 256), (n,)
        chunk = len(logits) if logits.requires_grad else CHUNK  # with a gradient, all must be kept anyway
        parts = zip(logits.split(chunk), targets.split(chunk))
        nats = torch.cat([F.cross_entropy(some, wanted, reduction="none") for some, wanted in parts])
        return nats.view(len(x), -1).sum(1)

    def reconstruct(self, output: Tensor) -> Tensor:
        """The mean of each dimension, which has the smallest expected squared error."""
        levels = torch.linspace(-1, 1, LEVELS, device=output.device)
        rows = rows_of(output)
        parts = [rows] if torch.compiler.is_exporting() else rows.split(CHUNK)  # their number would fix the batch size
        means = torch.cat([some.float().softmax(1) @ levels for some in parts])  # (n,)
        return means.view(len(output), *output.shape[2:], -1).movedim(-1, 1)  # (B, C, *S)


def rows_of(output: Tensor) -> Tensor:
    """(B, C 256, *S) -> (B prod(S) C, 256): a view where the output is channels-last."""
    return output.movedim(1, -1).reshape(-1, LEVELS)


@checked
class Logistic(Likelihood):
    """A mixture of discretized logistics per pixel (PixelCNN++, arXiv 1701.05517, sections 2.1 and 2.2).

        p(x | codes) = sum_k pi_k prod_c P(level of x_c | mean_kc + sum_(j<c) a_kcj x_j, scale_kc)

    A level has the logistic's mass within half a step of it; 0 and 255 have the tails too. The channels of a pixel share the
    component, and depend on the true values x_j of the channels before them through a = tanh(output), as in the authors'
    code. Output (B, mixtures (C + 1)(C + 2) / 2, *S): of each component its logit, C means, C log scales, C (C - 1) / 2
    coefficients.

    Three deviations. The means after the first are relative to it: gradients of independent ones cancel in a new decoder,
    which then learns the colors' dependence long before it looks at the codes (after 100 steps of a small autoencoder on
    CIFAR-10, 10 components: error of `reconstruct` 0.23 instead of 0.83 of the variance, 6.39 instead of 6.63 bits per dim). An
    output of 0 is as wide as the data, where the means have a gradient. The mass is formed as a product, not as a difference
    (see `log_mass`), so it needs no special case where it is small.

    Raises UserError for `mixtures` below 1.
    """

    name = "logistic"

    def __init__(self, weight: NonNegativeFloat, mixtures: Count, variance: float) -> None:
        super().__init__(weight, variance)
        self.mixtures = mixtures
        self.first_log_scale = math.log(math.sqrt(3 * variance) / math.pi)  # a logistic's variance is pi^2 scale^2 / 3

    def decoder_channels(self, channels: int) -> int:
        return self.mixtures * (channels + 1) * (channels + 2) // 2

    def nats(self, output: Tensor, x: Tensor) -> Tensor:
        log_weights, means, log_scales, coefficients = self.split(output)
        true = x[:, None]  # (B, 1, C, *S)
        shifts = [shift(coefficients, true, c) for c in range(x.shape[1])]
        log_masses = log_mass(to_levels(true), means + torch.stack(shifts, 2), log_scales)  # (B, k, C, *S)
        return -torch.logsumexp(log_weights + log_masses.sum(2), 1).flatten(1).sum(1)

    def reconstruct(self, output: Tensor) -> Tensor:
        """The mean of each dimension, within half a level; it has the smallest expected squared error.

        Channels are chained within each component by their means: that of channel c is shifted by a times the means of
        those before it. Exact for one channel, and for more where the edges 0 and 255 hold little mass.
        """
        log_weights, means, log_scales, coefficients = self.split(output.float())
        chained = means[:, :, :0]
        for c in range(means.shape[2]):
            mean = clipped_mean(means[:, :, c] + shift(coefficients, chained, c), log_scales[:, :, c])  # (B, k, *S)
            chained = torch.cat([chained, mean[:, :, None]], 2)
        return (log_weights.exp()[:, :, None] * chained).sum(1)  # (B, C, *S)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log weights (B, k, *S), means and log scales (B, k, C, *S), coefficients (B, k, C (C - 1) / 2, *S)."""
        fields = output.unflatten(1, (self.mixtures, -1))  # (B, k, (C + 1)(C + 2) / 2, *S)
        c = (math.isqrt(8 * fields.shape[2] + 1) - 3) // 2
        logits, means, log_scales, coefficients = fields.split([1, c, c, c * (c - 1) // 2], 2)
        means = torch.cat([means[:, :1], means[:, :1] + means[:, 1:]], 1)
        log_scales = (log_scales + self.first_log_scale).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        return logits[:, :, 0].log_softmax(1), means, log_scales, coefficients.tanh()


def shift(coefficients: Tensor, earlier: Tensor, c: int) -> Tensor:
    """sum_(j<c) a_cj x_j: coefficients (B, k, C (C - 1) / 2, *S), earlier (B, k or 1, >= c, *S) -> (B, k, *S)."""
    first = c * (c - 1) // 2
    return (coefficients[:, :, first : first + c] * earlier[:, :, :c]).sum(2)


def log_mass(levels: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of the mass that a logistic in [-1, 1] has for each of the levels 0 .. 255; shapes broadcast.

    With F the logistic function, F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)), whose factors are all accurate in logarithms.
    """
    inverse = torch.exp(-log_scale)
    centered = (levels / 127.5 - 1) - mean
    below = F.logsigmoid((centered + HALF_STEP) * inverse).masked_fill(levels == LEVELS - 1, 0)  # 255 has all above it
    above = F.logsigmoid((HALF_STEP - centered) * inverse).masked_fill(levels == 0, 0)  # 0 has all below it
    width = torch.log(-torch.expm1(-2 * HALF_STEP * inverse))
    return below + above + width.masked_fill((levels == 0) | (levels == LEVELS - 1), 0)


def clipped_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of a logistic clipped to [-1, 1]: -1 + integral of 1 - F.

    That of the 256 levels is the same integral by the midpoint rule: half a level off at most, where the scale is tiny.
    """
    scale = log_scale.exp()
    return scale * (F.softplus((mean + 1) / scale) - F.softplus((mean - 1) / scale)) - 1
