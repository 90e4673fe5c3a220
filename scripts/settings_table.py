"""Prints docs/settings.md, made from the configs and from the types of what they build.

python scripts/settings_table.py > docs/settings.md
"""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hydra.utils import get_class
from omegaconf import OmegaConf

from vqvae.config.compose import CONFIGS
from vqvae.config.keys import ADVERSARY_SETTINGS, PRIOR_SETTINGS, SETTINGS
from vqvae.config.schema import annotations_of
from vqvae.config.types import describe
from vqvae.ranges import Bound, is_union
from vqvae.training.log_settings import LogSettings

HEAD = """For whoever looks for a setting, and for what it may be.

# Settings

Every key of the configs, its value there, and what it may be. Wrong values are refused with the same words. This page is
made by `python scripts/settings_table.py > docs/settings.md`. `python train.py --cfg job` prints the config of a command.

A choice of a group is set as `group=choice`, its keys as `group.key=value`: `optimizer=adam optimizer.lr=1e-3`. A part of a
quantizer is set as `quantizer/lookup=cosine`, and its keys as `quantizer.lookup.key=value`. What stage 2 has of its own lies
below `prior`: `prior.trainer.steps=2000`, `prior.network.width=32`."""
COMMENT = re.compile(r"^( *)([\w]+):[^#]*?# *(.*)$")
TABLE = ["| key | value | may be | |", "|---|---|---|---|"]


def allowed(annotation: Any) -> str:
    """The type and the range of an annotation, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        words = [bound.words.removeprefix("be ") for bound in arguments[1:] if isinstance(bound, Bound)]
        return " ".join(
            [allowed(arguments[0]), " and ".join(word for word in words if str(2**31 - 1) not in word)]
        ).strip()
    if origin is Literal:
        return ", ".join(map(in_yaml, arguments))
    if is_union(annotation):
        return " or ".join(dict.fromkeys(allowed(member) for member in arguments))
    return describe(annotation)


def rows(file: Path, prefix: str, values: dict[str, Any], annotations: dict[str, Any]) -> list[str]:
    """A table row for each value of a config file that is no config itself."""
    lines = [match.groups() for match in map(COMMENT.match, file.read_text().splitlines()) if match]
    comments = {name: comment for _, name, comment in lines}
    return [
        f"| `{prefix}{key}` | `{in_yaml(value)}` | {cell(allowed(annotations[key]))} | {cell(comments.get(key, ''))} |"
        for key, value in values.items()
        if key in annotations and not isinstance(value, dict)
    ]


def in_yaml(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(in_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def choice(file: Path) -> list[str]:
    """The section of a choice of a group: a heading and its keys, or nothing where it only composes others."""
    node = OmegaConf.load(file)
    name, key = file.relative_to(CONFIGS).with_suffix("").as_posix(), ""
    if name.startswith(("prior/", "adversary/")) and "network" in node:
        node, key = node.network or OmegaConf.create(), f"{file.parent.name}.network."
    if "_target_" not in node:
        return []
    values = OmegaConf.to_container(node)
    assert isinstance(values, dict)
    group, _, own = name.rpartition("/")
    found = rows(file, key, {str(k): v for k, v in values.items()}, annotations_of(get_class(values["_target_"])))
    return [f"### {group}={own}\n", *TABLE, *found, ""] if found else []


def page() -> str:
    top = OmegaConf.to_container(OmegaConf.load(CONFIGS / "train.yaml"))
    prior = OmegaConf.to_container(OmegaConf.load(CONFIGS / "prior_defaults.yaml"))
    adversary = OmegaConf.to_container(OmegaConf.load(CONFIGS / "adversary_defaults.yaml"))
    assert isinstance(top, dict)
    assert isinstance(prior, dict)
    assert isinstance(adversary, dict)
    logger = OmegaConf.to_container(OmegaConf.load(CONFIGS / "logger_defaults.yaml"))
    assert isinstance(logger, dict)
    parts = [HEAD, "", "## Of a run\n", *TABLE]
    parts += rows(CONFIGS / "train.yaml", "", {str(k): v for k, v in top.items()}, SETTINGS)
    parts += rows(CONFIGS / "prior_defaults.yaml", "prior.", {str(k): v for k, v in prior.items()}, PRIOR_SETTINGS)
    values = {str(key): value for key, value in adversary.items()}
    parts += rows(CONFIGS / "adversary_defaults.yaml", "adversary.", values, ADVERSARY_SETTINGS)
    values = {str(key): value for key, value in logger.items()}
    parts += rows(CONFIGS / "logger_defaults.yaml", "logger.", values, annotations_of(LogSettings))
    parts += ["", "## Of each choice\n"]
    for file in sorted(CONFIGS.rglob("*/*.yaml")):
        if file.parent.name not in ("experiment", "debug"):
            parts += choice(file)
    return "\n".join(parts).rstrip()


if __name__ == "__main__":
    print(page())
