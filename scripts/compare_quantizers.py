"""Trains every quantizer preset with the same network, data and steps, and prints a table of them.

    python scripts/compare_quantizers.py data=folder data.root=... data.image_size=32        all of them, 3,000 steps each
    python scripts/compare_quantizers.py --only ema,fsq --jobs 1 trainer.steps=500           some, one after another
    python scripts/compare_quantizers.py --only ema,fsq --seeds 3 --prior 3000 --backbone efficientnet_lite0 data=cifar10

--prior trains the same small transformer on each preset's codes, for as many steps: bits of the codes as a prior sees them,
which is what a tokenizer costs in the end. --backbone judges samples of it by their Frechet distance in the features of that
network. --seeds trains each several times: cells are means, with the standard deviation over seeds behind them. With one
seed, the error of PSNR and bits is that over items.

Everything behind the options is an override of train.py. Runs lie in run_dir (default runs/compare_quantizers); called
again, it continues what was stopped and skips what is finished. Each job has one thread on a CPU, so items/s are those
of one core with its neighbor busy. Multi-map quantizers spend more bits an item, which the table shows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqvae.config.compose import choices
from vqvae.metrics.renames import rename

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = [
    "trainer.steps=3000",
    "trainer.batch_size=32",
    "trainer.eval_every_steps=3000",
    "trainer.preview_every_steps=0",
    "logger=off",
]
PROBE = [
    "prior=transformer",
    "prior.network.width=96",
    "prior.network.layers=3",
    "prior.trainer.batch_size=32",
    "prior.trainer.preview_every_steps=0",
]
COLUMNS = {  # title: figure, the figure of its error, format
    "PSNR dB": ("autoencoder/psnr_db", "autoencoder/psnr_error_db", ".2f"),
    "perplexity": ("perplexity", None, ".0f"),
    "usage": ("usage", None, ".0%"),
    "items/s": ("autoencoder/items_per_second", None, ",.0f"),
}
PRIOR_COLUMNS = {
    "bits per code": ("prior/bits_per_code", "prior/bits_per_code_error", ".3f"),
    "bits an item, by the prior": ("prior/bits_per_item", None, ",.0f"),
}


class Job(NamedTuple):
    """One preset with one seed, and its folder."""

    name: str
    seed: int
    folder: Path


def run_job(job: Job, overrides: list[str], evaluation: list[str]) -> str | None:
    """Train one preset, and judge it if `evaluation` is not empty -> None, or the last line of what went wrong."""
    job.folder.mkdir(parents=True, exist_ok=True)
    seed = [f"seed={job.seed}"] if job.seed else []
    command = ["train.py", f"quantizer={job.name}", *DEFAULTS, *seed, *overrides, f"run_dir={job.folder}"]
    problem = call(command, job.folder.with_suffix(".log"))
    if problem is None and evaluation and not (job.folder / "evaluation_val.json").is_file():
        command = ["scripts/evaluate.py", f"run_dir={job.folder}", *evaluation]
        problem = call(command, job.folder.with_suffix(".evaluation.log"))
    return problem


def call(command: list[str], log: Path) -> str | None:
    """Run a program of this project with one thread -> None, or the last line of its output where it fails."""
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        program = [sys.executable, str(ROOT / command[0]), *command[1:]]
        code = subprocess.run(program, stdout=file, stderr=file, env=environment, check=False).returncode
    lines = log.read_text().strip().splitlines()
    return None if code == 0 else f"exit code {code}: {lines[-1] if lines else 'no output'}; see {log}"


def figures_of(folder: Path) -> dict[str, float]:
    """Figures of a finished run by name. perplexity and usage: means over code maps (of perplexity the geometric one)."""
    found: dict[str, float] = {}
    for file in (folder / "summary.json", folder / "evaluation_val.json"):
        if file.is_file():
            entries = json.loads(file.read_text())["figures"]
            stages = {key: "prior" if key.startswith("prior/") else "autoencoder" for key in entries}
            found |= {rename(key, stages[key]): entry["value"] for key, entry in entries.items()}
    maps = [key.rsplit("_", 1)[1] for key in found if key.startswith("codebook/perplexity_")]
    if maps:
        logs = [math.log(found[f"codebook/perplexity_{m}"]) for m in maps]
        found["perplexity"] = math.exp(statistics.mean(logs))
        found["usage"] = statistics.mean(found[f"codebook/usage_{m}"] for m in maps)
    header = next(iter(folder.glob("codes/val/header.json")), None)
    if header is not None:
        found["bits"] = bits_of(json.loads(header.read_text()))
    return found


def bits_of(header: dict[str, list]) -> float:
    """Bits of an item's codes without a prior, from the code store's header."""
    sizes, shapes = header["codebook_sizes"], header["code_shapes"]
    return sum(math.prod(shape) * math.log2(size) for size, shape in zip(sizes, shapes))


def row(name: str, runs: list[dict[str, float]], columns: dict[str, tuple[str, str | None, str]]) -> list[str]:
    """Figures of a preset's runs, one a seed -> cells of the table."""
    bits = f"{runs[0]['bits']:,.0f}" if "bits" in runs[0] else ""
    return [f"`{name}`", bits, *(cell(runs, *column) for column in columns.values())]


def cell(runs: list[dict[str, float]], figure: str, error: str | None, form: str) -> str:
    """Mean over seeds and the standard deviation behind it; of one seed, the error over items. Empty without the figure."""
    values = [run[figure] for run in runs if figure in run]
    if not values:
        return ""
    said = format(statistics.mean(values), form)
    if len(values) > 1:
        return f"{said} ± {format(statistics.stdev(values), form)}"
    return f"{said} ± {format(runs[0][error], form)}" if error in runs[0] else said


def parsed() -> argparse.Namespace:
    """The command line, checked. Overrides and options in any order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="presets, separated by commas (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: one a core)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each preset, with seeds 0, 1, ... (default: 1)")
    parser.add_argument(
        "--prior", type=int, default=0, help="steps of a small transformer on the codes (default: none)"
    )
    parser.add_argument("--backbone", help="pretrained network that judges, such as efficientnet_lite0 (default: none)")
    parser.add_argument("--samples", type=int, default=5000, help="number of samples that it judges (default: 5000)")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    arguments = parser.parse_intermixed_args()
    for name in ("jobs", "seeds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    arguments.names = arguments.only.split(",") if arguments.only else choices("quantizer")
    for name in arguments.names:
        if name not in choices("quantizer"):
            parser.error(f"{name} is not one of {', '.join(choices('quantizer'))}")
    return arguments


def main() -> int:
    arguments = parsed()
    given = [o for o in arguments.overrides if o.startswith("run_dir=")]
    base = Path(given[-1].removeprefix("run_dir=") if given else "runs/compare_quantizers")
    probe = [*PROBE, f"prior.trainer.steps={arguments.prior}"] if arguments.prior else ["stages=[autoencoder]"]
    overrides = [*probe, *(o for o in arguments.overrides if o not in given)]
    evaluation, columns = [], dict(COLUMNS)
    if arguments.prior:
        columns |= PRIOR_COLUMNS
    if arguments.backbone:
        samples = arguments.samples if arguments.prior else 0
        evaluation = [f"backbone={arguments.backbone}", f"samples={samples}", "metrics=[frechet]"]
        columns[f"rfd {arguments.backbone}"] = f"autoencoder/rfd_{arguments.backbone}", None, ",.1f"
        columns[f"gfd {arguments.backbone}"] = f"prior/gfd_{arguments.backbone}", None, ",.1f"
        columns = {title: column for title, column in columns.items() if samples or not title.startswith("gfd")}
    jobs = [
        Job(name, seed, base / (f"{name}-{seed}" if seed else name))
        for name in arguments.names
        for seed in range(arguments.seeds)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        errors = dict(zip(jobs, pool.map(lambda job: run_job(job, overrides, evaluation), jobs)))
    found = {
        name: [figures_of(job.folder) for job in jobs if job.name == name and errors[job] is None]
        for name in arguments.names
    }
    finished = {name: runs for name, runs in found.items() if runs}
    by_quality = sorted(
        finished, key=lambda name: -statistics.mean(run["autoencoder/psnr_db"] for run in finished[name])
    )
    titles = ["quantizer", "bits an item", *columns]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    print("\n".join(f"| {' | '.join(row(name, finished[name], columns))} |" for name in by_quality))
    for job, error in errors.items():
        if error is not None:
            print(f"{job.folder.name} failed, {error}", file=sys.stderr)
    return 1 if any(errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
