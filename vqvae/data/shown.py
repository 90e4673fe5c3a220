"""Which channels of an item pictures show: the setting data.show."""

from __future__ import annotations

from torch import Tensor

from vqvae.errors import UserError
from vqvae.images import to_uint8

Show = list[int] | None  # null: the first channel, or the first three


def check_show(show: Show, channels: int) -> None:
    """Raise UserError unless `show` is null, one of the channels, or three of them."""
    if show is not None and (len(show) not in (1, 3) or not all(0 <= one < channels for one in show)):
        raise UserError(f"show must be 1 or 3 of the channels 0 .. {channels - 1}, got {show}")


def shown(items: Tensor, show: Show) -> Tensor:
    """Items (n, C, *S), of 8 bits or in [-1, 1] -> the channels to show, uint8 (n, 1 or 3, *S)."""
    chosen = items[:, show or ([0, 1, 2] if items.shape[1] >= 3 else [0])]
    return chosen if not chosen.is_floating_point() else to_uint8(chosen)
