"""Quantizers whose codes are the corners of a cube: each coordinate is a bit."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.quantizers.base import FlatQuantized, Loss, Quantizer, unit
from vqvae.quantizers.chunked import sum_rows
from vqvae.quantizers.regularizers import mean_square_error
from vqvae.ranges import Count, Ge, Le, NonNegativeFloat, PositiveFloat, PositiveInt, checked


@checked
class LFQ(Quantizer):
    """Lookup-free quantization (Yu et al. 2023, arXiv 2310.05737, equations 2 to 5): q_i = sign(z_i), code width `bits`.

    Bits are dealt to code maps of `bits_per_map`, each with K = 2^bits_per_map; the first coordinate is the highest bit.
    With p(c | z) = softmax(2 <z, c> / temperature) over the corners c, the losses are `sample_entropy`, the mean over
    vectors of its entropy, `codebook_entropy`, minus the entropy of its mean over the batch of all ranks, both in nats
    and summed over maps, and `commitment`, mean |z - sg q|^2. As p factorizes over bits, the first costs O(N d); the
    second is taken a map at a time, in chunks of vectors (of several maps: an upper bound of the whole entropy).

    Raises UserError where bits_per_map does not divide bits.

    >>> quantizer = LFQ(8, bits=9, bits_per_map=9, temperature=0.2, sample_entropy_weight=0.01, codebook_entropy_weight=0.02,
    ...                 commitment_weight=0.25)
    >>> quantizer(torch.randn(2, 8, 4, 4)).codes[0].shape
    torch.Size([2, 4, 4])
    """

    def __init__(
        self,
        dim: PositiveInt,
        bits: Count,
        bits_per_map: Annotated[int, Ge(1), Le(18)],
        temperature: PositiveFloat,
        sample_entropy_weight: NonNegativeFloat,
        codebook_entropy_weight: NonNegativeFloat,
        commitment_weight: NonNegativeFloat,
    ) -> None:
        if bits % bits_per_map:
            raise UserError(f"bits_per_map={bits_per_map} does not divide bits={bits}")
        super().__init__(dim, bits, [2**bits_per_map] * (bits // bits_per_map))
        self.bits, self.bits_per_map = bits, bits_per_map
        self.temperature = temperature
        self.sample_entropy_weight = sample_entropy_weight
        self.codebook_entropy_weight = codebook_entropy_weight
        self.commitment_weight = commitment_weight
        powers = 2 ** torch.arange(bits_per_map - 1, -1, -1)  # highest bit first
        self.register_buffer("powers", powers, persistent=False)
        everything = torch.arange(2**bits_per_map)[:, None] // powers % 2  # (K, bits per map)
        self.register_buffer("corners", 2.0 * everything - 1, persistent=False)  # (K, bits per map), -1 or 1

    @property
    def scale(self) -> float:
        """The size of each coordinate of the output."""
        return 1.0

    def normalize(self, z: Tensor) -> Tensor:
        """(N, d) -> (N, d), applied before everything else."""
        return z

    def quantize(self, z: Tensor) -> FlatQuantized:
        z = self.normalize(z)
        bits = (z > 0).long()  # (N, d)
        codes = (bits.unflatten(1, (-1, self.bits_per_map)) * self.get_buffer("powers")).sum(2)  # (N, M)
        q = (2.0 * bits - 1) * self.scale
        losses = {}
        if self.sample_entropy_weight > 0:
            losses["sample_entropy"] = Loss(self.sample_entropy(z), self.sample_entropy_weight)
        if self.codebook_entropy_weight > 0:
            losses["codebook_entropy"] = Loss(-self.codebook_entropy(z), self.codebook_entropy_weight)
        if self.commitment_weight > 0:
            losses["commitment"] = Loss(mean_square_error(z, q), self.commitment_weight)
        return FlatQuantized(q, codes, losses)

    def factors(self) -> list[list[int]]:
        return [[2] * self.bits_per_map for _ in self.codebook_sizes]

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return super().estimate(self.normalize(z), q)

    def lookup(self, codes: Tensor) -> Tensor:
        bits = codes[:, :, None] // self.get_buffer("powers") % 2  # (N, M, bits per map)
        return (2.0 * bits.flatten(1) - 1) * self.scale  # (N, d)

    def bit_logits(self, z: Tensor) -> Tensor:
        """(N, d) -> log p(bit = 1) / p(bit = 0), (N, d): p(c | z) is a product over bits."""
        return 4 * self.scale * z / self.temperature

    def sample_entropy(self, z: Tensor) -> Tensor:
        """Mean over vectors of the entropy of p(c | z), exactly: a sum over bits."""
        logits = self.bit_logits(z)
        entropy = F.softplus(logits) - logits * torch.sigmoid(logits)  # (N, d), of one bit
        return entropy.sum() / max(len(z), 1)

    def codebook_entropy(self, z: Tensor) -> Tensor:
        """Entropy of the mean of p(c | z) over the batch, summed over maps."""
        corners = self.get_buffer("corners")

        def probability(part: Tensor) -> Tensor:
            logits = self.bit_logits(part).unflatten(1, (-1, self.bits_per_map))  # (n, M, bits per map)
            return ((logits / 2) @ corners.t()).softmax(2).sum(0)  # (M, K)

        total = sum_rows(probability, z, width=corners.shape[0] * (self.bits // self.bits_per_map))
        own = total / max(len(z), 1)
        # in evaluation, ranks may have different numbers of batches
        mean = distributed.mean_over_ranks(own) if self.training else own
        return torch.special.entr(mean.clamp_min(1e-20)).sum()  # clamp: entr has an infinite slope at 0


class BSQ(LFQ):
    """Binary spherical quantization (Zhao et al. 2024, arXiv 2406.07548, section 4): u = z / |z|, q = sign(u) / sqrt(bits).

    Losses and maps as in LFQ, with p(c | u) = softmax(2 <u, c> / temperature): the paper's tau is 2 / temperature, its
    groups are our maps, and it has no commitment.

    >>> quantizer = BSQ(8, bits=18, bits_per_map=9, temperature=1.0, sample_entropy_weight=0.1, codebook_entropy_weight=0.1,
    ...                 commitment_weight=0.0)
    >>> quantizer.codebook_sizes
    [512, 512]
    """

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.bits)

    def normalize(self, z: Tensor) -> Tensor:
        return unit(z)
