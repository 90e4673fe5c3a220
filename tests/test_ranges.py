"""Laws of declared ranges: every constructor checks its own, and a call and a config get the same message."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from vqvae.config.compose import CONFIGS
from vqvae.config.types import mistake_in
from vqvae.errors import UserError
from vqvae.quantizers.codebook import GradientCodebook
from vqvae.quantizers.scalar import FSQ
from vqvae.ranges import Bound, Ge, Gt, In, Le, LessThanOne, Lt, NonNegativeFloat, NotEmpty, argument_types, checked
from vqvae.training.schedules import Cosine

PACKAGE = Path(__file__).resolve().parent.parent / "vqvae"
MODULES = [".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in sorted(PACKAGE.rglob("*.py"))]
NEEDS_TRITON = "vqvae.quantizers.nearest_triton"


def has_range(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Literal or isinstance(annotation, Bound):
        return True
    return any(has_range(argument) for argument in (*typing.get_args(annotation), *metadata(annotation)))


def metadata(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__metadata__", ())


@pytest.mark.parametrize("module", [m for m in MODULES if m != NEEDS_TRITON])
def test_every_constructor_that_declares_a_range_checks_it(module: str) -> None:
    for cls in vars(importlib.import_module(module)).values():
        if inspect.isclass(cls) and cls.__module__ == module and "__init__" in vars(cls):
            try:
                declared = any(has_range(annotation) for annotation in argument_types(cls).values())
            except NameError:  # a name that is imported for type checkers alone
                continue
            assert not declared or hasattr(cls.__init__, "__wrapped__"), f"{cls} needs @checked"


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "words"),
    [
        (Annotated[int, Ge(1)], 1, 0, "must be at least 1"),
        (Annotated[float, Gt(0)], 0.1, 0.0, "must be above 0"),
        (Annotated[int, Le(3)], 3, 4, "must be at most 3"),
        (Annotated[float, Ge(0), Lt(1)], 0.5, 1.0, "must be below 1"),
        (LessThanOne, 0.0, -1.0, "must be at least 0"),
        (NonNegativeFloat, 0.0, float("inf"), "must be finite"),
        (Annotated[int, Ge(1)] | None, None, 0, "must be at least 1 or null"),
        (list[Annotated[int, Ge(2)]], [2, 3], [2, 1], "must have every value at least 2"),
        (Annotated[list[int], NotEmpty], [0], [], "must not be empty"),
        (Annotated[int, In(1, 3)], 3, 2, "must be one of 1, 3"),
        (Literal["a", "b"], "a", "c", "must be one of a, b"),
    ],
)
def test_a_config_and_a_call_get_the_same_message(annotation: Any, good: Any, bad: Any, words: str) -> None:
    class Thing:
        def __init__(self, value: Any) -> None:
            pass

    Thing.__init__.__annotations__["value"] = annotation
    thing = checked(Thing)
    thing(good)
    thing(value=good)
    assert mistake_in("group.value", good, annotation) is None
    with pytest.raises(UserError) as error:
        thing(bad)
    assert str(error.value) == f"value {words}, got {bad!r}"
    assert mistake_in("group.value", bad, annotation) == f"group.value={bad} {words}"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GradientCodebook(1, 4, 1.0), "size must be at least 2, got 1"),
        (lambda: GradientCodebook(4, 4, float("nan")), "speed must be above 0 and be finite, got nan"),
        (lambda: FSQ(4, levels=[8, 2]), "levels must have every value at least 3, got [8, 2]"),
        (lambda: Cosine(-1, 0.0), "warmup_steps must be at least 0, got -1"),
        (lambda: Cosine("many", 0.0), "warmup_steps must be at least 0 and be at most 2147483647, got 'many'"),
    ],
)
def test_a_constructor_call_out_of_range_names_the_argument_and_its_range(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build()


def test_comments_in_configs_leave_ranges_to_the_declarations() -> None:
    """A comment that repeats a range would be wrong as soon as the range changes."""
    for path in CONFIGS.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            comment = line.partition("#")[2]
            assert not re.search(
                r"at (least|most) \d|between \d|(above|below) \d+\b(?!,)|\bmust\b.*\d|in \[", comment
            ), line
