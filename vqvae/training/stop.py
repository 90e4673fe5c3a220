"""Ending on request without losing work."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from vqvae import distributed
from vqvae.surroundings.signals import COME_BACK, REQUESTS, Work

ALWAYS = {signal.SIGTERM, signal.SIGINT}  # received even where the parent had them ignored; SIGHUP is not, under nohup


class Stopped(BaseException):
    """A requested stop: nothing that was finished is lost. Like KeyboardInterrupt, it passes what catches Exceptions."""


class StopRequest:
    """Ends the program with Stopped on SIGTERM, Ctrl-C, or the closing of its terminal (SIGHUP, unless nohup had it ignored).

    It ends at once, because files appear only when they are complete.

    So do signals by which a launcher, such as submitit, preempts a job; the launcher's own handler is called last.
    Inside `deferred()` signals are recorded, and the caller polls `agreed()`; a second Ctrl-C ends the program at once.
    """

    number: int | None = None
    waits = False
    launcher: dict[int, Any] = {}  # noqa: RUF012  # handlers that were there before

    def __enter__(self) -> StopRequest:
        """Receive signals until the context ends; the next job of a sweep may run in this process."""
        self.before = {number: signal.getsignal(number) for number in REQUESTS}
        self.launcher = {n: handler for n, handler in self.before.items() if callable(handler) and n != signal.SIGINT}
        ignored = {number for number, handler in self.before.items() if handler == signal.SIG_IGN} - ALWAYS
        for number in (REQUESTS - COME_BACK - ignored) | set(self.launcher):
            signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def exit(self) -> NoReturn:
        """Ends the program, with the exit code that shells report; a launcher may put the job back into its queue first."""
        assert self.number is not None
        if self.number in self.launcher:
            self.launcher[self.number](self.number, None)
        raise SystemExit(128 + self.number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.waits and (
            Work.unbroken or importing(frame)
        ):  # an extension module that is stopped while it loads is an ImportError
            again = threading.Timer(0.1, receive_again, [number])
            again.daemon = True
            again.start()
            return
        first = self.number is None
        if first or number in COME_BACK:  # a request to come back is not undone by one to end
            self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if first and not self.waits:
            raise Stopped("stopped on request")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Context for work that must not be left half done, or that all ranks do together: signals are only recorded."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.agreed(may_talk=True):
            raise Stopped("stopped on request")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`: work that can be left anywhere, by a process that is alone."""
        if self.number is not None and distributed.world_size() == 1:
            raise Stopped("stopped on request")
        self.waits = distributed.world_size() > 1
        try:
            yield
        finally:
            self.waits = True

    def agreed(self, may_talk: bool) -> bool:
        """True if it is time to stop. Several ranks agree only where `may_talk`; a single one always may."""
        if distributed.world_size() == 1:
            return self.number is not None
        stopping = may_talk and distributed.any_rank(self.number is not None)
        if stopping and self.number is None:  # another rank was told
            self.number = signal.SIGTERM
        return stopping


def receive_again(number: Any) -> None:
    """Send a signal to the main thread. Windows cannot, and lets it see the signal when it runs Python code again."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(number)


def importing(frame: FrameType | None) -> bool:
    """True if a module is being imported in a frame or its callers."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
