"""Hydra's and OmegaConf's errors as one sentence with the nearest valid name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from vqvae.config.compose import choices, compose, groups
from vqvae.config.schema import TOP_LEVEL
from vqvae.errors import suggest


def explain(error: Exception, config_name: str) -> str:
    """Hydra's or OmegaConf's error as one sentence with the nearest valid name."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read as key=value: a value with spaces, commas, quotes or brackets goes in quotes"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    if match := re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text):
        key = match[1].split("@")[0]
        if key in groups():
            hint = re.search(r"Did you mean to override (\S+?)\?", text)
            way_out = (
                f"did you mean {hint[1]}?" if hint else "no choice made here has it; --cfg job shows what is there"
            )
            return f"{match[1]} is not a part of this config; {way_out}"
        if match := re.search(r"Missing mandatory value: (\S+)", text):
            return f"{match[1]} has no value; add {match[1]}=... to the command"
        return unknown_key(key, config_name)
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match[1].rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    return text.split("\n")[0]


def unknown_key(key: str, config_name: str) -> str:
    """-> '<key> is not a config key; did you mean ...'."""
    with_groups = [] if "." in key else [g for g in groups() if g not in TOP_LEVEL.split()]
    chosen = [a.split(",")[0] for a in sys.argv[1:] if a.split("=")[0] in groups()]  # of a sweep, the first choice
    keys = list(flatten(OmegaConf.to_container(compose(config_name, chosen), resolve=False)))
    same_parent = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return f"{key} is not a config key or group; " + suggest(key, same_parent + keys + with_groups)


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a nested container, dotted."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield prefix + str(key)
            yield from flatten(value, f"{prefix}{key}.")
