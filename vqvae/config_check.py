"""Checks of a whole config before anything is built: keys, types, and which classes a `_target_` may name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

ALLOWED_PREFIXES = ("vqvae.", "torch.optim.", "torch.nn.")
SPECIAL_KEYS = {"_target_", "_partial_"}
TOP_LEVEL = (
    "seed run_dir stages tokenizer init_from allow_targets "
    "data model quantizer loss optimizer schedule trainer prior logger"
)
TOP_LEVEL_TYPES: dict[str, typing.Any] = {
    "seed": int,
    "run_dir": str | None,
    "stages": list[str],
    "tokenizer": str | None,
    "init_from": str | None,
    "allow_targets": list[str],
}
PRIOR = "network optimizer schedule trainer flip class_dropout label_smoothing guidance"
PRIOR_TYPES: dict[str, typing.Any] = {"flip": bool, "class_dropout": float, "label_smoothing": float, "guidance": float}


class ConfigError(ValueError):
    """A config that cannot be used: one sentence that names the key, the value and what to do."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """-> 'did you mean ...', or the list of what is valid where nothing is near."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid are: {', '.join(valid[:25])}"


def check(cfg: dict[str, Any]) -> None:
    """Raises ConfigError unless all keys are known, all targets allowed, all values of the type that is asked for.

    It builds nothing, and imports nothing but the modules of allowed targets.
    """
    check_keys("", list(cfg), TOP_LEVEL.split(), required=True)
    for key, kind in TOP_LEVEL_TYPES.items():
        if not fits(cfg[key], kind):
            raise ConfigError(f"{key}={cfg[key]} is not {describe(kind)}")
    for prefix in cfg["allow_targets"]:
        if not prefix.endswith("."):
            raise ConfigError(f"allow_targets={prefix} must end with a dot, such as my_package.")
    allowed = (*ALLOWED_PREFIXES, *cfg["allow_targets"])
    for group in TOP_LEVEL.split()[len(TOP_LEVEL_TYPES) :]:
        if not isinstance(cfg[group], dict):
            raise ConfigError(f"{group}={cfg[group]} is not a choice of this group; see --help")
    check_keys("prior", list(cfg["prior"]), PRIOR.split(), required=True)
    for key, kind in PRIOR_TYPES.items():
        if not fits(value := cfg["prior"][key], kind):
            raise ConfigError(f"prior.{key}={value} is not {describe(kind)}")
    for key in sorted(cfg, key=lambda key: key == "model"):  # last, for it holds a copy of the quantizer
        check_node(key, cfg[key], allowed)
    if cfg["seed"] < 0:
        raise ConfigError(f"seed must not be negative, got {cfg['seed']}")
    for stage in cfg["stages"]:
        if stage not in ("autoencoder", "prior"):
            raise ConfigError(
                f"stages may hold autoencoder and prior, got {stage}; " + suggest(stage, ["autoencoder", "prior"])
            )


def check_node(path: str, node: Any, allowed: tuple[str, ...]) -> None:
    """Checks a node and all below it: see `check`."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_node(f"{path}.{index}", item, allowed)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        target = find_target(path, node["_target_"], allowed)
        parameters = signature(target)
        check_keys(path, [k for k in node if k not in SPECIAL_KEYS], [*parameters])
        for key, annotation in parameters.items():
            if key in node and not fits(node[key], annotation):
                raise ConfigError(f"{path}.{key}={node[key]} is not {describe(annotation)}")
    elif special := [k for k in node if str(k).startswith("_")]:
        raise ConfigError(f"{path}.{special[0]} is not allowed")
    for key, value in node.items():
        check_node(f"{path}.{key}", value, allowed)


def check_keys(path: str, keys: list[Any], valid: list[str], required: bool = False) -> None:
    """Raises ConfigError for a key that is not valid and, where all are `required`, for one that is missing."""
    names = [f"{path}.{name}" if path else name for name in valid]
    for key in keys:
        if key not in valid:
            full = f"{path}.{key}" if path else str(key)
            raise ConfigError(f"{full} is not a config key; " + suggest(full, names))
    missing = [name for name, key in zip(names, valid) if key not in keys]
    if required and missing:
        raise ConfigError(f"{missing[0]} is missing")


def find_target(path: str, target: Any, allowed: tuple[str, ...]) -> type:
    """The class that a `_target_` names. Raises ConfigError for anything but an allowed class, named where it is defined.

    Functions and attribute paths through modules are refused: a prefix alone would let torch.nn.modules.module.torch.load by.
    """
    refused = ConfigError(
        f"{path}._target_={target} is not a class of {', '.join(allowed)} "
        "(allow_targets=[my_package.] on the command line allows your own)"
    )
    if not isinstance(target, str) or not target.startswith(allowed):
        raise refused
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        raise refused from None
    if not isinstance(found, type) or not found.__module__.startswith(allowed):
        raise refused
    if found.__module__.startswith("torch."):
        import torch

        if not issubclass(found, (torch.nn.Module, torch.optim.Optimizer)):
            raise refused
    return found


def signature(target: type) -> dict[str, Any]:
    """Constructor arguments and their types."""
    try:
        hints = typing.get_type_hints(target.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # annotations of other packages need not resolve
        hints = {}
    return {name: hints.get(name, Any) for name in list(inspect.signature(target).parameters)}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a config value is of a plain annotated type; classes of objects are for their constructors to judge."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin in (list, tuple):
        inner = arguments[0] if arguments else Any
        return (
            not isinstance(value, (str, dict)) and hasattr(value, "__iter__") and all(fits(one, inner) for one in value)
        )
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
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
