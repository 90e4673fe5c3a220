"""The jobs of a sweep (-m): their names, and a record of each in the sweep's folder that says whether it failed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

SUFFIX = ".job.json"


class Job(NamedTuple):
    """A job by its name, its overrides, and the line in which it failed, or None."""

    name: str
    overrides: list[str]
    error: str | None


def in_sweep() -> bool:
    """True within a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_folder() -> Path:
    """The folder of the present job: below the sweep's, named by the job's overrides."""
    return Path(HydraConfig.get().sweep.dir) / job_name(own_overrides())


def own_overrides() -> list[str]:
    return [override for override in HydraConfig.get().overrides.task if not override.startswith("run_dir=")]


def job_name(overrides: list[str]) -> str:
    """A folder name that is readable and differs for different overrides, so that a sweep run again finds its jobs."""
    text = ",".join(sorted(overrides, key=lambda o: ("." in o.split("=")[0], o))) or "defaults"  # groups tell the most
    readable = re.sub(r"[^A-Za-z0-9.,=_-]+", "-", text)
    if readable == text and len(text) <= 100:
        return text
    return f"{readable[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def record_job(error: str | None) -> None:
    """Writes the record of the present job, at its end. It lies beside the job's folder, which need not exist."""
    folder = job_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    record = {"overrides": own_overrides(), "error": error}
    folder.with_name(folder.name + SUFFIX).write_text(json.dumps(record) + "\n")


def read_jobs(sweep: Path) -> list[Job]:
    """The recorded jobs of a sweep's folder."""
    records = {
        path.name.removesuffix(SUFFIX): json.loads(path.read_text()) for path in sorted(sweep.glob(f"*{SUFFIX}"))
    }
    return [Job(name, record["overrides"], record["error"]) for name, record in records.items()]


class ExitCode(Callback):
    """Ends a sweep with exit code 1 if a job of it failed. Jobs that failed in an earlier sweep are forgotten."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep = Path(config.hydra.sweep.dir)
        if os.environ.get("RANK", "0") == "0":
            for job in read_jobs(sweep):
                if job.error is not None:
                    (sweep / f"{job.name}{SUFFIX}").unlink()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if any(job.error is not None for job in read_jobs(Path(config.hydra.sweep.dir))):
            raise SystemExit(1)
