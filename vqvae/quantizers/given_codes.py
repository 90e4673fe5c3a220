"""Codes that people give to a quantizer or to a model, checked before they are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae.errors import UserError


def check_maps(codes: Any, count: int, whose: str) -> None:
    """Raise UserError for what is no list of `count` integer maps (B, *s_m); `whose`: they are, for the message."""
    if isinstance(codes, Tensor) or not isinstance(codes, Sequence) or not all(isinstance(m, Tensor) for m in codes):
        raise UserError(f"codes must be a list of tensors, one for each code map, got {kind_of(codes)}")
    if len(codes) != count:
        raise UserError(f"{whose} has {count} code maps, got {len(codes)}")
    for m in codes:
        if m.ndim < 1 or m.is_floating_point() or m.is_complex() or m.dtype == torch.bool:
            raise UserError(f"codes must be integers (B, *s), got {m.dtype} of {tuple(m.shape)}")


def check_range(codes: Sequence[Tensor], sizes: Sequence[int]) -> None:
    """Raise UserError for codes beyond their codebooks. The host waits for the device of the codes."""
    for m, size in zip(codes, sizes):
        if m.numel() and not 0 <= int(m.min()) <= int(m.max()) < size:
            raise UserError(f"codes must be integers of 0 .. {size - 1}, got {m.dtype} of {m.min()} .. {m.max()}")


def are_at_hand(codes: Sequence[Tensor]) -> bool:
    """True where values can be looked at without a wait: on the CPU, and not while a graph is made of the operations."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and all(m.device.type == "cpu" for m in codes)


def kind_of(value: Any) -> str:
    """What a value is, for a message: its type, and that of its items."""
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return type(value).__name__
