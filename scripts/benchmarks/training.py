"""The trainer's speed against the bare step and a straightforward loop, and what bf16 costs in quality."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image, to_tensor

from scripts.benchmarks.report import synchronize
from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import check_train, compose, plain, resolve
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.devices.graphs import Graphs, captures_on
from vqvae.run.folder import RunFolder
from vqvae.run.parts import build_model
from vqvae.run.process import set_up_process
from vqvae.run.run import Run
from vqvae.run.tables import table
from vqvae.run.train import make_trainer, open_log, train_autoencoder
from vqvae.storage import checkpoint
from vqvae.training.hardware import autocast_type, to_channels_last
from vqvae.training.logger import read_lines
from vqvae.training.optimizers import LearningRate, parameter_groups
from vqvae.training.stage import Examples
from vqvae.training.stop import StopRequest

STEPS, ROUNDS = 150, 5


class TutorialImages(Dataset):
    """PIL images through ToTensor, one at a time."""

    def __init__(self, images: Tensor) -> None:
        self.images = [to_pil_image(image) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return to_tensor(self.images[index]) - 0.5


class OneHotEMA(nn.Module):
    """The quantizer as most tutorials write it: full distances, one-hot matrices, EMA inside forward."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(size, dim))
        self.register_buffer("count", torch.zeros(size))
        self.register_buffer("mean", self.codes.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = z.permute(0, 2, 3, 1).contiguous()  # (B, H, W, D)
        flat = rows.view(-1, rows.shape[-1])  # (N, D)
        distances = flat.square().sum(1, keepdim=True) + self.codes.square().sum(1) - 2 * flat @ self.codes.t()
        one_hot = F.one_hot(distances.argmin(1), len(self.codes)).float()  # (N, K)
        q = (one_hot @ self.codes).view(rows.shape)  # (B, H, W, D)
        with torch.no_grad():
            self.count.mul_(0.99).add_(one_hot.sum(0), alpha=0.01)
            self.mean.mul_(0.99).add_(one_hot.t() @ flat, alpha=0.01)
            total = self.count.sum()
            smoothed = (self.count + 1e-5) / (total + len(self.codes) * 1e-5) * total
            self.codes.copy_(self.mean / smoothed[:, None])
        loss = 0.25 * F.mse_loss(rows, q.detach())
        share = one_hot.mean(0)
        perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
        return (rows + (q - rows).detach()).permute(0, 3, 1, 2), loss, perplexity


def new_run(overrides: list[str], folder: str, base: tuple[str, ...] = ("experiment=cifar10_sonnet",)) -> Run:
    chosen = [*base, "data=shapes", "logger=off", *overrides, f"run_dir={folder}"]
    cfg = resolve(compose("train", chosen))
    check_train(cfg)
    set_up_process()
    RunFolder.prepare(cfg).create()
    return Run(RunFolder.prepare(cfg))


def through_the_trainer(run: Run, folder: str, **settings: Any) -> tuple[Any, float]:
    """Trains with the real trainer -> (trainer, seconds per step): data, logging and all, without evaluation."""
    run.cfg.trainer.update(
        {"eval_every_steps": 0, "preview_every_steps": 0, "checkpoint_every_steps": 10**9, **settings}
    )
    run.folder.path = Path(tempfile.mkdtemp(dir=folder))
    checkpoint.save(run.folder.path, "variance", {"variance": 0.25})
    torch.manual_seed(0)
    stage = run.autoencoder_stage(run.variance())
    train = ItemTrainingSet(run.data, run.loader("train"), run.cfg.trainer.batch_size, 0)
    val = ItemEvaluationSet(run.data, run.loader("val"))
    trainer = make_trainer(run, run.cfg, StopRequest(), stage, Examples(train, val), open_log(run, "autoencoder"))
    trainer.evaluate = trainer.preview = lambda step: None
    trainer.fit()
    return trainer, trainer.seconds / trainer.steps


def bare_step(run: Run, steps: int, captured: bool = False) -> float:
    """Seconds per step of forward, backward, optimizer and codebook on a batch that lies there; captured: as a CUDA graph."""
    device = run.device
    stage = run.autoencoder_stage(0.25)
    model = stage.model.to(device).train()
    to_channels_last(model)
    stage.meters.to(device)
    optimizer = build(run.cfg.optimizer, "optimizer")(parameter_groups(model))
    if captured:
        LearningRate(optimizer, device).set(1e-3)
    dtype = autocast_type(run.cfg.trainer.precision, device)
    x = next(ItemTrainingSet(run.data, run.loader("train"), run.cfg.trainer.batch_size, 0).batches_from(0)).x
    applied = torch.tensor(True, device=device)

    def step(index: Any, inputs: Any = None) -> None:
        model.begin_step(0, steps)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = model(x)
            loss = sum(stage.objective(output.decoded, x).values()) + sum(
                loss.value * loss.weight for loss in output.losses.values()
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.after_step(applied)

    graphs = Graphs("the bare step", step)
    return seconds_per((lambda index: graphs(None, None)) if captured and captures_on(device) else step, steps)


def straightforward_loop(run: Run, steps: int, workers: int) -> float:
    """Seconds per step of the loop that most repositories have, on the same network.

    In a process of its own that makes no `Run`, and so has none of its settings (memory allocator).
    """
    loader = run.loader("train")
    images, _ = next(iter(loader.batches([torch.arange(min(4096, len(loader)))])))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(straightforward_loop_here, plain(run.cfg), images.cpu().numpy(), steps, workers).result()


def straightforward_loop_here(config: dict[str, Any], images: np.ndarray, steps: int, workers: int) -> float:
    cfg, device = OmegaConf.create(config), distributed.device()
    model, _ = build_model(cfg, build(cfg.data, "data"), variance=0.25)
    dataset = TutorialImages(torch.from_numpy(images))
    encoder, decoder = model.encoders[0].to(device), model.decoders[0].to(device)
    quantizer = OneHotEMA(512, 64).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-4)
    losses: list[float] = []

    context = {"multiprocessing_context": "fork"} if workers else {}  # what a script of its own would get

    def batches() -> Any:
        while True:
            yield from DataLoader(
                dataset, cfg.trainer.batch_size, shuffle=True, drop_last=True, num_workers=workers, **context
            )

    source = batches()

    def step(index: int) -> None:
        x = next(source).to(device)
        optimizer.zero_grad()
        z_q, vq_loss, perplexity = quantizer(encoder(x))
        loss = F.mse_loss(decoder(z_q), x) / 0.06 + vq_loss
        loss.backward()
        optimizer.step()
        losses.extend([loss.item(), perplexity.item()])

    return seconds_per(step, steps)


def seconds_per(step: Any, steps: int) -> float:
    for index in range(5):
        step(index)
    synchronize()
    start = time.perf_counter()
    for index in range(steps):
        step(index)
    synchronize()
    return (time.perf_counter() - start) / steps


def training(overrides: list[str], folder: str) -> None:
    """Medians over rounds, in each of which every contestant runs once."""
    run = new_run(overrides, f"{folder}/training")
    through_the_trainer(run, folder, steps=20, log_every_steps=10)  # warms up whatever is made on first use
    contestants = {
        "the trainer, everything on": lambda: through_the_trainer(run, folder, steps=STEPS, log_every_steps=50)[1],
        "bare step": lambda: bare_step(run, STEPS),
        "straightforward float32 loop, 0 workers": lambda: straightforward_loop(run, STEPS // 2, 0),
        "straightforward float32 loop, 2 workers": lambda: straightforward_loop(run, STEPS // 2, 2),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            times[name].append(contestant())
    ours = times["the trainer, everything on"]
    rows = []
    for name, values in times.items():
        ratio = statistics.median(other / own for own, other in zip(ours, values))
        rows.append([name, run.cfg.trainer.batch_size / statistics.median(values), ratio])
    print(f"\ntraining, batch {run.cfg.trainer.batch_size}, median of {ROUNDS} rounds of {STEPS} steps")
    print(table(["", "images/s", "trainer's speed over it"], rows))


def precision(overrides: list[str], folder: str, steps: int = 2000) -> None:
    """The same run in float32 and in bf16, compared on validation images, both evaluated in float32.

    Codes start from data and dead ones are revived: from a random start, how many codes are alive after so few steps is a
    matter of luck that hides the difference.
    """
    overrides = ["quantizer/init=data", "quantizer/revival=random", *overrides]
    rows = []
    for kind in ("fp32", "bf16"):
        run = new_run([*overrides, f"trainer.precision={kind}"], f"{folder}/precision-{kind}")
        run.cfg.trainer.update(steps=steps, eval_every_steps=0, preview_every_steps=0)
        train_autoencoder(run, StopRequest())
        last = read_lines(run.folder.stage("autoencoder") / "metrics.jsonl")[-1]
        seconds = read_lines(run.folder.stage("autoencoder") / "timing.jsonl")[-1]["timing/seconds"]
        rows.append([kind, last["autoencoder/val/mse_over_variance"], last["codebook/val/perplexity_0"], seconds])
    ratio = rows[1][1] / rows[0][1]
    print(f"\nprecision, {steps} steps, batch {run.cfg.trainer.batch_size}: bf16's error is {ratio:.4f} of float32's")
    print(table(["", "validation MSE / variance", "perplexity", "seconds of training"], rows))
