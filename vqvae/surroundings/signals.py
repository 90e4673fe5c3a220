"""The signals that ask a program to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
REQUESTS = {getattr(signal, name) for name in NAMES if hasattr(signal, name)}  # Windows lacks some
COME_BACK = REQUESTS & {
    getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2")
}  # from launchers that preempt a job


class Work:
    """Work of this process that a request to stop must not break off."""

    unbroken = 0  # contexts that are open


@contextmanager
def in_one_piece() -> Iterator[None]:
    """Context for short work that is left whole: a request that comes in it is obeyed after it.

    To block the signals is not enough, because another thread may receive them.
    """
    Work.unbroken += 1
    try:
        yield
    finally:
        Work.unbroken -= 1
