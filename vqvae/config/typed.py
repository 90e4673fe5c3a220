"""Command-line arguments as people type them, made into what Hydra reads."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from vqvae.errors import UserError

# Keys whose values are texts, such as paths, and no numbers or lists.
TEXTS = re.compile(
    r"\+{0,2}(condition\.[^=]+|run_dir|tokenizer|init_from|out|in|image|mask|folder|class|reference|(evaluation\.)?backbone_file"
    r"|data\.(root|path|urls|val_urls|cache_dir|listing)|[\w.]+\.file)"
)
# Settings of Hydra that name a folder for the run, which is named otherwise here.
FOLDERS = re.compile(r"\+{0,2}hydra\.(run\.dir|sweep\.dir|sweep\.subdir|output_subdir|job\.chdir)=")


def as_hydra_reads(arguments: list[str]) -> list[str]:
    """The arguments of a command, with values in quotes where Hydra needs them.

    The value of a path is taken as it is typed, with blanks, commas, brackets, = and any script, and ~ is the home folder.
    What is quoted or a [list] stays, and so does null; in a sweep (-m) commas separate values. Raises UserError for settings of
    Hydra that would be ignored.
    """
    for argument in arguments:
        if FOLDERS.match(argument):
            raise UserError(f"{argument} has no effect here: name the folder of a run, or of a sweep, with run_dir=...")
    sweeps = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))
    return [argument if argument.startswith("-") else readable(argument, sweeps) for argument in arguments]


def readable(argument: str, sweeps: bool) -> str:
    if argument.startswith("condition."):
        argument = f"++{argument}"  # its names are those of the run
    key, equals, value = argument.partition("=")
    if key == "stages" and value != "null" and re.fullmatch(r"\w+", value):
        return f"stages=[{value}]"
    if not equals or not value or TEXTS.fullmatch(key) is None:
        return argument
    if sweeps and "," in value and value[0] not in "['\"":
        return f"{key}={','.join(as_text(key, one) for one in value.split(','))}"
    return f"{key}={as_text(key, value)}"


def as_text(key: str, value: str) -> str:
    """A value as Hydra reads a text. One that is quoted, a list, null or a choice of Hydra's own stays."""
    if (value == "null" or value[0] in "['\"" or value.startswith(("glob(", "choice("))) and parsed(f"{key}={value}"):
        return value
    if value.startswith("~"):
        value = os.path.expanduser(value)
    return quoted(value)


def quoted(value: str) -> str:
    """A text in single quotes. Backslashes before a quote, and at the end, are doubled."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def parsed(argument: str) -> Override | None:
    """An override as Hydra understands it; None where it does not."""
    try:
        return parser()(argument)
    except HydraException:
        return None


def values_of(key: str, arguments: list[str]) -> list[str]:
    """The texts that are given to a key."""
    given = (parsed(argument) for argument in arguments if argument.startswith(f"{key}="))
    return [str(override.value()) for override in given if override is not None]


@functools.cache
def parser() -> Callable[[str], Override]:
    return OverridesParser.create().parse_override


def way_to_type(override: str) -> str:
    """What to type for an override that Hydra cannot read: the value in quotes, and the whole in those of a shell."""
    key, equals, value = override.partition("=")
    better = f"{key}={quoted(value)}"
    return f"; type {shlex.quote(better)}" if equals and parsed(better) else ""
