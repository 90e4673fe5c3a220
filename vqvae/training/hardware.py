"""Number formats, memory layout and clocks, which depend on the machine."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Mapping

import torch
from torch import nn

from vqvae.metrics.registry import figure

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

SECONDS = figure("timing/seconds", "wall clock of training steps, evaluation and checkpoints left out", report=False)
RATE = figure(
    "timing/items_per_second", "items (or their codes) trained on per second", "higher", report=False, dashboard=True
)
MEMORY = figure("timing/memory_mb", "peak memory of the process so far, in MiB", "lower", report=False)
GPU_MEMORY = figure("timing/gpu_memory_mb", "peak memory of PyTorch on the GPU so far, in MiB", "lower", report=False)


def choose_precision(precision: str, device: torch.device) -> str:
    """auto -> bf16 where the hardware multiplies it faster than float32, else fp32; others stay."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    return "bf16" if cpu_has_bf16() and not bf16_is_slow(cpu_flags()) else "fp32"


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast for `trainer.precision` on a device; None for float32."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choose_precision(precision, device)]


def cpu_has_bf16() -> bool:
    """True if this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bf16_is_slow(flags: Mapping[str, object]) -> bool:
    """True for Intel's Xeons since 2023 where AMX is hidden, as in many virtual machines: a bf16 product takes 1.3 to 1.7
    times a float32 one there, because AVX512-BF16 is a slow path beside AMX. AMD's have no AMX and a fast AVX512-BF16.
    """
    intel = "intel" in str(flags.get("cpu_name", "")).lower()
    return intel and bool(flags.get("avx512_fp16")) and not flags.get("amx_bf16")


def cpu_flags() -> Mapping[str, object]:
    """What PyTorch knows of this CPU, by name; empty before PyTorch 2.10."""
    known = getattr(torch.cpu, "get_capabilities", None)
    return known() if known else {}


def to_channels_last(network: nn.Module) -> None:
    """Weights of 2-D and 3-D convolutions in channels_last layout, so that their activations are too."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.to(memory_format=torch.channels_last_3d)


def memory_mb(device: torch.device) -> dict[str, float]:
    """Peak memory of this process, and of its GPU, in MiB, by the names of figures."""
    values = {}
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        values[MEMORY] = peak / (2**20 if sys.platform == "darwin" else 2**10)
    if device.type == "cuda":
        values[GPU_MEMORY] = torch.cuda.max_memory_allocated(device) / 2**20
    return values


def keep_freed_memory() -> None:
    """Tells glibc to reuse freed memory instead of returning it: each step's tensors then cause no page faults.

    Measured on 2 cores: 4 to 10 % more images/s at batch 32. Does nothing on other systems.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
            libc.mallopt(m_mmap_threshold, 2**30)
            libc.mallopt(m_trim_threshold, -1)  # never: above 2 GB of freed memory each trim would take 0.3 s


class Clock:
    """Steps of training between log steps, and their seconds, pauses left out. It counts what this process has done."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.started = 0, 0.0, time.perf_counter()

    def pause(self) -> None:
        self.seconds += time.perf_counter() - self.started

    def resume(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> tuple[int, float]:
        """Steps and seconds since the last lap; call it while the clock runs, after the device was waited for."""
        self.pause()
        lap = self.steps, self.seconds
        self.steps, self.seconds = 0, 0.0
        self.resume()
        return lap
