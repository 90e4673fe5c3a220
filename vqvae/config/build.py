"""Objects from checked config nodes."""

from __future__ import annotations

import re
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from vqvae.config.program import is_ours, words
from vqvae.errors import UserError


def build(node: Any, path: str, **runtime: Any) -> Any:
    """Instantiates a checked node with arguments that are known only at run time.

    A ValueError of a constructor becomes a UserError that begins with the key.
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
        raise UserError(f"{key}.{message}" if about_a_key else f"{key}: {message}") from error
