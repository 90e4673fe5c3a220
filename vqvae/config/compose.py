"""Configs composed by Hydra from configs/, resolved, and checked before any work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config.keys import check_keys
from vqvae.config.types import mistake_in
from vqvae.errors import UserError
from vqvae.surroundings.own_folder import own_folder

SEVERAL = ("logger",)  # groups that take a list of choices
PACKAGE = Path(__file__).resolve().parent.parent
CONFIGS = next(p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if p.is_dir())  # installed, or a checkout


def compose(config_name: str, overrides: list[str] | None = None) -> DictConfig:
    """The config that the command line would make, for tests, scripts and messages."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    check_group_choices(overrides or [])
    other = GlobalHydra.instance().hydra  # of the program that this is called in, if that is one of Hydra's
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose(config_name, overrides or [])
    finally:
        GlobalHydra.instance().hydra = other


def check_group_choices(arguments: Iterable[str]) -> None:
    """Raises UserError for group=value where the value is no name: hydra itself would end in an error of its own code."""
    parser = OverridesParser.create()
    for argument in arguments:
        try:
            override = parser.parse_override(argument)
        except HydraException:  # an option such as --help, or what Hydra will refuse
            continue
        value = override.value()
        given: list[Any] = list(value.list) if isinstance(value, ChoiceSweep) else [value]
        if override.key_or_group in SEVERAL:
            given = [one for choice in given for one in (choice if isinstance(choice, list) else [choice])]
        for choice in given:
            nameless = isinstance(choice, (bool, int, float, list, dict)) or (
                choice is None and not override.is_delete()
            )
            if nameless and override.key_or_group in groups():
                raise UserError(f"{argument} cannot be used: a group takes the name of one choice")


def choices(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*") if p.is_dir())


def decoder_channels(*, _root_: DictConfig) -> int | None:
    """Value of ${decoder_channels:}: as many channels as loss.head asks of the decoder; None where it cannot be built.

    What is wrong is then found by `check_train`, which looks at loss.head first.
    """
    with own_folder():
        from vqvae.config.build import build
        from vqvae.config.schema import check_head

    try:
        check_head(OmegaConf.to_container(_root_.loss.head, resolve=True), list(_root_.allow_targets))
        channels = _root_.data.channels
        head = build(_root_.loss.head, "loss.head", variance=1.0)
        return head.decoder_channels(channels) if isinstance(channels, int) else None
    except (UserError, OmegaConfBaseException):
        return None


def total(*numbers: Any) -> Any:
    """Sum for configs, as ${sum:${a},${b}}. What is no number is passed on, for the check that names its key."""
    others = [number for number in numbers if type(number) is not int]
    return others[0] if others else sum(numbers)


OmegaConf.register_new_resolver("decoder_channels", decoder_channels, replace=True)
OmegaConf.register_new_resolver("sum", total, replace=True)


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy with every interpolation replaced. Raises UserError for a value that is missing."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        first = min(missing)
        raise UserError(f"{first} has no value; add {first}=... to the command")
    cfg = cfg.copy()
    OmegaConf.resolve(cfg)
    return cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A resolved config as nested dicts and lists."""
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def check_keys_of(config_name: str, cfg: DictConfig) -> None:
    """Checks a flat config, such as sample's, against its YAML: the keys, and the types of the values there."""
    defaults = OmegaConf.load(CONFIGS / f"{config_name}.yaml")
    assert isinstance(defaults, DictConfig)
    valid = [str(key) for key in defaults if key not in ("defaults", "hydra")]
    check_keys("", list(cfg), valid)
    for key in valid:
        default = None if OmegaConf.is_missing(defaults, key) else defaults[key]
        kind = float if isinstance(default, float) else type(default)
        if isinstance(default, (bool, int, float, str)) and (message := mistake_in(key, cfg[key], kind)):
            raise UserError(message)


def check_train(cfg: DictConfig) -> None:
    """Checks a resolved config of train.yaml: see `schema.check`."""
    with own_folder():
        from vqvae.config.schema import check  # imports torch

    check(plain(cfg))
