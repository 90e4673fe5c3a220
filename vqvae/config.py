"""Configs: composed by Hydra, checked whole before any work, built by `_target_`.

The only file besides run_folder.py and the entry points that knows hydra and omegaconf.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not (3, 10) <= sys.version_info < (3, 14):  # hydra-core 1.3 crashes on 3.14
    sys.exit(f"error: this needs Python 3.10 to 3.13, and this is {sys.version.split()[0]}")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config_check import TOP_LEVEL, ConfigError, check, check_keys, describe, fits, suggest

PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE.parent / "configs"
OmegaConf.register_new_resolver("sweep_dir", lambda run_dir: run_dir or "runs/sweep", replace=True)


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """A command-line program on configs/<config_name>.yaml: what a user got wrong is one line, and exit code 2."""

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(cfg: DictConfig) -> Any:
            try:
                return function(cfg)
            except (ValueError, OSError, FloatingPointError) as error:
                if not is_ours(error):
                    raise
                if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs of the sweep go on
                    sys.stderr.write(f"error: {one_line(str(error))}\n")
                    return None
                fail(str(error))

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises errors instead of printing them
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, config_name))
            except ValueError as error:
                if not raised_in(error).is_relative_to(Path(hydra.__file__).parent):
                    raise
                fail(str(error))
            except KeyboardInterrupt:
                sys.stderr.write("interrupted\n")
                raise SystemExit(130) from None

        return run

    return decorate


def fail(message: str) -> None:
    sys.stderr.write(f"error: {one_line(message)}\n")
    raise SystemExit(2)


def one_line(message: str) -> str:
    return " ".join(message.split())


def is_ours(error: BaseException) -> bool:
    """Whether our own code raised it, which it does for what a user can get wrong, or the operating system did."""
    if isinstance(error, OSError) and error.errno is not None:
        return True
    file = raised_in(error)
    return file.is_relative_to(PACKAGE) or file in (PACKAGE.parent / "train.py", PACKAGE.parent / "sample.py")


def raised_in(error: BaseException) -> Path:
    """The file whose code raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename).resolve() if trace is not None else Path()


# ---- messages for what Hydra refuses


def explain(error: Exception, config_name: str) -> str:
    """Hydra's or OmegaConf's error as one sentence with the nearest valid name."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    if match := re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text):
        key = match[1].split("@")[0]
        if key in groups():
            hint = re.search(r"Did you mean to override (\S+?)\?", text)
            way_out = (
                f"did you mean {hint[1]}?" if hint else "no choice made here has it; --cfg job shows what is there"
            )
            return f"{match[1]} is not a part of this config; {way_out}"
        if match := re.search(r"Missing mandatory value: (\S+)", text):
            return f"{match[1]} has no value; add {match[1]}=... to the command"
        return unknown_key(key, config_name)
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match[1].rpartition("/")
        return f"{group}={choice} does not exist; " + suggest(choice, choices(group))
    return text.split("\n")[0]


def unknown_key(key: str, config_name: str) -> str:
    """-> '<key> is not a config key; did you mean ...'."""
    with_groups = [] if "." in key else [g for g in groups() if g not in TOP_LEVEL.split()]
    chosen = [a.split(",")[0] for a in sys.argv[1:] if a.split("=")[0] in groups()]  # of a sweep, the first choice
    keys = list(flatten(OmegaConf.to_container(compose(config_name, chosen), resolve=False)))
    same_parent = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return f"{key} is not a config key or group; " + suggest(key, same_parent + keys + with_groups)


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


def check_train(cfg: DictConfig) -> None:
    """Checks a resolved config of train.yaml: see config_check."""
    check(plain(cfg))


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
        if not isinstance(error.__cause__, (ValueError, TypeError, AttributeError)):
            raise
        match = re.search(r"full_key: (\S+)", str(error))
        key, message = match[1] if match else path, str(error.__cause__)
        key = re.sub(r"(coders|quantizers)(\d)", r"\1.\2", key)  # hydra leaves out the dot before a list index
        about_a_key = message.split()[0].split("=")[0] in OmegaConf.select(node._get_root(), key, default={})
        raise ConfigError(f"{key}.{message}" if about_a_key else f"{key}: {message}") from error
