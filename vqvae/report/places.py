"""Paths of the machine that a page is made on, which nobody else has: written as names, or from the run folder on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vqvae.report.contents import Contents

END = r"[^\s/'\"`,;:()\[\]<>|]"  # of what is part of a name in a path
ABSOLUTE = re.compile(rf"(?<![\w.:~/*-])/(?:{END}+/)+({END}*)")


def hider(runs: Iterable[Contents]) -> Callable[[str], str]:
    """A function that takes absolute paths out of a text: what lies in a run folder is told from there, else by its name."""
    places: dict[str, str] = {}
    for run in runs:
        folder = os.path.abspath(run.path)
        places |= {f"{folder}/": "", folder: Path(folder).name}
        places |= {one: Path(one).name for one in texts_in(run.config) if one.startswith("/") and len(one) > 1}
    longest_first = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
    known = re.compile(rf"(?<![\w.:~/*-])({longest_first})(?:(?<=/)|(?![\w.-]))")

    def hide(text: str) -> str:
        text = known.sub(lambda found: places[found[1]], text) if places else text
        return ABSOLUTE.sub(lambda found: found[1] or found[0].rstrip("/").rpartition("/")[2], text)

    return hide


def texts_in(node: Any) -> Iterator[str]:
    """All texts in a config."""
    if isinstance(node, str):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from texts_in(value)
