"""The settings of runs that differ from the defaults."""

from __future__ import annotations

import functools
import json
from typing import Any

import yaml

from vqvae.config.compose import CONFIGS, choices, compose, plain, resolve
from vqvae.run.continuing import differences, value_of

LEFT_OUT = ("run_dir.", "allow_targets.", "report.", "model.quantizers.")  # places, and copies of `quantizer`
LONGEST = 160  # characters of a value


def changed_settings(configs: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """(key, default, value in each config) of what differs from the defaults in one of them, as text.

    First those in which the configs differ. Of a part of another class than by default, its class and arguments are one value.
    """
    default = default_config()
    keys = [key for config in configs for key, *_ in differences(default, config)]
    parts = tuple(key.removesuffix("_target_") for key in keys if key.endswith("._target_"))
    keys = [next((part[:-1] for part in sorted(parts, key=len) if key.startswith(part)), key) for key in keys]
    rows = [
        (key, in_words(key, value_of(default, key)), [in_words(key, value_of(config, key)) for config in configs])
        for key in dict.fromkeys(keys)
        if not f"{key}.".startswith(LEFT_OUT)
    ]
    return sorted(rows, key=lambda row: len(set(row[2])) == 1)


@functools.cache
def default_config() -> dict[str, Any]:
    """The config of `python train.py`."""
    return plain(resolve(compose("train")))


def in_words(key: str, value: Any) -> str:
    """The value of a key as text: a part as its class and arguments, of a long list those that are not its preset's."""
    text = worded(value)
    if len(text) > LONGEST and isinstance(value, dict):
        text = worded(beyond_preset(key, value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def beyond_preset(group: str, part: dict[str, Any]) -> dict[str, Any]:
    """A part without the arguments that its class has in the first preset of that class; all of it where there is none."""
    for choice in choices(group):
        preset = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text())
        if isinstance(preset, dict) and preset.get("_target_") == part.get("_target_"):
            return {
                name: value
                for name, value in part.items()
                if name == "_target_" or name not in preset or preset[name] != value
            }
    return part


def worded(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(worded, value))}]"
    if not isinstance(value, dict):
        return json.dumps(value)
    arguments = ", ".join(f"{key}={worded(one)}" for key, one in value.items() if not str(key).startswith("_"))
    return f"{'.'.join(str(value.get('_target_', '')).split('.')[-2:])}({arguments})"
