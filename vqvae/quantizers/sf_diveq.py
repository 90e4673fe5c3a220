"""Quantization to points between codes."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.quantizers.vector import VectorQuantizer


class SFDiVeQ(VectorQuantizer):
    """Space-filling DiVeQ (Vali et al. 2025, arXiv 2509.26469): training points lie on the line through the codes.

    In every training forward each pair of consecutive codes gets one random point between them, and a vector goes to the
    nearest of these K - 1 points; its code is the nearer end of that segment. So all space between codes is trained, and none
    lies unused. In eval the nearest code. Parts as in VectorQuantizer, with an estimator that trains codes.
    Deviation: the paper starts codes from averaged latents after 1,000 unquantized steps; here `init` does, before the first.

    >>> from vqvae.quantizers import codebook, estimator, init, lookup, revival, space
    >>> quantizer = SFDiVeQ(8, space.Raw(), lookup.Euclidean(), codebook.GradientCodebook(16, 8, speed=1.0),
    ...     estimator.DiVeQ(noise_std=1e-3), init.Normal(1.0), revival.NoRevival(), {})
    >>> quantizer(torch.randn(2, 8, 4)).codes[0].shape
    torch.Size([2, 4])
    """

    def check_compatible(self) -> None:
        super().check_compatible()
        if not self.estimator.trains_codes:
            raise UserError(
                f"points between codes are trained through the output, which {type(self.estimator).__name__} does not do: "
                "choose quantizer/estimator=diveq"
            )
        if not self.nearest.picks_nearest:
            raise UserError("points between codes are looked up by distance: choose quantizer/lookup=euclidean")

    def points(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return super().points(codes)
        size = self.codebook.size
        place = torch.rand(size - 1, 1, device=codes.device)  # (K - 1, 1), the same on every rank
        nearer_end = torch.arange(size - 1, device=codes.device) + (place[:, 0] > 0.5)  # (K - 1,)
        return torch.lerp(codes[:-1], codes[1:], place), nearer_end
