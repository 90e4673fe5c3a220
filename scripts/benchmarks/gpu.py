"""Speed on a GPU: the trainer, its bare step, the same as a CUDA graph and a plain PyTorch loop; priors, draws, lookups."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks.lookups import lookups
from scripts.benchmarks.report import Report, synchronize
from scripts.benchmarks.sampling import CLASSES, CODEBOOK_SIZE, prior_of
from scripts.benchmarks.training import OneHotEMA, bare_step, new_run, seconds_per, through_the_trainer
from vqvae import distributed
from vqvae.data.code_store import CodeStore
from vqvae.data.codes import CodeEvaluationSet, CodeTrainingSet
from vqvae.priors.sampling import Sampling
from vqvae.run.parts import build_model
from vqvae.run.process import set_up_process
from vqvae.run.run import Run
from vqvae.run.train import make_trainer, open_log
from vqvae.stages.prior import PriorStage
from vqvae.training.hardware import RATE
from vqvae.training.stage import Examples
from vqvae.training.stop import StopRequest

PAPER = ["model.encoders.0.widths=[256,256]", "model.encoders.0.residual_width=256"]
VQGAN = ["model.encoders.0.widths=[128,128,256,256]"]
AT_128 = ["data.image_size=128", "data.train_count=2000", "data.val_count=100"]
AT_256 = ["data.image_size=256", "data.train_count=500", "data.val_count=50"]
TRAINING = {  # row -> overrides, steps
    "128/32 network, 32x32, batch 32": ([], 2000),
    "128/32 network, 32x32, batch 1024": (["trainer.batch_size=1024"], 500),
    "conv 256, 32x32, batch 128": ([*PAPER, "trainer.batch_size=128"], 700),
    "conv 256, 128x128, batch 64": ([*PAPER, *AT_128, "trainer.batch_size=64"], 400),
    "VQGAN-like resnet, 128x128, batch 16": ([*VQGAN, *AT_128, "trainer.batch_size=16"], 160),
    "VQGAN-like resnet, 256x256, batch 4": ([*VQGAN, *AT_256, "trainer.batch_size=4"], 160),
}
COMPILED = list(TRAINING)[:4]
PRIORS = [("pixelcnn", 32, 400), ("pixelcnn", 256, 200), ("transformer", 32, 300)]  # name, batch, steps
DRAWS = [
    ("pixelcnn", (8, 8), 10_240),
    ("transformer", (8, 8), 10_240),
    ("maskgit", (8, 8), 10_240),
    ("pixelcnn", (32, 32), 1024),
]


def gpu(overrides: list[str], folder: str) -> None:
    """All figures."""
    report = Report(os.environ.get("VQVAE_FIGURES"))
    for name, (own, steps) in TRAINING.items():
        train_row(report, name, [*own, *overrides], steps, folder)
    priors(report, folder)
    draws(report)
    lookups(report)


def scaled(steps: int) -> int:
    """Fewer steps where there is no GPU: to see that all runs."""
    return steps if torch.cuda.is_available() else 8


def train_row(report: Report, name: str, overrides: list[str], steps: int, folder: str) -> None:
    """One network: images/s of every way to train it."""
    network = ("model=resnet",) if "resnet" in name else ("experiment=cifar10_sonnet",)
    run, steps = new_run(overrides, tempfile.mkdtemp(dir=folder), network), scaled(steps)
    batch = run.cfg.trainer.batch_size
    ways: dict[str, Callable[[], float]] = {
        "trainer": lambda: trainer_step(run, folder, steps),
        "trainer, cuda_graph=off": lambda: trainer_step(run, folder, max(12, steps // 8), cuda_graph="off"),
        "trainer, compile=true": lambda: trainer_step(run, folder, steps, compile=True),
        "bare step": lambda: bare_step(run, steps // 4),
        "bare step as a graph": lambda: bare_step(run, steps, captured=True),
        "plain loop": lambda: plain_loop(run, steps // 4),
    }
    left_out = {"plain loop"} if "resnet" in name else set()  # its encoder and decoder are those of `conv`
    if name not in COMPILED:
        left_out.add("trainer, compile=true")
    rates = {way: report.rate(f"{name}: {way}, images/s", batch, ways[way]) for way in ways if way not in left_out}
    for way in set(rates) - {"trainer"}:
        report.ratio(f"{name}: trainer / {way}", rates["trainer"], rates[way])


def trainer_step(run: Run, folder: str, steps: int, **settings: Any) -> float:
    """Seconds per step of the real trainer once it runs: the median of its windows but for the first."""
    before = copy.deepcopy(run.cfg.trainer)
    try:
        settings = {"steps": steps, "log_every_steps": window(steps), **settings}
        trainer, _ = through_the_trainer(run, folder, **settings)
    finally:
        run.cfg.trainer = before
    return before.batch_size / rate_of(trainer)


def window(steps: int) -> int:
    """Steps between two logs: 100 as in the experiments, where there are as many."""
    return min(100, max(1, steps // 4))


def rate_of(trainer: Any) -> float:
    """Items per second of a trainer's windows, the first left out: their median."""
    lines = (trainer.logger.folder / "timing.jsonl").read_text().splitlines()
    rates = sorted(json.loads(line)[RATE] for line in lines[1:])
    return rates[len(rates) // 2]


def plain_loop(run: Run, steps: int) -> float:
    """Seconds per step of a plain loop on images that lie on the device, with convolutions in TF32 as torch has them."""
    torch.backends.cudnn.allow_tf32 = True
    model, _ = build_model(run.cfg, run.data, variance=0.25)
    encoder, decoder = model.encoders[0].to(run.device), model.decoders[0].to(run.device)
    quantizer = OneHotEMA(512, 64).to(run.device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-4)
    images, _ = next(iter(run.loader("train").batches([torch.arange(min(2000, len(run.loader("train"))))])))
    batch = run.cfg.trainer.batch_size

    def step(index: int) -> None:
        x = images[torch.randint(len(images), (batch,), device=run.device)].float() / 255 - 0.5
        optimizer.zero_grad()
        z_q, vq_loss, _ = quantizer(encoder(x))
        (F.mse_loss(decoder(z_q), x) / 0.06 + vq_loss).backward()
        optimizer.step()

    try:
        return seconds_per(step, steps)
    finally:
        set_up_process()


def priors(report: Report, folder: str) -> None:
    """The second stage through the real trainer, on random 8x8 codes."""
    store = random_codes(Path(tempfile.mkdtemp(dir=folder)) / "codes", 4096 if torch.cuda.is_available() else 64)
    for name, batch, steps in PRIORS:
        run = new_run([f"prior={name}"], tempfile.mkdtemp(dir=folder))
        for setting in ("auto", "off"):
            report.rate(
                f"{name} prior, batch {batch}, cuda_graph={setting}, items/s",
                batch,
                lambda: prior_step(run, store, name, batch, scaled(steps if setting == "auto" else 40), setting),  # noqa: B023
            )


def prior_step(run: Run, store: CodeStore, name: str, batch: int, steps: int, cuda_graph: str) -> float:
    """Seconds per step of the prior's trainer once it runs."""
    node = run.cfg.prior
    node.trainer.update(
        {"batch_size": batch, "steps": steps, "log_every_steps": window(steps), "cuda_graph": cuda_graph}
    )
    node.trainer.update({"eval_every_steps": 0, "preview_every_steps": 0, "checkpoint_every_steps": 10**9})
    run.folder.path = Path(tempfile.mkdtemp(dir=run.folder.path.parent))
    prior = prior_of(name, (8, 8), [])
    stage = PriorStage(prior, lambda codes: torch.zeros(1, 3, 8, 8, dtype=torch.uint8), Sampling(), node.class_dropout)
    examples = Examples(CodeTrainingSet([store], batch, 0, run.device), CodeEvaluationSet(store, None, run.device))
    trainer = make_trainer(run, node, StopRequest(), stage, examples, open_log(run, "prior"))
    trainer.evaluate = trainer.preview = lambda step: None  # type: ignore[method-assign]
    trainer.best = {"step": -1}
    trainer.fit()
    return batch / rate_of(trainer)


def random_codes(path: Path, count: int) -> CodeStore:
    header = {"code_shapes": [(8, 8)], "codebook_sizes": [CODEBOOK_SIZE], "tokenizer": "none", "data": "none"}

    def batches() -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        for rows in torch.arange(count).split(256):
            yield rows, [torch.randint(CODEBOOK_SIZE, (len(rows), 8, 8))], torch.randint(CLASSES, (len(rows),))

    CodeStore.write(path, header, count, batches())
    return CodeStore(path)


def draws(report: Report) -> None:
    """Codes alone, unguided: of a prior that has drawn before, and the first call with its capture."""
    for name, grid, count in DRAWS:
        prior = prior_of(name, grid, []).to(distributed.device())
        count = count if torch.cuda.is_available() else 20

        def call(prior: Any = prior, count: int = count) -> float:
            labels = torch.arange(count, device=distributed.device()) % CLASSES
            start = time.perf_counter()
            prior.sample(list(range(count)), labels, Sampling())
            synchronize()
            return time.perf_counter() - start

        title = f"{name} {grid[0]}x{grid[1]}, {count} samples"
        report.rate(f"{title}, the first call, samples/s", count, call)
        report.rate(f"{title}, samples/s", count, lambda: min(call(), call()))
