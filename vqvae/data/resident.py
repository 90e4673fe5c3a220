"""Where the items of a split lie while they are used: on the device, in memory, in a file, or nowhere."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)
MEMORY_BYTES = 4 * 2**30  # auto: larger sets are not kept in memory
DEVICE_SHARE = 0.25  # auto: share of the free device memory that items may take
DISK_SHARE = 0.9  # auto: share of the free disk space that the file of a split may take
READERS = 4  # threads that read batches from a file
PLACES = {  # in words
    "device": "on the device",
    "memory": "in memory",
    "disk": "decoded into a file and read from there",
    "stream": "decoded as they are needed",
}
AHEAD = 8  # batches that are read before they are asked for


def choose_place(resident: str, size: int, device: torch.device, folder: Path, cached: bool) -> str:
    """device, memory, disk or stream for a split of `size` bytes; `resident` is the setting of the data.

    auto takes the first of them that has room; a split of which the cache `folder` holds a file (`cached`) needs none on disk.
    """
    if resident != "auto":
        return resident
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE:
        return "device"
    if size <= MEMORY_BYTES:
        return "memory"
    return "disk" if cached or size < free_bytes(folder) * DISK_SHARE else "stream"


def free_bytes(folder: Path) -> int:
    """Free space of the disk of a folder, which need not be there yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def mapped(array: np.ndarray) -> Tensor:
    """A memory map as a tensor. Nothing may be written to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def read_ahead(items: Tensor, batches: Iterable[Tensor], pinned: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of indices -> items (b, ...) and the indices (b,), in order, read from a memory map by threads.

    pinned: into memory from which a GPU copies while the host goes on.
    """

    def read(chosen: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty(len(chosen), *items.shape[1:], dtype=items.dtype, pin_memory=pinned)
        return torch.index_select(items, 0, chosen, out=out), chosen

    waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
    with ThreadPoolExecutor(READERS) as readers:
        for chosen in batches:
            waiting.append(readers.submit(read, chosen))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
