"""Config values against annotated types. Knows no torch, so that mistakes are told at once."""

from __future__ import annotations

import math
import types
import typing
from typing import Any


def fits(value: Any, annotation: Any) -> bool:
    """Whether a config value is of a plain annotated type; classes of objects are for their constructors to judge."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_union(annotation):
        return any(fits(value, one) for one in arguments)
    if origin in (list, tuple):
        inner = arguments[0] if arguments else Any
        return (
            not isinstance(value, (str, dict)) and hasattr(value, "__iter__") and all(fits(one, inner) for one in value)
        )
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[-1]) for one in value.values())
    if annotation is float:
        if isinstance(value, float):
            return not math.isnan(value)
        return fits(value, int) and abs(value) < 2**40  # torch computes with it as an integer, which must not overflow
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if isinstance(annotation, type):
        return (value is None) == (annotation is type(None))
    return True


def describe(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (list, tuple):
        return f"a list of which each item is {describe(arguments[0])}"
    if arguments:
        return " or ".join(describe(one) for one in arguments)
    if isinstance(annotation, type) and annotation not in names:
        return f"a choice for {annotation.__name__}"
    return names.get(annotation, str(annotation))


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def inner(annotation: Any) -> Any:
    """What the items of a list or the values of a dict are annotated with."""
    arguments = typing.get_args(annotation)
    return arguments[-1] if typing.get_origin(annotation) in (list, dict) and arguments else Any


def shorten(value: Any) -> str:
    """A value for a message."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
