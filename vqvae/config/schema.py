"""Checks of a whole config before anything is built: keys, types, and which classes a `_target_` may name."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import typing
from typing import Any

from vqvae.config.types import describe, fits, inner, is_union, shorten
from vqvae.errors import UserError, suggest

MOST_BUILT = 10_000
# Numbers of things, and not of channels: so many would be built one after the other until memory or patience ends.
BUILT = re.compile(r"(layers|depth|blocks|splits|phis|heads|cycle|iterations|workers|bits|sweeps|network\.steps)$")
ALLOWED_PREFIXES = ("vqvae.", "torch.optim.", "torch.nn.")
SPECIAL_KEYS = {"_target_", "_partial_"}
DOTTED = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\._?[A-Za-z][A-Za-z0-9_]*)+")  # no look-alike letters, no __names__
# What a `_target_` may be at all; and in a group, what it must be. Names, for nothing is imported before it is needed.
BASES = (
    "torch.nn.Module",
    "torch.optim.Optimizer",
    "vqvae.data.base.Data",
    "vqvae.quantizers.init.Init",
    "vqvae.training.schedules.Schedule",
    "vqvae.training.settings.TrainerConfig",
    "vqvae.training.logger.Wandb",
)
GROUPS = {
    "data": "vqvae.data.base.Data",
    "quantizer": "vqvae.quantizers.base.Quantizer",
    "loss": "vqvae.losses.reconstruction.ReconstructionLoss",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "vqvae.training.schedules.Schedule",
    "trainer": "vqvae.training.settings.TrainerConfig",
    "prior.network": "vqvae.priors.base.Prior",
    "prior.optimizer": "torch.optim.Optimizer",
    "prior.schedule": "vqvae.training.schedules.Schedule",
    "prior.trainer": "vqvae.training.settings.TrainerConfig",
    "logger": "vqvae.training.logger.Wandb",
    "model": "vqvae.model.VQVAE",  # last, for it holds a copy of the quantizer
}
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


def check(cfg: dict[str, Any]) -> None:
    """Raises UserError unless all keys are known, all targets allowed, all values of the type that is asked for.

    It builds nothing, and imports nothing but the modules of allowed targets.
    """
    check_keys("", list(cfg), TOP_LEVEL.split(), required=True)
    for key, kind in TOP_LEVEL_TYPES.items():
        if not fits(cfg[key], kind):
            raise UserError(f"{key}={cfg[key]} is not {describe(kind)}")
    for prefix in cfg["allow_targets"]:
        if not prefix.endswith("."):
            raise UserError(f"allow_targets={prefix} must end with a dot, such as my_package.")
    allowed = (*ALLOWED_PREFIXES, *cfg["allow_targets"])
    for group in TOP_LEVEL.split()[len(TOP_LEVEL_TYPES) :]:
        if not isinstance(cfg[group], dict):
            raise UserError(f"{group}={cfg[group]} is not a choice of this group; see --help")
    check_keys("prior", list(cfg["prior"]), PRIOR.split(), required=True)
    for key, kind in PRIOR_TYPES.items():
        if not fits(value := cfg["prior"][key], kind):
            raise UserError(f"prior.{key}={value} is not {describe(kind)}")
    for path, base in GROUPS.items():
        group, _, part = path.partition(".")
        check_node(path, cfg[group][part] if part else cfg[group], allowed, named(base))
    if cfg["seed"] < 0:
        raise UserError(f"seed must not be negative, got {cfg['seed']}")
    for stage in cfg["stages"]:
        if stage not in ("autoencoder", "prior"):
            raise UserError(
                f"stages may hold autoencoder and prior, got {stage}; " + suggest(stage, ["autoencoder", "prior"])
            )


def check_node(path: str, node: Any, allowed: tuple[str, ...], wanted: Any = Any) -> None:
    """Checks a node and all below it: see `check`. `wanted` is what the place is annotated with.

    Where that is a class which configs build, the node must build one of its subclasses.
    """
    to_build = buildable(wanted)
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_node(f"{path}.{index}", item, allowed, inner(wanted))
    is_built = isinstance(node, dict) and "_target_" in node
    if to_build is not None and not is_built and not (node is None and is_union(wanted)):
        raise UserError(f"{path}={shorten(node)} is not {describe(to_build)}")
    if not isinstance(node, dict):
        return
    parameters: dict[str, Any] = {}
    if is_built:
        target = find_target(path, node["_target_"], allowed)
        if to_build is not None and not issubclass(target, to_build):
            raise UserError(f"{path}._target_={node['_target_']} is not {describe(to_build)}")
        if node.get("_partial_", False) is not issubclass(target, named("torch.optim.Optimizer")):
            raise UserError(f"{path}._partial_={node.get('_partial_')} does not go with {node['_target_']}")
        parameters = signature(target)
        check_keys(path, [k for k in node if k not in SPECIAL_KEYS], [*parameters])
        for key, annotation in parameters.items():
            if key in node and not fits(node[key], annotation):
                raise UserError(f"{path}.{key}={shorten(node[key])} is not {describe(annotation)}")
            if isinstance(node.get(key), int) and node[key] > MOST_BUILT and BUILT.search(f"{path}.{key}"):
                raise UserError(f"{path}.{key}={node[key]} is more than {MOST_BUILT}: they are built one by one")
    elif special := [k for k in node if str(k).startswith("_")]:
        raise UserError(f"{path}.{special[0]} is not allowed")
    for key, value in node.items():
        if key not in SPECIAL_KEYS:
            check_node(f"{path}.{key}", value, allowed, parameters.get(key, inner(wanted)))


def check_keys(path: str, keys: list[Any], valid: list[str], required: bool = False) -> None:
    """Raises UserError for a key that is not valid and, where all are `required`, for one that is missing."""
    names = [f"{path}.{name}" if path else name for name in valid]
    for key in keys:
        if key not in valid:
            full = f"{path}.{key}" if path else str(key)
            raise UserError(f"{full} is not a config key; " + suggest(full, names))
    missing = [name for name, key in zip(names, valid) if key not in keys]
    if required and missing:
        raise UserError(f"{missing[0]} is missing")


def find_target(path: str, target: Any, allowed: tuple[str, ...]) -> type:
    """The class that a `_target_` names. Raises UserError for anything but an allowed subclass of BASES.

    Functions and attribute paths through modules are refused: a prefix alone would let torch.nn.modules.module.torch.load by.
    """
    refused = UserError(
        f"{path}._target_={shorten(target)} is not a class of {', '.join(allowed)} that configs build "
        "(allow_targets=[my_package.] on the command line allows your own)"
    )
    if not isinstance(target, str) or not target.startswith(allowed) or not DOTTED.fullmatch(target):
        raise refused
    try:
        found = named(target)
    except (ImportError, AttributeError):
        raise refused from None
    if not isinstance(found, type) or not found.__module__.startswith(allowed):
        raise refused
    if not issubclass(found, bases()):
        raise refused
    return found


def named(dotted: str) -> Any:
    """module.name -> what the module holds by that name."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


@functools.cache
def bases() -> tuple[type, ...]:
    return tuple(named(base) for base in BASES)


def buildable(annotation: Any) -> type | None:
    """The class in an annotation `X` or `X | None` that a node must build, if X is one that configs build."""
    for one in (annotation, *(typing.get_args(annotation) if is_union(annotation) else ())):
        if isinstance(one, type) and not typing.get_origin(one) and issubclass(one, bases()):
            return one
    return None


def signature(target: type) -> dict[str, Any]:
    """Constructor arguments and their types."""
    try:
        hints = typing.get_type_hints(target.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # annotations of other packages need not resolve
        hints = {}
    found = inspect.signature(target).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
