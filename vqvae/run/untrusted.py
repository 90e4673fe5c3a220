"""Validation of untrusted run folders: no links out of them, tensors only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

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
