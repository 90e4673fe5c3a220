"""The run folder: config, stages, code stores, images, summary."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vqvae import distributed
from vqvae.config.compose import CONFIGS, check_train, plain
from vqvae.config.renames import newer_keys
from vqvae.config.saved import SAVED_BYTES, read_saved
from vqvae.data.cache import is_claimed
from vqvae.errors import UserError
from vqvae.run.untrusted import check_contained, load_weights
from vqvae.storage import checkpoint
from vqvae.storage.files import remove_leftovers, temporary_name, write_bytes

STAGES = ("autoencoder", "prior")
NETWORKS = {"autoencoder": "model", "prior": "prior"}  # the network that a stage leaves
# Keys that may differ when a run is continued: they decide where and for how long, not the result.
FREE_KEYS = re.compile(
    r"^(run_dir|stages|search_sweeps|allow_targets|logger|data\.(root|urls|val_urls|resident|workers|cache_dir|most_unreadable|most_pixels)"
    r"|(prior\.)?trainer\.(max_time_minutes|on_nonfinite|max_skipped_steps))(\.|$)"
)
log = logging.getLogger(__name__)


class RunFolder:
    """Path and resolved config of a run."""

    def __init__(self, path: Path, cfg: DictConfig) -> None:
        self.path, self.config = path, cfg

    @classmethod
    def load(cls, path: str | Path, allow_targets: list[str], key: str = "run_dir") -> RunFolder:
        """Open an existing run and check its config. Raises UserError, naming `key`, if there is none."""
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{key}={path} holds no run (there is no {folder / 'config.yaml'})")
        return cls(folder, saved_config(folder, allow_targets))

    @classmethod
    def prepare(cls, cfg: DictConfig, overrides: list[str] | None = None, sweep_job: Path | None = None) -> RunFolder:
        """Folder for a resolved config: a new one, not made yet, or one that holds a run of the same config.

        overrides: those of the command line. If all of them are free to differ, the run in the folder continues with its own
        config. sweep_job: the folder of a job of a sweep. Raises UserError, with the differences, for a run of another config.
        """
        default = Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = Path(distributed.broadcast_object(str(sweep_job or cfg.run_dir or default)))
        cfg.run_dir = str(folder)
        file = folder / "config.yaml"
        if file.is_file():
            stored = saved_config(folder, list(cfg.allow_targets))
            keys = [override.lstrip("+").split("=")[0] for override in overrides or []]
            with open_dict(cfg):
                for key in newer_keys(plain(cfg), plain(stored), keys):
                    del cfg.data[key]
            changes = differences(stored, cfg)
            is_free = overrides is not None and sweep_job is None and all(FREE_KEYS.match(key) for key in keys)
            if changes and is_free:
                for key in keys:
                    OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
                check_train(stored)
                cfg = stored
            elif changes:
                raise UserError(
                    f"run_dir={folder} holds a run with another config ({'; '.join(changes)}): "
                    "choose another run_dir, or drop the changes to continue that run"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"run_dir={folder} is a folder with other things in it: choose another, or empty it")
        distributed.barrier()  # all ranks have looked before rank 0 makes the folder
        return cls(folder, cfg)

    def create(self) -> None:
        """Make the folder and write the config into it."""
        if distributed.is_main():
            text = OmegaConf.to_yaml(self.config).encode()
            if len(text) > SAVED_BYTES:
                limit = f"{SAVED_BYTES} bytes, and could not be read back"
                raise UserError(f"this config has more than {limit}: name many files by braces or wildcards")
            write_bytes(self.path / "config.yaml", text)
            for part in ("", "codes", *STAGES):
                remove_leftovers(self.path / part)
        distributed.barrier()

    def stage(self, name: str) -> Path:
        return self.path / name

    def codes(self, split: str) -> Path:
        return self.path / "codes" / split

    def weights_file(self, stage: str) -> Path | None:
        """Result of a finished stage, or None."""
        files = checkpoint.find(self.stage(stage), "weights")
        return files[-1] if files else None

    def weights(self, stage: str) -> dict[str, Any]:
        """Step and networks of a finished stage. Raises UserError if it is not finished, or not a stage's result."""
        file = self.weights_file(stage)
        if file is None:
            raise UserError(f"{self.path} has no finished {stage}: train it with python train.py run_dir={self.path}")
        return load_weights(file, NETWORKS[stage], distributed.device())

    def adopt_tokenizer(self, other: RunFolder) -> None:
        """Copy another run's autoencoder and codes, so that this folder is complete by itself."""
        if self.weights_file("autoencoder") is None and distributed.is_main():
            source = other.weights_file("autoencoder")
            assert source is not None, "checked before the folder was made"
            self.stage("autoencoder").mkdir(exist_ok=True)
            for name in ("autoencoder/metrics.jsonl", "autoencoder/timing.jsonl"):
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


def saved_config(folder: Path, allow_targets: list[str]) -> DictConfig:
    """Read and check the config of a run folder, which may be a stranger's.

    Raises UserError for targets that this command does not allow, and for links out of the folder. Where it would be written
    to is the choice of this command alone: see `own_folders`.
    """
    check_contained(folder)
    cfg = read_saved(folder / "config.yaml")
    cfg.allow_targets, cfg.run_dir = allow_targets, str(folder)
    check_train(cfg)
    own_folders(cfg.data)
    return cfg


def own_folders(data: DictConfig) -> None:
    """Replaces folders that a saved config would have written to by the default ones, unless they were used here before."""
    if not is_claimed(Path(os.path.expanduser(data.cache_dir))):
        data.cache_dir = default_of("folder", "cache_dir")
    if data["_target_"] == "vqvae.data.cifar10.CIFAR10" and not os.path.isdir(
        os.path.join(data.root, "cifar-10-batches-py")
    ):
        data.root = default_of("cifar10", "root")


def default_of(data: str, key: str) -> str:
    defaults = OmegaConf.load(CONFIGS / "data" / f"{data}.yaml")
    assert isinstance(defaults, DictConfig)
    return str(defaults[key])


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """'key: old there, new here' for every leaf that differs, except FREE_KEYS."""
    changes = []
    for key in sorted({*old, *new}, key=str):
        name, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if FREE_KEYS.match(name) or a == b:
            continue
        if isinstance(a, DictConfig) and isinstance(b, DictConfig):
            changes += differences(a, b, f"{name}.")
        else:
            changes.append(f"{name} is {a} there, {b} here")
    return changes
