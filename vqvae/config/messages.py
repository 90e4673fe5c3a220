"""An error as one sentence for the user, with the nearest valid name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config.compose import choices, compose, groups
from vqvae.config.keys import TOP_LEVEL
from vqvae.config.typed import way_to_type
from vqvae.errors import UserError, suggest

OUT_OF_MEMORY = re.compile(r"allocate memory|out of memory|[Ss]torage size calculation overflowed")
# of workers that read data, as torch says it
SHARED_MEMORY = re.compile(r"shared memory|killed by signal: Bus error")
WORKER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (is killed by signal: [\w ]+|exited)")
OTHER_RANK = re.compile(r"Connection (closed|reset) by peer|Broken pipe")  # as gloo says it
ANOTHER_HAS_ENDED = "another process of this run has ended"


def user_message(error: BaseException, config_name: str = "train") -> str | None:
    """Message for the user about an error: his mistake, or a limit of his machine. None for a bug of the program."""
    text = str(error)
    with_cause = f"{error.__cause__} {text}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return user_message(error.__cause__, config_name)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, config_name)
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):
        return text
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        asked = re.search(r"tried to allocate (\d+) bytes", text)
        size = f": {int(asked[1]) / 2**30:,.1f} GiB were asked for at once" if asked else ""
        return f"this does not fit in memory{size}"
    if isinstance(error, RuntimeError) and SHARED_MEMORY.search(with_cause):
        return (
            "the shared memory, /dev/shm, is too small for batches that workers read: give it more (docker run --shm-size=8g, "
            "or mount -o remount,size=8g /dev/shm), or read without workers (data.workers=0)"
        )
    if isinstance(error, RuntimeError) and (worker := WORKER.search(with_cause)):
        return (
            f"a worker that reads data {worker[1].replace('is killed', 'was killed')}, as happens where memory runs out: "
            "take fewer (data.workers); the same command continues from the last checkpoint"
        )
    if isinstance(error, RuntimeError) and OTHER_RANK.search(text):
        return ANOTHER_HAS_ENDED
    if isinstance(error, RuntimeError) and "Could not detect" in text:  # submitit, without Slurm
        return f"hydra/launcher=submitit_slurm: {text}; this needs a machine that submits to Slurm"
    return None


def explain(error: Exception, config_name: str) -> str:
    """Hydra's or OmegaConf's error as one sentence with the nearest valid name."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read as key=value{way_to_type(str(error.override))}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    if match := re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text):
        key = match[1].split("@")[0]
        if key in groups():
            hint = re.search(r"Did you mean to override (\S+?)\?", text)
            way_out = (
                f"did you mean {hint[1]}?"
                if hint
                else "the selected options do not define this key; --cfg job shows those that they define"
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
    """Message '<key> is not a config key; did you mean ...'."""
    with_groups = [] if "." in key else [group for group in groups() if group not in TOP_LEVEL]
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
