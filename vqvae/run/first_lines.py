"""The first lines of a run, before any work: what it was told, and what it will do."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vqvae import distributed
from vqvae.config.build import build
from vqvae.data.levels import BITS
from vqvae.model import VQVAE
from vqvae.quantizers.revival import Revival
from vqvae.run.run import Run
from vqvae.surroundings.terminal import printable, wrapped
from vqvae.training.hardware import choose_precision
from vqvae.training.settings import TrainerConfig

MOST_NAMED = 10  # classes


def first_lines(run: Run, networks: dict[str, nn.Module]) -> list[str]:
    """Sentences about data, model, training and logs of a run. networks: `model`, and perhaps `prior`."""
    counts = " and ".join(f"{run.known.count(name):,} {name}" for name in ("train", "val"))
    size = times([run.data.channels, *run.data.size])
    data = f"data: {type(run.data).__name__}, {counts} items of {size}{classes(run)}"
    lines = [data if run.data.class_names else wrapped(data)]
    lines += [f"data: {note}" for note in run.known.notes()]
    if (conditions := run.conditions.found()) is not None:
        lines.append(f"prior: conditions are {printable(str(conditions))}")
    model = networks["model"]
    assert isinstance(model, VQVAE)
    lines.append(wrapped(f"model: {parameters(model)}, {codes(run, model)}"))
    for stage, node in (("autoencoder", run.cfg), ("prior", run.cfg.prior)):
        if stage in run.cfg.stages and run.folder.weights_file(stage) is None:
            own = f"{parameters(networks['prior'])}, " if stage == "prior" else ""
            lines.append(wrapped(f"{stage}: {own}{training(run, node)}"))
            lines += revivals(run, model) if stage == "autoencoder" and run.cfg.train == "all" else []
    lines.append(f"logs: train.log, <stage>/metrics.jsonl in the run folder; wandb: {run.cfg.logger.mode}")
    if run.cfg.logger.get("tensorboard"):
        lines.append(f"logs: tensorboard --logdir {shlex.quote(str(run.folder.path))}")
    return lines


def classes(run: Run) -> str:
    names = run.data.class_names
    if not names:
        return ", no classes"
    return (
        f", {len(names)} classes ({', '.join(map(printable, names[:MOST_NAMED]))}{', ...' * (len(names) > MOST_NAMED)})"
    )


def codes(run: Run, model: VQVAE) -> str:
    """Codes and bits of an item, beside the bits of its values."""
    shapes, sizes = model.code_shapes(run.data.size), model.codebook_sizes
    if not sizes:
        return "no codes"
    counts = [math.prod(shape) for shape in shapes]
    bits = sum(count * math.log2(size) for count, size in zip(counts, sizes))
    maps = " + ".join(f"{times(shape)} of {size:,}" for shape, size in zip(shapes, sizes))
    values = BITS[run.data.value_type] * run.data.channels * math.prod(run.data.size)
    return f"{sum(counts):,} codes an item ({maps}): {bits:,.0f} bits instead of {values:,}"


def training(run: Run, node: Any) -> str:
    """Steps, batch, device and precision of a stage. node: the config's top level, or its `prior`."""
    settings: TrainerConfig = build(node.trainer, "trainer")
    count = run.known.count("train")
    steps = settings.total_steps(count)
    ranks = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    epochs = steps * settings.batch_size / count
    return (
        f"{steps:,} steps of {settings.batch_size} items ({epochs:.3g} epochs), "
        f"{choose_precision(settings.precision, run.device)} on {device_name(run.device)}{ranks}"
    )


def revivals(run: Run, model: VQVAE) -> list[str]:
    """When codes are replaced, once for all codebooks that do alike."""
    settings: TrainerConfig = build(run.cfg.trainer, "trainer")
    steps = settings.total_steps(run.known.count("train"))
    plans = [part.plan(steps) for part in model.modules() if isinstance(part, Revival)]
    return [wrapped(f"codebook: {plan}") for plan in dict.fromkeys(plans) if plan is not None]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread{'s' * (threads != 1)}"


def parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()):,} parameters"


def times(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
