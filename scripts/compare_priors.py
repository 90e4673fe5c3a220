"""Trains every prior on one tokenizer for the same time, and prints a table.

    python scripts/compare_priors.py --minutes 8 tokenizer=runs/cifar                   all of them, one after another
    python scripts/compare_priors.py --minutes 2 --only pixelcnn,transformer tokenizer=runs/cifar prior.flip=true

How many steps fit the time is measured first, in a short run of each (--probe steps), so that every learning-rate schedule
ends when the time does. Evaluation, previews and checkpoints are not counted. Everything behind the options is an override
of train.py. Runs lie in run_dir (default runs/compare_priors); called again, it continues what was stopped and skips
what is finished. Run it on an idle machine: the time is wall clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.surroundings.own_folder import own_folder

with own_folder():  # torch finds no code in the current one
    import torch

    from vqvae.config.compose import choices
    from vqvae.priors.autoregressive import AutoregressivePrior
    from vqvae.priors.base import Prior
    from vqvae.priors.sampling import Sampling
    from vqvae.run.folder import RunFolder
    from vqvae.run.process import set_up_process
    from vqvae.run.run import Run
    from vqvae.training.hardware import RATE
    from vqvae.training.logger import read_lines

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 64


def train(name: str, folder: Path, overrides: list[str]) -> None:
    """Runs the second stage. Raises SystemExit with the last line of its output where that fails."""
    command = [sys.executable, str(ROOT / "train.py"), f"prior={name}", *overrides, f"run_dir={folder}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    if code:
        lines = log.read_text().strip().splitlines()
        raise SystemExit(f"prior={name} failed: {lines[-1] if lines else 'no output'}; see {log}")


def steps_in(minutes: float, name: str, base: Path, probe: int, overrides: list[str]) -> int:
    """Number of steps that fit `minutes`, from the median speed of a short run."""
    file = base / f"{name}.speed.json"
    if not file.is_file():
        short = [f"prior.trainer.steps={probe}", f"prior.trainer.log_every_steps={max(1, probe // 10)}", "logger=off"]
        quiet = [
            "prior.trainer.eval_every_steps=0",
            "prior.trainer.preview_every_steps=0",
            "prior.trainer.early_stop_evals=null",
        ]
        train(name, base / "probes" / name, [*overrides, *short, *quiet])
        timing = read_lines(base / "probes" / name / "prior" / "timing.jsonl")[2:]  # the first steps warm up
        rate = statistics.median(line[RATE] for line in timing)
        batch = RunFolder.load(base / "probes" / name, []).config.prior.trainer.batch_size
        file.write_text(json.dumps({"steps_per_second": rate / batch}))
    return max(1, round(minutes * 60 * json.loads(file.read_text())["steps_per_second"]))


def labels_for(prior: Prior, count: int) -> torch.Tensor:
    """Classes in turn, on the prior's device; -1 where it knows none."""
    device = next(prior.parameters()).device
    return (
        torch.arange(count, device=device) % prior.num_classes
        if prior.num_classes
        else torch.full((count,), -1).to(device)
    )


def speed(prior: Prior) -> float:
    """Samples a second, median of five calls."""
    labels = labels_for(prior, SAMPLES)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        [m.cpu() for m in prior.sample(list(range(SAMPLES)), labels, Sampling())]  # on a GPU, waits for it
        seconds.append(time.perf_counter() - start)
    return SAMPLES / statistics.median(seconds[1:])  # the first warms up


def calls_of_jacobi(prior: Prior) -> str:
    """Network calls that fixed-point sampling needs for 16 samples at once, of the number of codes."""
    if not isinstance(prior, AutoregressivePrior):
        return ""
    calls: list[int] = []
    for network in prior.networks:
        network.register_forward_hook(lambda *_: calls.append(1))
    prior.sample(list(range(16)), labels_for(prior, 16), Sampling(method="jacobi"))
    return f"{len(calls)} of {prior.codes_per_sample}"


def row(name: str, folder: Path, steps: int) -> list[str]:
    """A finished run -> cells of the table."""
    set_up_process()
    run = Run(RunFolder.load(folder, []))
    prior = run.prior(run.tokenizer().model)
    summary = json.loads((folder / "summary.json").read_text())["figures"]
    lines = read_lines(folder / "prior" / "metrics.jsonl")
    bits = f"prior/val/{prior.bits_name}"
    best = min((line for line in lines if bits in line), key=lambda line: line[bits])
    bound = "at most " if prior.bits_name.endswith("bound") else ""
    parameters = sum(p.numel() for p in prior.parameters())
    return [
        f"`{name}`",
        f"{parameters:,}",
        f"{steps:,}",
        f"{summary['prior/seconds']['value']:.0f}",
        f"{bound}{summary[f'prior/{prior.bits_name}']['value']:.3f}",
        f"{best['step']:,}",
        f"{speed(prior):,.0f}",
        calls_of_jacobi(prior),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of training steps for each prior")
    parser.add_argument("--only", help="priors, separated by commas (default: all that take any code maps)")
    parser.add_argument("--probe", type=int, default=60, help="steps of the run that measures the speed")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, tokenizer=<run_dir> among them")
    arguments = parser.parse_intermixed_args()
    if not arguments.minutes > 0 or arguments.probe < 30:
        parser.error("--minutes must be above 0, and --probe at least 30")
    if not any(o.startswith("tokenizer=") for o in arguments.overrides):
        parser.error("say which tokenizer: tokenizer=<run_dir of a finished run>")
    names = arguments.only.split(",") if arguments.only else [name for name in choices("prior") if name != "next_scale"]
    unknown = [name for name in names if name not in choices("prior")]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(choices('prior'))}")
    given = [o for o in arguments.overrides if o.startswith("run_dir=")]
    base = Path(given[-1].removeprefix("run_dir=") if given else "runs/compare_priors")
    overrides = [o for o in arguments.overrides if o not in given]
    rows = []
    for name in names:
        steps = steps_in(arguments.minutes, name, base, arguments.probe, overrides)
        evaluations = [f"prior.trainer.eval_every_steps={max(1, steps // 4)}", "prior.trainer.preview_every_steps=0"]
        train(name, base / name, [f"prior.trainer.steps={steps}", *evaluations, "logger=off", *overrides])
        rows.append(row(name, base / name, steps))
        print(f"{name}: {', '.join(rows[-1][1:])}", file=sys.stderr, flush=True)
    columns = [
        "prior",
        "parameters",
        "steps",
        "seconds",
        "validation bits per code",
        "best step",
        "samples/s",
        "Jacobi's calls",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    main()
