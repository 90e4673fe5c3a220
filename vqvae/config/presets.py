"""Presets for programs of one's own: what the command line makes of quantizer=ema, in one line of Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vqvae.config.build import build
from vqvae.config.compose import CONFIGS, choices, compose, groups, resolve
from vqvae.errors import UserError, suggest

if TYPE_CHECKING:
    from vqvae.quantizers.base import Quantizer

ELSEWHERE = {  # names in other libraries: how they are written here
    **dict.fromkeys(("num_embeddings", "n_embed", "n_codes", "vocab_size"), "codebook_size=..."),
    **dict.fromkeys(
        ("embedding_dim", "embed_dim", "code_dim"), "dim=... for latents, codebook={'dim': ...} for narrower codes"
    ),
    **dict.fromkeys(("commitment_cost", "commitment_weight", "beta"), "regularizers={'commitment': {'weight': ...}}"),
}
SIZES = ("codebook.size", "size")  # where a preset, or the one inside of it, keeps its number of codes


def available(group: str) -> dict[str, str]:
    """The presets of a config group, such as quantizer, prior, model or loss: name -> what it is, in a sentence.

    >>> available("quantizer/revival")["none"]
    'Dead codes stay dead.'

    Raises UserError for a group that is not there.
    """
    if group not in groups():
        raise UserError(f"{group} is no group of presets; {suggest(group, groups())}")
    return {name: description(group, name) for name in choices(group)}


def description(group: str, name: str) -> str:
    """What the YAML of a preset says in its first lines, or its class in the first line of its docstring."""
    text = (CONFIGS / group / f"{name}.yaml").read_text()
    lines = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    comments = [line.removeprefix("# ") for line in lines if not line.startswith("# @")]
    target = yaml.safe_load(text).get("_target_")
    if comments or target is None:
        return " ".join(comments)
    from vqvae.config.schema import named  # imports torch

    return (named(target).__doc__ or "").strip().split("\n")[0]


def quantizer(name: str, dim: int = 64, codebook_size: int | None = None, **settings: Any) -> Quantizer:
    """A quantizer preset, ready for use: `available("quantizer")` lists them, docs/quantizers.md explains them.

    >>> quantizer("fsq", dim=32, levels=[8, 8, 8]).codebook_sizes
    [512]
    >>> layer = quantizer("ema", dim=32, codebook_size=256, codebook={"decay": 0.9}, revival="none")
    >>> layer(torch.randn(2, 32, 4, 4)).codes[0].shape
    torch.Size([2, 4, 4])

    dim: latent width D. codebook_size: number of codes K; None: the preset's. settings: keys of the preset with their values;
    those of parts as dicts, or the name of another part. Raises UserError, naming the key, for what does not fit.
    """
    if name not in choices("quantizer"):
        raise UserError(f"{name} is no quantizer; {suggest(name, choices('quantizer'))}")
    parts = [key for key, value in settings.items() if isinstance(value, str) and f"quantizer/{key}" in groups()]
    check_settings(name, settings, compose("train", [f"quantizer={name}"]).quantizer)
    for key in parts:
        if settings[key] not in (known := choices(f"quantizer/{key}")):
            raise UserError(f"{key}={settings[key]} is no choice of this part; {suggest(settings[key], known)}")
    config = compose("train", [f"quantizer={name}", *(f"quantizer/{key}={settings[key]}" for key in parts)])
    node = config.quantizer
    OmegaConf.set_struct(config, False)
    node.dim = dim
    if codebook_size is not None:
        OmegaConf.update(node, size_key(name, node), codebook_size)
    for key, value in settings.items():
        if key not in parts:
            OmegaConf.update(node, key, value, merge=True)
    config = resolve(config)
    check_quantizer(config)
    made: Quantizer = build(config.quantizer, "quantizer")
    return made


def check_settings(name: str, settings: Iterable[str], node: DictConfig) -> None:
    """Raise UserError for settings that a preset has not, with the nearest name that `quantizer` takes."""
    sized = any(OmegaConf.select(node, key) is not None for key in size_keys())
    valid = [*(["codebook_size"] if sized else []), *(str(key) for key in node if not str(key).startswith("_"))]
    for key in settings:
        if key not in valid:
            part = next((str(part) for part in node if isinstance(node[part], DictConfig) and key in node[part]), None)
            meant = f"{part}={{'{key}': ...}}" if part else ELSEWHERE.get(key)
            raise UserError(
                f"{key} is no setting of quantizer {name}; {f'write {meant}' if meant else suggest(key, valid)}"
            )


def check_quantizer(config: DictConfig) -> None:
    """Raise UserError, naming the key, for what is no quantizer."""
    from vqvae.config.schema import ALLOWED_PREFIXES, check_node
    from vqvae.quantizers.base import Quantizer

    check_node("quantizer", OmegaConf.to_container(config.quantizer), ALLOWED_PREFIXES, Quantizer)


def size_keys() -> list[str]:
    """The keys that may hold the number of codes of a preset, or of the one inside of it."""
    return [prefix + key for prefix in ("", "inner.") for key in SIZES]


def size_key(name: str, node: DictConfig) -> str:
    """The key of a preset that holds its number of codes. Raises UserError for one that has none."""
    for key in size_keys():
        if OmegaConf.select(node, key) is not None:
            return key
    known = ", ".join(f"{key}={node[key]}" for key in ("levels", "code_dim", "bits_per_map", "values") if key in node)
    raise UserError(f"codebook_size does not go with {name}, whose number of codes follows from {known or 'its parts'}")
