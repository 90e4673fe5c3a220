"""A stage's run in wandb."""

from __future__ import annotations

import functools
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vqvae.metrics.registry import FIGURES, in_split
from vqvae.ranges import checked
from vqvae.storage.files import write_bytes

log = logging.getLogger(__name__)
ARTIFACTS: dict[str, Any] = {}  # by name, of the stages that this process has logged: the sources of later ones
SUMMARY = {"lower": "min", "higher": "max"}


@checked
@dataclass(kw_only=True)
class Wandb:
    """How wandb is used. mode auto: online where this machine is logged in, else offline; never a prompt."""

    mode: Literal["auto", "online", "offline", "off"]
    project: str
    entity: str | None
    tags: list[str]


class WandbRun:
    """Mirrors a stage's log to wandb. Trouble with wandb ends the mirroring, never the training.

    Does nothing until `start`.

    Args:
        folder: the stage's folder in the run folder.
        stage: its name; with the run's name it names the wandb run.
        settings: how to use wandb.
        config: the resolved config.
    """

    def __init__(self, folder: Path, stage: str, settings: Wandb, config: dict[str, Any]) -> None:
        self.folder, self.stage, self.settings, self.config = folder, stage, settings, config
        self.name = run_name(config)
        self._run: Any = None

    def start(self) -> None:
        """Opens or continues the wandb run, unless the mode is off."""
        if self.settings.mode != "off":
            self._run = start_wandb(self.folder, self.stage, self.settings, self.config)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Sends numbers, and histograms {edges, counts} as made in metrics.codebook."""
        self._send(lambda run: run.log({"step": step, **{key: to_wandb(value) for key, value in values.items()}}))

    def log_image(self, step: int, name: str, file: Path) -> None:
        if self._run is not None:
            import wandb

            self._send(lambda run: run.log({"step": step, f"images/{name}": wandb.Image(str(file))}))

    def alert(self, title: str, text: str) -> None:
        self._send(lambda run: run.alert(title=title, text=text))

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any], made_from: list[str]) -> None:
        """Sends a file or folder as an artifact. `made_from` names the artifacts of this run folder it came from.

        The lineage is also in the metadata, because wandb cannot record it offline.
        """
        if self._run is None:
            return
        import wandb

        artifact = wandb.Artifact(f"{self.name}-{name}", kind, metadata={**metadata, "made_from": made_from})
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        for source in [] if self._run.offline else made_from:
            if f"{self.name}-{source}" in ARTIFACTS:  # logged by an earlier stage of this process
                self._send(functools.partial(use_artifact, ARTIFACTS[f"{self.name}-{source}"]))
        self._send(lambda run: run.log_artifact(artifact))
        ARTIFACTS[f"{self.name}-{name}"] = artifact

    def finish(self) -> None:
        """Closes the wandb run, because the next stage, or job of a sweep, has its own."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _send(self, send: Callable[[Any], Any]) -> None:
        """Does something with the wandb run, if there is one."""
        if self._run is None:
            return
        import wandb

        try:
            send(self._run)
        except (wandb.errors.Error, OSError, ValueError) as error:
            log.warning("wandb failed (%s): from here on only files are written", error)
            self._run = None


def run_name(config: dict[str, Any]) -> str:
    """The run folder's own name, with what wandb allows in names."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(config["run_dir"]).name)


def start_wandb(folder: Path, stage: str, settings: Wandb, config: dict[str, Any]) -> Any:
    """-> a wandb run, or None where wandb cannot start; trouble with it never stops training."""
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
    for metric, options in metric_settings(stage):
        run.define_metric(metric, step_metric="step", **options)
    return run


def metric_settings(stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name in logs, arguments of define_metric) of the registered figures: the best value kept, or no plot by default.

    Of families, only those whose name ends with its one placeholder: wandb allows a star at the end alone.
    """
    for entry in FIGURES.values():
        start, *placeholders = entry.name.replace("{stage}", stage).split("{")
        if len(placeholders) > 1 or (placeholders and not placeholders[0].endswith("}")) or start.endswith("/"):
            continue
        star = "*" if placeholders else ""
        if entry.better in SUMMARY and entry.report:
            yield in_split(start, "val") + star, {"summary": SUMMARY[entry.better]}
        if not entry.dashboard:
            for split in ("train", "val"):
                yield in_split(start, split) + star, {"hidden": True}


def logged_in() -> bool:
    """True if wandb has a key for this machine: WANDB_API_KEY, or an entry in netrc. Asks nobody."""
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
