"""An error as one sentence for the user, with the nearest valid name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config.compose import choices, compose, groups
from vqvae.config.hints import INSTEAD, MEANT, absent_choice, meant_below, of_another_choice
from vqvae.config.keys import TOP_LEVEL
from vqvae.config.typed import way_to_type
from vqvae.errors import UserError, nearest, suggest

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
        return no_such_choice(*group_and_choice(error.missing_cfg_file))
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
        return no_such_choice(*group_and_choice(match[1]))
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values are a sweep, so add -m; a list is written in brackets"
    if match := re.search(r"Primary config module '([^']+)' not found", text):
        return f"--config-path={match[1]} is not needed: own configs are added by -cd <folder>"
    if match := re.match(r"Error merging override (.+)", text):
        return f"{match[1]} cannot be used: this key holds another kind of value"
    if "Primary config directory not found" in text:
        return "--config-path is not needed: own configs are added by -cd <folder>"
    if match := re.search(r"Additional config directory '([^']+)' not found", text):
        return (
            f"-cd {match[1]} is no folder: it names that of own configs, which holds experiment/<name>.yaml and so on"
        )
    return text.split("\n")[0]


def group_and_choice(path: str) -> tuple[str, str]:
    """Group and choice of data/x, where the choice may be a path itself."""
    group = max((one for one in groups() if path.startswith(f"{one}/")), key=len, default=path.rpartition("/")[0])
    return group, path[len(group) + 1 :] if group else path


def no_such_choice(group: str, choice: str) -> str:
    """Message '<group>=<choice> does not exist; ...'."""
    if not group:
        return (
            f"there is no config called {choice}: own settings are chosen by experiment=<name>, added by -cd <folder>"
        )
    near = suggest(choice, [*own_choices(group, sys.argv), *choices(group)])
    meant = INSTEAD.get(f"{group}={choice}")
    if meant is None and not near.startswith("did you mean"):
        meant = absent_choice(group, choice)
    return f"{group}={choice} does not exist; {meant or near}"


def own_choices(group: str, arguments: list[str]) -> list[str]:
    """The options of a group in the folders that a command adds by -cd."""
    folders = [
        argument.partition("=")[2] or next(iter(arguments[place + 1 :]), "")
        for place, argument in enumerate(arguments)
        if argument.partition("=")[0] in ("-cd", "--config-dir")
    ]
    return sorted(file.stem for folder in folders for file in (Path(folder) / group).glob("*.yaml"))


def unknown_key(key: str, config_name: str) -> str:
    """Message '<key> is not a config key; did you mean ...'."""
    if config_name == "train" and key in MEANT:
        return f"{key} is not a config key or group; {MEANT[key]}"
    chosen = [a.split(",")[0] for a in sys.argv[1:] if a.split("=")[0] in groups()]  # of a sweep, the first choice
    keys = [*flatten(numbered(OmegaConf.to_container(compose(config_name, chosen), resolve=False)))]
    keys = [one for one in keys if not one.endswith("_target_")]
    said = f"{key} is not a config key or group; "
    if elsewhere := [one for one in keys if ends_alike(one, key)]:
        return said + f"did you mean {elsewhere[0]}?"
    if config_name == "train" and (owners := of_another_choice(key, chosen)):
        return said + owners
    if meant := meant_below(key):
        return said + meant
    if "." not in key:
        parts = [group for group in groups() if group not in TOP_LEVEL]
        near = suggest(key, [*TOP_LEVEL, *keys, *parts] if config_name == "train" else keys)
        return said + (near if near.startswith("did you mean") else suggest(key, keys_at("", keys)))
    return said + near_key(key, keys)


def near_key(key: str, keys: list[str]) -> str:
    """Suggestion for a dotted key: by its last name alone, right below its parent, or else further down there."""
    parent, _, last = key.rpartition(".")
    below = [one for one in keys if one.startswith(f"{parent}.")]
    beside = keys_at(parent, keys)
    for candidates in (beside, below):
        names = {one.rpartition(".")[2]: one for one in reversed(candidates)}
        if near := nearest(last, names):
            return f"did you mean {names[near]}?"
    if last in TOP_LEVEL:
        return f"did you mean {last}?"
    return f"valid are: {', '.join(beside)}" if beside else suggest(key, keys)


def numbered(node: Any) -> Any:
    """A nested container in which the nodes of lists have their numbers as keys, as they are typed."""
    if isinstance(node, list):
        node = {index: item for index, item in enumerate(node) if isinstance(item, dict)} or node
    return {key: numbered(value) for key, value in node.items()} if isinstance(node, dict) else node


def keys_at(parent: str, keys: list[str]) -> list[str]:
    """The keys right below a parent."""
    return [key for key in keys if key.rpartition(".")[0] == parent]


def ends_alike(one: str, key: str) -> bool:
    """True if a key lies somewhere below what was typed: model.encoders.0.widths for model.widths, trainer.steps for steps."""
    *above, last = key.split(".")
    parts = one.split(".")
    return len(parts) > len(above) + 1 and parts[-1] == last and parts[: len(above)] == above


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a nested container, dotted."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield prefix + str(key)
            yield from flatten(value, f"{prefix}{key}.")
