"""Exports on the Hugging Face Hub, by owner/name: loaded and written with `huggingface_hub`, an optional package."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from vqvae.errors import UserError
from vqvae.surroundings.own_folder import own_folder

NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?")
NEEDED = ["config.json", "*.safetensors", "tokenizer.json", "prior.json"]  # the last two: exports of format 1


def is_hub_name(path: str | Path) -> bool:
    """True for owner/name and owner/name@revision, unless there is such a path, or its first folder."""
    return NAME.fullmatch(str(path)) is not None and not Path(path).exists() and not Path(path).parent.exists()


def download(name: str) -> Path:
    """The folder of an export on the Hub, owner/name or owner/name@revision, downloaded where this machine has it not yet.

    Raises UserError, with the reason, where it cannot be had. Nothing of it is run.
    """
    found = NAME.fullmatch(name)
    assert found is not None
    hub = library(f"{name} is no folder here; loading it from the Hugging Face Hub")
    try:
        folder = hub.snapshot_download(found["repo"], revision=found["revision"], allow_patterns=NEEDED)
    except Exception as error:  # of the network, the Hub and the disk: their kinds have no common base
        raise UserError(
            f"{name} is no folder here, and the Hugging Face Hub does not give it: {reason(error)}"
        ) from error
    return Path(folder)


def push(folder: Path, name: str, private: bool) -> str:
    """Make the repository owner/name on the Hub if it is not there, and upload an export folder -> its address.

    private: of a new repository. Raises UserError, with the reason, where that fails; the folder stays as it is.
    """
    hub = library(f"hub={name}")
    try:
        api: Any = hub.HfApi(library_name="vqvae")
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message="Upload a VQ-VAE")
    except Exception as error:  # as above
        raise UserError(
            f"{folder} was written, but hub={name} does not take it: {reason(error)}; "
            f"log in with `hf auth login`, then: hf upload {name} {folder}"
        ) from error
    return str(address)


def check_hub_name(name: str) -> None:
    """Raises UserError for what is no owner/name, and where the package is missing."""
    found = NAME.fullmatch(name)
    if found is None or found["revision"]:
        raise UserError(f"hub={name} is not of the form owner/name")
    library(f"hub={name}")


def library(what: str) -> ModuleType:
    """The package `huggingface_hub`. Raises UserError where it is missing."""
    try:
        with own_folder():
            import huggingface_hub
    except ImportError as error:
        raise UserError(f"{what} needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


def reason(error: Exception) -> str:
    """The first sentence of what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"
