"""Log of a stage: files always, wandb if it is on."""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.images import write_png
from vqvae.ranges import checked
from vqvae.storage.files import append_line, write_bytes

log = logging.getLogger(__name__)
BEST = {"val/mse": "min", "val/psnr_db": "max", "val/bits_per_code": "min", "val/bits_per_code_bound": "min"}
ARTIFACTS: dict[str, Any] = {}  # by name, of the stages that this process has logged: the sources of later ones


@checked
@dataclass(kw_only=True)
class Wandb:
    """Use of wandb. mode auto: online if this machine is logged in, else offline; never a prompt."""

    mode: Literal["auto", "online", "offline", "off"]
    project: str
    entity: str | None
    tags: list[str]


class Logger:
    """One stage's log. metrics.jsonl is the source of truth and reproducible; times and memory go to timing.jsonl.

    Args:
        folder: the stage's folder in the run folder.
        stage: its name; with the run's name it names the wandb run.
        wandb: how to use wandb.
        config: the resolved config, for wandb.
    """

    def __init__(self, folder: Path, stage: str, wandb: Wandb, config: dict[str, Any]) -> None:
        self.folder, self.stage, self.settings, self.config = folder, stage, wandb, config
        self.pictures = folder / "pictures"
        self._run: Any = None

    def start(self, step: int, evaluated: bool) -> None:
        """Opens the log at `step`: lines after it, written by a run that was killed, are cut; and the evaluation at `step`,
        unless it counts as `evaluated`."""
        if not distributed.is_main():
            return
        self.pictures.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "timing.jsonl", "skipped_steps.jsonl"):
            cut_after(self.folder / name, step, evaluated)
        if self.settings.mode != "off":
            self._run = start_wandb(self.folder, self.stage, self.settings, self.config)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes one line of reproducible metrics: numbers, and histograms {edges, counts} as made in metrics.codebook."""
        self._log("metrics.jsonl", step, metrics)

    def log_timing(self, step: int, values: dict[str, float]) -> None:
        """Writes one line of what differs from run to run."""
        self._log("timing.jsonl", step, values)

    def log_skipped(self, step: int, skipped: int, indices: list[int]) -> None:
        """Write a line for a skipped step: the number of steps before it, and its batch as indices of the training set."""
        self._write("skipped_steps.jsonl", step, {"after_steps": skipped, "indices": indices})

    def log_picture(self, step: int, name: str, picture: Tensor) -> Path:
        """image uint8 (C, H, W) -> pictures/<name>_<step>.png."""
        path = self.pictures / f"{name}_{step:09d}.png"
        if distributed.is_main():
            write_png(path, picture)
            if self._run is not None:
                import wandb

                self._mirror(lambda run: run.log({"step": step, f"pictures/{name}": wandb.Image(str(path))}))
        return path

    def alert(self, step: int, title: str, text: str) -> None:
        """A warning in the log, and a wandb alert."""
        if distributed.is_main():
            log.warning("step %d: %s: %s", step, title, text)
            self._mirror(lambda run: run.alert(title=title, text=text))

    def artifact(self, name: str, kind: str, path: Path | None, metadata: dict[str, Any], made_from: list[str]) -> None:
        """Logs a file or folder as a wandb artifact. `made_from` names the artifacts of this run folder it came from.

        The lineage is also in the metadata, because wandb cannot record it offline.
        """
        if self._run is None or path is None:
            return
        import wandb

        prefix = run_name(self.config)
        artifact = wandb.Artifact(f"{prefix}-{name}", kind, metadata={**metadata, "made_from": made_from})
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        for source in [] if self._run.offline else made_from:
            if f"{prefix}-{source}" in ARTIFACTS:  # logged by an earlier stage of this process
                self._mirror(functools.partial(use_artifact, ARTIFACTS[f"{prefix}-{source}"]))
        self._mirror(lambda run: run.log_artifact(artifact))
        ARTIFACTS[f"{prefix}-{name}"] = artifact

    def finish(self) -> None:
        """Closes the wandb run: the next stage, or job of a sweep, has its own."""
        ran, self._run = self._run, None
        if ran is not None:
            ran.finish()

    def _mirror(self, send: Callable[[Any], Any]) -> None:
        """Send something to the wandb run, if there is one; trouble with it ends the mirroring, not the training."""
        if self._run is None:
            return
        import wandb

        try:
            send(self._run)
        except (wandb.errors.Error, OSError, ValueError) as error:
            log.warning("wandb failed (%s): from here on only files are written", error)
            self._run = None

    def _write(self, name: str, step: int, values: dict[str, Any]) -> None:
        if distributed.is_main():
            append_line(self.folder / name, json.dumps({"step": step, **values}))

    def _log(self, name: str, step: int, values: dict[str, Any]) -> None:
        """To a file and to wandb."""
        self._write(name, step, values)
        self._mirror(lambda run: run.log({"step": step, **{key: to_wandb(value) for key, value in values.items()}}))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line that a crash cut short is left out.

    Raises ValueError for a line that is not what `Logger` writes.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], 1):
        try:
            lines.append(json.loads(text))
            lines[-1]["step"] + 0
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is damaged ({error}); take it out to go on without it") from error
    return lines


def cut_after(path: Path, step: int, evaluated: bool) -> None:
    """Removes lines after `step`, a last line that is not whole, and what is not `evaluated` yet: see Logger.start."""
    if path.is_file():
        last = step if evaluated else step - 1  # of lines of evaluations
        lines = read_lines(path)
        kept = [json.dumps(one) for one in lines if one["step"] <= (last if is_evaluation(one) else step)]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())


def is_evaluation(line: dict[str, Any]) -> bool:
    return any(name.startswith("val/") for name in line)


def run_name(config: dict[str, Any]) -> str:
    """The run folder's own name, with what wandb allows in names."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(config["run_dir"]).name)


def start_wandb(folder: Path, stage: str, settings: Wandb, config: dict[str, Any]) -> Any:
    """Start a wandb run; None if it cannot start, because trouble with wandb never stops training."""
    try:
        import wandb
    except ImportError:
        log.warning("wandb is not installed, so only files are written (logger=off hides this line)")
        return None
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        write_bytes(id_file, secrets.token_hex(4).encode())
    mode = os.environ.get("WANDB_MODE", "auto") if settings.mode == "auto" else settings.mode
    if mode in ("auto", "online") and not logged_in():
        mode = "offline"  # wandb would ask for a key otherwise
    mode = "online" if mode == "auto" else mode
    name = run_name(config)
    try:
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=id_file.read_text().strip(),
            name=f"{name}-{stage}",
            group=name,
            job_type=stage,
            tags=settings.tags,
            config=config,
            dir=str(folder.parent),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=False, init_timeout=30),
        )
    except (wandb.errors.Error, OSError) as error:
        log.warning("wandb could not start (%s): only files are written", error)
        return None
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    for metric, best in BEST.items():
        run.define_metric(metric, step_metric="step", summary=best)
    return run


def logged_in() -> bool:
    """True if wandb has a key for this machine: WANDB_API_KEY, or an entry in netrc. Never prompts."""
    import requests.utils

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY")) or requests.utils.get_netrc_auth(url) is not None


def use_artifact(artifact: Any, run: Any) -> None:
    """Records that a run was made from an artifact that was logged before, once the upload is done."""
    artifact.wait()
    run.use_artifact(artifact)


def to_wandb(value: Any) -> Any:
    """A histogram as wandb's own; anything else as it is."""
    if isinstance(value, dict) and value.keys() == {"edges", "counts"}:
        import numpy as np
        import wandb

        return wandb.Histogram(np_histogram=(np.array(value["counts"]), np.array(value["edges"])))
    return value
