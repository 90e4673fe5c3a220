"""Quantization to points between codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.quantizers.base import FlatQuantized, Loss
from vqvae.quantizers.vector import VectorQuantizer, mean


class SFDiVeQ(VectorQuantizer):
    """Space-filling DiVeQ (Vali et al. 2025, arXiv 2509.26469, section 4.2): training points lie on the line through the codes.

    In every training forward each pair of consecutive codes gets one random point between them, and a vector goes to the
    nearest of these K - 1 points; its code is the nearer end of that segment. So all space between codes is trained, and none
    lies unused. In eval the nearest code. Parts as in VectorQuantizer, with an estimator that trains codes.
    Deviation: the paper starts codes from averaged latents after 1,000 unquantized steps; here `init` does, before the first.
    """

    def quantize(self, z: Tensor) -> FlatQuantized:
        if not self.training:
            return super().quantize(z)
        codes, z = self.space(self.codebook.codes()), self.space(z)
        place = torch.rand(self.codebook.size - 1, 1, device=z.device)  # (K - 1, 1), the same on every rank
        points = torch.lerp(codes[:-1], codes[1:], place)  # (K - 1, d)
        with torch.no_grad():
            segment = self.nearest(z, points).indices  # (N,)
            indices = segment + (place[:, 0] > 0.5)[segment]
        q = F.embedding(segment, points)  # (N, d)
        with torch.no_grad():
            distance = self.nearest.distance(z, q)
        losses = {name: Loss(r(z, q, codes), r.weight) for name, r in self.regularizers.items()}
        self.counts.index_add_(0, indices, torch.ones_like(indices, dtype=torch.float32))
        self.revival.observe(z, distance, codes)
        return FlatQuantized(q, indices[:, None], losses, {"code_distance": mean(distance)})
