"""CUDA graphs of functions on tensors: recorded once for each kind of call, then replayed without the host's work."""

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
MAX_KINDS = 16  # graphs kept; calls of further kinds run as they are
WAIT = "called a synchronizing CUDA operation"  # how torch's warning of a host that waits begins


def captures_on(device: torch.device) -> bool:
    """True where calls can be captured: on CUDA, by a process that works alone."""
    return device.type == "cuda" and distributed.world_size() == 1


class Graphs:
    """Runs `function(inputs)`: the first two calls of a kind as they are, then by a graph of it.

    The first call makes what is made once (an optimizer's moments, compiled kernels). The second is watched: if the host waits
    for the device in it, no graph can be made; a warning names the place, and all calls run as they are from then on.

    Args:
        what: the work that goes on without graphs, for that warning.
        function: takes a tree of tensors, and returns one or None. It reads and writes tensors that stay where they are, and
            holds no number that differs between calls of a kind.
        clean_up: called before a call is run anew whose recording failed.
    """

    def __init__(self, what: str, function: Callable[..., Any], clean_up: Callable[[], None] = lambda: None) -> None:
        self.what, self.function, self.clean_up = what, function, clean_up
        self.seen: dict[Hashable, int] = {}
        self.replays: dict[Hashable, tuple[Callable[[], None], Any, Any]] = {}  # of each kind, its inputs and outputs
        self.pool: Any = None
        self.enabled = True

    def __call__(self, kind: Hashable, inputs: Any) -> Any:
        """One call. The shapes of `inputs` are part of the kind. Outputs of a graph hold until its next replay."""
        leaves = tree_leaves(inputs)
        own = kind, tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor))
        times = self.seen[own] = self.seen.get(own, 0) + 1
        if not self.enabled or times == 1 or (own not in self.replays and len(self.replays) >= MAX_KINDS):
            return self.function(kind, inputs)
        if times == 2:
            with noticing_waits() as places:
                outputs = self.function(kind, inputs)
            if places:
                self.give_up(f"the host waits for the GPU at {places[0]}")
            return outputs
        if own not in self.replays:
            try:
                self.replays[own] = self.capture(kind, inputs)
            except RuntimeError as error:
                self.give_up(str(error).splitlines()[0])
                self.clean_up()
                return self.function(kind, inputs)
        replay, kept, outputs = self.replays[own]
        for place, given in zip(tree_leaves(kept), leaves, strict=True):
            if isinstance(place, Tensor):
                place.copy_(given, non_blocking=True)
        replay()
        return outputs

    def capture(self, kind: Hashable, inputs: Any) -> tuple[Callable[[], None], Any, Any]:
        """Record a call, which does not run by that. Returns what runs it, the inputs it reads and the outputs it writes."""
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        kept = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = self.function(kind, kept)
        return graph.replay, kept, outputs

    def give_up(self, reason: str) -> None:
        """Run all further calls as they are."""
        self.enabled = False
        self.replays.clear()
        log.warning("%s goes on without CUDA graphs, and slower, because %s", self.what, reason)
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
