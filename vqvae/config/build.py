"""Objects from checked config nodes."""

from __future__ import annotations

import re
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from vqvae.config.messages import user_message
from vqvae.errors import UserError


def build(node: Any, path: str, **runtime: Any) -> Any:
    """Instantiates a checked node with arguments that are known only at run time.

    What a constructor says about a user's mistake becomes a UserError that begins with the key; its other errors are raised
    as they are.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, Exception):
            raise
        message = user_message(cause)
        if message is None:
            raise cause from None
        match = re.search(r"full_key: (\S+)", str(error))
        key = re.sub(r"(coders|quantizers)\[?(\d)\]?", r"\1.\2", match[1] if match else path)  # as it is typed
        names_a_key = message.split()[0].split("=")[0] in (OmegaConf.select(node._get_root(), key) or {})
        raise UserError(f"{key}.{message}" if names_a_key else f"{key}: {message}") from error
