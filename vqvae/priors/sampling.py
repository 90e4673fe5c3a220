"""The settings of sampling, the draw of a code, and its noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from vqvae.ranges import Count, Gt, Le, NonNegativeFloat, NonNegativeInt, PositiveInt, checked

GUIDANCE_SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - torch.cos(math.pi * progress)) / 2,
}
DRAWN_AT_A_TIME = 2**25  # logits: each step of a draw makes as many numbers again
ALL_CODES = 2**62  # as top_k
# Called in inference mode with M code maps, and M masks of the codes that are drawn.
OnProgress = Callable[[list[Tensor], list[Tensor]], None]


@checked
@dataclass(frozen=True)
class Sampling:
    """The way in which codes are drawn from their distribution.

    temperature: logits are divided by it (0 draws the most likely code). top_k: only the k most likely codes (0: all).
    top_p: only the most likely codes whose probabilities sum to p. guidance: weight w of the class in
    logits(no class) + w (logits(class) - logits(no class)) (classifier-free guidance, arXiv 2207.12598; 1 is plain).
    guidance_schedule: over the codes of a sample, w goes from 1 to `guidance` (linear, cosine) or is constant: early codes
    then keep the variety. method: one of the prior's `methods`; None: its first. steps: network calls of a masked prior;
    None: its own number. chunk: samples drawn together; None: the prior's own number. Another chunk may round otherwise, and
    so give another sample here and there. Where a code is several digits (prior/head=factors, bits), temperature, top_k, top_p
    and guidance act on each of them, given what is known then. Raises UserError for values out of range.
    """

    temperature: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    guidance: NonNegativeFloat = 1.0
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    method: str | None = None
    steps: Count | None = None
    chunk: PositiveInt | None = None

    @property
    def guided(self) -> bool:
        """True if the network is also asked without a class."""
        return self.guidance != 1

    @property
    def way(self) -> Way:
        """What the host has to know of it."""
        cut = self.top_k > 0 or self.top_p < 1
        return Way(self.temperature == 0, cut, self.guided, self.guidance_schedule, self.method, self.steps)

    def on(self, device: torch.device) -> Drawing:
        """What draws codes on a device."""
        place = device if device.type == "cuda" else torch.device("cpu")  # whose 0-d tensors all other devices take
        numbers = self.temperature, self.top_k or ALL_CODES, self.top_p, self.guidance - 1
        types = torch.float64, torch.int64, torch.float64, torch.float64  # 0-d: results keep the type of the logits
        tensors = (torch.tensor(number, dtype=dtype, device=place) for number, dtype in zip(numbers, types))
        return Drawing(self.way, Numbers(*tensors))


@dataclass(frozen=True)
class Way:
    """What of a Sampling decides which operations are done. One CUDA graph serves all settings of a way.

    greedy: the most likely code. cut: by top_k or top_p. The others as in Sampling.
    """

    greedy: bool
    cut: bool
    guided: bool
    guidance_schedule: str
    method: str | None
    steps: int | None


class Numbers(NamedTuple):
    """The numbers of a Sampling, 0-d tensors. excess: guidance - 1."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    excess: Tensor


@dataclass(frozen=True)
class Drawing:
    """Draws codes from logits in a way, by numbers that are tensors."""

    way: Way
    numbers: Numbers

    def guide(self, logits: Tensor, progress: Tensor) -> Tensor:
        """Apply guidance: logits (2 B, K, n), with the class and then without -> (B, K, n); unguided logits stay.

        progress (n,), or what broadcasts to logits: the share of a sample's codes that come before each.
        """
        if not self.way.guided:
            return logits
        with_class, without = logits.chunk(2)
        weight = 1 + self.numbers.excess * GUIDANCE_SCHEDULES[self.way.guidance_schedule](progress)  # (n,)
        return without + weight.to(logits) * (with_class - without)

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """logits (B, K), noise (B,) uniform in [0, 1), float64 -> codes (B,) by inverting the cumulative distribution."""
        rows = max(1, DRAWN_AT_A_TIME // logits.shape[1])
        if len(logits) > rows:
            return torch.cat([self.draw(*part) for part in zip(logits.split(rows), noise.split(rows))])
        if self.way.greedy:
            return logits.argmax(1)
        probabilities = (logits / self.numbers.temperature).softmax(1)  # (B, K)
        if self.way.cut:
            ranked, order = probabilities.sort(stable=True, dim=1, descending=True)
            kept = ranked.cumsum(1) - ranked < self.numbers.top_p  # the code that crosses p is kept
            kept &= torch.arange(logits.shape[1], device=logits.device) < self.numbers.top_k
            probabilities = torch.zeros_like(probabilities).scatter_(1, order, ranked * kept)
        cumulative = probabilities.cumsum(1)  # (B, K)
        total = cumulative[:, -1:]
        target = torch.minimum(noise.to(total.dtype)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, target, right=True)[:, 0]  # right: skips codes of probability 0


@dataclass
class Known:
    """Codes that sampling must keep: M maps (n, *s_m), and bool masks of the same shapes, True where they are kept."""

    codes: list[Tensor]
    kept: list[Tensor]

    def rows(self, rows: slice, device: torch.device) -> Known:
        """The known codes of some of the samples, on a device."""
        return Known([m[rows].to(device) for m in self.codes], [m[rows].to(device) for m in self.kept])


def uniform_noise(seeds: list[int], count: int, device: torch.device) -> Tensor:
    """(len(seeds), count) float64 in [0, 1): row i depends on seed i alone.

    On CUDA by a counter-based generator, all rows at once; elsewhere by torch's on the CPU, whose numbers are others.
    """
    if device.type == "cuda":
        return philox_uniform(torch.tensor([seed % 2**63 for seed in seeds], device=device), count)
    rows = (torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    return torch.stack(list(rows)).to(device)


def philox_uniform(seeds: Tensor, count: int) -> Tensor:
    """seeds (n,) int64 -> (n, count) float64 in [0, 1): 53 bits of Philox with the seed as its key, and the column counted."""
    a, b, c, d = philox(seeds[:, None], torch.arange(-(-count // 2), device=seeds.device)[None])  # (n, count / 2)
    high, low = torch.stack([a, c], dim=2).flatten(1), torch.stack([b, d], dim=2).flatten(1)  # (n, count or one more)
    return (((high >> 5) << 26) + (low >> 6))[:, :count].double() * 2.0**-53


def philox(key: Tensor, counter: Tensor) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405): int64 key and counter -> four numbers below 2^32.

    The product of two numbers below 2^32 overflows int64, but its bits are right.
    """
    mask = 0xFFFFFFFF
    key_low, key_high = key & mask, (key >> 32) & mask
    x = [counter & mask, (counter >> 32) & mask, torch.zeros_like(counter), torch.zeros_like(counter)]
    for _ in range(10):
        first, second = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [
            ((second >> 32) & mask) ^ x[1] ^ key_low,
            second & mask,
            ((first >> 32) & mask) ^ x[3] ^ key_high,
            first & mask,
        ]
        key_low, key_high = (key_low + 0x9E3779B9) & mask, (key_high + 0xBB67AE85) & mask
    return x
