"""Vector quantization, composed of parts."""

from __future__ import annotations

import copy
from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.quantizers.base import FlatQuantized, Loss, Quantizer, is_repeated
from vqvae.quantizers.codebook import Codebook
from vqvae.quantizers.estimator import Estimator, StraightThrough
from vqvae.quantizers.init import Init
from vqvae.quantizers.lookup import Lookup
from vqvae.quantizers.regularizers import Regularizer
from vqvae.quantizers.revival import NoRevival, Revival
from vqvae.quantizers.space import Space
from vqvae.ranges import PositiveInt, checked

HISTOGRAM_BINS = 40


@checked
class VectorQuantizer(Quantizer):
    """Replaces each latent vector by the nearest of K codes (van den Oord et al. 2017, arXiv 1711.00937).

    Every part is one class of the file of its name. The code width d is the codebook's `dim`; where it is not the latent
    width `dim`, linear layers project in and out. Raises UserError for parts that cannot go together.

    >>> from vqvae.quantizers import codebook, estimator, init, lookup, regularizers, revival, space
    >>> quantizer = VectorQuantizer(8, space.Raw(), lookup.Euclidean(), codebook.EMACodebook(16, 8, decay=0.99, epsilon=1e-5),
    ...     estimator.StraightThrough(), init.Normal(1.0), revival.NoRevival(),
    ...     {"commitment": regularizers.Commitment(weight=0.25)})
    >>> quantizer.begin_step(0, 100)
    >>> out = quantizer(torch.randn(2, 8, 4, 4))
    >>> out.z_q.shape, sorted(out.losses)
    (torch.Size([2, 8, 4, 4]), ['commitment'])
    >>> replaced = quantizer.after_step(torch.tensor(True))  # after the optimizer step: the codes move
    """

    counts: Tensor
    regularizers: dict[str, Regularizer]

    def __init__(
        self,
        dim: PositiveInt,
        space: Space,
        lookup: Lookup,
        codebook: Codebook,
        estimator: Estimator,
        init: Init,
        revival: Revival,
        regularizers: dict[str, Regularizer],
    ) -> None:
        super().__init__(dim, codebook.dim, [codebook.size])
        self.space, self.codebook, self.nearest = space, codebook, lookup
        self.estimator, self.init, self.revival = estimator, init, revival
        self.regularizers = nn.ModuleDict(regularizers)  # type: ignore[assignment]
        self.check_compatible()
        revival.attach(codebook)
        for regularizer in regularizers.values():
            regularizer.attach(lookup)
        self.init_vectors = init.vectors_wanted(codebook.size)
        self.register_buffer("counts", torch.zeros(codebook.size), persistent=False)  # of this step
        self.redraw()

    @property
    def needs_steps(self) -> bool:
        moves = (
            type(self.codebook).update is not Codebook.update or type(self.nearest).after_step is not Lookup.after_step
        )
        return moves or not isinstance(self.revival, NoRevival)

    @property
    def is_straight_through(self) -> bool:
        return isinstance(self.estimator, StraightThrough)

    def check_compatible(self) -> None:
        """Raises UserError for parts that cannot go together, with what to choose instead."""
        book = type(self.codebook).__name__
        learns, estimator = self.codebook.learns_by_gradient, type(self.estimator).__name__
        trainers = {name: r for name, r in self.regularizers.items() if r.trains_codes}
        self.nearest.check(self.codebook.size, self.codebook.dim)
        for name in trainers:
            if not learns:
                raise UserError(
                    f"the loss '{name}' trains codes, but {book} does not learn by gradient: "
                    f"choose quantizer/codebook=gradient, or drop the loss with ~quantizer.regularizers.{name}"
                )
        if self.estimator.trains_codes and not learns:
            raise UserError(
                f"{estimator} trains codes through the output, but {book} does not learn by gradient: "
                "choose quantizer/codebook=gradient, or quantizer/estimator=straight_through"
            )
        attracted = any(r.attracts_codes and r.weight > 0 for r in trainers.values())
        if learns and not self.estimator.trains_codes and not attracted:
            raise UserError(
                "nothing draws the codes to the latents: add a codebook loss with "
                "+quantizer/regularizer@quantizer.regularizers.codebook=codebook, or choose quantizer/codebook=ema"
            )
        if self.estimator.needs_nearest and not self.nearest.picks_nearest:
            raise UserError(
                f"{estimator} diverges where the code is not the nearest, as {type(self.nearest).__name__} may choose: "
                "choose quantizer/estimator=straight_through"
            )
        if not self.codebook.takes_vectors and self.init.vectors_wanted(2) > 0:
            raise UserError(
                f"{book} cannot take codes from data, because its vectors pass a learned map: choose quantizer/init=normal"
            )
        if not self.codebook.can_be_revived and not isinstance(self.revival, NoRevival):
            raise UserError(f"the codes of {book} cannot be replaced one by one: choose quantizer/revival=none")

    def quantize(self, z: Tensor) -> FlatQuantized:
        codes, z = self.spaced_codes(), self.space(z)
        points, code_of = self.points(codes)
        with torch.no_grad():
            chosen, passed, nearest = self.nearest(z, points)  # (N,)
        q = F.embedding(chosen, points)  # (N, d)
        indices = chosen if code_of is None else code_of[chosen]
        out = q if passed is None else torch.where(passed[:, None], z, q)  # (N, d)
        losses = {name: Loss(r(z, out, codes), r.weight) for name, r in self.regularizers.items()}
        with torch.no_grad():
            distance = self.nearest.distance(z, q)  # (N,)
        stats = {"code_distance": mean(distance)}
        if self.training and not is_repeated():
            uses = torch.ones_like(indices, dtype=torch.bool) if passed is None else ~passed
            self.counts.index_add_(0, indices, uses.float())
            self.codebook.accumulate(z, indices, passed)
            self.nearest.observe(z)
            self.revival.observe(z, distance, codes)
        if passed is not None:
            stats["identity_mapped"] = mean(passed)
        similar = q if nearest is None else F.embedding(nearest, points)  # (N, d)
        histograms = {} if self.training else self.histograms(z, out, similar)
        passed = None if passed is None else passed[:, None]
        return FlatQuantized(out, indices[:, None], losses, stats, histograms, passed)

    def points(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        """codes (K, d) -> the points (P, d) that vectors go to, and the code of each (P,), or None where they are the codes."""
        return codes, None

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return self.estimator(self.space(z), q)

    def spaced_codes(self) -> Tensor:
        """Codes (K, d) in this quantizer's space."""
        return self.space(self.codebook.codes())

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[:, 0], self.spaced_codes())

    def histograms(self, z: Tensor, q: Tensor, similar: Tensor) -> dict[str, Tensor]:
        """Vectors by cos(z, similar) in [-1, 1], and by |z - q| / |z| in [0, 2] (the last bin takes what is beyond)."""
        similarity = F.cosine_similarity(z.detach(), similar.detach(), dim=1)
        error = (z - q).detach().norm(dim=1) / z.detach().norm(dim=1).clamp_min(1e-12)  # clamp: a vector of zeros
        return {"similarity": bin_counts((similarity + 1) / 2), "relative_error": bin_counts(error / 2)}

    def codebooks(self) -> list[Tensor | None]:
        return [self.spaced_codes().detach()]

    def orders(self) -> list[float]:
        return [self.nearest.order]

    def with_size(self, size: int | None) -> Quantizer:
        parts = copy.deepcopy([self.space, self.nearest, self.estimator, self.init, self.revival])
        space, nearest, estimator, init, revival = parts
        regularizers = copy.deepcopy(dict(self.regularizers.items()))
        book = self.codebook.with_size(self.codebook.size if size is None else size)
        return type(self)(self.dim, space, nearest, book, estimator, init, revival, regularizers)  # type: ignore[arg-type]

    @torch.no_grad()
    def redraw(self) -> None:
        self.codebook.start(self.init.draw(self.codebook.size, self.codebook.dim))

    @torch.no_grad()
    def begin_run(self, z_e: Tensor) -> None:
        vectors = self.space(self.project_in(self.flatten(z_e)))  # (n, d)
        if self.init_vectors:
            self.codebook.start(self.init.choose(vectors, self.codebook.size))
        self.nearest.begin_run(vectors, self.spaced_codes())

    def begin_step(self, step: int, steps: int) -> Hashable:
        super().begin_step(step, steps)
        self.counts.zero_()
        self.codebook.begin_step()
        self.nearest.begin_step()
        return self.revival.begin_step(step, steps)

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        counts = self.codebook.update(self.counts, applied)
        replaced = self.revival.revive(self.codebook, counts, applied)
        self.nearest.after_step(self.spaced_codes, applied)
        return replaced


def mean(values: Tensor) -> Tensor:
    """(N,) -> 0-d; 0 for no vectors at all."""
    return values.float().sum() / max(len(values), 1)


def bin_counts(values: Tensor) -> Tensor:
    """(N,), bins over [0, 1] and the outermost for what lies beyond -> (bins,) int64."""
    index = (values * HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1)
    return torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=values.device).scatter_add_(
        0, index, torch.ones_like(index)
    )
