"""The same work in two processes of one group, on gloo."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = datetime.timedelta(seconds=60)  # of a collective: a rank that waits in vain fails its test


def in_a_group(folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns on each of two ranks."""
    _on_two_ranks(_member, str(folder), work, arguments)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def under_torchrun(folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The same with no group yet, but what torchrun leaves in the environment. `work` sets MASTER_PORT, once a group."""
    _on_two_ranks(_launched, str(folder), work, arguments)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def _on_two_ranks(start: Callable[..., None], *arguments: Any) -> None:
    """In forks of a process that has only imported PyTorch: to import it in each takes as long as most of the work."""
    mp.set_forkserver_preload(["torch.distributed", "torch._dynamo", "torchmetrics.functional.image", "hydra"])
    mp.start_processes(start, arguments, nprocs=2, start_method="forkserver")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def _member(rank: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=2, rank=rank, timeout=PATIENCE)
    torch.save(work(*arguments), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def _launched(rank: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    torch.save(work(*arguments), f"{folder}/rank{rank}.pt")
