"""Vector quantization, composed of parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.quantizers.base import FlatQuantized, Loss, Quantizer
from vqvae.quantizers.codebook import Codebook
from vqvae.quantizers.estimator import Estimator
from vqvae.quantizers.init import Init
from vqvae.quantizers.lookup import Lookup
from vqvae.quantizers.regularizers import Regularizer
from vqvae.quantizers.revival import Revival
from vqvae.quantizers.space import Space


class VectorQuantizer(Quantizer):
    """Replaces each latent vector by the nearest of K codes (van den Oord et al. 2017, arXiv 1711.00937).

    Every part is one class of the file of its name. The code width d is the codebook's `dim`; where it is not the latent
    width `dim`, linear layers project in and out. Raises ValueError for parts that cannot go together.
    """

    counts: Tensor
    regularizers: dict[str, Regularizer]

    def __init__(
        self,
        dim: int,
        space: Space,
        lookup: Lookup,
        codebook: Codebook,
        estimator: Estimator,
        init: Init,
        revival: Revival,
        regularizers: dict[str, Regularizer],
    ) -> None:
        super().__init__(dim, codebook.dim, [codebook.size])
        for name, regularizer in regularizers.items():
            if regularizer.trains_codes and not codebook.learns_by_gradient:
                raise ValueError(
                    f"the loss '{name}' trains codes, but {type(codebook).__name__} does not learn by gradient: "
                    f"choose quantizer/codebook=gradient, or drop the loss with ~quantizer.regularizers.{name}"
                )
        trained = any(r.trains_codes and r.weight > 0 for r in regularizers.values())
        if codebook.learns_by_gradient and not trained:
            raise ValueError(
                "nothing trains the codes: add a codebook loss with "
                "+quantizer/regularizer@quantizer.regularizers.codebook=codebook, or choose quantizer/codebook=ema"
            )
        self.space, self.codebook, self.nearest = space, codebook, lookup
        self.estimator, self.init, self.revival = estimator, init, revival
        self.regularizers = nn.ModuleDict(regularizers)  # type: ignore[assignment]
        self.init_vectors = init.vectors_per_code * codebook.size
        self.register_buffer("counts", torch.zeros(codebook.size), persistent=False)  # of this step
        everything = torch.ones(codebook.size, dtype=torch.bool)
        codebook.replace(everything, init.draw(codebook.size, codebook.dim))

    def quantize(self, z: Tensor) -> FlatQuantized:
        codes, z = self.space(self.codebook.codes()), self.space(z)
        with torch.no_grad():
            indices = self.nearest(z, codes)  # (N,)
        q = F.embedding(indices, codes)  # (N, d)
        losses = {name: Loss(r(z, q, codes), r.weight) for name, r in self.regularizers.items()}
        if self.training:
            self.counts.index_add_(0, indices, torch.ones_like(indices, dtype=torch.float32))
            self.codebook.accumulate(z, indices)
            self.revival.observe(z)
            q = self.estimator(z, q)
        return FlatQuantized(q, indices[:, None], losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[:, 0], self.space(self.codebook.codes()))

    @torch.no_grad()
    def begin_run(self, z_e: Tensor) -> None:
        if self.init.vectors_per_code:
            codes = self.init.choose(self.space(self.flatten(z_e)), self.codebook.size)
            self.codebook.replace(torch.ones(self.codebook.size, dtype=torch.bool, device=codes.device), codes)

    def begin_step(self, step: int, steps: int) -> None:
        self.counts.zero_()
        self.codebook.begin_step()
        self.revival.begin_step(step, steps)

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        counts = self.codebook.update(self.counts, applied)
        return self.revival.revive(self.codebook, counts, applied)
