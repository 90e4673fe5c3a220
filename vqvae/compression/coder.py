"""Lossless coding of code maps by the probabilities of an autoregressive prior."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.inference.trained_model import TrainedModel
from vqvae.priors.autoregressive import AutoregressivePrior

PRECISION = 2**24  # probabilities are multiples of one over it, and none is below that


def coding_prior(trained: TrainedModel) -> AutoregressivePrior:
    """The model's prior. Raises UserError where it cannot code."""
    if importlib.util.find_spec("constriction") is None:
        raise UserError("compression needs the package constriction: pip install 'vqvae[compress]'")
    prior = trained.prior
    if prior is None:
        raise UserError("compression needs a trained prior, whose probabilities decide how many bits a code takes")
    if not isinstance(prior, AutoregressivePrior):
        raise UserError(
            f"{type(prior).__name__} cannot give the probability of one code after another: train a prior that can, such as "
            "transformer"
        )
    return prior


def encode_codes(prior: AutoregressivePrior, codes: list[Tensor], batch: int) -> bytes:
    """Code maps M x (n, *s_m), without classes -> their bits. `batch`: images that go through the network at once.

    One range coder (constriction) for all images. The probability of a code is that of the cached network, which sees the
    codes before it; `decode_codes` makes the same calls with the same shapes, so that it finds the same numbers.
    """
    import constriction

    encoder, family = constriction.stream.queue.RangeEncoder(), constriction.stream.model.Categorical(perfect=False)

    def code(rows: int, weights: np.ndarray, right: Tensor) -> Tensor:
        encoder.encode(right[:rows].cpu().numpy().astype(np.int32), family, weights[:rows])
        return right

    for start in range(0, len(codes[0]), batch):
        part = [m[start : start + batch] for m in codes]
        through(prior, len(part[0]), batch, code, part)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_codes(prior: AutoregressivePrior, data: bytes, count: int, batch: int) -> list[Tensor]:
    """Bits that `encode_codes` made of `count` images -> M maps (count, *s_m)."""
    import constriction

    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    family = constriction.stream.model.Categorical(perfect=False)

    def code(rows: int, weights: np.ndarray, _: Tensor) -> Tensor:
        found = torch.zeros(len(weights), dtype=torch.int64)
        found[:rows] = torch.from_numpy(decoder.decode(family, weights[:rows]).astype(np.int64))
        return found

    starts = tqdm(range(0, count, batch), desc="decoding", unit="batch", disable=distributed.bar_hidden())
    parts = [through(prior, min(batch, count - start), batch, code, None) for start in starts]
    return [torch.cat(maps) for maps in zip(*parts)]


@torch.no_grad()
def through(
    prior: AutoregressivePrior,
    rows: int,
    batch: int,
    code: Callable[[int, np.ndarray, Tensor], Tensor],
    known: list[Tensor] | None,
) -> list[Tensor]:
    """Visit each code of `rows` images in order -> M maps (rows, *s_m).

    The network always sees `batch` images, the further ones made of zeros. A code is one digit or several: see heads.Head.
    code: (rows, weights (batch, K), the right digits (batch,)) -> the digits (batch,); known: the right maps, None where they
    are to be found.
    """
    device, labels = prior.device, prior.classes.no_labels(batch)
    maps = [torch.zeros(batch, *shape, dtype=torch.int64, device=device) for shape in prior.code_shapes]
    for m, network in enumerate(prior.networks):
        flat = maps[m].view(batch, -1)
        right = torch.zeros_like(flat)
        if known is not None:
            right[:rows] = known[m].flatten(1).to(device)
        cache = network.begin(prior.condition(m, maps, labels))
        for position in range(flat.shape[1]):
            digits = network.head.split(right[:, position])

            def pick(logits: Tensor, digit: int) -> Tensor:
                return code(rows, weights_of(logits[:, :, 0]), digits[digit]).to(device)[:, None]  # noqa: B023

            flat[:, position] = network.head.choose(network.next_hidden(cache, flat, position), pick)[:, 0]
            flat[rows:, position] = 0
    return [m[:rows].cpu() for m in maps]


def weights_of(logits: Tensor) -> np.ndarray:
    """Logits (B, K) -> probabilities as whole numbers of 1 to about PRECISION (B, K), float64."""
    room = PRECISION - logits.shape[1]
    return (logits.double().softmax(1) * room).floor().add(1).cpu().numpy()


def ideal_bits(prior: AutoregressivePrior, codes: list[Tensor]) -> float:
    """-log2 p of all codes, without classes: what no coder can go below."""
    labels = prior.classes.no_labels(len(codes[0]))
    return float(sum(batch_nats(prior, codes, labels))) / float(np.log(2))


def batch_nats(prior: AutoregressivePrior, codes: list[Tensor], labels: Tensor) -> Iterator[float]:
    size = prior.samples_at_a_time
    with torch.no_grad():
        for start in range(0, len(labels), size):
            part = [m[start : start + size].to(labels.device) for m in codes]
            yield sum(float(nats.double().sum()) for nats in prior(part, labels[start : start + size]).nats)
