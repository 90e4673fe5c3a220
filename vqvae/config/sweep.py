"""The jobs of a sweep (-m): their names, and a record of each in the sweep's folder that says whether it failed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from vqvae.config.typed import parsed, quoted, values_of
from vqvae.errors import UserError

SUFFIX = ".job.json"


class Job(NamedTuple):
    """A job by its name, its overrides, and the line in which it failed, or None."""

    name: str
    overrides: list[str]
    error: str | None


@contextlib.contextmanager
def sweep_folder(arguments: list[str]) -> Iterator[list[str]]:
    """Yield a command's arguments; a sweep without run_dir gets a new folder, which is removed again if nothing is in it.

    Raises UserError for a sweep into the folder of a run, and for one without run_dir under torchrun, whose processes would
    each make one.
    """
    given = values_of("run_dir", arguments)
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments):
        yield arguments
    elif given:
        if (Path(given[-1]) / "config.yaml").is_file():
            raise UserError(f"run_dir={given[-1]} holds a run: a sweep needs a folder of its own")
        yield [*arguments, fixed_keys(arguments)]
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("a sweep of several processes needs run_dir=...")
    else:
        folder = new_folder(Path("runs"))
        try:
            yield [*arguments, f"run_dir={folder}", fixed_keys(arguments)]
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()


def new_folder(parent: Path) -> Path:
    """Make a folder named by date and time that was not there: with -2, -3, ... behind it if need be."""
    parent.mkdir(parents=True, exist_ok=True)
    name, number = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def in_sweep() -> bool:
    """True within a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def fixed_keys(arguments: list[str]) -> str:
    """An override of Hydra's own that names the keys of a sweep which do not vary: it goes with a job to any machine."""
    given = (parsed(argument) for argument in arguments if not argument.startswith("-"))
    fixed = sorted({one.key_or_group for one in given if one is not None and not one.is_sweep_override()})
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, fixed))}]"


def job_folders() -> tuple[Path, Path]:
    """Where the present job belongs: below the sweep's folder, named by what varies there; and by all overrides, as in older
    versions."""
    hydra, overrides = HydraConfig.get(), own_overrides()
    fixed = set(hydra.job.config.override_dirname.exclude_keys)
    varying = [override for override in overrides if key_of(override) not in fixed]
    return Path(hydra.sweep.dir) / job_name(varying or overrides), Path(hydra.sweep.dir) / job_name(overrides)


def another(folder: Path) -> Path:
    """A folder of another name, which differs for different overrides of the present job."""
    return folder.with_name(f"{folder.name}-{short_hash(','.join(sorted(own_overrides())))}")


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].split("@")[0]


def own_overrides() -> list[str]:
    return [override for override in HydraConfig.get().overrides.task if not override.startswith("run_dir=")]


def job_name(overrides: list[str]) -> str:
    """A folder name that is readable and differs for different overrides, so that a sweep run again finds its jobs."""
    text = ",".join(sorted(overrides, key=lambda o: ("." in o.split("=")[0], o))) or "defaults"  # groups tell the most
    readable = re.sub(r"[^A-Za-z0-9.,=_-]+", "-", text)
    if readable == text and len(text) <= 100:
        return text
    return f"{readable[:80]}-{short_hash(text)}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def record_job(run_dir: Path, error: str | None) -> None:
    """Writes the record of the present job, at its end. It lies beside the job's folder, which need not exist.

    run_dir: the job's folder; the sweep's, if the job has failed before it had one.
    """
    folder = run_dir
    if run_dir == Path(HydraConfig.get().sweep.dir):
        folder, _ = job_folders()
        folder = another(folder) if (folder / "config.yaml").is_file() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    record = {"overrides": own_overrides(), "error": error}
    folder.with_name(folder.name + SUFFIX).write_text(json.dumps(record) + "\n")


def read_jobs(sweep: Path) -> list[Job]:
    """The recorded jobs of a sweep's folder."""
    jobs = (read_job(path) for path in sorted(sweep.glob(f"*{SUFFIX}")))
    return [job for job in jobs if job is not None]


def read_job(path: Path) -> Job | None:
    """A record written by `record_job`; None for another file of such a name."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.keys() != {"overrides", "error"}:
        return None
    overrides, error = record["overrides"], record["error"]
    good = isinstance(overrides, list) and all(isinstance(one, str) for one in overrides)
    return Job(path.name.removesuffix(SUFFIX), overrides, error) if good and isinstance(error, str | None) else None


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
