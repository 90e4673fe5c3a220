"""Ending on request without losing work."""

from __future__ import annotations

import signal
from types import FrameType

from vqvae import distributed


class Stopped(Exception):
    """Raised once a requested stop has left a checkpoint behind."""


class StopRequest:
    """SIGTERM or Ctrl-C asks for an end after the step at hand, with a checkpoint; a second Ctrl-C ends at once."""

    number: int | None = None

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, may_talk: bool) -> bool:
        """Whether to stop now. Several ranks agree only where `may_talk` (at log steps); a single one always may."""
        if distributed.world_size() == 1:
            return self.number is not None
        return may_talk and distributed.any_rank(self.number is not None)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + (self.number or 0)
