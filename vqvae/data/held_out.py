"""Which items are held out for validation where a set has no validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from random import Random

import numpy as np

from vqvae.errors import UserError


def by_hash(names: Iterable[bytes], share: float, seed: int) -> np.ndarray:
    """Names of n items, unique -> bool (n,), True for about `share` of them: those whose hash with the seed is below it.

    It depends on each item alone, so a further item moves no other to the other side. At least one item is on each side.
    Raises UserError for fewer than two items.
    """
    salt = f"{seed}/".encode()
    digests = (hashlib.sha256(salt + name).digest()[:8] for name in names)
    places = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
    check_count(len(places))
    held_out = places / 2.0**64 < share
    if not held_out.any():
        held_out[places.argmin()] = True
    elif held_out.all():
        held_out[places.argmax()] = False
    return held_out


def by_shuffle(count: int, share: float, seed: int) -> np.ndarray:
    """n -> bool (n,), True for the first `share` of a shuffled order: the rule of earlier versions, for their runs."""
    check_count(count)
    order = list(range(count))
    Random(seed).shuffle(order)
    held_out = np.zeros(count, bool)
    held_out[order[: min(max(1, round(count * share)), count - 1)]] = True
    return held_out


def check_count(count: int) -> None:
    if count < 2:
        raise UserError(f"{count} items are too few to hold some out for validation; there must be at least 2")
