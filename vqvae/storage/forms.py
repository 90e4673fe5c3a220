"""What a saved state must look like, compared with what a file holds before anything of it is used.

A form is one of
    int, float, str          a value of that type; int goes for float, bool for neither
    an int                   that number
    Dense(dtype, shape)      a tensor whose values are all stored, and finite where that is asked for
    {key: form}              a dict of exactly these keys
    [form, ...]              a list of that length
    Each(form)               a list, or a dict with names for keys, of any length
    Keys(forms, ...)         a dict that may lack some of these keys, or have more
    a function               value -> what is wrong with it, or None
The form says what is looked at: a file may nest its values as deep as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

Form = Any


class Dense(NamedTuple):
    """A tensor that is not sparse, nested, quantized, without values (meta), nor one value expanded to a large shape.

    None allows any dtype, or any shape.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...] | None
    finite: bool = True

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


class Each(NamedTuple):
    form: Form
    kind: type  # list or dict


class Keys(NamedTuple):
    forms: dict[Any, Form]
    missing: bool = False  # allowed
    more: bool = False


def form_of(state: Any, finite: bool = True) -> Form:
    """The form of a state as it is: dicts, lists and tensors as they are now, of other values their type."""
    if isinstance(state, Tensor):
        return Dense(state.dtype, tuple(state.shape), finite)
    if isinstance(state, dict):
        return {key: form_of(value, finite) for key, value in state.items()}
    return [form_of(value, finite) for value in state] if isinstance(state, list) else type(state)


def mistake(value: Any, form: Form, name: str = "") -> str | None:
    """What is wrong with a value, in words that begin with its name; None if it has the form."""
    if isinstance(form, Dense):
        return mistake_of_tensor(value, form, name)
    if isinstance(form, dict):
        form = Keys(form)
    if isinstance(form, Keys):
        return mistake_of_dict(value, form, name)
    if isinstance(form, Each) and form.kind is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return f"{name} is not a set of names with values"
        return first(mistake(value[key], form.form, below(name, key)) for key in value)
    if isinstance(form, (Each, list)):
        if not isinstance(value, list) or (isinstance(form, list) and len(value) != len(form)):
            return f"{name} is not a list" + (f" of {len(form)}" if isinstance(form, list) else "")
        forms = form if isinstance(form, list) else [form.form] * len(value)
        return first(mistake(v, f, below(name, i)) for i, (v, f) in enumerate(zip(value, forms)))
    if isinstance(form, type):
        good = type(value) is form or (form is float and type(value) is int)
        return None if good else f"{name} is {kind(value)}, not {form.__name__}"
    if type(form) is int:
        return None if type(value) is int and value == form else f"{name} is not {form}"
    said = form(value)
    return f"{name} {said}" if said else None


def mistake_of_dict(value: Any, form: Keys, name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name or 'it'} is {kind(value)}, not a set of values"
    for key in form.forms:
        if key not in value and not form.missing:
            return f"there is no {below(name, key)}"
    for key in value:
        if key not in form.forms and not form.more:
            return f"{below(name, key)} does not belong there"
    return first(mistake(value[key], form.forms[key], below(name, key)) for key in form.forms if key in value)


def mistake_of_tensor(value: Any, form: Dense, name: str) -> str | None:
    if not isinstance(value, Tensor):
        return f"{name} is {kind(value)}, not a tensor"
    stored = value.layout == torch.strided and not value.is_nested and not value.is_quantized and not value.is_meta
    if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"{name} is a tensor whose values are not all stored"
    have = Dense(value.dtype, tuple(value.shape))
    if form.dtype not in (None, have.dtype) or form.shape not in (None, have.shape):
        return f"{name} is {have}, not {form}"
    if form.finite and not bool(value.isfinite().all()):
        return f"{name} has values that are not finite numbers"
    return None


def size_of(form: Form) -> int:
    """Bytes of the tensors that a form names."""
    if isinstance(form, Dense):
        return 0 if form.dtype is None or form.shape is None else math.prod(form.shape) * form.dtype.itemsize
    parts = form.forms.values() if isinstance(form, Keys) else form.values() if isinstance(form, dict) else form
    return sum(map(size_of, parts)) if isinstance(form, (dict, list, Keys)) else 0


def below(name: str, key: Any) -> str:
    return f"{name}/{key}"[-100:] if name else str(key)[:100]


def kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def first(found: Iterable[str | None] | Iterator[str | None]) -> str | None:
    return next((one for one in found if one is not None), None)
