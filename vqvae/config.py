"""Configs: composed by Hydra, checked whole before any work, built by `_target_`.

The only file besides run_folder.py and the entry points that knows hydra and omegaconf.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ALLOWED_PREFIXES = ("vqvae.", "torch.optim.", "torch.nn.")
SPECIAL_KEYS = {"_target_", "_partial_"}
TOP_LEVEL = {
    "train": "seed run_dir stages tokenizer init_from allow_targets "
    "data model quantizer loss optimizer schedule trainer prior logger",
    "prior": "network optimizer schedule trainer",
}
OmegaConf.register_new_resolver("sweep_dir", lambda run_dir: run_dir or "runs/sweep", replace=True)


class ConfigError(ValueError):
    """A config that cannot be used: one sentence that names the key, the value and what to do."""


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """A command-line program on configs/<config_name>.yaml: what a user got wrong is one line, and exit code 2."""

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises errors instead of printing them
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(function)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, config_name))
            except (ValueError, OSError, FloatingPointError) as error:
                if not is_ours(error):
                    raise
                fail(str(error))

        return run

    return decorate


def fail(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def is_ours(error: BaseException) -> bool:
    """Whether our own code raised it, which it does for what a user can get wrong, or the operating system did."""
    if isinstance(error, OSError) and error.errno is not None:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).resolve().is_relative_to(CONFIGS.parent)


# ---- messages for what Hydra refuses


def explain(error: Exception, config_name: str) -> str:
    """Hydra's or OmegaConf's error as one sentence with the nearest valid name."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    if match := re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text):
        key = match[1].split("@")[0]
        if match := re.search(r"Missing mandatory value: (\S+)", text):
            return f"{match[1]} has no value; add {match[1]}=... to the command"
        return unknown_key(key, config_name)
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match[1].rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    return text.split("\n")[0]


def unknown_key(key: str, config_name: str) -> str:
    """-> '<key> is not a config key; did you mean ...'."""
    with_groups = [g for g in groups() if g not in TOP_LEVEL["train"].split()]
    keys = list(flatten(OmegaConf.to_container(compose(config_name), resolve=False)))
    same_parent = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return f"{key} is not a config key or group; " + suggest(key, same_parent + keys + with_groups)


def suggest(name: str, valid: Iterable[str]) -> str:
    """-> 'did you mean ...', or the list of what is valid where nothing is near."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid are: {', '.join(valid[:25])}"


def choices(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*") if p.is_dir())


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a nested container, dotted."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield prefix + str(key)
            yield from flatten(value, f"{prefix}{key}.")


def compose(config_name: str, overrides: list[str] | None = None) -> DictConfig:
    """The config that the command line would make, for tests, scripts and messages."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose(config_name, overrides or [])


# ---- checks of a whole config


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy with every interpolation replaced. Raises ConfigError for a value that is missing."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        first = min(missing)
        raise ConfigError(f"{first} has no value; add {first}=... to the command")
    cfg = cfg.copy()
    OmegaConf.resolve(cfg)
    return cfg


def check_keys_of(config_name: str, cfg: DictConfig) -> None:
    """Checks a flat config, such as sample's, against its YAML: the keys, and the types of the values there."""
    defaults = OmegaConf.load(CONFIGS / f"{config_name}.yaml")
    assert isinstance(defaults, DictConfig)
    valid = [str(key) for key in defaults if key not in ("defaults", "hydra")]
    check_keys("", list(cfg), valid)
    for key in valid:
        default = None if OmegaConf.is_missing(defaults, key) else defaults[key]
        kind = float if isinstance(default, float) else type(default)
        if isinstance(default, (bool, int, float, str)) and not fits(cfg[key], kind):
            raise ConfigError(f"{key}={cfg[key]} is not {describe(kind)}")


def check(cfg: DictConfig) -> None:
    """Raises ConfigError unless all keys are known, all targets allowed, all values of the type that is asked for.

    It builds nothing, and imports nothing but the modules of allowed targets.
    """
    allowed = (*ALLOWED_PREFIXES, *cfg.get("allow_targets", []))
    check_keys("", list(cfg), TOP_LEVEL["train"].split())
    check_keys("prior", list(cfg.prior), TOP_LEVEL["prior"].split())
    for key, value in cfg.items():
        check_node(str(key), OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, allowed)
    for key, kind in {"seed": int, "stages": list[str]}.items():
        if not fits(cfg[key], kind):
            raise ConfigError(f"{key}={cfg[key]} is not {describe(kind)}")
    if cfg.seed < 0:
        raise ConfigError(f"seed must not be negative, got {cfg.seed}")
    for stage in cfg.stages:
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


def check_keys(path: str, keys: Iterable[Any], valid: list[str]) -> None:
    for key in keys:
        if key not in valid:
            full = f"{path}.{key}" if path else str(key)
            raise ConfigError(f"{full} is not a config key; " + suggest(str(key), valid))


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
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    return value is None if annotation is type(None) else True


def describe(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (list, tuple):
        return f"a list of which each item is {describe(arguments[0])}"
    if arguments:
        return " or ".join(describe(one) for one in arguments)
    return names.get(annotation, str(annotation))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A resolved config as nested dicts and lists."""
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def build(node: Any, path: str, **runtime: Any) -> Any:
    """Instantiates a checked node with arguments that are known only at run time.

    A ValueError of a constructor becomes a ConfigError that begins with the key.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all", **runtime)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        match = re.search(r"full_key: (\S+)", str(error))
        raise ConfigError(f"{match[1] if match else path}: {error.__cause__}") from error
