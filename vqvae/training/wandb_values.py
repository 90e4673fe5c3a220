"""What wandb is sent: histograms, pictures, tables, artifacts, and which value of a figure it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae.metrics.registry import FIGURES, in_split

ARTIFACTS: dict[str, Any] = {}  # by name, of the stages that this process has logged: the sources of later ones
SUMMARY = {"lower": "min", "higher": "max"}


def metric_settings(stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name in logs, arguments of define_metric) of the registered figures that have a best value, which is kept.

    Of families, only those whose name ends with its one placeholder: wandb allows a star at the end alone.
    """
    for entry in FIGURES.values():
        start, *placeholders = entry.name.replace("{stage}", stage).split("{")
        if len(placeholders) > 1 or (placeholders and not placeholders[0].endswith("}")) or start.endswith("/"):
            continue
        star = "*" if placeholders else ""
        if entry.better in SUMMARY and entry.report:
            yield in_split(start, "val") + star, {"summary": SUMMARY[entry.better]}


def picture(image: str | Tensor, caption: str | None = None) -> Any:
    """A file, or an image uint8 (1 or 3, H, W)."""
    import wandb

    shown = image if isinstance(image, str) else torch.movedim(image.cpu(), 0, -1).numpy()
    return wandb.Image(shown, caption=caption)


def table(images: Tensor, classes: list[str], seeds: list[int]) -> Any:
    """Samples uint8 (n, 1 or 3, H, W) with their classes and seeds."""
    import wandb

    return wandb.Table(["image", "class", "seed"], [[picture(x), *of] for x, *of in zip(images, classes, seeds)])


def log_artifact(run: Any, name: str, kind: str, path: Path, metadata: dict[str, Any], sources: list[str]) -> None:
    """Sends an artifact without a copy of its files, once those of its `sources` that this process has sent are there."""
    import wandb

    artifact = wandb.Artifact(name, kind, metadata=metadata)
    add: Callable[..., Any] = artifact.add_dir if path.is_dir() else artifact.add_file
    add(str(path), policy="immutable", skip_cache=True)
    for source in [] if run.offline else [ARTIFACTS[name] for name in sources if name in ARTIFACTS]:
        source.wait()
        run.use_artifact(source)
    run.log_artifact(artifact)
    ARTIFACTS[name] = artifact


def to_wandb(value: Any) -> Any:
    """A histogram as wandb's own; anything else as it is."""
    if isinstance(value, dict) and value.keys() == {"edges", "counts"}:
        import numpy as np
        import wandb

        return wandb.Histogram(np_histogram=(np.array(value["counts"]), np.array(value["edges"])))
    return value
