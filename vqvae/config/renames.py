"""Names that have moved, so that run folders and exports of older versions keep working. Figures: metrics/renames.py."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

# `_target_` of a saved config or an export: old -> new.
TARGETS = {
    "vqvae.losses.reconstruction.L1": "vqvae.losses.terms.L1",
    "vqvae.losses.reconstruction.MSE": "vqvae.losses.terms.MSE",
    "vqvae.logger.Wandb": "vqvae.training.log_settings.LogSettings",
    "vqvae.optimizers.Muon": "vqvae.training.optimizers.Muon",
    "vqvae.quantizers.compose.Rotated": "vqvae.quantizers.rotated.Rotated",
    "vqvae.quantizers.revival.AnchorRevival": "vqvae.quantizers.anchor.AnchorRevival",
    "vqvae.schedules.Constant": "vqvae.training.schedules.Constant",
    "vqvae.schedules.Cosine": "vqvae.training.schedules.Cosine",
    "vqvae.trainer_config.TrainerConfig": "vqvae.training.settings.TrainerConfig",
    "vqvae.training.logger.Wandb": "vqvae.training.log_settings.LogSettings",
    "vqvae.training.wandb_run.Wandb": "vqvae.training.log_settings.LogSettings",
}

# Arguments of a `_target_`: old -> new.
ARGUMENTS = {"vqvae.quantizers.lookup.CosineVote": {"neighbours": "neighbors"}}

# Arguments of a `_target_` that came later, and the value that does what was done before.
EARLIER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "vqvae.model.VQVAE": {"gradient_checkpointing": False},
    "vqvae.networks.resnet.Encoder": {"dropout": 0.0},
    "vqvae.networks.resnet.Decoder": {"dropout": 0.0},
    "vqvae.quantizers.soft.GumbelSoftmax": {"speed": 1.0},
    "vqvae.quantizers.soft.SQVAE": {"speed": 1.0},
    "vqvae.quantizers.soft.IBQ": {"speed": 1.0},
    "vqvae.quantizers.multiscale.MultiScale": {"sizes": None},
    "vqvae.quantizers.revival.RandomRevival": {"start_weight": 1.0},
    "vqvae.trainer_config.TrainerConfig": {"sharding": "none"},
    "vqvae.training.settings.TrainerConfig": {"sharding": "none"},
}

# Keys of `data` that came later, and what was done before they were there.
ANY_TYPE: dict[str, Any] = {"fit": "crop", "dtype": "uint8", "show": None}
EARLIER_DATA: dict[str, dict[str, Any]] = {
    "vqvae.data.folder.Folder": {
        "held_out": "shuffle",
        "value_range": None,
        "classes": "auto",
        "splits": None,
        "pages": "first",
        "suffixes": None,
        **ANY_TYPE,
    },
    "vqvae.data.webdataset.WebDataset": {"held_out": "shuffle", "value_range": None, **ANY_TYPE},
}
EARLIER_EVALUATION = {"frechet": 0, "backbone": "efficientnet_lite0", "backbone_file": None, "monitor": "mse"}
EARLIER_HEAD = {"_target_": "vqvae.priors.digits.Flat"}  # of a prior
KEPT = ("held_out", "value_range")  # of these, what decides the items of a run
SCHEDULES = (("schedule",), ("prior", "schedule"))


def rename_targets(node: Any) -> Any:
    """A copy of nested dicts and lists in which every `_target_` and its arguments have the names of today.

    Arguments that came later are added, with what was done before.
    """
    if isinstance(node, list):
        return [rename_targets(item) for item in node]
    if not isinstance(node, dict):
        return node
    renamed = {key: rename_targets(value) for key, value in node.items()}
    target = renamed.get("_target_")
    if not isinstance(target, str):
        return renamed
    renamed["_target_"] = TARGETS.get(target, target)
    arguments = ARGUMENTS.get(target, {})
    renamed = {arguments.get(key, key): value for key, value in renamed.items()}
    return {**renamed, **{key: value for key, value in EARLIER_ARGUMENTS.get(target, {}).items() if key not in renamed}}


def with_head(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose loss has a head and terms, and whose decoder says how many channels it puts out: both were one node."""
    loss, model, data = config.get("loss"), config.get("model"), config.get("data")
    if not isinstance(loss, dict) or "_target_" not in loss or "head" in loss:
        return config
    c, mixtures = (
        node.get(key) if isinstance(node, dict) else None for node, key in ((data, "channels"), (loss, "mixtures"))
    )
    decoders = model.get("decoders") if isinstance(model, dict) else None
    if isinstance(decoders, list) and decoders and isinstance(decoders[0], dict) and isinstance(c, int):
        if loss["_target_"] == "vqvae.losses.likelihood.Categorical":
            decoders[0]["channels"] = 256 * c
        elif loss["_target_"] == "vqvae.losses.likelihood.Logistic" and isinstance(mixtures, int):
            decoders[0]["channels"] = mixtures * (c + 1) * (c + 2) // 2
    return {**config, "loss": split_loss(loss)}


def split_loss(loss: dict[str, Any]) -> dict[str, Any]:
    """The node of a loss of versions up to 0.2.0 -> head and terms."""
    if str(loss["_target_"]).startswith("vqvae.losses.likelihood."):
        return {"head": loss, "terms": {}}
    name = str(loss["_target_"]).rpartition(".")[2].lower()
    return {"head": {"_target_": "vqvae.losses.heads.Pixels"}, "terms": {name: loss}}


def rename_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the keys of today: model.search_sweeps is now search_sweeps; see `with_head`, EARLIER_DATA."""
    model = config.get("model")
    sweeps = model.pop("search_sweeps", 0) if isinstance(model, dict) else 0
    config = with_head(config)
    data = config.get("data")
    if isinstance(data, dict):
        config = {**config, "data": {**EARLIER_DATA.get(str(data.get("_target_")), {}), **data}}
    prior = config.get("prior")
    if isinstance(prior, dict):
        config = {
            **config,
            "prior": {"head": dict(EARLIER_HEAD), "gradient_checkpointing": False, "conditions": None, **prior},
        }
    earlier = {
        "device": "auto",
        "train": "all",
        "report": False,
        "evaluation": EARLIER_EVALUATION,
        "adversary": {"network": None, "start_step": 0},
    }
    return {"search_sweeps": sweeps, **earlier, **config}


def rename_export(config: dict[str, Any]) -> dict[str, Any]:
    """The config of an export with the keys of today: `loss`, which held the output head, is now `head`."""
    loss = config.get("loss")
    if isinstance(loss, dict) and "_target_" in loss:
        config = {**config, "head": {**split_loss(loss)["head"], "variance": loss.get("variance")}}
    if "network" in config:  # of a prior
        config = {"head": dict(EARLIER_HEAD), "conditions": None, **config}
    return {"fit": "crop", "levels": None, **rename_keys(config)}


def keep_earlier(config: dict[str, Any], stored: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Keys of `data` in which a stored config is as earlier versions were, and that nobody typed: they stay as they are."""
    ours, theirs = config["data"], stored["data"]
    if not isinstance(ours, dict) or not isinstance(theirs, dict) or ours.get("_target_") != theirs.get("_target_"):
        return {}
    earlier = EARLIER_DATA.get(ours["_target_"], {})
    return {
        key: earlier[key]
        for key in KEPT
        if key in earlier and theirs[key] == earlier[key] and f"data.{key}" not in typed
    }


def without_most_warmup(config: dict[str, Any], stored: dict[str, Any], typed: Collection[str]) -> list[str]:
    """Keys of cosine schedules that were stored before they had a `most_warmup`, which nobody typed: they stay without."""
    kept = []
    for path in SCHEDULES:
        ours, theirs = (functools.reduce(lambda node, key: node.get(key) or {}, path, one) for one in (config, stored))
        key = ".".join([*path, "most_warmup"])
        same = ours.get("_target_") == theirs.get("_target_")
        if same and "most_warmup" in ours and theirs.get("most_warmup") is None and key not in typed:
            kept.append(key)
    return kept
