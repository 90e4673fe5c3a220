"""The signals that ask a program to stop."""

from __future__ import annotations

import signal

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
REQUESTS = {getattr(signal, name) for name in NAMES if hasattr(signal, name)}  # Windows lacks some
COME_BACK = REQUESTS & {
    getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2")
}  # from launchers that preempt a job
