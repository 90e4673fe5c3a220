"""Quantization to points between codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.errors import UserError
from vqvae.quantizers.vector import VectorQuantizer


class SFDiVeQ(VectorQuantizer):
    """Space-filling DiVeQ (Vali et al. 2025, arXiv 2509.26469): training points lie on the line through the codes.

    In every training forward each pair of consecutive codes gets one random point between them, and a vector goes to the
    nearest of these K - 1 points; its code is the nearer end of that segment. So all space between codes is trained, and none
    lies unused. In eval the nearest code. Parts as in VectorQuantizer, with an estimator that trains codes.
    Deviation: the paper starts codes from averaged latents after 1,000 unquantized steps; here `init` does, before the first.
    """

    def refuse_what_cannot_go_together(self) -> None:
        super().refuse_what_cannot_go_together()
        if not self.estimator.trains_codes:
            raise UserError(
                f"points between codes are trained through the output, which {type(self.estimator).__name__} does not do: "
                "choose quantizer/estimator=diveq"
            )
        if not self.nearest.picks_nearest:
            raise UserError("points between codes are looked up by distance: choose quantizer/lookup=euclidean")

    def choose(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if not self.training:
            return super().choose(z, codes)
        place = torch.rand(self.codebook.size - 1, 1, device=z.device)  # (K - 1, 1), the same on every rank
        points = torch.lerp(codes[:-1], codes[1:], place)  # (K - 1, d)
        with torch.no_grad():
            segment, passed = self.nearest(z, points)  # (N,)
            indices = segment + (place[:, 0] > 0.5)[segment]
        return indices, F.embedding(segment, points), passed
