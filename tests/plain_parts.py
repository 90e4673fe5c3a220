"""A vector quantizer of which a test names only the parts that it is about."""

from __future__ import annotations

from vqvae.quantizers.codebook import Codebook
from vqvae.quantizers.estimator import StraightThrough
from vqvae.quantizers.init import Uniform
from vqvae.quantizers.lookup import Euclidean
from vqvae.quantizers.regularizers import Commitment
from vqvae.quantizers.revival import NoRevival
from vqvae.quantizers.space import Raw
from vqvae.quantizers.vector import VectorQuantizer


def vector_quantizer(
    codebook: Codebook, kind: type[VectorQuantizer] = VectorQuantizer, **parts: object
) -> VectorQuantizer:
    """A VectorQuantizer of plain parts, but for those that are given."""
    chosen: dict[str, object] = {
        "space": Raw(),
        "lookup": Euclidean(),
        "estimator": StraightThrough(),
        "init": Uniform(1.0),
        "revival": NoRevival(),
        "regularizers": {"commitment": Commitment(0.25)},
    }
    return kind(dim=codebook.dim, codebook=codebook, **{**chosen, **parts})  # type: ignore[arg-type]
