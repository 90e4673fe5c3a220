"""Config values against annotated types. Knows no torch, so that mistakes are told at once."""

from __future__ import annotations

import math
import typing
from typing import Annotated, Any, Literal

from vqvae.ranges import is_union, out_of_range

NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def mistake_in(key: str, value: Any, annotation: Any) -> str | None:
    """The sentence about a config value that is of another type than annotated or out of its range, else None."""
    if not fits(value, annotation):
        return f"{key}={shorten(value)} is not {describe(annotation)}"
    problem = out_of_range(value, annotation)
    return problem and f"{key}={shorten(value)} {problem}"


def fits(value: Any, annotation: Any) -> bool:
    """True if a config value is of the annotated type. A node with a `_target_` fits any class but those of plain values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return any(type(value) is type(choice) for choice in arguments)
    if is_union(annotation):
        return any(fits(value, member) for member in arguments)
    if origin in (list, tuple):
        if isinstance(value, (str, dict)) or not hasattr(value, "__iter__"):
            return False
        if (length := fixed_length(annotation)) is not None and len(value) != length:
            return False
        return all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, arguments[-1]) for item in value.values())
    if annotation is float:
        if isinstance(value, float):
            return not math.isnan(value)
        return fits(value, int) and abs(value) < 2**40  # torch computes with it as an integer, which must not overflow
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if annotation is Any or not isinstance(annotation, type):
        return True
    is_node = isinstance(value, dict) and "_target_" in value and annotation not in (str, bool, type(None))
    return isinstance(value, annotation) or is_node


def describe(annotation: Any) -> str:
    """The words for a type, ranges left out: "an integer or null"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return " or ".join(dict.fromkeys(describe(type(choice)) for choice in arguments))
    if origin in (list, tuple):
        length = fixed_length(annotation)
        return f"a list of {f'{length} items' if length else 'items'}, each {describe(arguments[0])}"
    if origin is dict:
        return f"pairs of a name and {describe(arguments[-1])}"
    if arguments:
        return " or ".join(describe(member) for member in arguments if getattr(member, "__name__", "") != "Tensor")
    if isinstance(annotation, type) and annotation not in NAMES:
        return f"a choice for {annotation.__name__}"
    return NAMES.get(annotation, str(annotation))


def fixed_length(annotation: Any) -> int | None:
    """2 for tuple[float, float], None for lists and tuple[float, ...]."""
    arguments = typing.get_args(annotation)
    return len(arguments) if typing.get_origin(annotation) is tuple and Ellipsis not in arguments else None


def inner(annotation: Any) -> Any:
    """Annotation of the items of a list, or of the values of a dict."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return inner(arguments[0])
    return arguments[-1] if origin in (list, dict) and arguments else Any


def shorten(value: Any) -> str:
    """A value for a message."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
