"""Quantization from coarse to fine grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.quantizers.base import FlatQuantized, NumCodes, Quantized, Quantizer, of_kind
from vqvae.quantizers.compose import Composition, averages, copies, refuse_other_width
from vqvae.ranges import Count, Gt, Le, NotEmpty, PositiveInt, Share, checked


@checked
class MultiScale(Composition):
    """Residual quantization from the coarsest scale to the whole grid (VAR, Tian et al. 2024, arXiv 2404.02905, algorithm 1).

    At scale i the rest is averaged down to the share shares[i] of the grid, quantized by `inner`, enlarged again, passed
    through phi_i(x) = (1 - strength) x + strength conv(x), and subtracted. Code maps grow from scale to scale. `sizes`: K of
    each scale, which then has a codebook of its own; null: all share one codebook, as in the paper. `phis` convolutions are
    spread over the scales. `inner` is any VectorQuantizer with estimator=straight_through.

    Deviations: the losses are those of `inner` on each scale's rest, averaged over scales, in place of one on the sum so
    far at full resolution, and phi learns from the output alone, starting at the identity. So that one class serves (T),
    (H, W) and (T, H, W), the convolution is one of width 3 along each axis with common weights, averaged over axes, in place
    of 3 x 3; enlarging is bicubic in 2-D, as in the paper, and (tri)linear else.
    Raises UserError unless shares rise to 1, and for an inner quantizer that is not straight-through.

    >>> from vqvae import VectorQuantizer
    >>> from vqvae.quantizers import codebook, estimator, init, lookup, revival, space
    >>> inner = VectorQuantizer(8, space.Raw(), lookup.Euclidean(), codebook.EMACodebook(16, 8, decay=0.99, epsilon=1e-5),
    ...     estimator.StraightThrough(), init.Normal(1.0), revival.NoRevival(), {})
    >>> quantizer = MultiScale(8, inner, shares=[0.5, 1.0], sizes=None, phis=1, strength=0.5)
    >>> [codes.shape for codes in quantizer(torch.randn(2, 8, 4, 4)).codes]
    [torch.Size([2, 2, 2]), torch.Size([2, 4, 4])]
    """

    outermost_because = "it works on whole grids"

    def __init__(
        self,
        dim: PositiveInt,
        inner: Quantizer,
        shares: Annotated[list[Annotated[float, Gt(0), Le(1)]], NotEmpty],
        sizes: list[NumCodes] | None,
        phis: Count,
        strength: Share,
    ) -> None:
        refuse_other_width(inner, dim)
        if list(shares) != sorted(shares) or shares[-1] != 1:
            raise UserError(f"shares must rise to 1, got {list(shares)}")
        if not inner.is_straight_through:
            raise UserError(
                f"multiscale copies the gradient past all scales at once, which is not how {type(inner).__name__} passes it "
                "here: choose an inner quantizer of parts with quantizer/estimator@quantizer.inner.estimator=straight_through"
            )
        super().__init__(dim, copies(inner, len(shares), sizes is None, sizes))
        self.shares, self.strength = list(shares), strength
        self.phis = nn.ModuleList(identity_conv(dim) for _ in range(phis))
        self.init_vectors = max(part.init_vectors for part in self.parts)

    def code_shapes(self, grid: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [shape for shape, use in zip(self.scales(grid), self.uses) for _ in use.codebook_sizes]

    def scales(self, grid: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Latent dims *s -> the dims of each scale."""
        return [tuple(max(1, round(share * length)) for length in grid) for share in self.shares]

    def forward(self, z_e: Tensor) -> Quantized:
        self.remind()
        self.check_latents(z_e)
        batch, grid = z_e.shape[0], z_e.shape[2:]
        z = z_e.float()
        flats: list[FlatQuantized] = []
        maps: list[Tensor] = []
        passed: list[Tensor] = []

        def quantize(index: int, shape: tuple[int, ...], total: Tensor) -> Tensor:
            rows = self.flatten(shrink(z - total.detach(), shape))
            flat = self.uses[index].encode_flat(rows)
            # in training attached to the codes
            exact = self.uses[index].decode_flat(flat.codes) if self.training else flat.q
            flats.append(flat)
            maps.extend(m.view(batch, *shape) for m in flat.codes.unbind(1))
            if flat.passed is not None:
                passed.extend(m.view(batch, *shape) for m in flat.passed.unbind(1))
            return self.unflatten(exact, batch, torch.Size(shape))

        with torch.autocast(z_e.device.type, enabled=False):
            z_q = self.build_up(batch, grid, z, quantize)
            if self.training:
                z_q = z_q + (z - z.detach())  # straight through, once; phi and the codes keep their own gradient
        return Quantized(of_kind(z_q, z_e), maps, *averages(flats), passed)

    def decode(self, codes: list[Tensor]) -> Tensor:
        self.check_codes(codes)
        batch, grid = codes[-1].shape[0], codes[-1].shape[1:]
        each = len(self.uses[0].codebook_sizes)

        def look_up(index: int, shape: tuple[int, ...], total: Tensor) -> Tensor:
            flat = torch.stack(
                [m.reshape(-1).long() for m in codes[index * each : (index + 1) * each]], dim=1
            )  # (n, M)
            return self.unflatten(self.uses[index].decode_flat(flat), batch, torch.Size(shape))

        with torch.autocast(codes[0].device.type, enabled=False):
            return self.build_up(batch, grid, torch.empty(0, self.dim, device=codes[0].device), look_up)

    def build_up(
        self, batch: int, grid: tuple[int, ...], like: Tensor, level: Callable[[int, tuple[int, ...], Tensor], Tensor]
    ) -> Tensor:
        """Sums over scales of phi(enlarge(level(index, shape, sum so far))) -> (B, D, *s)."""
        total = torch.zeros(batch, self.dim, *grid, device=like.device)
        for index, shape in enumerate(self.scales(tuple(grid))):
            phi = self.phis[min(index * len(self.phis) // len(self.shares), len(self.phis) - 1)]
            total = total + self.blend(enlarge(level(index, shape, total), grid), phi)
        return total

    def blend(self, x: Tensor, conv: nn.Module) -> Tensor:
        """(1 - strength) x + strength conv(x); x (B, D, *s)."""
        along = []
        for axis in range(2, x.ndim):
            moved = x.movedim(axis, -1)  # (B, D, ..., length)
            lines = moved.movedim(1, -2).reshape(-1, self.dim, x.shape[axis])  # (B ..., D, length)
            out = conv(lines).view(*moved.movedim(1, -2).shape)  # (B, ..., D, length)
            along.append(out.movedim(-2, 1).movedim(-1, axis))  # (B, D, *s)
        return (1 - self.strength) * x + self.strength * torch.stack(along).mean(0)

    @torch.no_grad()
    def begin_run(self, z_e: Tensor) -> None:
        """One codebook for all starts from the latents of all scales; one of a scale from what the coarser ones left over."""
        z, grid = z_e.float(), tuple(z_e.shape[2:])
        scales = self.scales(grid)
        if len(self.parts) < len(self.uses):
            self.parts[0].begin_run(torch.cat([self.flatten(shrink(z, shape)) for shape in dict.fromkeys(scales)]))
            return

        def start(index: int, shape: tuple[int, ...], total: Tensor) -> Tensor:
            use, rest = self.uses[index], z - total
            enough = max(use.init_vectors, *use.codebook_sizes)  # a coarse grid may have fewer: then a finer one serves
            averaged = (self.flatten(shrink(rest, finer)) for finer in scales[index:])
            use.begin_run(next((rows for rows in averaged if len(rows) >= enough), self.flatten(rest)))
            return self.unflatten(use.encode_flat(self.flatten(shrink(rest, shape))).q, len(z), torch.Size(shape))

        with torch.autocast(z.device.type, enabled=False):
            self.build_up(len(z), grid, z, start)


def identity_conv(dim: int) -> nn.Conv1d:
    """A convolution of width 3 that starts as the identity: with small random weights phi would leave (1 - strength) x of x."""
    conv = nn.Conv1d(dim, dim, 3, padding=1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def shrink(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, D, *s) -> (B, D, *shape) by averaging areas."""
    pool: Callable[..., Tensor] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(shape) - 1]
    return x if tuple(x.shape[2:]) == tuple(shape) else pool(x, shape)


def enlarge(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, D, *s) -> (B, D, *grid)."""
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    return F.interpolate(x, tuple(grid), mode=("linear", "bicubic", "trilinear")[len(grid) - 1], align_corners=False)
