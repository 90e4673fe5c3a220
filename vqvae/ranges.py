"""Ranges of constructor arguments, declared in their types: `size: Annotated[int, Ge(2)]`, and checked by `@checked`."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from vqvae.errors import UserError

Class = TypeVar("Class", bound=Any)


class Bound(NamedTuple):
    """A condition on a value, and the words that follow "must"."""

    words: str
    holds: Callable[[Any], bool]


def Ge(low: float) -> Bound:
    return Bound(f"be at least {low}", lambda value: value >= low)


def Gt(low: float) -> Bound:
    return Bound(f"be above {low}", lambda value: value > low)


def Le(high: float) -> Bound:
    return Bound(f"be at most {high}", lambda value: value <= high)


def Lt(high: float) -> Bound:
    return Bound("be finite" if high == math.inf else f"be below {high}", lambda value: value < high)


def In(*choices: Any) -> Bound:
    names = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]  # as in YAML
    return Bound(f"be {'one of ' * (len(choices) > 1)}{', '.join(names)}", lambda value: value in choices)


NotEmpty = Bound("not be empty", lambda value: len(value) > 0)

PositiveInt = Annotated[int, Ge(1), Le(2**31 - 1)]
NonNegativeInt = Annotated[int, Ge(0), Le(2**31 - 1)]
Count = Annotated[int, Ge(1), Le(10_000)]  # of things that are built one by one
CountOrZero = Annotated[int, Ge(0), Le(10_000)]
PositiveFloat = Annotated[float, Gt(0), Lt(math.inf)]
NonNegativeFloat = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Le(1)]
LessThanOne = Annotated[float, Ge(0), Lt(1)]


def checked(cls: Class) -> Class:
    """Class decorator: the constructor raises UserError for an argument out of its declared range. Goes above @dataclass."""
    init = cls.__init__

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        annotations = argument_types(cls)
        for name, value in [*zip(annotations, args), *kwargs.items()]:
            if problem := out_of_range(value, annotations.get(name)):
                raise UserError(f"{name} {problem}, got {value!r}")
        init(self, *args, **kwargs)

    cls.__init__ = checked_init
    return cls


@functools.cache
def argument_types(cls: type) -> dict[str, Any]:
    """Constructor arguments in order -> their annotations, ranges included."""
    described = cls if is_dataclass(cls) else cls.__init__  # type: ignore[misc]
    annotations = typing.get_type_hints(described, include_extras=True)
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: annotations.get(p.name, Any) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def out_of_range(value: Any, annotation: Any) -> str | None:
    """Message 'must be at least 1' if a value of the right type is out of its declared range, else None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = [bound for bound in arguments[1:] if isinstance(bound, Bound)]
        return out_of_range(value, arguments[0]) or broken(value, bounds)
    if origin is Literal:
        return broken(value, [In(*arguments)])
    if is_union(annotation):
        problems = [out_of_range(value, a) for a in arguments if (a is type(None)) == (value is None)]
        if None in problems or not problems:
            return None
        return f"{problems[0]} or null" if type(None) in arguments else problems[0]
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        problem = next(filter(None, (out_of_range(item, arguments[0]) for item in value)), None)
        return problem and problem.replace("must be", "must have every value", 1)
    return None


def broken(value: Any, bounds: list[Bound]) -> str | None:
    """Message 'must' with the words of the bounds that the value breaks, or None."""
    try:
        words = [bound.words for bound in bounds if not bound.holds(value)]
    except TypeError:  # a text where a number belongs
        words = [bound.words for bound in bounds]
    return "must " + " and ".join(words) if words else None


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
