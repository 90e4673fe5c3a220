"""Building blocks for data of 1, 2 or 3 dims."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.ranges import NotEmpty, PositiveInt

SHORT_ATTENTION = 256
Widths = Annotated[list[PositiveInt], NotEmpty]


class ShortMaps(nn.Module):
    """Convolution that computes in the type of its weights where maps are shorter than its kernel: on CPUs under autocast.

    In bf16, torch 2.14 then makes gradients of the kernel of unwritten memory, or writes where it should not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        layer: Any = self
        if all(size >= kernel for size, kernel in zip(x.shape[2:], layer.kernel_size)):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(layer.weight.dtype))


class Conv1d(ShortMaps, nn.Conv1d):
    """nn.Conv1d, right on short maps too."""


class Conv2d(ShortMaps, nn.Conv2d):
    """nn.Conv2d, right on short maps too."""


class Conv3d(ShortMaps, nn.Conv3d):
    """nn.Conv3d, right on short maps too."""


class ConvTranspose1d(ShortMaps, nn.ConvTranspose1d):  # type: ignore[misc]  # its forward takes a size, too
    """nn.ConvTranspose1d, right on short maps too."""


class ConvTranspose2d(ShortMaps, nn.ConvTranspose2d):  # type: ignore[misc]  # its forward takes a size, too
    """nn.ConvTranspose2d, right on short maps too."""


class ConvTranspose3d(ShortMaps, nn.ConvTranspose3d):  # type: ignore[misc]  # its forward takes a size, too
    """nn.ConvTranspose3d, right on short maps too."""


CONV: dict[int, type[nn.Module]] = {1: Conv1d, 2: Conv2d, 3: Conv3d}
CONV_TRANSPOSE: dict[int, type[nn.Module]] = {1: ConvTranspose1d, 2: ConvTranspose2d, 3: ConvTranspose3d}


def conv(ndim: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Conv1d, Conv2d or Conv3d; raises UserError for another number of dims."""
    if ndim not in CONV:
        raise UserError(f"ndim must be 1, 2 or 3, got {ndim}")
    return CONV[ndim](*args, **kwargs)


def conv_transpose(ndim: int, *args: Any, **kwargs: Any) -> nn.Module:
    """ConvTranspose1d, 2d or 3d."""
    return CONV_TRANSPOSE[ndim](*args, **kwargs)


class Encoder(nn.Module):
    """(B, C, *S) -> (B, D, *s). stride: what the data dims *S must divide by, one number for all or one for each.

    channels: C, where the encoder says it.
    """

    stride: int | tuple[int, ...]
    channels: int | None = None

    def check(self, x: Tensor) -> None:
        """Raise UserError for an input of other channels."""
        if self.channels is not None and (x.ndim < 3 or x.shape[1] != self.channels):
            raise UserError(f"x must be of shape (B, {self.channels}, *S), got {tuple(x.shape)}")

    def strides(self, ndim: int) -> tuple[int, ...]:
        """The stride along each of `ndim` data dims."""
        return (self.stride,) * ndim if isinstance(self.stride, int) else self.stride

    def latent_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Data dims *S -> dims *s of the latents: *S / stride, unless the encoder says otherwise."""
        return self.places(size)

    def places(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Data dims *S -> *S / stride."""
        return tuple(length // stride for length, stride in zip(size, self.strides(len(size))))


class Decoder(nn.Module):
    """(B, D, *s) -> (B, channels, *s x stride)."""

    channels: int

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the layer that puts out the data: the last one that was made, unless the decoder says otherwise."""
        return [weight for weight in self.parameters() if weight.ndim > 1][-1]


class Block(nn.Module, ABC):
    """Block of a network, whose subclass writes `compute`.

    With `recomputed`, training keeps the input alone, and the backward pass computes the rest again (gradient checkpointing,
    arXiv 1604.06174): less memory, about a third more time, the same bits.
    """

    is_unit = True  # of networks that are shared out among ranks: read by distributed.shard
    recomputed = False
    draws = False  # True if `compute` draws random numbers, which must be the same again

    def forward(self, *inputs: Any) -> Any:
        if self.recomputed and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False, preserve_rng_state=self.draws)
        return self.compute(*inputs)

    @abstractmethod
    def compute(self, *inputs: Any) -> Any:
        """What the block does with its inputs."""


def recompute(network: nn.Module, recomputed: bool) -> None:
    """Turns gradient checkpointing on or off, for all blocks of a network."""
    for module in network.modules():
        if isinstance(module, Block):
            module.recomputed = recomputed


class ReluResidual(Block):
    """x + [ReLU, 3x3 to `hidden`, ReLU, 1x1 or 3x3 back]. (B, width, *s) -> same.

    1x1 (`last_kernel` 1) is the block of the VQ-VAE paper (arXiv 1711.00937, section 4.1).
    """

    def __init__(self, ndim: int, width: int, hidden: int, last_kernel: int = 1) -> None:
        super().__init__()
        last = conv(ndim, hidden, width, last_kernel, padding=last_kernel // 2)
        self.layers = nn.Sequential(nn.ReLU(), conv(ndim, width, hidden, 3, padding=1), nn.ReLU(inplace=True), last)

    def compute(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def group_norm(width: int) -> nn.GroupNorm:
    """32 groups, as in VQGAN, or the largest power of two that divides a narrower width."""
    groups = 32
    while width % groups:
        groups //= 2
    return nn.GroupNorm(groups, width, eps=1e-6)


class NormResidual(Block):
    """x + [GroupNorm, SiLU, 3x3, GroupNorm, SiLU, dropout, 3x3]. (B, width, *s) -> (B, out, *s); the last conv starts at 0."""

    def __init__(self, ndim: int, width: int, out: int, dropout: float = 0.0) -> None:
        super().__init__()
        last = conv(ndim, out, out, 3, padding=1)
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]  # the block starts as the identity, so depth is no hindrance
        self.layers = nn.Sequential(
            group_norm(width), nn.SiLU(), conv(ndim, width, out, 3, padding=1), group_norm(out), nn.SiLU(), last
        )
        self.skip = nn.Identity() if width == out else conv(ndim, width, out, 1)
        self.dropout, self.draws = Dropout(dropout) if dropout else nn.Identity(), dropout > 0

    def compute(self, x: Tensor) -> Tensor:
        *first, last = self.layers
        h = x
        for layer in first:
            h = layer(h)
        return self.skip(x) + last(self.dropout(h))


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Scaled dot-product attention, (B, heads, n, head_dim) each, k and v of as many places as they have -> as q.

    Short ones in float32 on a CPU, whatever autocast says: their backward takes 4 times as long in bfloat16 there at 64 places,
    1.3 times at 256, and 0.7 times at 1,024 (forward and backward, torch 2.15, 2 cores with AVX512-BF16).
    """
    if q.device.type != "cpu" or k.shape[2] > SHORT_ATTENTION:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    exact = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(q.to(exact), k.to(exact), v.to(exact), is_causal=causal)
    return mixed.type_as(v)


class SelfAttention(Block):
    """x + single-head attention over all positions (VQGAN, arXiv 2012.09841). (B, width, *s) -> same."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.qkv = conv(ndim, width, 3 * width, 1)
        self.out = conv(ndim, width, width, 1)

    def compute(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # 3 x (B, prod(s), width)
        mixed = attend(q[:, None], k[:, None], v[:, None], causal=False)[:, 0]  # (B, prod(s), width)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))  # (B, width, *s)


class Upsample(nn.Module):
    """Nearest-neighbor doubling, then 3x3: no checkerboard of transposed convolutions. (B, c, *s) -> (B, c, *2s)."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.conv = conv(ndim, width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Dropout(nn.Module):
    """Each value is dropped with probability `p` in training, the others are divided by 1 - p. Any shape (B, ...) -> same.

    The mask is drawn for the batch of all ranks, so two processes drop what one would. By F.dropout: its masks depend on
    the layout in memory, so they are drawn in that of x.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        ranks = distributed.world_size()
        if not self.training or self.p == 0 or ranks == 1:
            return F.dropout(x, self.p, self.training)
        return x * distributed.draw_of_rank(
            lambda _: F.dropout(torch.cat([torch.ones_like(x)] * ranks), self.p), len(x)
        )


class SpaceToDepth(nn.Module):
    """Patches of `patch` positions along every dim become channels. (B, C, *S) -> (B, C patch^n, *S / patch)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        n, p = x.ndim - 2, self.patch
        split = [part for length in x.shape[2:] for part in (length // p, p)]
        x = x.reshape(*x.shape[:2], *split)  # (B, C, s1, p, s2, p, ...)
        order = [0, 1, *range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2)]
        return x.permute(order).flatten(1, 1 + n)  # (B, C p^n, *s)


class DepthToSpace(nn.Module):
    """The inverse of SpaceToDepth. (B, C patch^n, *s) -> (B, C, *s x patch)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        n, p = x.ndim - 2, self.patch
        grid = x.shape[2:]
        channels = x.shape[1] // p**n
        x = x.reshape(x.shape[0], channels, *[p] * n, *grid)  # (B, C, p, p, ..., s1, s2, ...)
        order = [0, 1] + [axis for dim in range(n) for axis in (2 + n + dim, 2 + dim)]
        return x.permute(order).reshape(x.shape[0], channels, *[length * p for length in grid])  # (B, C, *s p)


class ShiftedConv2d(nn.Module):
    """Causal convolution: output (r, c) sees rows r - height + 1 .. r and, with `causal_width`, columns up to c only.

    (B, width_in, H, W) -> (B, width_out, H, W). Padding in place of masks: no weight is wasted, none has to be zeroed.
    """

    def __init__(self, width_in: int, width_out: int, kernel: tuple[int, int], causal_width: bool) -> None:
        super().__init__()
        height, width = kernel
        left = width - 1 if causal_width else width // 2
        self.pad = (left, width - 1 - left, height - 1, 0)
        self.conv = nn.Conv2d(width_in, width_out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


def shift(x: Tensor, dim: int) -> Tensor:
    """Moves x (B, c, H, W) by one place along `dim`, zeros coming in: place i then holds what was at i - 1."""
    return torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.narrow(dim, 0, x.shape[dim] - 1)], dim)
