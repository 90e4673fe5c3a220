"""Every preset of configs/quantizer at a size for tests, and the steps of a training run around it, without the trainer."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.quantizers.base import Quantized, Quantizer
from vqvae.seeding import seed_everything
from vqvae.training.optimizers import reset_rows

PRESETS = choices("quantizer")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler on CPUs"
)
DIM, GRID, BATCH = 8, (2, 4), 8  # 64 vectors a step
SMALL: dict[str, Any] = {
    "size": 16,
    "components": 4,
    "patch": 4,
    "shares": [0.5, 1.0],
    "depth": 2,
    "dropout": 0.5,
    "noise": 0.3,
    "width": 16,
    "layers": 1,
    "levels": [4, 3, 4],
    "bits": 4,
    "bits_per_map": 2,
    "replaced": 3,
    "vectors_per_code": 2,
    "every_steps": 5,
    "threshold": 0.5,  # of uniform use, so that codes die within a few steps
}


@functools.cache  # composing takes longer than building
def small_config(name: str) -> DictConfig:
    """The preset with few codes, and schedules that happen within 20 steps."""
    cfg = compose("train", [f"quantizer={name}", f"quantizer.dim={DIM}"])
    shrink(cfg.quantizer)
    if name == "product":
        cfg.quantizer.inner.dim = DIM // cfg.quantizer.splits
    return resolve(cfg).quantizer


def shrink(node: DictConfig) -> None:
    for key in node:
        if OmegaConf.is_dict(node[key]):
            shrink(node[key])
        elif key in SMALL:
            node[key] = SMALL[key]
    if node.get("_target_", "").split(".")[-2:-1] in (["revival"], ["anchor"]) and "decay" in node:
        node.decay = 0.5  # the moving average of use is as short as all else
    if ".soft." in node.get("_target_", ""):
        node.speed = 0.5  # not 1, and small: SGD, which Run has, follows its square, and these diverge


def small_quantizer(name: str, cfg: DictConfig | None = None) -> Quantizer:
    torch.manual_seed(0)
    return build(small_config(name) if cfg is None else cfg, "quantizer")


STATEFUL = [name for name in PRESETS if name != "identity"]  # all others have parameters or buffers


def own_rows(rows: int) -> slice:
    """The part of a global batch that belongs to this rank."""
    size = rows // distributed.world_size()
    return slice(distributed.rank() * size, (distributed.rank() + 1) * size)


def latents(step: int, batch: int = BATCH) -> Tensor:
    """(batch, D, *s): around a few centers, which move, so that codes come and go."""
    generator = torch.Generator().manual_seed(step)
    centers = torch.randn(batch, DIM, *[1] * len(GRID), generator=generator)
    return centers + 0.3 * torch.randn(batch, DIM, *GRID, generator=generator)


def objective(quantizer: Quantizer, out: Quantized, step: int, rows: slice) -> Tensor:
    """Mean over images of a linear functional of z_q, and the quantizer's own losses. rows: of the global batch."""
    direction = torch.randn(BATCH, DIM, *GRID, generator=torch.Generator().manual_seed(1000 + step))
    downstream = (out.z_q * direction[rows]).sum() / max(len(out.z_q), 1)
    return downstream + sum((loss.weight * loss.value for loss in out.losses.values()), torch.zeros(()))


def begin_run(quantizer: Quantizer, rows: slice) -> None:
    """Codes from data, as VQVAE.begin_run does it."""
    seed_everything(0, 0)
    if quantizer.init_vectors:
        quantizer.eval().begin_run(distributed.gather_rows(latents(10**6, 3 * BATCH)[rows]))
    quantizer.train()


class Run:
    """A quantizer with its optimizer. `step` is one step of training on latents of this rank."""

    def __init__(self, quantizer: Quantizer, forward: nn.Module | None = None) -> None:
        self.quantizer = quantizer
        self.forward = quantizer if forward is None else forward
        self.parameters = list(quantizer.parameters())
        trained = self.parameters or [nn.Parameter(torch.zeros(1))]
        self.optimizer = torch.optim.SGD(trained, lr=0.03, momentum=0.9)
        self.replaced = 0

    def step(self, step: int, rows: slice, parts: int = 1) -> tuple[list[Tensor], Tensor]:
        """Trains on the rows of the global batch in `parts` micro-batches -> counts a code map, gradient of the latents."""
        seed_everything(1, step)
        self.quantizer.begin_step(step, 100)
        self.optimizer.zero_grad()
        counts = [torch.zeros(size) for size in self.quantizer.codebook_sizes]
        gradients = []
        own = torch.arange(BATCH)[rows]
        for part in own.chunk(parts):
            z_e = latents(step)[part].requires_grad_()
            out = self.forward(z_e)
            loss = objective(self.quantizer, out, step, part) / parts
            if loss.requires_grad:
                loss.backward()
            gradients.append(torch.zeros_like(z_e) if z_e.grad is None else z_e.grad)
            for count, codes in zip(counts, out.codes):
                count += torch.bincount(codes.flatten(), minlength=len(count))
        self.average_gradients()
        self.optimizer.step()
        replaced = self.quantizer.after_step(torch.tensor(True))
        reset_rows([self.optimizer], replaced)
        self.replaced += sum(int(mask.sum()) for mask in replaced.values())
        return counts, torch.cat(gradients)

    def average_gradients(self) -> None:
        """As DistributedDataParallel does: a parameter without gradient on this rank counts as zero."""
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter, total in zip(self.parameters, distributed.all_reduce_sum(own)):
            parameter.grad = total / distributed.world_size()
