"""A config that a run has saved, read as a stranger's: plain values only."""

from __future__ import annotations

import io
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqvae.config.renames import rename_keys, rename_targets
from vqvae.errors import UserError

SAVED_BYTES, SAVED_DEPTH = 100_000, 30  # of a saved config, at most; those of the configs here have 6,000 and 8


def read_saved(file: Path) -> DictConfig:
    """A config.yaml that a run has saved, as it is: plain values, nothing that YAML or OmegaConf would follow or replace.

    Raises UserError. A few lines of aliases grow to gigabytes, and interpolations read this machine's environment.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(SAVED_BYTES + 1)
        if len(data) > SAVED_BYTES:
            raise UserError(f"{file} is no config of a run: it has more than {SAVED_BYTES} bytes")
        text, depth = data.decode(), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            forbidden = forbidden_yaml(event, depth)
            if forbidden:
                raise UserError(f"{file}, line {event.start_mark.line + 1}: {forbidden}, which no saved config has")
        cfg = OmegaConf.load(io.StringIO(text))  # by a safe loader that refuses a key given twice
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} is no config of a run: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{file} is no config of a run: it holds no keys")
    return OmegaConf.create(rename_keys(rename_targets(OmegaConf.to_container(cfg))))


def forbidden_yaml(event: yaml.Event, depth: int) -> str | None:
    """The name of this YAML event if a saved config must not hold it, else None."""
    if isinstance(event, yaml.AliasEvent):
        return f"an alias (*{event.anchor})"
    if depth > SAVED_DEPTH:
        return f"more than {SAVED_DEPTH} levels"
    if getattr(event, "tag", None) not in (None, "!"):
        return f"a tag ({event.tag})"
    if isinstance(event, yaml.ScalarEvent) and ("${" in event.value or event.value == "???" or "\0" in event.value):
        return f"a value to be replaced ({event.value!r})"
    return None
