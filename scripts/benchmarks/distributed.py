"""Traffic between processes in a training step, for every quantizer, and the time of a step on one and two."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from scripts.benchmarks.training import new_run
from vqvae import distributed
from vqvae.config.compose import check_train, choices, compose, resolve
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.run.tables import table
from vqvae.run.train import make_trainer, open_log
from vqvae.seeding import seed_everything
from vqvae.training.stage import Examples
from vqvae.training.stop import StopRequest

NETWORK = ["data=shapes", "data.train_count=1000", "model=conv", "model.encoders.0.widths=[64,128]", "logger=off"]
BATCH = 8  # has no influence on what is counted, but for the vectors that codes start from
PLAIN, RARE, STEPS = 10, 299, 1000  # a step in which no revival is due, and one in which all are, of so many
TIMED_STEPS, ROUNDS = 100, 3


def processes(overrides: list[str], folder: str) -> None:
    """Print bytes first, because they are the same on every machine."""
    (rows, _) = in_processes(2, count_bytes, overrides)
    head = [
        "quantizer",
        "codes",
        "gradients",
        "state, every step",
        "collectives",
        "with a revival",
        "to start from data",
    ]
    print("\nKiB that a process hands to collectives in a step, 2 processes")
    print(table(head, rows), flush=True)

    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for count, seconds in times.items():
            seconds.append(max(in_processes(count, time_steps, overrides)))
    cores = torch.get_num_threads()
    rows = [[n, max(1, cores // n), 1000 * statistics.median(seconds)] for n, seconds in times.items()]
    ratio = statistics.median(one / two for one, two in zip(*times.values()))
    print(
        f"\nthe same global batch, median of {ROUNDS} rounds of {TIMED_STEPS} steps: two have {ratio:.2f} of one's speed"
    )
    print(table(["processes", "threads each", "milliseconds a step"], rows))


def in_processes(count: int, work: Callable[[list[str], str], Any], overrides: list[str]) -> list[Any]:
    """Results of `work` in each of `count` processes of one gloo group, which share the cores."""
    with tempfile.TemporaryDirectory() as folder:
        threads = max(1, torch.get_num_threads() // count)
        mp.start_processes(member, (count, threads, folder, work, overrides), nprocs=count, start_method="spawn")
        return [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(count)]


def member(rank: int, count: int, threads: int, folder: str, work: Callable[..., Any], overrides: list[str]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # gloo's numbers, of CPUs
    torch.set_num_threads(threads)
    if count > 1:
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=count, rank=rank)
    torch.save(work(overrides, folder), f"{folder}/rank{rank}.pt")
    if count > 1:
        dist.destroy_process_group()


def time_steps(overrides: list[str], folder: str) -> float:
    """Seconds a step of the trainer, everything on but evaluation."""
    run = new_run(overrides, f"{folder}/run")
    run.cfg.trainer.update(eval_every_steps=0, preview_every_steps=0, checkpoint_every_steps=10**9, log_every_steps=50)
    for steps in (10, TIMED_STEPS):  # the first warm up
        run.cfg.trainer.steps = steps
        run.folder.path = Path(folder) / str(steps)
        train = ItemTrainingSet(run.data, run.loader("train"), run.cfg.trainer.batch_size, 0)
        val = ItemEvaluationSet(run.data, run.loader("val"))
        stage, examples = run.autoencoder_stage(0.25), Examples(train, val)
        trainer = make_trainer(run, run.cfg, StopRequest(), stage, examples, open_log(run, "autoencoder"))
        trainer.evaluate = trainer.preview = lambda step: None  # type: ignore[method-assign]
        trainer.fit()
    return trainer.seconds / TIMED_STEPS


class Traffic:
    """Counts what this process hands to collectives: `bytes` and `calls`, by kind."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.all_reduce = dist.all_reduce
        for name in ("all_reduce", "all_gather_into_tensor", "broadcast"):
            setattr(dist, name, self.counting(name, getattr(dist, name)))

    def counting(self, name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            own = args[0] if name == "all_gather_into_tensor" else tensor  # the first argument is the result
            self.add("state", own)
            return collective(tensor, *args, **kwargs)

        return counted

    def add(self, kind: str, tensor: Tensor) -> None:
        self.bytes[kind] += tensor.numel() * tensor.element_size()
        self.calls[kind] += 1

    def gradients(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """The mean over ranks, as DistributedDataParallel takes it by itself; counted."""
        self.add("gradients", bucket.buffer())
        buffer = bucket.buffer().div_(dist.get_world_size())
        return self.all_reduce(buffer, async_op=True).get_future().then(lambda future: future.value()[0])

    def reset(self) -> None:
        self.bytes.clear()
        self.calls.clear()


def count_bytes(overrides: list[str], folder: str) -> list[list[Any]]:
    """One row a quantizer."""
    traffic = Traffic()
    rows = []
    for name in choices("quantizer"):
        cfg = resolve(compose("train", [*NETWORK, f"quantizer={name}", *overrides]))
        check_train(cfg)
        rows.append([name, *count_steps(Run(RunFolder(Path(folder), cfg)), traffic)])
    return rows


def count_steps(run: Run, traffic: Traffic) -> list[Any]:
    """Table row: codes, KiB of gradients, KiB and collectives of state, KiB of state with a revival, KiB to start."""
    torch.manual_seed(0)
    stage = run.autoencoder_stage(0.25)
    model = stage.model.train()
    forward = distributed.wrap(model)
    forward.register_comm_hook(None, lambda _, bucket: traffic.gradients(bucket))
    train = ItemTrainingSet(run.data, run.loader("train"), BATCH, 0)
    batches = train.batches_from(0)
    traffic.reset()
    stage.model.eval()
    stage.begin_run(train.batches_from(0))
    start = traffic.bytes["state"]
    stage.forwards = {"model": forward.train()}
    counted = {}
    for step in (PLAIN, RARE):
        seed_everything(0, step)
        traffic.reset()
        stage.begin_step(step, STEPS)
        ((_, loss, _),) = stage.training_losses(next(batches))
        loss.backward()
        stage.after_step(torch.ones((), dtype=torch.bool))
        counted[step] = (traffic.bytes["gradients"], traffic.bytes["state"], traffic.calls["state"])
    gradients, state, calls = counted[PLAIN]
    most = counted[RARE][1]
    codes = ", ".join(f"{count} x {size}" for size, count in Counter(model.codebook_sizes).items()) or "none"
    return [codes, kib(gradients), kib(state), calls, kib(most), kib(start)]


def kib(count: int) -> str:
    return f"{count / 1024:,.1f}"
