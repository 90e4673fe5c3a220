"""Speed on a GPU: the trainer, its bare step, the same as a CUDA graph and a plain PyTorch loop; priors, draws, lookups."""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks.sampling import CLASSES, CODEBOOK_SIZE, prior_of
from scripts.benchmarks.training import OneHotEMA, bare_step, new_run, seconds_per, synchronise, through_the_trainer
from vqvae import distributed
from vqvae.data.code_store import CodeStore
from vqvae.data.codes import CodeEvaluationSet, CodeTrainingSet
from vqvae.priors.sampling import Sampling
from vqvae.quantizers.nearest import best, chunks, euclidean_scores, nearest_code
from vqvae.run.run import Run, build_model
from vqvae.run.train import make_trainer
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
LOOKUPS = [
    (65536, 1024, 64),
    (65536, 16384, 32),
    (65536, 16384, 64),
    (65536, 16384, 128),
    (65536, 16384, 256),
    (65536, 8192, 8),
]


class Report:
    """Figures by name: printed at once, and written to the file that VQVAE_FIGURES names."""

    def __init__(self) -> None:
        self.path, self.figures = os.environ.get("VQVAE_FIGURES"), {}

    def __call__(self, name: str, measure: Callable[[], float], unit: str, of: float = 1.0) -> float:
        """Add of / measure(): `of` is the work of one call. A measurement that fails becomes a line, and NaN."""
        start = time.perf_counter()
        try:
            value = of / measure()
        except Exception as error:  # the next rows are worth having
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
            return math.nan
        self.figures[name] = value
        print(f"{name}: {value:,.1f} {unit}   ({time.perf_counter() - start:.1f} s to measure)", flush=True)
        if self.path:
            Path(self.path).write_text(json.dumps(self.figures, indent=1))
        return value


def gpu(overrides: list[str], folder: str) -> None:
    """All figures."""
    report = Report()
    for name, (own, steps) in TRAINING.items():
        train_row(report, name, [*own, *overrides], steps, folder)
    priors(report, folder)
    draws(report)
    with torch.no_grad():
        lookups(report)


def scaled(steps: int) -> int:
    """Fewer steps where there is no GPU: to see that all runs."""
    return steps if torch.cuda.is_available() else 8


def train_row(report: Report, name: str, overrides: list[str], steps: int, folder: str) -> None:
    """One network: images/s of every way to train it."""
    network = ("model=resnet",) if "resnet" in name else ("experiment=cifar10_sonnet",)
    run, steps = new_run(overrides, tempfile.mkdtemp(dir=folder), network), scaled(steps)
    batch = run.cfg.trainer.batch_size
    fast = report(f"{name}: trainer", lambda: trainer_step(run, folder, steps), "images/s", batch)
    slow = report(
        f"{name}: trainer, cuda_graph=off",
        lambda: trainer_step(run, folder, max(12, steps // 8), cuda_graph="off"),
        "images/s",
        batch,
    )
    if name in COMPILED:
        report(
            f"{name}: trainer, compile=true", lambda: trainer_step(run, folder, steps, compile=True), "images/s", batch
        )
    bare = report(f"{name}: bare step", lambda: bare_step(run, steps // 4), "images/s", batch)
    graph = report(f"{name}: bare step as a graph", lambda: bare_step(run, steps, captured=True), "images/s", batch)
    plain = math.nan
    if "resnet" not in name:
        plain = report(f"{name}: plain loop", lambda: plain_loop(run, steps // 4), "images/s", batch)
    ratios = {"graph": graph, "bare step": bare, "cuda_graph=off": slow, "plain loop": plain}
    print(
        f"{name}: the trainer is",
        ", ".join(f"{fast / other:.2f} of {what}" for what, other in ratios.items()),
        flush=True,
    )


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
    """Seconds per step of a plain float32 loop on images that lie on the device."""
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

    return seconds_per(step, steps, run.device)


def priors(report: Report, folder: str) -> None:
    """The second stage through the real trainer, on random 8x8 codes."""
    store = random_codes(Path(tempfile.mkdtemp(dir=folder)) / "codes", 4096 if torch.cuda.is_available() else 64)
    for name, batch, steps in PRIORS:
        run = new_run([f"prior={name}"], tempfile.mkdtemp(dir=folder))
        for setting in ("auto", "off"):
            report(
                f"{name} prior, batch {batch}, cuda_graph={setting}",
                lambda: prior_step(run, store, name, batch, scaled(steps if setting == "auto" else 40), setting),  # noqa: B023
                "items/s",
                batch,
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
    trainer = make_trainer(run, "prior", node, StopRequest(), stage, examples)
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
            synchronise(distributed.device())
            return time.perf_counter() - start

        title = f"{name} {grid[0]}x{grid[1]}, {count} samples"
        report(f"{title}, the first call", call, "samples/s", count)
        report(title, lambda: min(call(), call()), "samples/s", count)


def lookups(report: Report) -> None:
    """TFLOP/s of the nearest code, of the ways to it, and how often bf16 is wrong."""
    device = distributed.device()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        a = torch.randn(8192, 8192, device=device)
        report("TF32 GEMM, 8192", lambda: timed(lambda: a @ a), "TFLOP/s", 2 * 8192**3 / 1e12)
        torch.backends.cuda.matmul.allow_tf32 = False
        report("float32 GEMM, 8192", lambda: timed(lambda: a @ a), "TFLOP/s", 2 * 8192**3 / 1e12)
    for count, size, dim in LOOKUPS if device.type == "cuda" else [(300, 100, 16)]:
        torch.manual_seed(0)
        z, codes = torch.randn(count, dim, device=device), torch.randn(size, dim, device=device)
        work, name = 2 * count * size * dim / 1e12, f"nearest code ({count}, {size}, {dim})"

        def chunked(z: Tensor = z, codes: Tensor = codes) -> Tensor:
            scores = euclidean_scores(codes)
            return torch.cat([best(scores(rows)) for rows in chunks(z, codes)])

        def in_bf16(z: Tensor = z, codes: Tensor = codes) -> Tensor:
            weights, bias = codes.bfloat16(), -codes.square().sum(1) / 2
            return torch.cat([((rows @ weights.t()).float() + bias).argmax(1) for rows in z.bfloat16().split(16384)])

        report(f"{name}: ours", lambda: timed(lambda: nearest_code(z, codes)), "TFLOP/s", work)  # noqa: B023
        report(f"{name}: chunked float32", lambda: timed(chunked), "TFLOP/s", work)
        report(f"{name}: cdist", lambda: timed(lambda: torch.cdist(z, codes).argmin(1)), "TFLOP/s", work)  # noqa: B023
        report(f"{name}: bf16 GEMM and argmax", lambda: timed(in_bf16), "TFLOP/s", work)
        wrong = (in_bf16() != nearest_code(z, codes)).double().mean()
        print(f"{name}: bf16 chooses another code for {float(wrong):.2%} of the vectors", flush=True)


def timed(function: Callable[[], Any]) -> float:
    """Seconds of a call: the median of ten, after two."""
    device = distributed.device()
    times = []
    for _ in range(12):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[5]
