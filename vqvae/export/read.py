"""Export folders, read with torch and safetensors alone."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.config.renames import rename_export, rename_targets
from vqvae.config.schema import ALLOWED_PREFIXES, check_node
from vqvae.config.types import fits
from vqvae.data.framing import FITS
from vqvae.data.levels import BITS, Levels, recalled_levels
from vqvae.errors import UserError
from vqvae.inference.inputs import DataInfo
from vqvae.inference.trained_model import TrainedModel
from vqvae.losses.heads import Head
from vqvae.model import VQVAE
from vqvae.priors.base import Prior
from vqvae.priors.conditions import Conditions
from vqvae.priors.digits import Digits
from vqvae.priors.sampling import Sampling
from vqvae.storage import checkpoint

FORMAT = 2  # of config.json; format 1 had tokenizer.json and prior.json, which are still read
CONFIG = "config.json"
BASES = ("torch.", "vqvae.model.", "vqvae.networks.", "vqvae.quantizers.", "vqvae.losses.", "vqvae.priors.")
KEYS: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "fingerprint": str,
        "model": dict,
        "head": dict,
        "data": str,
        "sample_rate": int | None,
        "channels": int,
        "size": list[int],
        "fit": str,
        "levels": dict | None,
        "class_names": list[str],
        "code_shapes": list[list[int]],
        "codebook_sizes": list[int],
    },
    "prior": {
        "fingerprint": str,
        "tokenizer": str,
        "network": dict,
        "head": dict,
        "guidance": float,
        "guidable": bool,
        "conditions": list | None,
    },
}


def load_export(path: str | Path, device: str | torch.device, allow_targets: Sequence[str]) -> TrainedModel:
    """Load an export folder: see `vqvae.load`. No code in it is run.

    Only classes of this package and of torch.nn are built, and those of packages in `allow_targets`, such as "my_package.".
    Raises UserError for a folder that is not an export, or is damaged.
    """
    folder = Path(path)
    parts = read_configs(folder)
    config = parts["tokenizer"]
    allowed = (*ALLOWED_PREFIXES, *allow_targets)
    state = read_weights(folder, "tokenizer", config)
    model = fill(construct("model", config["model"], VQVAE, allowed), state, folder / "tokenizer.safetensors")
    head = construct("head", config["head"], Head, allowed)
    size, class_names = tuple(config["size"]), config["class_names"]
    data = DataInfo(config["data"], config["channels"], size, class_names, config["sample_rate"])
    data = data._replace(fit=config["fit"], levels=levels_of(config["levels"]))
    trained = TrainedModel(model, head, data, config["fingerprint"])
    if "prior" in parts:
        config = parts["prior"]
        if config["tokenizer"] != trained.fingerprint:
            raise UserError(f"{folder}: its prior belongs to another tokenizer ({config['tokenizer']})")
        head = construct("head", config["head"], Digits, allowed)
        digits = [head.of(*codes) for codes in zip(trained.codebook_sizes, model.factors())]
        codes = {"code_shapes": trained.code_shapes, "digits": digits}
        prior = construct("network", config["network"], Prior, allowed, **codes, num_classes=len(class_names))
        head.check(prior.masks)
        if config["conditions"] is not None:
            prior.condition_on(conditions_in(folder, config["conditions"]))
        trained.prior = fill(prior, read_weights(folder, "prior", config), folder / "prior.safetensors")
        trained.sampling, trained.guidable = Sampling(guidance=config["guidance"]), config["guidable"]
    return trained.to(device)


def conditions_in(folder: Path, listed: Any) -> Conditions:
    """`conditions` of a prior's config. Raises UserError for what are none."""
    try:
        return Conditions.of_plain(listed)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: prior.conditions is not what an export has there: {error}") from error


def levels_of(values: dict[str, Any] | None) -> Levels | None:
    """`levels` of a tokenizer's config. Raises UserError for what are none."""
    if values is None:
        return None
    if set(values) != set(Levels._fields) or values["dtype"] not in BITS:
        raise UserError(f"levels={str(values)[:100]} are no type and range of values")
    return recalled_levels(values["dtype"], [values[key] for key in Levels._fields[1:]])


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Configs of the tokenizer, and of the prior if there is one, with their keys and types checked. Raises UserError."""
    whole = read_json(folder / CONFIG)
    if whole is None:
        return earlier_configs(folder)
    if whole.get("format") != FORMAT:
        raise UserError(
            f"{folder / CONFIG} has format {whole.get('format')}, and this version of vqvae reads format {FORMAT}"
        )
    if not isinstance(whole.get("tokenizer"), dict):
        raise UserError(f"{folder / CONFIG} is not the config of an export")
    return {name: checked_config(folder / CONFIG, name, whole[name]) for name in KEYS if name in whole}


def earlier_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Configs of an export of format 1, which had a file for each. Raises UserError."""
    found = {name: config for name in KEYS if (config := read_json(folder / f"{name}.json")) is not None}
    if "tokenizer" not in found:
        raise UserError(
            f"{folder} is neither a run (no config.yaml) nor an export (no {CONFIG}); train.py and export.py make them"
        )
    for name, config in found.items():
        if config["format"] != 1:
            raise UserError(
                f"{folder / name}.json has format {config['format']}, and this version of vqvae reads format 1 there"
            )
    return {name: checked_config(folder / f"{name}.json", name, config) for name, config in found.items()}


def read_json(file: Path) -> dict[str, Any] | None:
    """The dict that a JSON file holds, with the names of today; None where it is not there. Raises UserError."""
    if not file.is_file():
        return None
    try:
        config = rename_targets(json.loads(file.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or not fits(config.get("format"), int):
        raise UserError(f"{file} is not the config of an export")
    return config


def checked_config(file: Path, name: str, config: Any) -> dict[str, Any]:
    """The config of the tokenizer or the prior. Raises UserError where a key is missing or has another type."""
    if not isinstance(config, dict):
        raise UserError(f"{file}: {name} is not what an export has there")
    config = rename_export(config)
    for key, kind in KEYS[name].items():
        if key not in config or not fits(config[key], kind):
            raise UserError(f"{file}: {key}={config.get(key)} is not what an export has there")
    if config.get("fit", "crop") not in FITS:
        raise UserError(f"{file}: fit={str(config['fit'])[:100]} is none of {', '.join(FITS)}")
    return config


def read_weights(folder: Path, name: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """<name>.safetensors. Raises UserError where the tensors are not those that the config was written with."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / f"{name}.safetensors"  # never a name out of the config
    if not file.is_file():
        raise UserError(f"{folder} is not whole: there is no {file}")
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if checkpoint.fingerprint(state) != config["fingerprint"]:
        raise UserError(f"{file} is damaged, or belongs to another config: its tensors have another fingerprint")
    return state


def construct(path: str, node: Any, base: type, allowed: tuple[str, ...], **runtime: Any) -> Any:
    """Checks a node and all below it as a run's config is checked, then builds it: an instance of `base`.

    Raises UserError for what is not allowed there, before anything is built, and for values that make no network.
    """
    try:
        check_parts(path, node)
        check_node(path, node, allowed, given=runtime)
        built = assemble(node, runtime)
    except UserError:
        raise
    except Exception as error:  # of any kind: torch's networks check their sizes, or do not
        raise UserError(f"{path} cannot be built: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(built, base):
        raise UserError(f"{path}._target_ is not a {base.__name__}")
    return built


def check_parts(path: str, node: Any) -> None:
    """Raises UserError for targets of ours that are no parts of networks: of a stranger's file, not even a logger."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        check_parts(f"{path}.{key}", value)
        if key == "_target_" and value.startswith(("vqvae.", "torch.")) and not value.startswith(BASES):
            raise UserError(f"{path}._target_={value} is no part of a network")


def assemble(node: Any, runtime: dict[str, Any]) -> Any:
    """A checked node -> what it describes; nested nodes first, as hydra builds them."""
    if isinstance(node, list):
        return [assemble(item, {}) for item in node]
    if not isinstance(node, dict):
        return node
    built = {key: assemble(value, {}) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return built
    module, _, name = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    return functools.partial(target, **built, **runtime) if node.get("_partial_") else target(**built, **runtime)


def fill(network: nn.Module, state: dict[str, Tensor], file: Path) -> Any:
    """Loads all weights -> the network. Raises UserError where they do not fit."""
    checkpoint.load_weights(network, state, file)
    return network
