"""The folder in which everything that a run makes lies: resolved config, stages, code stores, pictures, summary."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vqvae import distributed
from vqvae.config.compose import CONFIGS, check_train
from vqvae.config.saved import SAVED_BYTES, read_saved
from vqvae.config.sweep import Job, in_sweep, job_folder, read_jobs
from vqvae.errors import UserError
from vqvae.run.untrusted import check_contained, load_weights
from vqvae.storage import checkpoint
from vqvae.storage.files import remove_leftovers, write_bytes

STAGES = ("autoencoder", "prior")
NETWORKS = {"autoencoder": "model", "prior": "prior"}  # the network that a stage leaves
# What may differ when a run is continued: it decides where and how long, not what comes out.
FREE_KEYS = re.compile(
    r"^(run_dir|stages|allow_targets|logger|data\.(root|urls|val_urls|resident|workers|cache_dir)"
    r"|(prior\.)?trainer\.(max_time_minutes|on_nonfinite|max_skipped_steps))(\.|$)"
)
log = logging.getLogger(__name__)


class RunFolder:
    """A run folder by its path; `config` is the resolved config that it was made with."""

    def __init__(self, path: Path, cfg: DictConfig) -> None:
        self.path, self.config = path, cfg

    @classmethod
    def load(cls, path: str | Path, allow_targets: list[str], key: str = "run_dir") -> RunFolder:
        """An existing run, its config checked before anything is built. Raises UserError, about `key`, if there is none."""
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{key}={path} holds no run (there is no {folder / 'config.yaml'})")
        return cls(folder, saved_config(folder, allow_targets))

    @classmethod
    def prepare(cls, cfg: DictConfig) -> RunFolder:
        """The folder for a resolved config: new (and not made yet), or the one that holds a run of the same config.

        Where the command line changes nothing that the result depends on, `run_dir` alone continues the run that lies there.
        Raises UserError, with the differences, where it holds a run of another config.
        """
        folder = Path(distributed.broadcast_object(str(choose_path(cfg))))
        cfg.run_dir = str(folder)
        file = folder / "config.yaml"
        if file.is_file():
            stored = saved_config(folder, list(cfg.allow_targets))
            found = differences(stored, cfg)
            if found and (keys := free_overrides()) is not None:
                for key in keys:
                    OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
                check_train(stored)
                cfg = stored
            elif found:
                raise UserError(
                    f"run_dir={folder} holds a run with another config ({'; '.join(found)}): "
                    "choose another run_dir, or drop the changes to continue that run"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"run_dir={folder} is a folder with other things in it: choose another, or empty it")
        distributed.barrier()  # all have looked before rank 0 makes it
        return cls(folder, cfg)

    def create(self) -> None:
        """Makes the folder, writes the config into it and starts train.log."""
        if distributed.is_main():
            text = OmegaConf.to_yaml(self.config).encode()
            if len(text) > SAVED_BYTES:
                limit = f"{SAVED_BYTES} bytes, and could not be read back"
                raise UserError(f"this config has more than {limit}: name many files by braces or wildcards")
            write_bytes(self.path / "config.yaml", text)
            for part in ("", "codes", *STAGES):
                remove_leftovers(self.path / part, "*", hours=0)
        distributed.barrier()
        set_up_logging(self.path)
        log.info("run folder: %s", self.path)

    def stage(self, name: str) -> Path:
        return self.path / name

    def codes(self, split: str) -> Path:
        return self.path / "codes" / split

    def weights_file(self, stage: str) -> Path | None:
        """The result of a finished stage, or None."""
        found = checkpoint.find(self.stage(stage), "weights")
        return found[-1] if found else None

    def weights(self, stage: str) -> dict[str, Any]:
        """{step, networks} of a finished stage. Raises UserError where it is not finished, or not what a stage leaves."""
        file = self.weights_file(stage)
        if file is None:
            raise UserError(f"{self.path} has no finished {stage}: train it with python train.py run_dir={self.path}")
        return load_weights(file, NETWORKS[stage], distributed.device())

    def start(self, stage_name: str, stage: Any) -> None:
        """Gives a new stage the weights of this run's. Raises UserError where they do not fit."""
        for name, state in self.weights(stage_name)["networks"].items():
            network = stage.networks[name]
            own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
            given = {key: tuple(value.shape) for key, value in state.items()}
            unlike = sorted(
                key
                for key in own.keys() | given.keys()
                if own.get(key) != given.get(key) and (key in own.keys() & given.keys() or ".revival." not in key)
            )
            if unlike:
                raise UserError(
                    f"init_from={self.path}: its {stage_name} has other weights than this config "
                    f"({len(unlike)} differ, {unlike[0]} is {given.get(unlike[0])} there, {own.get(unlike[0])} here)"
                )
            network.load_state_dict(state, strict=False)  # what a revival has counted may be missing
        stage.initialised = True

    def adopt_tokenizer(self, other: RunFolder) -> None:
        """Copies another run's autoencoder, and the codes that it has made, so that this folder stays whole."""
        if self.weights_file("autoencoder") is None and distributed.is_main():
            source = other.weights_file("autoencoder")
            assert source is not None, "checked before the folder was made"
            self.stage("autoencoder").mkdir(exist_ok=True)
            for name in ("autoencoder/metrics.jsonl", "autoencoder/timing.jsonl"):
                write_bytes(self.path / name, (other.path / name).read_bytes())
            for variance in checkpoint.find(other.path, "variance"):  # else it is computed again
                write_bytes(self.path / variance.name, variance.read_bytes())
            for store in (other.path / "codes").glob("*/header.json"):
                target = self.codes(store.parent.name)
                if target.suffix == ".tmp" or target.is_dir():  # not whole there, or whole here already
                    continue
                temporary = self.codes(f"{target.name}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.copytree(store.parent, temporary)
                temporary.rename(target)
            write_bytes(self.stage("autoencoder") / source.name, source.read_bytes())  # last: all is there
        distributed.barrier()


def saved_config(folder: Path, allow_targets: list[str]) -> DictConfig:
    """The checked config of a run folder, which may be a stranger's: it names no target that this command does not allow,
    nothing outside of the folder stands in for a part of it, and pictures are kept where this user has kept some before.

    Raises UserError.
    """
    check_contained(folder)
    cfg = read_saved(folder / "config.yaml")
    cfg.allow_targets, cfg.run_dir = allow_targets, str(folder)
    check_train(cfg)
    kept = Path(os.path.expanduser(cfg.data.cache_dir))
    if not any(one for kind in ("images", "shard") for one in kept.glob(f"*-{kind}.npy")):
        cfg.data.cache_dir = str(OmegaConf.load(CONFIGS / "data" / "folder.yaml")["cache_dir"])  # type: ignore[index]
    return cfg


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def choose_path(cfg: DictConfig) -> Path:
    """run_dir as given, else a new folder named by the time; in a sweep, one folder a job below it, named by its overrides."""
    if in_sweep():
        return job_folder()
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    return Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")


def free_overrides() -> list[str] | None:
    """The keys that this command overrides if all of them may differ when a run is continued, else None."""
    if not HydraConfig.initialized() or in_sweep():
        return None
    keys = [override.lstrip("+").split("=")[0] for override in HydraConfig.get().overrides.task]
    return keys if all(FREE_KEYS.match(key) for key in keys) else None


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """'key: old there, new here' for every leaf that differs, but for FREE_KEYS."""
    found = []
    for key in sorted({*old, *new}, key=str):
        name, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if FREE_KEYS.match(name) or a == b:
            continue
        if isinstance(a, DictConfig) and isinstance(b, DictConfig):
            found += differences(a, b, f"{name}.")
        else:
            found.append(f"{name} is {a} there, {b} here")
    return found


def set_up_logging(folder: Path) -> None:
    """Log lines to the terminal, and to train.log in a run folder; only warnings from ranks other than 0."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if distributed.is_main():
        handlers.append(logging.FileHandler(folder / "train.log"))
    level = logging.INFO if distributed.is_main() else logging.WARNING
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )


class SweepSummary(Callback):
    """At the end of a sweep: one table of all its jobs, those that failed with their error, and summary.csv beside them."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        base = Path(config.hydra.sweep.dir)
        finished = {}
        for summary in sorted(base.glob("*/summary.json")):
            try:
                figures = json.loads(summary.read_text())["figures"]
                finished[summary.parent.name] = {name: figures[name]["value"] for name in figures}
            except (ValueError, LookupError, TypeError):
                finished[summary.parent.name] = {"error": f"{summary} is damaged"}
        jobs = read_jobs(base)
        failed = {job.name: {"error": job.error} for job in jobs if job.error is not None}
        rows = [{"job": name, **values} for name, values in {**finished, **failed}.items()]
        if not rows:
            return
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(base / "summary.csv", text.getvalue().encode())
        labels = short_names(jobs)
        shown = [c for c in columns if c in SWEEP_COLUMNS]
        cells = [[labels.get(row["job"], row["job"]), *(row.get(c, "") for c in shown)] for row in rows]
        counts = f"{len(rows) - len(failed)} finished jobs" + (f" and {len(failed)} failed" if failed else "")
        print(f"\n{counts} in {base}\n{table(['job', *shown], cells)}")
        print(f"all figures: {base / 'summary.csv'}")


def short_names(jobs: list[Job]) -> dict[str, str]:
    """Names of jobs -> the overrides in which they differ."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {job.name: ",".join(o for o in job.overrides if o not in common) or job.name for job in jobs}


SWEEP_COLUMNS = (
    "psnr_db",
    "ssim",
    "codebook0/perplexity",
    "codebook0/usage",
    "bits_per_code",
    "bits_per_code_bound",
    "bits_per_dim",
    "autoencoder_seconds",
    "error",
)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Aligned columns; numbers to four significant digits."""
    cells = [head] + [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells)
