"""Names of figures in versions up to 0.1.0 -> names of today, so that runs of those versions keep working."""

from __future__ import annotations

import functools
import re
from typing import Any

from vqvae.metrics.registry import in_split

# Old name without its split -> new name; the first rule that matches the whole name counts. {stage}: who logged it.
RULES = (
    (r"(?:model|prior)/(learning_rate|grad_norm)", r"{stage}/\1"),
    (r"codebook(\d+)/(\w+)", r"codebook/\2_\1"),
    (r"level(\d+)/(\w+)", r"autoencoder/\2_\1"),
    (r"map(\d+)/(\w+)", r"prior/\2_\1"),
    (r"(bits_per_dim\w*)", r"model/\1"),
    (r"bits_per_picture(\w*)", r"prior/bits_per_item\1"),
    (r"((?:train_)?bits_per_code\w*|overfitting_gap)", r"prior/\1"),
    (r"model_parameters", r"autoencoder/parameters"),
    (r"(autoencoder|prior)_pictures_per_second", r"\1/items_per_second"),
    (r"(autoencoder|prior)_(seconds|parameters)", r"\1/\2"),
    (r"timing/pictures_per_second", r"timing/items_per_second"),
    (r"(\w+)", r"{stage}/\1"),
)
NO_FIGURES = ("step", "after_steps", "indices", "error")  # keys beside figures in logs, checkpoints and summaries


@functools.cache
def rename(name: str, stage: str) -> str:
    """The name of a figure of the given stage, without its split, in this version."""
    for pattern, new in RULES:
        match = re.fullmatch(pattern, name)
        if match and name not in NO_FIGURES:
            return match.expand(new).replace("{stage}", stage)
    return name


def rename_checkpoint(state: dict[str, Any], stage: str) -> dict[str, Any]:
    """A trainer's checkpoint with the names of this version: of its best metrics, and of its metric window."""
    best = {rename(name, stage): value for name, value in state["best"].items()}
    names = [rename(name, stage) for name in state["window"]["names"]]
    return {**state, "best": best, "window": {**state["window"], "names": names}}


def rename_line(line: dict[str, Any], stage: str) -> dict[str, Any]:
    """A line of a log, in which old names begin with their split, with the names of this version."""
    renamed = {}
    for name, value in line.items():
        split, _, rest = name.partition("/")
        renamed[in_split(rename(rest, stage), split) if split in ("train", "val") else rename(name, stage)] = value
    return renamed
