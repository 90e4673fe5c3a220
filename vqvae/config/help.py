"""The help of a program with a flat config: its keys with their values and the comments of its YAML."""

from __future__ import annotations

import re
import textwrap

import yaml

from vqvae.config.compose import CONFIGS

LINE = re.compile(r"^( *)(\w+):\s*([^#]*?)\s*(?:# *(.*))?$")  # of the YAML: indent, key, value, comment
WIDTH, LEFT = 80, 27


def page(config_name: str) -> str:
    """What `--help` prints: examples, then every key with its value and what it means."""
    config = yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text())
    return str(config["hydra"]["help"]["template"]).replace("$CONFIG", "\n".join(keys(config_name))).rstrip()


def keys(config_name: str) -> list[str]:
    """The keys of a config, as they are typed, each with its value and its comment."""
    text = (CONFIGS / f"{config_name}.yaml").read_text().split("\nhydra:\n")[0].split("hydra_logging: none\n")[1]
    lines: list[str] = []
    parent = ""
    for indent, key, value, comment in (match.groups() for match in map(LINE.match, text.splitlines()) if match):
        if not indent:
            parent = "" if value else f"{key}."
        if value:
            typed = f"{parent if indent else ''}{key}={'...' if value == '???' else value}"
            lines += entry(typed, comment or "")
        elif comment:
            lines += entry(f"{key}.", comment)
    return lines


def entry(typed: str, comment: str) -> list[str]:
    """A key and its comment, which goes on below itself."""
    about = textwrap.wrap(comment, WIDTH - LEFT, break_long_words=False, break_on_hyphens=False) or [""]
    if len(typed) > LEFT - 4:  # the comment begins below
        about.insert(0, "")
    first = f"  {typed:{LEFT - 3}} {about[0]}".rstrip()
    return [first, *(" " * LEFT + line for line in about[1:])]
