"""A stage's run in wandb."""

from __future__ import annotations

import logging
import os
import queue
import re
import secrets
import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from vqvae.storage.files import write_bytes
from vqvae.surroundings.own_folder import own_folder
from vqvae.training.log_settings import LogSettings
from vqvae.training.mirror import Mirror, Samples
from vqvae.training.wandb_values import log_artifact, metric_settings, picture, table, to_wandb

log = logging.getLogger(__name__)
GIVEN_UP: set[Path] = set()  # run folders for which wandb failed: later stages of this process do not wait for it again
SHARED: list[Any] = []  # the run of a wandb agent between two stages
PROJECT = "vqvae"
COMMON = ("timing/", "images/")  # names that all stages have
START_SECONDS = 20
FINISH_SECONDS = 60
STOP_SECONDS = 5  # in place of it, for a program that is told to end
MOST_WAITING = 1000  # messages that wandb has not taken yet; then it is waited for, once
# where wandb keeps copies, in the run folder's own wandb folder; else it takes folders in the user's home
FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_ARTIFACT_DIR": "artifacts"}


class WandbRun(Mirror):
    """Mirrors a stage's log to wandb, which neither ends nor delays the training.

    A thread of its own talks to wandb. Whatever fails there or takes too long is one warning, and from then on only files
    are written. Does nothing until `start`. Each stage has a run of its own, but under `wandb agent`: there both share the
    one that the agent has made. Hence all names and the steps begin with the stage.

    Args:
        folder: the stage's folder in the run folder.
        stage: its name; with the run's name it names the wandb run.
        settings: how to use wandb.
        config: the resolved config.
    """

    def __init__(self, folder: Path, stage: str, settings: LogSettings, config: dict[str, Any]) -> None:
        self.folder, self.stage, self.settings, self.config = folder.absolute(), stage, settings, config
        self.name = run_name(config)
        self.on = False
        self.sections: set[str] = set()  # of names, whose steps are known
        self.goes_on = False  # True if this program has more stages to do
        self._run: Any = None
        self._tasks: queue.Queue[Callable[[], Any] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._folders: dict[str, str] = {}

    def start(self) -> None:
        """Opens or continues the wandb run, unless the mode is off."""
        if self.settings.mode == "off" or self.folder.parent in GIVEN_UP:
            return
        self.on = True
        own = self.folder.parent / "wandb"
        self._folders = {name: str(own / below) for name, below in FOLDERS.items() if name not in os.environ}
        os.environ.update(self._folders)
        try:
            set_up()
        except ImportError:
            self.on = False
            log.warning("wandb is not installed: only files are written (logger=off hides this)")
        except Exception as error:
            self._fail(error)
        opened = threading.Event()
        self._send(self._open)
        self._tasks.put(opened.set)
        self._thread.start()
        if not opened.wait(START_SECONDS):
            self._fail(f"it did not start within {START_SECONDS} seconds")

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._send(lambda: self._log(step, {key: to_wandb(value) for key, value in values.items()}))

    def log_image(self, step: int, name: str, image: Tensor, file: Path) -> None:
        self._send(lambda: self._log(step, {f"images/{name}": picture(str(file))}))

    def alert(self, title: str, text: str) -> None:
        self._send(lambda: self._run.alert(title=title, text=text))

    def results(self, figures: dict[str, Any]) -> None:
        self._send(lambda: self._run.log({f"final/{name}": value for name, value in figures.items()}))

    def samples(self, draw: Callable[[], Samples]) -> None:
        """Sends a table of samples, drawn here, because wandb's thread shall not compute."""
        if self.on:
            drawn = draw()
            self._send(lambda: self._run.log({f"{self.stage}/samples": table(*drawn)}))

    def artifact(self, name: str, kind: str, path: Path, metadata: dict[str, Any], made_from: list[str]) -> None:
        """Sends a file or folder, which stays as it is, as an artifact. `made_from` names the artifacts that it came from.

        The lineage is also in the metadata, because wandb cannot record it offline.
        """
        sources = [f"{self.name}-{source}" for source in made_from]
        metadata = {**metadata, "made_from": made_from}
        self._send(lambda: log_artifact(self._run, f"{self.name}-{name}", kind, path.absolute(), metadata, sources))

    def finish(self, seconds: float) -> None:
        """Closes the wandb run, because the next stage, or job of a sweep, has its own. Waits for `seconds` at most."""
        if self._thread.ident is None:
            return
        for task in (self._close, None):
            with suppress(queue.Full):  # wandb stands still
                self._tasks.put(task, timeout=1)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(
                f"it did not end within {seconds} seconds; wandb sync sends the rest from the run folder's wandb/"
            )
        if not self.on:
            end_process()
        for name in self._folders:
            os.environ.pop(name, None)

    def _send(self, task: Callable[[], Any]) -> None:
        """Does something with the wandb run, if there is one, when wandb comes to it."""
        if self.on:
            try:
                self._tasks.put(lambda: task() if self.on else None, timeout=START_SECONDS)
            except queue.Full:
                self._fail("it does not keep up")

    def _work(self) -> None:
        for task in iter(self._tasks.get, None):
            try:
                task()
            except (Exception, SystemExit) as error:  # whatever wandb raises
                self._fail(error)

    def _fail(self, reason: BaseException | str) -> None:
        """Warns, once, and sends nothing more."""
        if self.on:
            self.on = False
            GIVEN_UP.add(self.folder.parent)
            text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
            log.warning("wandb failed (%s): from here on only files are written", " ".join(text.split())[:300])

    def _open(self) -> None:
        self._run = SHARED.pop() if SHARED else open_run(self.folder, self.stage, self.settings, self.config)
        for metric, options in metric_settings(self.stage):
            self._run.define_metric(metric, step_metric=f"{self.stage}/step", **options)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        """Sends values by names that no other stage has, over steps of this stage."""
        named = {f"{self.stage}/{key}" if key.startswith(COMMON) else key: value for key, value in values.items()}
        for section in {key.split("/")[0] for key in named} - self.sections:
            self.sections.add(section)
            self._run.define_metric(f"{section}/*", step_metric=f"{self.stage}/step")
        self._run.log({f"{self.stage}/step": step, **named})

    def _close(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run.sweep_id and self.goes_on and self.stage != self.config["stages"][-1]:
            SHARED.append(run)
        else:
            run.finish()


def run_name(config: dict[str, Any]) -> str:
    """The run folder's own name, with what wandb allows in names."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(config["run_dir"]).name)


def set_up() -> None:
    """Reads wandb's settings of the environment and the home folder, and starts its process.

    In our own folder, because wandb would also read settings of the current one and run git there, which may be a
    stranger's. Raises whatever wandb does about settings that it does not know.
    """
    with own_folder():
        import wandb

        try:
            wandb.setup(wandb.Settings(silent=True, console="off", disable_git=True, x_service_wait=START_SECONDS))
        except BaseException:
            tear_down()  # of settings that were read in part
            raise


def open_run(folder: Path, stage: str, settings: LogSettings, config: dict[str, Any]) -> Any:
    """-> the wandb run of a stage, continued if it was begun before."""
    import wandb
    from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

    users = wandb.setup().settings  # of the environment and the home folder
    mode = users.mode if settings.mode == "auto" else settings.mode
    if mode == "online" and not logged_in(users):
        if settings.mode == "online":
            log.warning("wandb: not logged in here (wandb login), so the run is offline")
        mode = "offline"  # wandb would ask for a key otherwise
    name = settings.name or users.run_name or run_name(config)
    shared = bool(users.sweep_id)  # a wandb agent has made the run
    run = wandb.init(
        project=settings.project or users.project or PROJECT,
        entity=settings.entity or users.entity,
        id=users.run_id if shared else run_id(folder / "wandb_id"),
        name=name if shared else f"{name}-{stage}",
        group=settings.group or users.run_group or (None if shared else name),
        job_type=None if shared else stage,
        notes=settings.notes or users.run_notes,
        tags=settings.tags or list(users.run_tags or ()),
        config=config,
        dir=str(folder.parent),
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(init_timeout=START_SECONDS - 5, finish_timeout=FINISH_SECONDS - 10),
    )
    unregister_all_post_import_hooks()  # they send what is imported, and would raise wandb's errors in an import of ours
    log.info("wandb: %s", run.url or f"offline; wandb sync {shlex.quote(str(from_here(Path(run.dir).parent)))}")
    return run


def from_here(folder: Path) -> Path:
    """A path as it is typed in the current folder."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def run_id(file: Path) -> str:
    """The id of a wandb run, kept in a file. A damaged one is replaced: what comes then is another run for wandb."""
    if not file.is_file() or not re.fullmatch(rb"[0-9a-f]{8}", file.read_bytes()):
        write_bytes(file, secrets.token_hex(4).encode())
    return file.read_text()


def end_process() -> None:
    """Ends wandb's process, which failed, lest this one waits for it at its end."""
    with suppress(Exception):  # wandb has no public name for it
        from wandb.sdk import wandb_setup

        process: Any = wandb_setup.singleton()._connection
        process._proc._process.kill()
    ending = threading.Thread(target=tear_down, daemon=True)
    ending.start()
    ending.join(STOP_SECONDS)


def tear_down() -> None:
    """Makes wandb forget its process and its settings."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def logged_in(settings: Any) -> bool:
    """True if wandb's settings hold a key for this machine, or netrc does. Asks nobody."""
    import requests.utils

    key = settings.api_key or settings.identity_token_file
    return bool(key) or requests.utils.get_netrc_auth(settings.base_url) is not None
