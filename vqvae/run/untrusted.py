"""Validation of untrusted run folders: no links out of them, checked configs, tensors only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml

from vqvae.config.compose import CONFIGS, check_train
from vqvae.config.saved import read_saved
from vqvae.data.cache import is_claimed
from vqvae.errors import UserError
from vqvae.storage import checkpoint
from vqvae.storage.forms import Dense, Each, Form, mistake


def check_contained(folder: Path) -> None:
    """Raises UserError for links that lead out of the folder, and for what is neither file nor folder (such as a pipe).

    Not below wandb/<run>: wandb links from there to its own log, and nothing is read or written there again.
    """
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            if os.path.islink(path):
                if os.path.commonpath([root, os.path.realpath(path)]) != root:
                    raise UserError(f"{path} leads out of the run folder: replace the link by what it points to")
            elif not os.path.isfile(path) and not os.path.isdir(path):
                raise UserError(f"{path} is neither a file nor a folder: remove it")
        if place == os.path.join(folder, "wandb"):
            folders.clear()


def load_weights(file: Path, network: str, device: torch.device, needed: Form = None) -> dict[str, Any]:
    """{step, networks: {name: {parameter: tensor}}} of a finished stage, with the network that it leaves.

    needed: the form of that network's weights, if it is known. Raises UserError for anything else. Nothing of it is run.
    """
    state = checkpoint.load(file, device, needed)
    if said := mistake(state, {"step": int, "networks": Each(Each(Dense(None, None), dict), dict)}):
        raise UserError(f"{file} does not hold the weights of a stage: {said}")
    if network not in state["networks"]:
        raise UserError(f"{file} does not hold the network {network}")
    return state


def saved_config(folder: Path, allow_targets: list[str]) -> Any:
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


def own_folders(data: Any) -> None:
    """Replaces folders that a saved config would have written to by the default ones, unless they were used here before."""
    if not is_claimed(Path(os.path.expanduser(data.cache_dir))):
        data.cache_dir = default_of("folder", "cache_dir")
    if data["_target_"] == "vqvae.data.cifar10.CIFAR10" and not os.path.isdir(
        os.path.join(data.root, "cifar-10-batches-py")
    ):
        data.root = default_of("cifar10", "root")


def default_of(data: str, key: str) -> str:
    return str(yaml.safe_load((CONFIGS / "data" / f"{data}.yaml").read_text())[key])
