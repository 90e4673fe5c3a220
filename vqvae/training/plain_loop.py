"""A quantizer in a training loop of one's own: one call does what the trainer does for it."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.training.optimizers import reset_rows

_hooks: WeakKeyDictionary[Any, list[RemovableHandle]] = WeakKeyDictionary()  # those at work for a quantizer


def auto_update(quantizer: Any, optimizer: torch.optim.Optimizer, steps: int) -> RemovableHandle:
    """Have a quantizer move its codes at every `optimizer.step()`, as in a run of the trainer of `steps` steps.

    >>> import vqvae
    >>> layer = vqvae.quantizer("ema", dim=8, codebook_size=16)
    >>> encoder = torch.nn.Linear(3, 8)
    >>> optimizer = torch.optim.Adam([*encoder.parameters(), *layer.parameters()])
    >>> handle = auto_update(layer, optimizer, steps=10_000)
    >>> out = layer(encoder(torch.randn(2, 5, 3)).movedim(2, 1))  # (2, 8, 5)
    >>> sum(loss.value * loss.weight for loss in out.losses.values()).backward()
    >>> optimizer.step()  # and the codes move

    Codes that start from data do so at the forward by which enough vectors were seen. Several forwards before a step are one
    step (gradient accumulation). In several processes of torch.distributed, all of them must call it. A second call for a
    quantizer, such as one with another optimizer, replaces the first.
    Returns a handle whose `remove` ends it. Raises UserError for what is no quantizer of this package, and for no steps.
    """
    if not hasattr(quantizer, "init_vectors"):
        raise UserError(f"auto_update takes a quantizer of vqvae, got {type(quantizer).__name__}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    for hook in _hooks.pop(quantizer, []):
        hook.remove()
    updates = _Updates(quantizer, optimizer, steps)
    handle = optimizer.register_step_post_hook(updates.after_step)
    _hooks[quantizer] = [handle] if updates.starting is None else [handle, updates.starting]
    return handle


class _Updates:
    """What is done around the steps of an optimizer."""

    def __init__(self, quantizer: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.quantizer, self.optimizer, self.steps, self.step = quantizer, optimizer, steps, 0
        self.seen: list[Tensor] = []
        self.starting: RemovableHandle | None = None
        if quantizer.init_vectors:
            self.starting = quantizer.register_forward_pre_hook(self.collect)
        quantizer.begin_step(0, steps)

    def collect(self, quantizer: Any, inputs: tuple[Tensor, ...]) -> None:
        """Before a forward in training: start the codes once there are vectors enough."""
        if not quantizer.training:
            return
        self.seen.append(distributed.gather_rows(inputs[0].detach().float()))
        if sum(z_e[:, 0].numel() for z_e in self.seen) >= quantizer.init_vectors:
            quantizer.begin_run(torch.cat(self.seen))
            self.seen = []
            assert self.starting is not None
            self.starting.remove()

    def after_step(self, *_: object) -> None:
        tensors = itertools.chain(self.quantizer.parameters(), self.quantizer.buffers())
        device = next((tensor.device for tensor in tensors), None)
        applied = torch.tensor(True, device=device)
        reset_rows([self.optimizer], self.quantizer.after_step(applied))
        self.step += 1
        self.quantizer.begin_step(self.step, self.steps)
