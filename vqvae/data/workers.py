"""Processes that read items beside the training."""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vqvae.surroundings.signals import REQUESTS, in_one_piece

POSIX = hasattr(signal, "sigtimedwait")  # not on macOS and Windows
PARENT_IS_LOOKED_FOR_SECONDS = 1


def read_batches(
    dataset: Dataset, batches: Iterator[list[int]], workers: int, pinned: bool, collate: Callable[[list[Any]], Any]
) -> Iterator[Any]:
    """Batches of indices -> `collate` of what the dataset has there; by `workers` processes, or by this one if 0.

    A worker outlives the signals that terminals and Slurm send to all processes, because its parent may need it for a last
    step. It ends when its parent says so, and within seconds of its parent's death.
    """
    # a signal waits until workers ignore it, because a new process has the handlers of its parent
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS) if POSIX else set()
    try:
        with warnings.catch_warnings(), in_one_piece():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: the user may want that
            loader = DataLoader(
                dataset,
                batch_sampler=batches,
                num_workers=workers,
                pin_memory=pinned,
                collate_fn=collate,
                worker_init_fn=functools.partial(obey_parent_alone, os.getpid()),
                generator=torch.Generator(),  # else it draws from torch's global generator
            )
            iterator = iter(loader)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RuntimeError("no shared memory for the locks of workers") from error
    finally:
        if POSIX:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from iterator


def obey_parent_alone(parent: int, worker: int) -> None:
    """Ignore requests to stop, and end this worker if `parent` sends SIGTERM, as multiprocessing does, or is gone."""
    if not POSIX:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    for number in REQUESTS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS - {signal.SIGTERM})  # SIGTERM waits for the thread
    threading.Thread(target=end_with, args=[parent], daemon=True).start()


def end_with(parent: int) -> None:
    """Wait for the parent's SIGTERM or death, then end this process."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_IS_LOOKED_FOR_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
