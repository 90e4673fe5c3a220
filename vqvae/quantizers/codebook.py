"""Codebooks: they hold the codes, and move them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.networks.marks import mark
from vqvae.quantizers.base import MAX_CODEBOOK_SIZE
from vqvae.ranges import Bound, Count, Ge, Le, LessThanOne, NonNegativeFloat, PositiveFloat, PositiveInt, checked

CodebookSize = Annotated[int, Ge(2), Le(MAX_CODEBOOK_SIZE)]


@checked
class Codebook(nn.Module, ABC):
    """K codes of width d.

    `learns_by_gradient`: a loss on the codes has an effect. `takes_vectors`: `start` makes the given vectors the codes.
    `can_be_revived`: `replace` can do so with single ones, in the middle of training.
    """

    learns_by_gradient: bool = False
    takes_vectors: bool = True
    can_be_revived: bool = True

    def __init__(self, size: CodebookSize, dim: PositiveInt) -> None:
        super().__init__()
        self.size, self.dim = size, dim

    @abstractmethod
    def codes(self) -> Tensor:
        """Codes (K, d) float32, attached to whatever trains them."""

    @abstractmethod
    def with_size(self, size: int) -> Codebook:
        """A new codebook like this one, of another size."""

    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        """Code k becomes vectors[k] (K, d) and forgets its past if rows[k] (K,) is True. Returns {parameter: rows}."""
        raise AssertionError("only called where can_be_revived")

    def start(self, vectors: Tensor) -> None:
        """All codes become vectors (K, d), before training."""
        self.replace(torch.ones(self.size, dtype=torch.bool, device=vectors.device), vectors)

    def begin_step(self) -> None:
        """Empties the accumulators."""

    def accumulate(self, z: Tensor, indices: Tensor, passed: Tensor | None = None) -> None:
        """Takes note of which z (N, d) went to which code (N,), but for those that were passed on unquantized (N,)."""

    def update(self, counts: Tensor, applied: Tensor) -> Tensor:
        """Moves the codes; counts (K,) of this rank's vectors. Returns counts summed over all ranks."""
        return distributed.all_reduce_sum([counts])[0]


@checked
class GradientCodebook(Codebook):
    """Codes as a parameter, moved by the optimizer through the codebook loss (arXiv 1711.00937, equation 3).

    The codes are `speed` times the parameter, so that Adam, whose steps have one size whatever the gradient, moves them as if
    its learning rate were `speed` times as large: at the networks' own they lag behind the latents. (The parameter's gradient
    is `speed` times that of the codes, which a clipped gradient norm sees, and which SGD follows.)
    """

    learns_by_gradient = True

    def __init__(self, size: CodebookSize, dim: PositiveInt, speed: PositiveFloat) -> None:
        super().__init__(size, dim)
        self.speed, self.weight = speed, nn.Parameter(torch.zeros(size, dim))
        mark(self, "weight", "no_weight_decay")  # decay would pull unused codes to 0

    def codes(self) -> Tensor:
        return self.speed * self.weight

    def with_size(self, size: int) -> Codebook:
        return GradientCodebook(size, self.dim, self.speed)

    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        with torch.no_grad():
            self.weight.copy_(torch.where(rows[:, None], vectors / self.speed, self.weight))
        return {self.weight: rows}


@checked
class EMACodebook(Codebook):
    """Codes as exponential moving averages of the vectors that chose them (arXiv 1711.00937, appendix A.1).

        N <- decay N + (1 - decay) n      m <- decay m + (1 - decay) sum z      e = m / smoothed N
        smoothed N = (N + epsilon) / (sum N + K epsilon) sum N

    Deviations, both against codes dying (Sonnet starts N at 0 and debiases): N starts at 1 and m at the codes; a code
    whose N has decayed below `min_count` keeps its value instead of shrinking to the origin by the smoothing.
    """

    min_count = 1e-2  # with epsilon 1e-5 the smoothing has then shrunk a code by 0.1 %

    weight: Tensor
    mean_count: Tensor
    mean_sum: Tensor
    batch_sum: Tensor

    def __init__(self, size: CodebookSize, dim: PositiveInt, decay: LessThanOne, epsilon: NonNegativeFloat) -> None:
        super().__init__(size, dim)
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("weight", torch.zeros(size, dim))
        self.register_buffer("mean_count", torch.ones(size))
        self.register_buffer("mean_sum", torch.zeros(size, dim))
        self.register_buffer("batch_sum", torch.zeros(size, dim), persistent=False)  # zero between steps

    def codes(self) -> Tensor:
        return self.weight

    def with_size(self, size: int) -> Codebook:
        return EMACodebook(size, self.dim, self.decay, self.epsilon)

    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        share = self.mean_count.mean()  # a new code starts with the weight of an average one
        self.weight.copy_(torch.where(rows[:, None], vectors, self.weight))
        self.mean_count.copy_(torch.where(rows, share, self.mean_count))
        self.mean_sum.copy_(torch.where(rows[:, None], vectors * share, self.mean_sum))
        return {}

    def begin_step(self) -> None:
        self.batch_sum.zero_()

    def accumulate(self, z: Tensor, indices: Tensor, passed: Tensor | None = None) -> None:
        used = z.detach() if passed is None else z.detach().masked_fill(passed[:, None], 0)
        self.batch_sum.index_add_(0, indices, used)

    @torch.no_grad()
    def update(self, counts: Tensor, applied: Tensor) -> Tensor:
        counts, sums = distributed.all_reduce_sum([counts, self.batch_sum])
        mean_count = torch.lerp(counts, self.mean_count, self.decay)  # (K,)
        mean_sum = torch.lerp(sums, self.mean_sum, self.decay)  # (K, d)
        total = mean_count.sum()
        smoothed = (mean_count + self.epsilon) / (total + self.size * self.epsilon) * total
        moved = applied & (mean_count > self.min_count)
        self.weight.copy_(torch.where(moved[:, None], mean_sum / smoothed[:, None], self.weight))
        self.mean_count.copy_(torch.where(applied, mean_count, self.mean_count))
        self.mean_sum.copy_(torch.where(applied, mean_sum, self.mean_sum))
        return counts


@checked
class FrozenCodebook(Codebook):
    """Codes that never move: from data (init=data or kmeans), or random (init=normal)."""

    can_be_revived = False
    weight: Tensor

    def __init__(self, size: CodebookSize, dim: PositiveInt) -> None:
        super().__init__(size, dim)
        self.register_buffer("weight", torch.zeros(size, dim))

    def codes(self) -> Tensor:
        return self.weight

    def with_size(self, size: int) -> Codebook:
        return FrozenCodebook(size, self.dim)

    def start(self, vectors: Tensor) -> None:
        self.weight.copy_(vectors)


@checked
class SimVQCodebook(Codebook):
    """e_k = W c_k + b, where c is frozen, N(0, 1/d), and only the linear map learns (Zhu et al. 2024, arXiv 2411.02038).

    Every step moves all codes, used or not.
    """

    learns_by_gradient = True
    takes_vectors = False
    can_be_revived = False
    basis: Tensor

    def __init__(self, size: CodebookSize, dim: PositiveInt) -> None:
        super().__init__(size, dim)
        self.register_buffer("basis", torch.zeros(size, dim))
        self.map = nn.Linear(dim, dim)

    def codes(self) -> Tensor:
        return self.map(self.basis)

    def with_size(self, size: int) -> Codebook:
        return SimVQCodebook(size, self.dim)

    def start(self, vectors: Tensor) -> None:
        """Sets c, from which the map then makes codes."""
        self.basis.copy_(vectors)


@checked
class BridgeCodebook(GradientCodebook):
    """e = c + bridge(c), where the bridge is a transformer over patches of codes (FVQ, arXiv 2509.10140, section 3.2).

    Codes and bridge learn together, so every step moves all codes. As in the paper, patches of `patch` codes are compressed
    to `width`, processed by `layers` blocks, and recovered; deviation: the bridge adds to the codes and starts at zero, so that
    they can start from data.
    """

    can_be_revived = False

    def __init__(
        self,
        size: CodebookSize,
        dim: PositiveInt,
        speed: PositiveFloat,
        patch: PositiveInt,
        width: Annotated[int, Ge(8), Bound("be a multiple of 8", lambda value: value % 8 == 0)],
        layers: Count,
    ) -> None:
        super().__init__(size, dim, speed)
        if size % patch:
            raise UserError(f"patch={patch} does not divide the codebook's size {size}")
        self.patch, self.width, self.layers = patch, width, layers
        self.compress = nn.Linear(patch * dim, width)
        block = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.process = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.recover = nn.Linear(width, patch * dim)
        nn.init.zeros_(self.recover.weight)
        nn.init.zeros_(self.recover.bias)

    def codes(self) -> Tensor:
        codes = super().codes()  # (K, d)
        patches = codes.view(1, self.size // self.patch, self.patch * self.dim)  # (1, K / patch, patch d)
        bridged = self.recover(self.process(self.compress(patches)))  # (1, K / patch, patch d)
        return codes + bridged.view(self.size, self.dim)  # (K, d)

    def with_size(self, size: int) -> Codebook:
        return BridgeCodebook(size, self.dim, self.speed, self.patch, self.width, self.layers)


@checked
class AffineCodebook(GradientCodebook):
    """e = (c - mean_c) std_z / std_c + mean_z per coordinate: the codes follow the latents as a whole (arXiv 2305.08842, 4.1).

    c learns by gradient. The moments of the latents are a moving average over steps (decay 0: the last step's alone);
    those of c are taken after each step. Both are constants in the backward pass.
    """

    smallest_std = 1e-4  # a coordinate that does not vary would divide by 0
    batch: Tensor
    z_mean: Tensor
    z_std: Tensor
    c_mean: Tensor
    c_std: Tensor

    def __init__(self, size: CodebookSize, dim: PositiveInt, speed: PositiveFloat, decay: LessThanOne) -> None:
        super().__init__(size, dim, speed)
        self.decay = decay
        for name in ("z_mean", "c_mean", "z_std", "c_std"):
            self.register_buffer(name, torch.zeros(dim) if name.endswith("mean") else torch.ones(dim))
        # This step's sums of z - z_mean and its square.
        self.register_buffer("batch", torch.zeros(2, dim), persistent=False)

    def codes(self) -> Tensor:
        return (super().codes() - self.c_mean) * (self.z_std / self.c_std) + self.z_mean

    def with_size(self, size: int) -> Codebook:
        return AffineCodebook(size, self.dim, self.speed, self.decay)

    def replace(self, rows: Tensor, vectors: Tensor) -> dict[nn.Parameter, Tensor]:
        return super().replace(rows, (vectors - self.z_mean) * (self.c_std / self.z_std) + self.c_mean)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        self.weight.copy_(vectors / self.speed)
        for name in ("z", "c"):
            self.get_buffer(f"{name}_mean").copy_(vectors.mean(0))
            self.get_buffer(f"{name}_std").copy_(vectors.std(0).clamp_min(self.smallest_std))

    def begin_step(self) -> None:
        self.batch.zero_()

    def accumulate(self, z: Tensor, indices: Tensor, passed: Tensor | None = None) -> None:
        centered = z.detach() - self.z_mean  # (N, d); about the mean so far, little cancels
        centered = centered if passed is None else centered.masked_fill(passed[:, None], 0)
        self.batch += torch.stack([centered.sum(0), centered.square().sum(0)])

    @torch.no_grad()
    def update(self, counts: Tensor, applied: Tensor) -> Tensor:
        counts, sums = distributed.all_reduce_sum([counts, self.batch])
        offset, square = sums / counts.sum().clamp_min(1)  # clamp: a step without vectors
        applied = applied & (counts.sum() > 1)
        std = (square - offset.square()).clamp_min(self.smallest_std**2).sqrt()
        z_mean = torch.lerp(self.z_mean + offset, self.z_mean, self.decay)
        z_std = torch.lerp(std, self.z_std, self.decay)
        c = super().codes()
        c_mean, c_std = c.mean(0), c.std(0).clamp_min(self.smallest_std)
        for name, new in {"z_mean": z_mean, "z_std": z_std, "c_mean": c_mean, "c_std": c_std}.items():
            self.get_buffer(name).copy_(torch.where(applied, new, self.get_buffer(name)))
        return counts
