"""The modes of sample.py and the keys of each, checked before any work. Knows no torch, so that mistakes are told at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any, Literal

from vqvae.config.types import fits, mistake_in
from vqvae.errors import UserError, suggest
from vqvae.ranges import Count, CountOrZero, NonNegativeFloat, PositiveFloat, PositiveInt

COMMON = ("mode", "run_dir", "n", "out", "data", "device", "allow_targets")
DRAWING = (
    "seed",
    "class",
    "condition",
    "temperature",
    "top_k",
    "top_p",
    "guidance",
    "guidance_schedule",
    "method",
    "steps",
    "chunk",
)
KEYS = {  # of each mode, beside COMMON
    "generate": (*DRAWING, "columns", "singles", "format", "gif"),
    "complete": ("image", "mask", "keep", *DRAWING, "columns", "singles", "format"),
    "interpolate": ("image", "singles", "format"),
    "reconstruct": ("folder", "search", "columns", "size", "singles", "format"),
    "nearest": DRAWING,
}
COUNTS = {"generate": 64, "complete": 5, "interpolate": 8, "reconstruct": 16, "nearest": 16}  # where n is null
TYPES: dict[
    str, Any
] = {  # of the keys whose default is null or whose range is limited; else the default tells the type
    "n": PositiveInt | None,
    "columns": PositiveInt,
    "image": str | int | list[str | int] | None,
    "mask": str | list[int] | None,
    "keep": PositiveFloat | None,
    "singles": bool | None,
    "format": Literal["gif", "mp4"] | None,
    "folder": str | None,
    "search": CountOrZero | None,
    "size": Literal["original"] | None,
    "condition": dict[str, str | int | float | None],
    "guidance": NonNegativeFloat | None,
    "method": str | None,
    "steps": Count | None,
    "chunk": PositiveInt | None,
    "out": str | None,
}


def check_mode(cfg: dict[str, Any], typed: Iterable[str]) -> None:
    """The values of sample.yaml's keys, and the keys that were typed. Raises UserError for what does not fit the mode."""
    mode = cfg["mode"]
    if mode not in KEYS:
        raise UserError(f"mode={mode} does not exist; {suggest(str(mode), KEYS)}")
    for key in typed:
        if key.split(".")[0] not in (*COMMON, *KEYS[mode]):
            others = " and ".join(f"mode={other}" for other, keys in KEYS.items() if key in keys)
            own = (
                "; mode=reconstruct takes folder=<a folder of images>"
                if (mode, key) == ("reconstruct", "image")
                else ""
            )
            raise UserError(f"{key}= does not belong to mode={mode}; it is a key of {others}{own}")
    for key, kind in TYPES.items():
        if message := mistake_in(key, cfg[key], kind):
            raise UserError(message)
    if cfg["size"] is not None and cfg["folder"] is None:
        raise UserError("size=original needs folder=...: images as they are before they are resized")
    if cfg["mask"] is not None and cfg["keep"] is not None:
        raise UserError("keep= and mask= both say what is drawn anew: leave one out")
    if "image" in KEYS[mode] and cfg["image"] is None:
        example = "image=[0,1]" if mode == "interpolate" else "image=0"
        raise UserError(f"mode={mode} needs image=...: files, or numbers of validation items, such as {example}")


def folder_name(cfg: dict[str, Any], typed: Iterable[str]) -> str:
    """A name that tells how images were made, from a checked config and the keys that were typed."""
    mode = cfg["mode"]
    parts = [] if mode == "generate" else [mode]
    parts += [f"seed{cfg['seed']}"] if "seed" in KEYS[mode] else []
    parts += [f"n{cfg['n']}"] if cfg["n"] is not None else []
    for key in KEYS[mode]:
        if key == "condition":
            parts += [f"{name}-{plain_name(value)}{digest_of_files(value)}" for name, value in cfg[key].items()]
        elif key in typed and key not in ("seed", "columns", "singles", "format", "gif"):
            dash = "" if fits(cfg[key], float) else "-"
            parts.append(f"{key}{dash}{plain_name(cfg[key])}{digest_of_files(cfg[key])}")
    return "_".join(parts)


def digest_of_files(value: Any) -> str:
    """What tells files of equal names in different folders apart; nothing for a value that names no file or folder."""
    paths = [os.path.expanduser(str(one)) for one in (value if isinstance(value, list) else [value])]
    there = [os.path.abspath(path) for path in paths if not path.isdecimal() and os.path.exists(path)]
    return f"-{hashlib.sha256(os.fsencode(os.pathsep.join(there))).hexdigest()[:6]}" if there else ""


def plain_name(value: Any) -> str:
    """A value as a part of a file name: paths by their last part, lists joined."""
    if isinstance(value, list):
        return "-".join(plain_name(item) for item in value)
    last = str(value).rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in last)
