"""From a hidden state to a code: all of it at once, or its digits one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqvae.priors.sampling import Drawing

MOST_LOGITS = 2**26  # N x K that are kept in memory for the backward pass: 256 MB in float32, and gradients as large
CHUNK_LOGITS = 2**24  # of more, as many are there at a time

# What chooses a digit: (logits (copies B, K, n), which digit it is) -> digits (B, n).
Pick = Callable[[Tensor, int], Tensor]


class Head(nn.Module):
    """p(code | hidden state) of one code map. A code is a tuple of digits, each predicted given those before it.

    With one digit this is a softmax over all K codes. Further digits each bring what the one before was into the state
    (`Digit`), so that the likelihood is exact and sampling ancestral (the factors of Open-MAGVIT2, arXiv 2409.04410, section
    3.2; there by a transformer within the position).

    Args:
        width: channels C of the hidden states.
        digits: how many values each digit has. The first is the index of the code modulo digits[0], and so on.
        planes: True for weights of a 1x1 convolution over maps of 1 or 2 dims.
        product: of weights with the state of a single position, as F.linear.
    """

    later: Sequence[Digit]

    def __init__(
        self, width: int, digits: list[int], planes: bool = False, product: Callable[..., Tensor] = F.linear
    ) -> None:
        super().__init__()
        self.digits, self.product = list(digits), product
        first = nn.Conv2d(width, digits[0], 1) if planes else nn.Linear(width, digits[0])
        self.weight, self.bias = first.weight, first.bias
        self.later = nn.ModuleList(  # type: ignore[assignment]
            Digit(width, before, size) for before, size in pairwise(digits)
        )

    def logits(self, hidden: Tensor, dim: int = 1) -> Tensor:
        """Hidden states (B, C, *s), or (B, C) of one position -> logits of the first digit, K_0 in place of C.

        dim: where the channels lie.
        """
        if hidden.ndim == 2:
            return self.product(hidden, self.weight.flatten(1), self.bias)
        if self.weight.ndim == 2:
            return F.linear(hidden.movedim(dim, -1), self.weight, self.bias).movedim(-1, dim)
        plane = hidden if hidden.ndim == 4 else hidden[:, :, None]  # maps of 1 dim are grids of one row
        return F.conv2d(plane, self.weight, self.bias).view(len(hidden), -1, *hidden.shape[2:])  # (B, K_0, *s)

    def score(self, hidden: Tensor, codes: Tensor, smoothing: float, dim: int = 1) -> tuple[Tensor, Tensor]:
        """Hidden states (B, C, *s) -> nats of the codes (B, *s), and losses (B, *s) with label smoothing, of each digit.

        Of more than MOST_LOGITS, logits are made in chunks of rows, and again in the backward pass. float32.
        """
        first, *digits = self.split(codes)
        if codes.numel() * self.digits[0] <= MOST_LOGITS:
            nats, losses = score_digit(self.logits(hidden, dim), first, smoothing, dim)
        else:
            nats, losses = self.score_in_chunks(hidden.movedim(dim, -1).flatten(0, -2), first, smoothing)
        state = hidden.movedim(dim, -1).flatten(0, -2) if digits else hidden  # (N, C)
        for layer, before, digit in zip(self.later, [first, *digits], digits):
            state = layer(state, before.flatten())
            more, lost = score_digit(layer.logits(state), digit.flatten(), smoothing, 1)  # (N,)
            nats, losses = nats + more.view_as(nats), losses + lost.view_as(losses)
        return nats, losses

    def score_in_chunks(self, rows: Tensor, digit: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """`score` of the first digit (B, *s), of hidden states as rows (N, C)."""

        def score(part: Tensor, own: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return score_digit(F.linear(part, weight, bias), own, smoothing, 1)

        size = max(1, CHUNK_LOGITS // self.digits[0])
        parts = zip(rows.split(size), digit.flatten().split(size))
        weights = self.weight.flatten(1), self.bias
        scored = [checkpoint(score, *part, *weights, use_reentrant=False, preserve_rng_state=False) for part in parts]
        nats, losses = (torch.cat(of_parts).view(digit.shape) for of_parts in zip(*scored))
        return nats, losses

    def choose(self, hidden: Tensor, pick: Pick) -> Tensor:
        """Hidden states (copies B, C, *s) or (copies B, C) -> codes (B, n) whose digits `pick` chooses, one after another.

        With several copies, as of guidance, all go on from the same digits.
        """
        logits = self.logits(hidden)
        code = digit = pick(logits.reshape(*logits.shape[:2], -1), 0)  # (B, n)
        state, place = hidden.movedim(1, -1).reshape(-1, hidden.shape[1]), self.digits[0]  # (copies B n, C)
        for index, layer in enumerate(self.later, start=1):
            state = layer(state, digit.flatten().repeat(len(state) // digit.numel()))
            logits = layer.logits(state).unflatten(0, (-1, digit.shape[1])).transpose(1, 2)  # (copies B, K, n)
            digit = pick(logits, index)
            code, place = code + digit * place, place * self.digits[index]
        return code

    def split(self, codes: Tensor) -> list[Tensor]:
        """Codes -> their digits, each of the same shape."""
        digits = []
        for size in self.digits[:-1]:
            digits.append(codes % size)
            codes = codes // size
        return [*digits, codes]


class Digit(nn.Module):
    """A digit after the first: the one before it goes into the state, mixed by an MLP; x (N, width) -> same."""

    def __init__(self, width: int, before: int, size: int) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(before, width), nn.LayerNorm(width)
        self.up, self.down, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, size)

    def forward(self, state: Tensor, before: Tensor) -> Tensor:
        """State (N, width) that knows all digits but `before` (N,) -> one that knows it too."""
        x = state + self.embedding(before)
        return x + self.down(F.gelu(self.up(self.norm(x))))

    def logits(self, state: Tensor) -> Tensor:
        """State (N, width) -> logits of this digit (N, K)."""
        return self.out(state)


def score_digit(logits: Tensor, digit: Tensor, smoothing: float, dim: int) -> tuple[Tensor, Tensor]:
    """Logits with K in `dim`, digits without it -> nats of the digits, and losses; float32."""
    log_p = logits.float().log_softmax(dim)
    nats = -log_p.gather(dim, digit.unsqueeze(dim)).squeeze(dim)
    return nats, torch.lerp(nats, -log_p.mean(dim), smoothing) if smoothing else nats


class CodeSampler:
    """Codes of one map from hidden states, by guidance, the settings of a Drawing, and the noise; known codes stay.

    All settings act on each digit given those before it. noise (B, N, digits), progress (N,), codes (B, N) of which those are
    kept where `kept` (B, N), if there are any.
    """

    def __init__(self, drawing: Drawing, noise: Tensor, progress: Tensor, codes: Tensor, kept: Tensor | None) -> None:
        self.drawing, self.noise, self.progress = drawing, noise, progress
        self.copies = 2 if drawing.way.guided else 1
        self.codes, self.kept = codes, kept

    def __call__(self, head: Head, hidden: Tensor, span: slice = slice(None)) -> Tensor:
        """States (copies B, C, *s), or (copies B, C), of the n positions in `span` -> their codes (B, n)."""

        def pick(logits: Tensor, digit: int) -> Tensor:
            logits = self.drawing.guide(logits, self.progress[span])  # (B, K, n)
            noise = self.noise[:, span, digit]  # (B, n)
            return self.drawing.draw(logits.transpose(1, 2).flatten(0, 1), noise.flatten()).view(noise.shape)

        drawn = head.choose(hidden, pick)  # (B, n)
        return drawn if self.kept is None else torch.where(self.kept[:, span], self.codes[:, span], drawn)
