"""Training steps as CUDA graphs: recorded once per kind of step, then replayed without the host's work."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vqvae import distributed

log = logging.getLogger(__name__)
MAX_KINDS = 16  # graphs kept; steps of further kinds run as they are
WAIT = "called a synchronizing CUDA operation"  # how torch's warning of a host that waits begins


def captures_on(device: torch.device) -> bool:
    """True where steps can be captured: on CUDA, by a process that trains alone."""
    return device.type == "cuda" and distributed.world_size() == 1


class StepGraphs:
    """Runs `step(inputs)`: the first two steps of a kind as they are, then by a graph of it.

    The first step makes what is made once (an optimizer's moments, compiled kernels). The second is watched: if the host waits
    for the device in it, no graph can be made; a warning names the place, and all steps run as they are from then on.

    Args:
        step: reads and writes tensors that stay where they are, and holds no number that differs between steps of a kind.
        clean_up: called before a step is run again whose recording failed.
    """

    def __init__(self, step: Callable[[Any], None], clean_up: Callable[[], None]) -> None:
        self.step, self.clean_up = step, clean_up
        self.seen: dict[Hashable, int] = {}
        self.replays: dict[Hashable, Callable[[], None]] = {}
        self.inputs: Any = None  # where graphs read the inputs of a step
        self.pool: Any = None
        self.enabled = True

    def __call__(self, kind: Hashable, inputs: Any) -> None:
        """One step on `inputs`, a tree of tensors of the same shapes in every step."""
        times = self.seen[kind] = self.seen.get(kind, 0) + 1
        if not self.enabled or (kind not in self.replays and len(self.replays) >= MAX_KINDS) or times == 1:
            self.step(inputs)
        elif times == 2:
            with noticing_waits() as places:
                self.step(inputs)
            if places:
                self.give_up(f"the host waits for the GPU at {places[0]}")
        else:
            self.fill(inputs)
            if kind not in self.replays:
                try:
                    self.replays[kind] = self.capture()
                except RuntimeError as error:
                    self.give_up(str(error).splitlines()[0])
                    self.clean_up()
                    return self.step(inputs)
            self.replays[kind]()

    def fill(self, inputs: Any) -> None:
        """Copy `inputs` to where graphs read them."""
        if self.inputs is None:
            self.inputs = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
        else:
            for kept, given in zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True):
                if isinstance(kept, Tensor):
                    kept.copy_(given, non_blocking=True)

    def capture(self) -> Callable[[], None]:
        """Record the step, which does not run by that. Returns the function that runs it."""
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self.step(self.inputs)
        return graph.replay

    def give_up(self, reason: str) -> None:
        """Run all further steps as they are."""
        self.enabled = False
        self.replays.clear()
        log.warning("training runs without CUDA graphs, and slower, because %s", reason)
        if self.pool is not None:
            forget_capture(self.pool)


@contextmanager
def noticing_waits() -> Iterator[list[str]]:
    """Context whose list then holds the places (file:line) where the host has waited for the GPU."""
    places: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
            places += [f"{w.filename}:{w.lineno}" for w in caught if str(w.message).startswith(WAIT)]
    for warning in caught:
        if not str(warning.message).startswith(WAIT):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def forget_capture(pool: Any) -> None:
    """Give torch back its random numbers and its memory after a recording that broke off."""
    device = torch.cuda.current_device()
    torch.cuda.default_generators[device].graphsafe_set_state(torch.Generator(f"cuda:{device}").graphsafe_get_state())
    with suppress(RuntimeError):  # it may have ended
        torch._C._cuda_endAllocateToPool(device, pool)
    gc.collect()
