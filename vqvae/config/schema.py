"""Checks of a whole config before anything is built: keys, types, ranges, and which classes a `_target_` may name."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Collection
from typing import Annotated, Any

from torch import nn
from torch.optim import Optimizer

from vqvae.config.keys import (
    ADVERSARY,
    ADVERSARY_SETTINGS,
    EVALUATION,
    GROUPS,
    LOSS,
    PRIOR,
    PRIOR_SETTINGS,
    SETTINGS,
    TOP_LEVEL,
    check_keys,
)
from vqvae.config.types import describe, inner, mistake_in, shorten
from vqvae.data.base import Data
from vqvae.errors import UserError, nearest
from vqvae.losses.adversarial import AdversarialLoss, DiscriminatorTerm
from vqvae.losses.heads import Head
from vqvae.losses.terms import Term
from vqvae.model import VQVAE
from vqvae.networks.discriminator import Discriminator
from vqvae.priors.base import Prior
from vqvae.priors.digits import Digits
from vqvae.quantizers.base import Quantizer
from vqvae.quantizers.init import Init
from vqvae.ranges import argument_types, is_union
from vqvae.training.log_settings import LogSettings
from vqvae.training.schedules import Schedule
from vqvae.training.settings import TrainerConfig

ALLOWED_PREFIXES = ("vqvae.", "torch.optim.", "torch.nn.")
SPECIAL_KEYS = {"_target_", "_partial_"}
DOTTED = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\._?[A-Za-z][A-Za-z0-9_]*)+")  # no look-alike letters, no __names__
BASES = (nn.Module, Optimizer, Data, Digits, Init, Schedule, TrainerConfig, LogSettings)  # what a `_target_` may be
# What a group's `_target_` must be, and the arguments that only the run knows.
BUILT: dict[str, tuple[type, Collection[str]]] = {
    "data": (Data, ()),
    "quantizer": (Quantizer, ()),
    "loss.head": (Head, ["variance"]),
    "optimizer": (Optimizer, ["params"]),
    "schedule": (Schedule, ()),
    "trainer": (TrainerConfig, ()),
    "adversary.network": (Discriminator, ()),
    "adversary.loss": (AdversarialLoss, ()),
    "adversary.optimizer": (Optimizer, ["params"]),
    "adversary.schedule": (Schedule, ()),
    "prior.network": (Prior, ["code_shapes", "digits", "num_classes"]),
    "prior.head": (Digits, ()),
    "prior.optimizer": (Optimizer, ["params"]),
    "prior.schedule": (Schedule, ()),
    "prior.trainer": (TrainerConfig, ()),
    "logger": (LogSettings, ()),
    "model": (VQVAE, ()),  # last, because it holds a copy of the quantizer
}
STAGES = ["autoencoder", "prior"]


def check(cfg: dict[str, Any]) -> None:
    """Raises UserError unless all keys are known, all targets allowed, all values of their type and in their range.

    It builds nothing, and imports nothing but the modules of allowed targets.
    """
    check_keys("", list(cfg), TOP_LEVEL, required=TOP_LEVEL)
    check_stages(cfg["stages"])
    check_settings("", cfg, SETTINGS)
    for prefix in cfg["allow_targets"]:
        if not prefix.endswith("."):
            raise UserError(f"allow_targets={prefix} must end with a dot, such as my_package.")
    allowed = (*ALLOWED_PREFIXES, *cfg["allow_targets"])
    for group in GROUPS:
        if not isinstance(cfg[group], dict):
            raise UserError(f"{group}={cfg[group]} is not a choice of this group; see --help")
    check_keys("prior", list(cfg["prior"]), PRIOR, required=PRIOR)
    check_settings("prior.", cfg["prior"], PRIOR_SETTINGS)
    check_keys("evaluation", list(cfg["evaluation"]), list(EVALUATION), required=list(EVALUATION))
    check_settings("evaluation.", cfg["evaluation"], EVALUATION)
    check_keys("loss", list(cfg["loss"]), LOSS, required=LOSS)
    check_terms("loss", cfg["loss"]["terms"], allowed, Term, ["variance"])
    plays = cfg["adversary"].get("network") is not None
    check_keys("adversary", list(cfg["adversary"]), ADVERSARY, required=ADVERSARY if plays else [])
    if plays:
        check_settings("adversary.", cfg["adversary"], ADVERSARY_SETTINGS)
        check_terms("adversary", cfg["adversary"]["terms"], allowed, DiscriminatorTerm, ())
    for path, (base, given) in BUILT.items():
        group, _, part = path.partition(".")
        if group == "adversary" and not plays:
            continue
        check_node(path, cfg[group][part] if part else cfg[group], allowed, base, given)


def check_stages(stages: Any) -> None:
    """Raises UserError for what is no list of stages."""
    if not isinstance(stages, list) or not stages:
        raise UserError(f"stages={shorten(stages)} names no stage: it may hold autoencoder and prior, as [autoencoder]")
    for stage in stages:
        if stage not in STAGES:
            near = nearest(stage, STAGES)
            hint = f"did you mean {near}?" if near else "stages=[autoencoder] trains without a prior"
            raise UserError(f"stages may hold autoencoder and prior, got {shorten(stage)}; {hint}")


def check_terms(group: str, terms: Any, allowed: tuple[str, ...], base: type, given: Collection[str]) -> None:
    """Checks the terms of a group: names with choices for `base`; `given` are the arguments that only the run knows."""
    if not isinstance(terms, dict):
        raise UserError(f"{group}.terms={shorten(terms)} is not pairs of a name and a choice for {base.__name__}")
    for name, node in terms.items():
        if not re.fullmatch(r"[a-z]\w*", str(name), re.ASCII):
            raise UserError(
                f"{group}.terms.{shorten(name)} is no name for the log: use lower-case letters, digits and _"
            )
        check_node(f"{group}.terms.{name}", node, allowed, base, given)


def check_head(head: Any, allow_targets: list[str]) -> None:
    """Checks the node of the output head, which other values depend on, before all is checked."""
    check_node("loss.head", head, (*ALLOWED_PREFIXES, *allow_targets), Head, ["variance"])


def check_settings(prefix: str, values: dict[str, Any], annotations: dict[str, Any]) -> None:
    """Raises UserError for a value that its annotation excludes."""
    for name, annotation in annotations.items():
        if message := mistake_in(f"{prefix}{name}", values[name], annotation):
            raise UserError(message)


def check_node(path: str, node: Any, allowed: tuple[str, ...], wanted: Any = Any, given: Collection[str] = ()) -> None:
    """Checks a node and all below it: see `check`. `wanted` is what the place is annotated with; if that is a class which
    configs build, the node must build one of its subclasses. `given` names arguments that the node need not have.
    """
    base = buildable(wanted)
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_node(f"{path}.{index}", item, allowed, inner(wanted))
    is_built = isinstance(node, dict) and "_target_" in node
    if base is not None and not is_built and not (node is None and is_union(wanted)):
        raise UserError(f"{path}={shorten(node)} is not {describe(base)}")
    if not isinstance(node, dict):
        return
    annotations: dict[str, Any] = {}
    if is_built:
        annotations = check_arguments(path, node, find_target(path, node["_target_"], allowed), base, given)
    elif special := [key for key in node if str(key).startswith("_")]:
        raise UserError(f"{path}.{special[0]} is not allowed")
    for key, value in node.items():
        if key not in SPECIAL_KEYS:
            check_node(f"{path}.{key}", value, allowed, annotations.get(key, inner(wanted)))


def check_arguments(
    path: str, node: dict[str, Any], target: type, base: type | None, given: Collection[str]
) -> dict[str, Any]:
    """Checks a node against the constructor of its target -> the constructor's annotations by name."""
    if base is not None and not issubclass(target, base):
        raise UserError(f"{path}._target_={node['_target_']} is not {describe(base)}")
    if node.get("_partial_", False) is not issubclass(target, Optimizer):
        raise UserError(f"{path}._partial_={node.get('_partial_')} does not go with {node['_target_']}")
    annotations = annotations_of(target)
    parameters = inspect.signature(target).parameters
    required = [name for name in annotations if parameters[name].default is inspect.Parameter.empty]
    keys = [key for key in node if key not in SPECIAL_KEYS]
    check_keys(path, keys, [*annotations], required=[name for name in required if name not in given])
    check_settings(f"{path}.", node, {key: annotations[key] for key in keys})
    return annotations


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
        cls = named(target)
    except ImportError as error:
        package = target.partition(".")[0]
        raise UserError(
            f"{path}._target_={target} cannot be imported ({type(error).__name__}: {error}); {package} is found where it is "
            f"installed, or with PYTHONPATH=<the folder that holds {package}>"
        ) from error
    if not isinstance(cls, type) or not f"{cls.__module__}.".startswith(allowed) or not issubclass(cls, BASES):
        raise refused
    return cls


def named(dotted: str) -> Any:
    """module.name -> what the module holds by that name, or None. An error within the module is the module's own."""
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}.") and module.startswith(("vqvae.", "torch.")):
            return None  # a name that is not there
        raise


def buildable(annotation: Any) -> type | None:
    """The class in an annotation `X` or `X | None` that a node must build, if X is one that configs build."""
    if typing.get_origin(annotation) is Annotated:
        return buildable(typing.get_args(annotation)[0])
    for member in typing.get_args(annotation) if is_union(annotation) else [annotation]:
        if isinstance(member, type) and not typing.get_origin(member) and issubclass(member, BASES):
            return member
    return None


def annotations_of(target: type) -> dict[str, Any]:
    """Constructor arguments and their annotations; those of other packages need not resolve."""
    try:
        return argument_types(target)
    except (NameError, TypeError):
        parameters = inspect.signature(target).parameters.values()
        return {p.name: Any for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
