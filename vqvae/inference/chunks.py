"""Parts of a tokenizer on any number of items, in padded chunks of one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqvae.images import to_uint8
from vqvae.inference.tokenizer import Tokenizer

CHUNK = 32  # items, padded: so that none depends on how many are asked for


@torch.no_grad()
def in_chunks(
    tokenizer: Tokenizer, network: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]
) -> list[Tensor]:
    """A part of the tokenizer on tensors of n rows each, in chunks padded to CHUNK -> its outputs (n, ...), on the CPU."""
    device = next(tokenizer.model.parameters()).device
    count = len(inputs[0])
    parts = []
    for start in range(0, count, CHUNK):
        rows = torch.arange(start, start + CHUNK).clamp_max(count - 1)  # padded by the last
        outputs = network([one[rows.to(one.device)].to(device) for one in inputs])
        parts.append([one[: count - start].cpu() for one in outputs])
    return [torch.cat(outputs) for outputs in zip(*parts)]


def encode(tokenizer: Tokenizer, x: Tensor) -> list[Tensor]:
    """x (n, C, *S) in [-1, 1] -> M code maps (n, *s_m)."""
    return in_chunks(tokenizer, lambda inputs: tokenizer.encode(inputs[0]), [x])


def decode(tokenizer: Tokenizer, codes: list[Tensor]) -> Tensor:
    """M code maps (n, *s_m) -> items uint8 (n, C, *S)."""
    return in_chunks(tokenizer, lambda inputs: [to_uint8(tokenizer.decode(inputs))], codes)[0]


def features(tokenizer: Tokenizer, x: Tensor) -> list[Tensor]:
    """x (n, C, *S) in [-1, 1] -> what each level's encoder makes of it, L x (n, D, *s_l)."""
    return in_chunks(tokenizer, lambda inputs: tokenizer.model.features(inputs[0]), [x])


def from_features(tokenizer: Tokenizer, levels: list[Tensor]) -> Tensor:
    """L x (n, D, *s_l) of `features` -> quantized and decoded, (n, C, *S) in [-1, 1]."""

    def network(inputs: list[Tensor]) -> list[Tensor]:
        return [tokenizer.reconstruction.to_image(tokenizer.model.from_features(inputs).decoded)]

    return in_chunks(tokenizer, network, levels)[0]
