"""Structural similarity at several scales, as a loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.errors import UserError
from vqvae.losses.terms import Term
from vqvae.metrics.reconstruction import SSIM_WINDOW as WINDOW
from vqvae.metrics.reconstruction import scale_weights, scales_of
from vqvae.ranges import NonNegativeFloat, checked

SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
LEAST = 1e-4  # a power below 1 has no finite gradient at 0


@checked
class SSIM(Term):
    """1 - MS-SSIM (Wang, Simoncelli and Bovik 2003), a gaussian window of 11 along each data dim, channels by themselves.

    Each scale halves the sides. There are as many of the five as leave no side below the window, and their weights are
    divided by their sum: two for 32x32 images, which is between SSIM and MS-SSIM. 1-D, 2-D and 3-D data.
    """

    kernel: Tensor

    def __init__(self, weight: NonNegativeFloat, variance: float) -> None:
        super().__init__(weight, variance)
        offsets = torch.arange(WINDOW) - WINDOW // 2
        kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def check(self, channels: int, size: tuple[int, ...]) -> None:
        if min(size) < WINDOW:
            raise UserError(
                f"needs items of at least {WINDOW} values along each side, and these are {'x'.join(map(str, size))}"
            )

    def value(self, x_hat: Tensor, x: Tensor) -> Tensor:
        a, b = (x_hat + 1) / 2, (x + 1) / 2
        weights = scale_weights(scales_of(tuple(x.shape[2:])))
        similarity = x.new_ones(len(x))
        with torch.autocast(x.device.type, enabled=False):
            for scale, weight in enumerate(weights):
                if scale:
                    a, b = halved(a), halved(b)
                luminance, structure = self.compare(a, b)
                both = luminance * structure if scale == len(weights) - 1 else structure
                similarity = similarity * both.flatten(1).mean(1).clamp_min(LEAST) ** weight
        return 1 - similarity.mean()

    def compare(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Luminance, and contrast times structure, at every place where the window fits."""
        mean_a, mean_b, aa, bb, ab = self.blur(torch.stack([a, b, a * a, b * b, a * b]))
        var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        return luminance, (2 * covariance + C2) / (var_a + var_b + C2)

    def blur(self, stacked: Tensor) -> Tensor:
        """(5, B, C, *S) -> the same with each dim of S shorter by 10: the gaussian along one dim after the other."""
        for dim in range(3, stacked.ndim):
            moved = stacked.movedim(dim, -1)
            rows = moved.reshape(-1, 1, moved.shape[-1])  # (5 B C and the other dims, 1, side)
            blurred = F.conv1d(rows, self.kernel[None, None])
            stacked = blurred.view(*moved.shape[:-1], -1).movedim(-1, dim)  # (5, B, C, *S)
        return stacked


def halved(x: Tensor) -> Tensor:
    """(B, C, *S) -> means of blocks of 2 along each data dim; a last odd value is left out."""
    for dim in range(2, x.ndim):
        x = x.unfold(dim, 2, 2).mean(-1)
    return x
