"""The three functions of the TensorFlow module `vq_layer` as modules, because a function cannot own weights.

Its vectors are (B, r, q), quantized along the last dim: in m = r x num_splits pieces an item, each of width w = q / num_splits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.metrics.codebook import count_codes
from vqvae.quantizers.base import with_value
from vqvae.quantizers.codebook import CodebookSize, GradientCodebook
from vqvae.quantizers.init import refuse_too_few
from vqvae.quantizers.lookup import L1, PCA, BatchPCA, CodebookPCA, Cosine, CosineVote, Euclidean, LInf, Lookup
from vqvae.quantizers.regularizers import AllCodes, CodebookDistance, Coulomb, Order, Regularizer
from vqvae.quantizers.revival import FarthestRevival
from vqvae.quantizers.vector import mean
from vqvae.ranges import Count, CountOrZero, Gt, NonNegativeFloat, PositiveInt, Share, checked

LOOKUPS: dict[float, type[Lookup]] = {1: L1, 2: Euclidean, math.inf: LInf}
REDUCTIONS: dict[str, type[PCA]] = {"pca-batch": BatchPCA, "pca-emb-space": CodebookPCA}


class VQEndpoints(NamedTuple):
    """What VectorQuantization returns. All but layer_out and emb_space are without gradient."""

    layer_out: Tensor  # (B, r, q), straight through
    emb_space: Tensor  # (n, w)
    access_count: Tensor  # (n,) int64, of this batch
    distance: Tensor  # (B, m, n), of every piece to every code, in the space of the lookup
    emb_spacing: Tensor  # (n (n - 1) / 2,), |e_i - e_j| for i < j, row by row
    emb_closest_spacing: Tensor  # (n,), to the closest other code
    replace_embeds: Callable[[], dict[nn.Parameter, Tensor]] | None  # None for num_replaced=0
    emb_space_batch_init: Callable[[], None]


class CosineVQEndpoints(NamedTuple):
    """What the cosine forms return."""

    layer_out: Tensor  # (B, r, q)
    emb_space: Tensor  # (n, w)
    percentage_identity_mapped: Tensor  # 0-d, share of the pieces, 0 .. 1
    similarity_values: Tensor  # (B m,), of every piece to the most similar code


@checked
@dataclass(eq=False, repr=False)
class Layer(nn.Module):
    """Base: n codes of width w as a parameter, and how vectors come to be compared with them.

    Args:
        n: number of codes.
        q: width of the vectors.
        num_splits: pieces that a vector is cut into.
        embedding_initializer: fills the codes (n, w) in place, as the functions of torch.nn.init do.
        dim_reduction: principal axes in which codes are looked up, those of codes and batch together or of codes alone.
        num_dim_reduction_components: their number.
    """

    n: CodebookSize
    q: PositiveInt
    _: KW_ONLY
    num_splits: Count = 1
    embedding_initializer: Callable[[Tensor], object] = nn.init.normal_
    dim_reduction: Literal["pca-batch", "pca-emb-space"] | None = None
    num_dim_reduction_components: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if self.q % self.num_splits:
            raise UserError(f"num_splits={self.num_splits} does not divide q={self.q}")
        if (self.dim_reduction is None) != (self.num_dim_reduction_components is None):
            raise UserError("dim_reduction and num_dim_reduction_components go together: give both, or none")
        self.codebook = GradientCodebook(self.n, self.q // self.num_splits, speed=1.0)
        with torch.no_grad():
            self.embedding_initializer(self.codebook.weight)
        self.lookup = self.comparison()
        if self.dim_reduction is not None and self.num_dim_reduction_components is not None:
            self.lookup = REDUCTIONS[self.dim_reduction](self.lookup, self.num_dim_reduction_components)
        self.lookup.check(self.n, self.codebook.dim)

    def comparison(self) -> Lookup:
        """The lookup, before any reduction."""
        raise NotImplementedError

    def forward(self, x: Tensor, return_endpoints: bool = True) -> Any:
        """x (B, r, q) -> the endpoints, or layer_out alone, which costs less. Raises UserError for other shapes."""
        if x.ndim != 3 or x.shape[2] != self.q:
            raise UserError(f"x must be of shape (B, r, {self.q}), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            vectors = x.float().reshape(-1, self.codebook.dim)  # (B m, w)
            codes = self.codebook.codes()  # (n, w)
            self.lookup.begin_run(vectors.detach(), codes.detach())  # the axes of a reduction
            return self.quantize(x, vectors, codes, return_endpoints)

    def quantize(self, x: Tensor, vectors: Tensor, codes: Tensor, return_endpoints: bool) -> Any:
        """`forward` of x (B, r, q), which is vectors (B m, w) float32, with codes (n, w)."""
        raise NotImplementedError


@checked
@dataclass(eq=False, repr=False)
class VectorQuantization(Layer):
    """Replaces pieces by the nearest codes in the norm `lookup_ord`, which three losses in the same norm train.

    After a forward, `losses` holds those of weight above 0, weighted: `alpha`, mean over pieces of |y - sg x|; `beta`, mean
    over pieces of sum_k |sg x - e_k|; `coulomb`, -sum_k mean_j min(|e_k - e_j|, coulomb_bound), the original's having no bound.
    They are to be added to what is minimized. They, and their gradients, are in full space whatever the reduction.

    >>> layer = VectorQuantization(n=16, q=8, lookup_ord=1, num_splits=2)
    >>> out = layer(torch.randn(4, 10, 8))
    >>> out.layer_out.shape, out.distance.shape, sorted(layer.losses)
    (torch.Size([4, 10, 8]), torch.Size([4, 20, 16]), ['alpha', 'beta', 'coulomb'])
    """

    alpha: NonNegativeFloat = 0.1
    beta: NonNegativeFloat = 1e-4
    gamma: NonNegativeFloat = 1e-6
    lookup_ord: Order = 2
    num_replaced: CountOrZero = 0
    coulomb_bound: Annotated[float, Gt(0)] = math.inf
    losses: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        losses: dict[str, Regularizer] = {
            "alpha": CodebookDistance(self.alpha, self.lookup_ord),
            "beta": AllCodes(self.beta, self.lookup_ord),
            "coulomb": Coulomb(self.gamma, self.lookup_ord, self.coulomb_bound),
        }
        self.regularizers = nn.ModuleDict({name: loss for name, loss in losses.items() if loss.weight > 0})
        self.revival = FarthestRevival(self.num_replaced, every_steps=2, until=1.0) if self.num_replaced else None
        if self.revival is not None:
            self.revival.attach(self.codebook)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "losses": {}}  # they belong to a graph, which a copy does not have

    def comparison(self) -> Lookup:
        return LOOKUPS[self.lookup_ord]()

    def quantize(self, x: Tensor, vectors: Tensor, codes: Tensor, return_endpoints: bool) -> Any:
        with torch.no_grad():
            chosen = self.lookup(vectors, codes).indices  # (B m,)
        y = F.embedding(chosen, codes)  # (B m, w)
        self.losses = {name: loss.weight * loss(vectors, y, codes) for name, loss in self.regularizers.items()}
        if self.revival is not None and self.training:
            self.revival.begin_step(0, 2)  # not due
            self.revival.observe(vectors.detach(), self.lookup.distance(vectors, y).detach(), codes)
            self.revival.revive(self.codebook, count_codes(chosen, self.n), torch.tensor(True, device=x.device))
        layer_out = with_value(y.view_as(x), x).type_as(x)
        if not return_endpoints:
            return layer_out
        return VQEndpoints(layer_out, codes, *self.monitors(vectors, codes, chosen, x.shape[0]))

    @torch.no_grad()
    def monitors(self, vectors: Tensor, codes: Tensor, chosen: Tensor, batch: int) -> tuple[Any, ...]:
        """The endpoints after the first two."""
        compared = [self.lookup.reduce(rows) if isinstance(self.lookup, PCA) else rows for rows in (vectors, codes)]
        between = self.distances(codes, codes)  # (n, n)
        rows, columns = torch.triu_indices(self.n, self.n, 1, device=codes.device)
        return (
            count_codes(chosen, self.n),
            self.distances(*compared).view(batch, len(vectors) // max(batch, 1), self.n),
            between[rows, columns],
            between.fill_diagonal_(math.inf).amin(1),
            None if self.revival is None else self.replace_embeds,
            lambda: self.start(vectors.detach()),
        )

    def distances(self, x: Tensor, codes: Tensor) -> Tensor:
        """(N, w), (n, w) -> (N, n)."""
        return torch.cdist(x, codes, p=self.lookup_ord, compute_mode="donot_use_mm_for_euclid_dist")

    @torch.no_grad()
    def replace_embeds(self) -> dict[nn.Parameter, Tensor]:
        """The num_replaced codes least used in training forwards become their inputs farthest from any code; then anew.

        -> {parameter: (n,) bool mask of the replaced rows}, whose moments in an optimizer belong to the old codes.
        """
        assert self.revival is not None
        self.revival.begin_step(1, 2)  # due
        device = self.codebook.weight.device
        no_use = torch.zeros(self.n, device=device)
        return self.revival.revive(self.codebook, no_use, torch.tensor(True, device=device))

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """The first n of the vectors (N, w) become the codes. Raises UserError for fewer."""
        refuse_too_few(vectors, self.n, "use a larger batch, or fewer codes")
        self.codebook.start(vectors[: self.n])


@checked
@dataclass(eq=False, repr=False)
class CosineVectorQuantization(Layer):
    """Replaces pieces by the code at the smallest angle, unscaled. No losses, and no gradient past it.

    Pieces whose largest cosine is below `identity_mapping_threshold` stay as they are; -1: none.
    """

    identity_mapping_threshold: float = -1.0

    def comparison(self) -> Lookup:
        return Cosine()

    def quantize(self, x: Tensor, vectors: Tensor, codes: Tensor, return_endpoints: bool) -> Any:
        with torch.no_grad():
            chosen, passed, nearest = self.lookup(vectors, codes)  # (B m,)
            similar = F.embedding(chosen if nearest is None else nearest, codes)  # (B m, w)
            similarity = 1 - self.lookup.distance(vectors, similar)
            same = similarity < self.identity_mapping_threshold
            same = same if passed is None else same | passed
        layer_out = torch.where(same[:, None], vectors, F.embedding(chosen, codes)).view_as(x).type_as(x)
        return CosineVQEndpoints(layer_out, codes, mean(same), similarity) if return_endpoints else layer_out


@checked
@dataclass(eq=False, repr=False)
class CosineKnnVectorQuantization(CosineVectorQuantization):
    """The k codes at the smallest angles vote by `emb_labels` (n,), and the first code with the winning label is taken.

    The smallest label wins a tie. Where the winner has less than `majority_threshold` of the votes, a piece stays as it is.
    """

    emb_labels: Sequence[int] | Tensor = ()
    k: Count = 1
    majority_threshold: Share = 0.0

    def comparison(self) -> Lookup:
        return CosineVote(self.k, [int(label) for label in self.emb_labels], False, self.majority_threshold)


# The original names.
vector_quantization = VectorQuantization
cosine_vector_quantization = CosineVectorQuantization
cosine_knn_vector_quantization = CosineKnnVectorQuantization
