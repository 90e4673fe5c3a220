"""Names of config keys. Knows no torch, so that a misspelled key is told at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from vqvae.errors import UserError, suggest
from vqvae.ranges import CountOrZero, Ge, LessThanOne, NonNegativeFloat, NonNegativeInt, PositiveFloat

SETTINGS: dict[str, Any] = {  # of the top level; the other keys there are groups
    "seed": Annotated[int, Ge(0)],
    "run_dir": str | None,
    "stages": list[str],
    "tokenizer": str | None,
    "init_from": str | None,
    "train": Literal["all", "decoder"],
    "device": Literal["auto", "cuda", "cpu", "mps"],
    "search_sweeps": CountOrZero,
    "report": bool,
    "allow_targets": list[str],
}
GROUPS = [
    *("data", "model", "quantizer", "loss", "adversary", "optimizer", "schedule", "trainer", "evaluation"),
    *("prior", "logger"),
]
TOP_LEVEL = [*SETTINGS, *GROUPS]
PRIOR_SETTINGS: dict[str, Any] = {
    "flip": bool,
    "conditions": list[str] | dict[str, float] | None,
    "class_dropout": LessThanOne,
    "label_smoothing": LessThanOne,
    "guidance": NonNegativeFloat,
    "gradient_checkpointing": bool,
}
EVALUATION: dict[str, Any] = {
    "frechet": CountOrZero,
    "backbone": str,
    "backbone_file": str | None,
    "monitor": Literal["mse", "frechet"],
}
ADVERSARY_SETTINGS: dict[str, Any] = {
    "augment": list[Literal["color", "translation", "cutout"]],
    "weight": NonNegativeFloat,
    "adaptive_limit": PositiveFloat | None,
    "start_step": NonNegativeInt,
}
LOSS = ["head", "terms"]
ADVERSARY = ["network", "loss", "terms", "optimizer", "schedule", *ADVERSARY_SETTINGS]
PRIOR = ["network", "head", "optimizer", "schedule", "trainer", *PRIOR_SETTINGS]


def check_keys(path: str, keys: list[Any], valid: list[str], required: list[str] | None = None) -> None:
    """Raises UserError for a key that is not valid, and for one that is required and missing."""

    def full(key: Any) -> str:
        return f"{path}.{key}" if path else str(key)

    for key in keys:
        if key not in valid:
            raise UserError(f"{full(key)} is not a config key; " + suggest(key, valid, f"{path}." if path else ""))
    if missing := [key for key in required or [] if key not in keys]:
        raise UserError(f"{full(missing[0])} is missing")
