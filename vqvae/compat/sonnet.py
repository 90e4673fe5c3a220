"""The quantizers of Sonnet (`sonnet/src/nets/vqvae.py`): channels last, a dict as output, and averages that forward moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.metrics.codebook import count_codes, perplexity
from vqvae.quantizers.base import with_value
from vqvae.quantizers.codebook import Codebook, CodebookSize, EMACodebook, GradientCodebook
from vqvae.quantizers.estimator import StraightThrough
from vqvae.quantizers.init import Uniform
from vqvae.quantizers.lookup import Euclidean
from vqvae.quantizers.regularizers import CodebookLoss, Commitment, Regularizer
from vqvae.quantizers.revival import NoRevival
from vqvae.quantizers.space import Raw
from vqvae.quantizers.vector import VectorQuantizer as OwnQuantizer
from vqvae.ranges import LessThanOne, NonNegativeFloat, PositiveFloat, PositiveInt, checked


class Outputs(dict[str, Any]):
    """A dict of tensors, of which those that are given as a function are made when they are asked for."""

    def __getitem__(self, key: str) -> Tensor:
        value: Tensor | Callable[[], Tensor] = super().__getitem__(key)
        if not isinstance(value, Tensor):
            self[key] = value = value()
        return value

    def __iter__(self) -> Iterator[str]:  # its own, so that dict(outputs) asks for every value
        return super().__iter__()

    get, items, values = Mapping.get, Mapping.items, Mapping.values  # type: ignore[assignment]  # by [key], too


class Layer(nn.Module):
    """Base: a quantizer of parts, called as Sonnet's are."""

    def __init__(self, codebook: Codebook, regularizers: dict[str, Regularizer]) -> None:
        super().__init__()
        self.quantizer = OwnQuantizer(
            codebook.dim, Raw(), Euclidean(), codebook, StraightThrough(), Uniform(1.0), NoRevival(), regularizers
        )

    @property
    def embeddings(self) -> Tensor:
        """The codes (D, K)."""
        return self.quantizer.codebook.codes().t()

    def quantize(self, encoding_indices: Tensor) -> Tensor:
        """Indices (...) -> their codes (..., D)."""
        return F.embedding(encoding_indices, self.quantizer.codebook.codes())

    def forward(self, inputs: Tensor, is_training: bool) -> Outputs:
        """inputs (..., D), `is_training`: whether an EMA moves. -> a dict.

        quantize (..., D), straight through; loss, weighted, 0-d; perplexity of the batch, 0-d; encodings (N, K), one-hot
        rows, made when they are asked for; encoding_indices (...) int64. Raises UserError for another last dim.
        """
        codebook = self.quantizer.codebook
        if inputs.shape[-1:] != (codebook.dim,):
            raise UserError(f"inputs must have {codebook.dim} channels in their last dim, got {tuple(inputs.shape)}")
        self.quantizer.train(is_training).begin_step(0, 1)
        with torch.autocast(inputs.device.type, enabled=False):
            flat = self.quantizer.encode_flat(inputs.float().reshape(-1, codebook.dim))
        if is_training:
            self.quantizer.after_step(torch.ones((), dtype=torch.bool, device=inputs.device))
        indices = flat.codes[:, 0]  # (N,)
        return Outputs(
            quantize=with_value(flat.q.view_as(inputs), inputs).type_as(inputs),
            loss=torch.stack([loss.value * loss.weight for loss in flat.losses.values()]).sum(),
            perplexity=perplexity(count_codes(indices, codebook.size)),
            encodings=lambda: F.one_hot(indices, codebook.size).float(),
            encoding_indices=indices.view(inputs.shape[:-1]),
        )


@checked
class VectorQuantizer(Layer):
    """Codes by gradient: loss mean |sg z - q|^2 + commitment_cost mean |z - sg q|^2, over all elements (arXiv 1711.00937).

    >>> layer = VectorQuantizer(embedding_dim=8, num_embeddings=16)
    >>> layer(torch.randn(2, 4, 4, 8), is_training=True)["encoding_indices"].shape
    torch.Size([2, 4, 4])
    """

    def __init__(
        self, embedding_dim: PositiveInt, num_embeddings: CodebookSize, commitment_cost: NonNegativeFloat = 0.25
    ) -> None:
        codebook = GradientCodebook(num_embeddings, embedding_dim, speed=1.0)
        super().__init__(codebook, {"codebook": CodebookLoss(1.0), "commitment": Commitment(commitment_cost)})


@checked
class VectorQuantizerEMA(Layer):
    """Codes as moving averages, which a forward with is_training=True moves (the same, appendix A.1).

    As in Sonnet averages start at 0 and are debiased, so the first such forward sends every code that it does not use to the
    origin. `quantizer=ema` does not.
    """

    def __init__(
        self,
        embedding_dim: PositiveInt,
        num_embeddings: CodebookSize,
        commitment_cost: NonNegativeFloat,
        decay: LessThanOne,
        epsilon: PositiveFloat = 1e-5,
    ) -> None:
        codebook = DebiasedCodebook(num_embeddings, embedding_dim, decay, epsilon)
        super().__init__(codebook, {"commitment": Commitment(commitment_cost)})


class DebiasedCodebook(EMACodebook):
    """Averages from 0, divided by 1 - decay^t at update t.

    For e = m / smoothed N, dividing both is the same as multiplying epsilon by that number.
    """

    min_count = -1  # every code moves
    updates: Tensor

    def __init__(self, size: int, dim: int, decay: float, epsilon: float) -> None:
        super().__init__(size, dim, decay, epsilon)
        self.given = epsilon
        self.mean_count.zero_()
        self.register_buffer("updates", torch.zeros(()))

    def update(self, counts: Tensor, applied: Tensor) -> Tensor:
        applied = applied & (distributed.all_reduce_sum([counts])[0].sum() > 0)  # averages of nothing are 0 / 0
        self.updates += applied
        self.epsilon = self.given * (1 - self.decay**self.updates)  # type: ignore[assignment]
        return super().update(counts, applied)
