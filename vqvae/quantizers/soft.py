"""Quantizers that choose through a softmax over all codes. All of them hold N x K values; IBQ alone in chunks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.networks.marks import mark
from vqvae.quantizers.base import FlatQuantized, Loss, NumCodes, Quantizer
from vqvae.quantizers.chunked import centered_distances, map_rows, sum_rows
from vqvae.quantizers.init import Init
from vqvae.quantizers.nearest import nearest_code
from vqvae.quantizers.regularizers import mean_square_error
from vqvae.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, checked


@checked
class SoftQuantizer(Quantizer):
    """Base: K codes as a parameter, and a temperature that falls from `start` to `end` by a cosine over the run.

    As in GradientCodebook, the codes are `speed` times the parameter, so that Adam moves them `speed` times as fast as the
    networks; so is what else this quantizer learns (logits, sigma). `quantize` gives an output that carries its own
    gradient, so `estimate` hands it on.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: PositiveInt,
        size: NumCodes,
        code_dim: PositiveInt,
        init: Init,
        speed: PositiveFloat,
        start: PositiveFloat,
        end: PositiveFloat,
    ) -> None:
        super().__init__(dim, code_dim, [size])
        self.size, self.speed, self.start, self.end = size, speed, start, end
        self.init, self.init_vectors = init, init.vectors_wanted(size)
        self.codebook = nn.Parameter(init.draw(size, code_dim) / speed)
        mark(self, "codebook", "no_weight_decay")  # decay would pull unused codes to 0
        self.register_buffer("temperature", torch.tensor(float(start)), persistent=False)

    def codes(self) -> Tensor:
        """Codes (K, d)."""
        return self.speed * self.codebook

    @torch.no_grad()
    def begin_run(self, z_e: Tensor) -> None:
        if self.init_vectors:
            vectors = self.project_in(self.flatten(z_e))  # (n, d)
            self.codebook.copy_(self.init.choose(vectors, self.size) / self.speed)
            self.match(vectors)

    def squared_error(self, vectors: Tensor) -> Tensor:
        """Mean over coordinates of |z - nearest code|^2, 0-d."""
        codes = self.codes()
        return F.mse_loss(F.embedding(nearest_code(vectors, codes), codes), vectors).clamp_min(1e-12)

    def match(self, vectors: Tensor) -> None:
        """Fits what else depends on the latents' scale to vectors (n, d), once the codes have started from them."""

    def redraw(self) -> None:
        self.codebook.data.copy_(self.init.draw(*self.codebook.shape) / self.speed)

    @property
    def needs_steps(self) -> bool:
        return True  # for its temperature

    def begin_step(self, step: int, steps: int) -> None:
        super().begin_step(step, steps)
        share = (1 + math.cos(math.pi * min(step / steps, 1))) / 2  # 1 .. 0
        self.temperature.fill_(self.end + (self.start - self.end) * share)

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return q

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[:, 0], self.codes())

    def codebooks(self) -> list[Tensor | None]:
        return [self.codes().detach()]


@checked
class GumbelSoftmax(SoftQuantizer):
    """A code drawn from learned logits (Jang et al. 2016, arXiv 1611.01144; Maddison et al. 2016, arXiv 1611.00712).

    The logits are linear in z. Where codes start from data, so do they: as -|z - e_k|^2 / (2 sigma^2) up to what all
    share, sigma^2 being the mean squared error per coordinate of the nearest code. In training the one-hot draw is used,
    and its gradient is that of softmax((logits + g) / temperature), g Gumbel noise; in eval the largest logit.
    Loss: KL from softmax(logits) to uniform, sum_k p log(K p), mean over vectors, in nats.

    >>> from vqvae.quantizers.init import Normal
    >>> quantizer = GumbelSoftmax(8, size=16, code_dim=8, init=Normal(1.0), speed=10.0, start=1.0, end=0.1, kl_weight=5e-4)
    >>> quantizer(torch.randn(2, 8, 4)).codes[0].shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        dim: PositiveInt,
        size: NumCodes,
        code_dim: PositiveInt,
        init: Init,
        speed: PositiveFloat,
        start: PositiveFloat,
        end: PositiveFloat,
        kl_weight: NonNegativeFloat,
    ) -> None:
        super().__init__(dim, size, code_dim, init, speed, start, end)
        self.kl_weight = kl_weight
        self.logits = nn.Linear(code_dim, size)
        for parameter in self.logits.parameters():
            parameter.data /= speed

    def match(self, vectors: Tensor) -> None:
        codes, variance = self.codes(), self.squared_error(vectors)
        self.logits.weight.copy_(codes / (self.speed * variance))
        self.logits.bias.copy_(-codes.square().sum(1) / (2 * self.speed * variance))

    def quantize(self, z: Tensor) -> FlatQuantized:
        logits = F.linear(z, self.speed * self.logits.weight, self.speed * self.logits.bias)  # (N, K)
        log_p = logits.log_softmax(1)
        kl = (log_p.exp() * (log_p + math.log(self.size))).sum() / max(len(z), 1)
        losses = {"kl_to_uniform": Loss(kl, self.kl_weight)}
        if not self.training:
            indices = logits.argmax(1, keepdim=True)  # (N, 1)
            return FlatQuantized(self.lookup(indices), indices, losses)
        soft = ((logits + gumbel_like(logits)) / self.temperature).softmax(1)  # (N, K)
        indices = soft.argmax(1, keepdim=True)
        hard = torch.zeros_like(soft).scatter(1, indices, 1.0)
        return FlatQuantized((hard + soft - soft.detach()) @ self.codes(), indices, losses)


@checked
class SQVAE(SoftQuantizer):
    """Stochastic quantization with a learned noise level (Takida et al. 2022, arXiv 2205.07547, section 4, Gaussian).

    p(k | z) = softmax(-|z - e_k|^2 / (2 sigma^2)), sigma^2 one learned number; in training a relaxed draw by
    Gumbel-softmax, in eval the nearest code. Losses, summed over coordinates and codes, mean over vectors:
    `precision` sum_k p |z - e_k|^2 / (2 sigma^2) and `negative_entropy` sum_k p log p. Deviations: the first is the
    expectation of what the authors' code takes at the relaxed draw; the paper sums both over the latents and weighs them
    against D/2 log of the reconstruction error, where with an error over the data's variance `weight` stands for that ratio.

    >>> from vqvae.quantizers.init import Normal
    >>> quantizer = SQVAE(8, size=16, code_dim=8, init=Normal(1.0), speed=10.0, start=1.0, end=0.1, weight=2.5e-3)
    >>> sorted(quantizer(torch.randn(2, 8, 4)).losses)
    ['negative_entropy', 'precision']
    """

    def __init__(
        self,
        dim: PositiveInt,
        size: NumCodes,
        code_dim: PositiveInt,
        init: Init,
        speed: PositiveFloat,
        start: PositiveFloat,
        end: PositiveFloat,
        weight: NonNegativeFloat,
    ) -> None:
        super().__init__(dim, size, code_dim, init, speed, start, end)
        self.weight = weight
        self.log_variance = nn.Parameter(torch.zeros(()))

    def match(self, vectors: Tensor) -> None:
        self.log_variance.copy_(self.squared_error(vectors).log() / self.speed)

    def quantize(self, z: Tensor) -> FlatQuantized:
        codes, variance = self.codes(), (self.speed * self.log_variance).exp()
        squared = centered_distances(z, codes)  # (N, K)
        logits = -squared / (2 * variance)  # (N, K)
        indices = logits.argmax(1, keepdim=True)  # (N, 1)
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        if self.training:
            soft = ((logits + gumbel_like(logits)) / self.temperature).softmax(1)  # (N, K)
            q = soft @ codes
        else:
            q = self.lookup(indices)
        vectors = max(len(z), 1)
        losses = {
            "precision": Loss((p * squared).sum() / (2 * variance * vectors), self.weight),
            "negative_entropy": Loss((p * log_p).sum() / vectors, self.weight),
        }
        return FlatQuantized(q, indices, losses, {"sigma": variance.detach().sqrt()})


@checked
class IBQ(SoftQuantizer):
    """Index backpropagation (Shi et al. 2024, arXiv 2412.02692): the choice passes a gradient to all codes.

        logits = z E^T,  p = softmax(logits),  out = (onehot(argmax) + p - sg p) E

    Losses: `double` |out - z|^2 + |sg z - q|^2, `commitment` |z - sg q|^2 (weight beta), means over elements; and
    `entropy`, mean entropy of softmax(logits / temperature) minus that of its mean over the batch of all ranks.

    >>> from vqvae.quantizers.init import Normal
    >>> quantizer = IBQ(8, size=16, code_dim=8, init=Normal(1.0), speed=10.0, beta=0.25, entropy_weight=0.01, temperature=0.01)
    >>> quantizer(torch.randn(2, 8, 4)).codes[0].shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        dim: PositiveInt,
        size: NumCodes,
        code_dim: PositiveInt,
        init: Init,
        speed: PositiveFloat,
        beta: NonNegativeFloat,
        entropy_weight: NonNegativeFloat,
        temperature: PositiveFloat,
    ) -> None:
        super().__init__(dim, size, code_dim, init, speed, temperature, temperature)
        self.beta, self.entropy_weight = beta, entropy_weight

    def quantize(self, z: Tensor) -> FlatQuantized:
        codes = self.codes()
        with torch.no_grad():
            chosen = map_rows(lambda part, e: (part @ e.t()).argmax(1), z, codes, width=self.size)
            indices = torch.cat(chosen)[:, None]  # (N, 1)
        q = F.embedding(indices[:, 0], codes)  # (N, d)
        soft = torch.cat(map_rows(expected_code, z, codes, width=self.size))  # (N, d)
        out = q + (soft - soft.detach())
        losses = {
            "double": Loss(mean_square_error(out, z) + mean_square_error(q, z.detach()), 1.0),
            "commitment": Loss(mean_square_error(z, q.detach()), self.beta),
        }
        if self.entropy_weight > 0:
            losses["entropy"] = Loss(self.entropy(z, codes), self.entropy_weight)
        return FlatQuantized(out if self.training else q, indices, losses)

    def entropy(self, z: Tensor, codes: Tensor) -> Tensor:
        def sums(part: Tensor, codes: Tensor) -> Tensor:
            log_p = (part @ codes.t() / self.temperature).log_softmax(1)  # (n, K)
            p = log_p.exp()
            return torch.cat([-(p * log_p).sum()[None], p.sum(0)])  # (1 + K,)

        total = sum_rows(sums, z, codes, width=self.size) / max(len(z), 1)
        # in evaluation, ranks may have different numbers of batches
        mean_p = distributed.mean_over_ranks(total[1:]) if self.training else total[1:]
        return total[0] - torch.special.entr(mean_p.clamp_min(1e-20)).sum()  # clamp: entr has an infinite slope at 0


def expected_code(z: Tensor, codes: Tensor) -> Tensor:
    """softmax(z E^T) sg E; z (n, d), codes (K, d) -> (n, d)."""
    return (z @ codes.t()).softmax(1) @ codes.detach()


def gumbel_like(logits: Tensor) -> Tensor:
    """Gumbel noise (N, K)."""
    size = logits.shape[1]
    exponential = distributed.draw_of_rank(
        lambda rows: torch.empty(rows, size, device=logits.device).exponential_(), len(logits)
    )
    return -exponential.log()
