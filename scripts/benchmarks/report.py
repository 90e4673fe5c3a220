"""Figures of a benchmark on a GPU: printed as they come, kept in a JSON file, within a time."""

from __future__ import annotations

import gc
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vqvae import distributed

SECONDS = 1.0  # of measuring one thing


class Report:
    """Figures by name, in the file `path` after each of them, and the reasons of those that could not be measured.

    `seconds`: the time for all of it; whoever measures asks `left`.
    """

    def __init__(self, path: str | None = None, seconds: float = math.inf) -> None:
        self.path, self.ends = path and Path(path), time.monotonic() + seconds
        self.figures: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def add(self, name: str, value: float) -> float:
        self.figures[name] = value
        print(f"{name}: {value:,.4g}" if abs(value) < 1000 else f"{name}: {value:,.0f}", flush=True)
        self.write()
        return value

    def write(self) -> None:
        if self.path:
            self.path.write_text(json.dumps({"machine": machine(), "figures": self.figures, "failed": self.failed}))

    def rate(self, name: str, work: float, measure: Callable[[], float]) -> float:
        """Add work / measure(), which returns seconds. NaN, and a line, if that fails."""
        value = math.nan
        with self.guarded(name):
            value = self.add(name, work / measure())
        return value

    def ratio(self, name: str, value: float, other: float) -> None:
        if math.isfinite(value) and math.isfinite(other):
            self.add(name, value / other)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Context in which a failure costs a line, and no figure that comes later."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            self.failed[name] = f"{type(error).__name__}: {reason[:300]}"
            print(f"{name}: FAILED, {self.failed[name]}", flush=True)
            self.write()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def seconds_per_call(function: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Mean of as many calls as fill `seconds`, after three to warm up and some to count by. Without a GPU: of one call."""
    for _ in range(3):
        function()
    count = 1
    while True:
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            function()
        synchronize()
        passed = time.perf_counter() - start
        if passed > 0.7 * seconds or not torch.cuda.is_available():
            return passed / count
        count = min(10 * count, math.ceil(count * seconds / passed))


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if distributed.device().type == "cuda":
        torch.cuda.synchronize()
