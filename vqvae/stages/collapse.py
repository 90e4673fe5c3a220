"""The warning that codes are hardly used."""

from __future__ import annotations

from typing import Any

from torch import nn

from vqvae.model import VQVAE
from vqvae.quantizers.revival import NoRevival, Revival
from vqvae.quantizers.vector import VectorQuantizer

COLLAPSED_SHARE = 0.05  # a whole-set perplexity below this share of what is possible is called a collapse
EARLY = 100  # steps in which codes spread
WIDE = 16  # dims of codes from which on fewer may help


def collapse_warnings(
    model: VQVAE, metrics: dict[str, Any], vectors: list[int], done: int, steps: int
) -> dict[str, str]:
    """Warnings by title, for code maps whose perplexity is far below both the number of codes and that of vectors.

    None in the first steps, and before dead codes were first replaced. vectors: how many were counted, of each map. done: steps
    so far, of `steps`.
    """
    parts = [module for module in model.modules() if isinstance(module, Revival)]
    if done <= EARLY or any(done <= first <= steps for first in (part.first(steps) for part in parts)):
        return {}
    warnings = {}
    for m, (size, count) in enumerate(zip(model.codebook_sizes, vectors)):
        value = metrics[f"codebook/perplexity_{m}"]
        if value < COLLAPSED_SHARE * min(size, count):
            warnings[f"codebook {m} has collapsed"] = (
                f"its perplexity over the validation set is {value:.1f} of {size} codes "
                f"({metrics[f'codebook/dead_codes_{m}']} never used). Try {advice(model)}"
            )
    return warnings


def advice(model: nn.Module) -> str:
    """What helps and is not there yet."""
    found = [module for module in model.modules() if isinstance(module, VectorQuantizer)]
    if not found:
        return "a lower learning rate, or fewer codes"
    tries = []
    if any(isinstance(one.revival, NoRevival) for one in found):
        tries.append("quantizer/revival=random")
    if any(one.init_vectors == 0 for one in found):
        tries.append("quantizer/init=data")
    if any(one.code_dim > WIDE for one in found):
        tries.append("quantizer.codebook.dim=8")
    return ", ".join([*tries, "a smaller quantizer.codebook.size", "a lower learning rate", "or quantizer=fsq"])
