"""The run folder: config, stages, code stores, images, summary."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import check_train, plain, resolve
from vqvae.config.renames import keep_earlier, without_most_warmup
from vqvae.config.saved import SAVED_BYTES
from vqvae.errors import UserError
from vqvae.run import continuing
from vqvae.run.continuing import (
    FREE_KEYS,
    differences,
    due_to,
    interpolated,
    may_differ,
    may_merge,
    sentence,
    total_steps,
    typed_keys,
)
from vqvae.run.data_record import NAME as RECORD
from vqvae.run.data_record import DataRecord
from vqvae.run.lock import NAME as LOCK
from vqvae.run.untrusted import load_weights, saved_config
from vqvae.storage import checkpoint
from vqvae.storage.files import remove_leftovers, temporary_name, write_bytes
from vqvae.storage.forms import form_of
from vqvae.surroundings.terminal import printable

log = logging.getLogger(__name__)
STAGES = ("autoencoder", "prior")
NETWORKS = {"autoencoder": "model", "prior": "prior"}  # the network that a stage leaves
CONDITIONS = "conditions.json"  # what the prior's labels hold: see conditions.py
INITIAL = "initial"  # name of the weights that a stage starts from, with init_from


class RunFolder:
    """Path and resolved config of a run."""

    def __init__(self, path: Path, cfg: DictConfig) -> None:
        self.path, self.config = path, cfg
        self.replaces = False  # a start of another config lies there, without a checkpoint
        self.longer: list[str] = []  # stages that shall end at another step than was planned
        self.notes: list[str] = []  # what a user should know of this start, until there is a log
        self.logs = True

    @classmethod
    def load(
        cls, path: str | Path, allow_targets: list[str], key: str = "run_dir", places: dict[str, Any] | None = None
    ) -> RunFolder:
        """Open an existing run and check its config. Raises UserError, naming `key`, if there is none.

        places: keys of `data` that say where the data is now; those that are None stay.
        """
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{key}={path} holds no run (there is no {folder / 'config.yaml'}){runs_below(folder)}")
        cfg = saved_config(folder, allow_targets)
        for name, value in (places or {}).items():
            if value is not None:
                cfg.data[name] = value
        check_train(cfg)
        return cls(folder, cfg)

    @classmethod
    def prepare(cls, cfg: DictConfig, overrides: list[str] | None = None, sweep_job: bool = False) -> RunFolder:
        """Folder `cfg.run_dir` for a config: an empty one, or one that holds a run which goes on with it.

        overrides: those of the command line. If all may differ, or are as they were, the run continues with its own config and
        these. sweep_job: the config is whole, whatever was typed. Raises UserError, with the differences, for a run of
        another config; one that has no checkpoint yet is replaced.
        """
        folder, typed = Path(cfg.run_dir), typed_keys(overrides or [])
        found = cls(folder, resolve(cfg))
        found.logs = False
        if not (folder / "config.yaml").is_file():
            others = [name for name in os.listdir(folder) if name != LOCK] if folder.is_dir() else []
            if any(not name.endswith(".vqvae.tmp") for name in others):
                raise UserError(f"run_dir={folder} is a folder with other things in it: choose another, or empty it")
            return found
        stored = saved_config(folder, list(cfg.allow_targets))
        found.config.data.update(keep_earlier(plain(found.config), plain(stored), typed))
        for key in without_most_warmup(plain(found.config), plain(stored), typed):
            OmegaConf.update(found.config, key, None)
        begun = [stage for stage in STAGES if found.has_begun(stage)]
        begun = [] if begun == ["autoencoder"] and stored.tokenizer is not None else begun  # it is another run's
        whole = overrides is None or sweep_job
        if not whole and may_merge(plain(stored), plain(found.config), typed, begun):
            merged = stored.copy()
            for key in typed:
                OmegaConf.update(merged, key, OmegaConf.select(found.config, key), merge=False)
            found.config = merged
        check_train(found.config)
        changes = [one for one in differences(plain(stored), plain(found.config)) if not FREE_KEYS.match(one[0])]
        fixed = [one for one in changes if not may_differ(one[0], begun)]
        follow = tuple(f"{key}." for key in interpolated(OmegaConf.to_container(cfg)))
        told = [one for one in fixed or changes if not f"{one[0]}.".startswith(follow)] or fixed or changes
        told = told if whole else due_to(told, typed) or told
        if not begun and changes:
            found.replaces = True
            found.notes.append(f"takes the place of a start without a checkpoint: {sentence(told, typed)}")
        elif fixed:
            raise UserError(
                f"run_dir={folder} holds a run with another config ({sentence(told, typed)}): "
                "choose another run_dir, or drop the changes to continue that run"
            )
        else:
            found.longer = [stage for stage in begun if found.goes_on(stage, stored)]
            found.notes += [f"goes on with other settings: {sentence(told, typed)}"] if changes else []
        return found

    def has_begun(self, stage: str) -> bool:
        """True if a stage has a checkpoint, or is finished."""
        checkpoints = checkpoint.find(self.stage(stage) / "checkpoints", "*")
        return bool(checkpoints) or self.weights_file(stage) is not None

    @property
    def source(self) -> Path:
        """The folder that holds the autoencoder and its codes: that of `tokenizer` until they are copied."""
        adopts = self.config.tokenizer is not None and (self.replaces or self.weights_file("autoencoder") is None)
        return Path(self.config.tokenizer) if adopts else self.path

    def data_record(self) -> DataRecord | None:
        """What is recorded of the data, once a stage has begun on it. Raises UserError if it is damaged."""
        if self.source == self.path and not any(map(self.has_begun, STAGES)):
            return None
        return DataRecord.read(self.source)

    def train_size(self) -> int | None:
        """Number of training items, if it is known without the data."""
        record = self.data_record()
        return record.splits["train"].count if record is not None and "train" in record.splits else None

    def note(self, text: str) -> None:
        """Say something about this start: in the log, as soon as there is one."""
        if self.logs:
            log.warning("%s: %s", self.path, text)
        else:
            self.notes.append(text)

    def goes_on(self, stage: str, stored: DictConfig) -> bool:
        """True if a stage that has begun shall end at another step than was planned. Raises UserError if it cannot.

        A finished stage that has more steps than are asked for keeps them, and the config says so.
        """
        prefix = {"autoencoder": "", "prior": "prior."}[stage]
        old, new = (OmegaConf.select(cfg, f"{prefix}trainer") for cfg in (stored, self.config))
        if (old.steps, old.epochs) == (new.steps, new.epochs):
            return False
        key = f"{prefix}trainer.steps={new.steps}" if new.steps is not None else f"{prefix}trainer.epochs={new.epochs}"

        def refused(reason: str) -> UserError:
            way_out = f"start a new run from the weights of this one, once it is finished, with init_from={self.path}"
            return UserError(f"{key} cannot change here, because {reason}: {way_out}")

        before, now = (total_steps(build(node, f"{prefix}trainer"), self.train_size()) for node in (old, new))
        checkpoints = checkpoint.find(self.stage(stage) / "checkpoints", "step-*")
        if not checkpoints or before is None or now is None:
            raise refused(f"{self.path} does not hold all that it needs to go on")
        if now <= before and self.weights_file(stage) is not None:
            self.notes.append(f"has {before} steps of its {stage} already, and keeps them: {key} would be {now}")
            new.steps, new.epochs = old.steps, old.epochs
            return False
        if checkpoint.load(checkpoints[-1]).get("steps") is not None:
            raise refused("it ended early, or with an older version")
        if stage == "autoencoder" and self.has_begun("prior"):
            raise refused("the prior of this run has learned the codes of its autoencoder")
        done = int(checkpoints[-1].name.split("-")[1])
        if problem := continuing.length_problem(before, now, done, stage, self.config):
            raise refused(problem)
        return now != before

    def create(self) -> None:
        """Make the folder and write the config into it."""
        distributed.barrier()  # all ranks have looked before rank 0 changes something
        if distributed.is_main():
            text = OmegaConf.to_yaml(self.config).encode()
            if len(text) > SAVED_BYTES:
                limit = f"{SAVED_BYTES} bytes, and could not be read back"
                raise UserError(f"this config has more than {limit}: name many files by braces or wildcards")
            self._remove_what_ends()
            write_bytes(self.path / "config.yaml", text)
            for part in ("", "codes", *STAGES):
                remove_leftovers(self.path / part)
        distributed.barrier()

    def _remove_what_ends(self) -> None:
        """Remove what a replaced start has left, and the results of stages that go on. The new config comes after it."""
        stages = STAGES if self.replaces else self.longer
        files = [file for stage in stages for file in checkpoint.find(self.stage(stage), "weights")]
        if self.replaces:
            files += [file for stage in STAGES for file in checkpoint.find(self.stage(stage), INITIAL)]
            files += [self.stage(stage) / "wandb_id" for stage in STAGES]
        if self.replaces or not any(map(self.has_begun, STAGES)):  # of data that may have been corrected
            files += [*checkpoint.find(self.path, "variance"), self.path / RECORD, self.path / CONDITIONS]
        if "autoencoder" in stages:
            for header in self.path.glob("codes/*/header.json"):
                shutil.rmtree(header.parent)
        for file in files:
            file.unlink(missing_ok=True)

    def stage(self, name: str) -> Path:
        return self.path / name

    def codes(self, split: str) -> Path:
        return self.path / "codes" / split

    def weights_file(self, stage: str) -> Path | None:
        """Result of a finished stage, or None."""
        files = checkpoint.find(self.stage(stage), "weights")
        return files[-1] if files else None

    def require(self, stage: str) -> Path:
        """Result of a finished stage. Raises UserError if it is not finished."""
        file = self.weights_file(stage)
        if file is None:
            raise UserError(f"{self.path} has no finished {stage}: train it with python train.py run_dir={self.path}")
        return file

    def weights(self, stage: str, network: nn.Module | None = None) -> dict[str, Any]:
        """Step and networks of a finished stage; network: what they are for, which tells how large they can be.

        Raises UserError if it is not finished, or not a stage's result.
        """
        file = self.require(stage)
        needed = None if network is None else form_of(network.state_dict())
        return load_weights(file, NETWORKS[stage], distributed.device(), needed)

    def adopt_initial_weights(self) -> None:
        """Copy the weights that `init_from` names for stages that have not begun, so that this folder is complete by itself."""
        missing = [s for s in STAGES if not self.has_begun(s) and not checkpoint.find(self.stage(s), INITIAL)]
        if self.config.init_from is not None and missing and distributed.is_main():
            other = RunFolder.load(self.config.init_from, list(self.config.allow_targets), "init_from")
            for stage in missing:
                if (source := other.weights_file(stage)) is not None:
                    write_bytes(self.stage(stage) / source.name.replace("weights", INITIAL, 1), source.read_bytes())
        distributed.barrier()

    def initial_weights(self, stage: str) -> tuple[Path, dict[str, Any]]:
        """Where a stage of a run with `init_from` starts from: the file, and its step and networks. Raises UserError."""
        if files := checkpoint.find(self.stage(stage), INITIAL):
            return files[-1], load_weights(files[-1], NETWORKS[stage], distributed.device())
        other = RunFolder.load(self.config.init_from, list(self.config.allow_targets), "init_from")
        return other.path, other.weights(stage)

    def adopt_tokenizer(self) -> None:
        """Copy the autoencoder and codes of the run that `tokenizer` names, so that this folder is complete by itself."""
        if self.config.tokenizer is None:
            return
        if self.weights_file("autoencoder") is None and distributed.is_main():
            other = RunFolder.load(self.config.tokenizer, list(self.config.allow_targets), "tokenizer")
            source = other.weights_file("autoencoder")
            assert source is not None, "checked before the folder was made"
            self.stage("autoencoder").mkdir(exist_ok=True)
            for name in ("autoencoder/metrics.jsonl", "autoencoder/timing.jsonl", RECORD):
                if name == RECORD and not (other.path / RECORD).is_file():  # an older version made it
                    continue
                write_bytes(self.path / name, (other.path / name).read_bytes())
            for variance in checkpoint.find(other.path, "variance"):  # if missing, it is computed again
                write_bytes(self.path / variance.name, variance.read_bytes())
            for store in (other.path / "codes").glob("*/header.json"):
                target = self.codes(store.parent.name)
                if target.suffix == ".tmp" or target.is_dir():  # incomplete there, or here already
                    continue
                temporary = temporary_name(target)
                shutil.copytree(store.parent, temporary)
                temporary.rename(target)
            # Last, because the weights say that all is there.
            write_bytes(self.stage("autoencoder") / source.name, source.read_bytes())
        distributed.barrier()


def runs_below(folder: Path) -> str:
    """Words for a folder that holds no run: up to three runs right below it, as in the folder of a sweep."""
    names = sorted(config.parent.name for config in folder.glob("*/config.yaml"))
    more = ", ..." * (len(names) > 3)
    return f"; below it lie runs: {', '.join(printable(name) for name in names[:3])}{more}" if names else ""
