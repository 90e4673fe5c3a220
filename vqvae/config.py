"""Configs: composed by Hydra, checked whole before any work, built by `_target_`.

The only file besides run_folder.py and the entry points that knows hydra and omegaconf.
"""

from __future__ import annotations

import functools
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not (3, 10) <= sys.version_info < (3, 14):  # hydra-core 1.3 crashes on 3.14
    sys.exit(f"error: this needs Python 3.10 to 3.13, and this is {sys.version.split()[0]}")

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config_check import TOP_LEVEL, ConfigError, check, check_keys, describe, fits, suggest

HYDRA = Path(hydra.__file__).resolve().parent
PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE.parent / "configs"
SAVED_BYTES, SAVED_DEPTH = 100_000, 30  # of a saved config, at most; those of the configs here have 6,000 and 8
RANK_0_SPEAKS_SECONDS = 3
OF_TORCH = re.compile(
    r"Error\(s\) in loading state_dict|allocate memory|out of memory|[Ss]torage size calculation overflowed"
)
OTHER_RANK = re.compile(r"Connection (closed|reset) by peer|Broken pipe")  # as gloo says it
OmegaConf.register_new_resolver("sweep_dir", lambda run_dir: run_dir or "runs/sweep", replace=True)


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """A command-line program on configs/<config_name>.yaml: what a user got wrong is one line, and exit code 2."""

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(cfg: DictConfig) -> Any:
            try:
                return function(cfg)
            except Exception as error:
                if (message := mistake(error, config_name)) is None:
                    raise
                if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs of the sweep go on
                    sys.stderr.write(f"error: {one_line(message)}\n")
                    return None
                fail(message)

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises errors instead of printing them
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except (HydraException, OmegaConfBaseException, ValueError, TypeError, RuntimeError) as error:
                if (message := mistake(error, config_name)) is None:
                    raise
                fail(message)
            except KeyboardInterrupt:
                sys.stderr.write("interrupted\n")
                raise SystemExit(130) from None

        return run

    return decorate


def fail(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # what all ranks find, rank 0 tells: then torchrun ends the others
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(RANK_0_SPEAKS_SECONDS)
    sys.stderr.write(f"error: {one_line(message)}\n")
    raise SystemExit(2)


def one_line(message: str) -> str:
    return " ".join(message.split())


def mistake(error: Exception, config_name: str) -> str | None:
    """What to tell a user whose command ended in an error; None where the program itself is at fault."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        return mistake(error.__cause__, config_name)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, config_name)
    if isinstance(error, RuntimeError) and OTHER_RANK.search(str(error)):
        return "another process of this run has ended"
    if isinstance(error, RuntimeError) and "Could not detect" in str(error):  # submitit, without Slurm
        return f"hydra/launcher=submitit_slurm: {error}; this needs a machine that submits to Slurm"
    if isinstance(error, (TypeError, ValueError)) and raised_in(error).is_relative_to(HYDRA):
        return f"hydra cannot put this command together ({error}): a group takes the name of one choice"
    if isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError)) and is_ours(error):
        return words(error)
    return None


def words(error: BaseException) -> str:
    """The message of an error, or what stands behind an allocator's."""
    if asked := re.search(r"tried to allocate (\d+) bytes", str(error)):
        return f"this does not fit in memory: {int(asked[1]) / 2**30:,.1f} GiB were asked for at once"
    return str(error) or "this does not fit in memory"


def is_ours(error: BaseException) -> bool:
    """Whether it says what a user can get wrong: our own code raised it, or the operating system, or torch for weights
    that do not fit the networks or networks that do not fit in memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return True
    if isinstance(error, RuntimeError):
        return OF_TORCH.search(str(error)) is not None
    if isinstance(error, ConfigError):
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
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read as key=value: a value with spaces, commas, quotes or brackets goes in quotes"
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


def read_saved(file: Path) -> DictConfig:
    """A config.yaml that a run has saved, as it is: plain values, nothing that YAML or OmegaConf would follow or replace.

    Raises ConfigError. A few lines of aliases grow to gigabytes, and interpolations read this machine's environment.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(SAVED_BYTES + 1)
        if len(data) > SAVED_BYTES:
            raise ConfigError(f"{file} is no config of a run: it has more than {SAVED_BYTES} bytes")
        text, depth = data.decode(), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            strange = strangeness(event, depth)
            if strange:
                raise ConfigError(f"{file}, line {event.start_mark.line + 1}: {strange}, which no saved config has")
        cfg = OmegaConf.load(io.StringIO(text))  # by a safe loader that refuses a key given twice
    except ConfigError:
        raise
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} is no config of a run: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{file} is no config of a run: it holds no keys")
    return cfg


def strangeness(event: yaml.Event, depth: int) -> str | None:
    """What a saved config must not hold, if this event of its YAML is that."""
    if isinstance(event, yaml.AliasEvent):
        return f"an alias (*{event.anchor})"
    if depth > SAVED_DEPTH:
        return f"more than {SAVED_DEPTH} levels"
    if getattr(event, "tag", None) not in (None, "!"):
        return f"a tag ({event.tag})"
    if isinstance(event, yaml.ScalarEvent) and ("${" in event.value or event.value == "???" or "\0" in event.value):
        return f"a value to be replaced ({event.value!r})"
    return None


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
        if not isinstance(error.__cause__, (ValueError, TypeError, AttributeError)) and not is_ours(
            error.__cause__ or error
        ):
            raise
        match = re.search(r"full_key: (\S+)", str(error))
        key, message = match[1] if match else path, words(error.__cause__ or error)
        key = re.sub(r"(coders|quantizers)(\d)", r"\1.\2", key)  # hydra leaves out the dot before a list index
        about_a_key = message.split()[0].split("=")[0] in (OmegaConf.select(node._get_root(), key) or {})
        raise ConfigError(f"{key}.{message}" if about_a_key else f"{key}: {message}") from error
