"""What may differ where a run goes on: what does not change its past."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from vqvae.config.build import build
from vqvae.training.schedules import Schedule
from vqvae.training.settings import TrainerConfig

MOST_SHOWN = 8  # differences in a message
# Keys that decide where, for how long, how often and how a run works, and not what it has come to.
FREE_KEYS = re.compile(
    r"^(run_dir|stages|search_sweeps|device|allow_targets|logger|evaluation|report|model\.gradient_checkpointing"
    r"|data\.(root|urls|val_urls|resident|workers|cache_dir|most_unreadable|most_pixels|show)"
    r"|(prior\.)?trainer\.(max_time_minutes|on_nonfinite|max_skipped_steps|eval_batch_size|accumulation|compile|cuda_graph"
    r"|(log|eval|preview|checkpoint)_every_steps))(\.|$)"
)
LENGTHS = re.compile(
    r"^(prior\.)?trainer\.(steps|epochs)$"
)  # may differ where the schedule allows it: see length_problem


def may_differ(key: str, begun: Iterable[str]) -> bool:
    """True for keys that are free, and for those of a stage that has not begun. begun: stages that have a checkpoint."""
    return bool(FREE_KEYS.match(key) or LENGTHS.match(key)) or (key.split(".")[0] == "prior" and "prior" not in begun)


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) of every leaf in which two plain configs differ."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and any(map(is_node, [*old, *new])):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new:
            yield prefix.rstrip("."), old, new
        return
    for key in dict.fromkeys([*old, *new]):
        yield from differences(old.get(key), new.get(key), f"{prefix}{key}.")


def interpolated(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys of an unresolved config whose values are made of other keys."""
    if isinstance(node, str) and "${" in node:
        yield prefix.rstrip(".")
    for key, value in dict(
        enumerate(node) if isinstance(node, list) else node if isinstance(node, dict) else {}
    ).items():
        yield from interpolated(value, f"{prefix}{key}.")


def is_node(value: Any) -> bool:
    return isinstance(value, (dict, list))


def sentence(changes: list[tuple[str, Any, Any]], typed: list[str]) -> str:
    """'key is old there, new here; ...', those that were typed first, and not more than a few.

    Of a part of another class, the class is named, and nothing in it.
    """
    classes = {key.removesuffix("_target_"): pair for key, *pair in changes if key.endswith("_target_")}
    outer = {key: pair for key, pair in classes.items() if not key.startswith(tuple(classes.keys() - {key}))}
    told = [(key[:-1], {"_target_": old}, {"_target_": new}) for key, (old, new) in outer.items()]
    told += [change for change in changes if not change[0].startswith(tuple(outer))]
    ordered = sorted(told, key=lambda change: not any(f"{change[0]}.".startswith(f"{key}.") for key in typed))
    shown = [f"{key} is {named(old, new)} there, {named(new, old)} here" for key, old, new in ordered[:MOST_SHOWN]]
    return "; ".join(shown) + (f"; and {len(ordered) - MOST_SHOWN} more" if ordered[MOST_SHOWN:] else "")


def named(value: Any, other: Any) -> Any:
    """The class of a part, with its module where the other's has the same name; any other value as it is."""
    names = [str(one["_target_"]).split(".") for one in (value, other) if isinstance(one, dict) and "_target_" in one]
    if not isinstance(value, dict) or "_target_" not in value:
        return value
    alike = len(names) == 2 and names[0][-1] == names[1][-1]
    return ".".join(names[0][-2:]) if alike else names[0][-1]


def length_problem(before: int, now: int, done: int, stage: str, cfg: Any) -> str | None:
    """Why a stage that was planned for `before` steps, of which some are done, cannot end at `now`; None if it can."""
    if now < done:
        return f"{done} steps are done"
    plans = {"prior.schedule": (cfg.prior, 0)} if stage == "prior" else {"schedule": (cfg, 0)}
    if stage == "autoencoder" and cfg.adversary.network is not None:
        plans["adversary.schedule"] = cfg.adversary, cfg.adversary.start_step
    for key, (node, start) in plans.items():
        schedule: Schedule = build(node.schedule, key)
        if any(schedule(step, before - start) != schedule(step, now - start) for step in range(done - start)):
            return (
                f"the learning rate of the {done} steps that are done was planned for {before} "
                f"({key}={type(schedule).__name__.lower()})"
            )
    return None


def total_steps(settings: TrainerConfig, train_size: int | None) -> int | None:
    """Steps of a stage; None where they follow from a number of items that is not known."""
    return settings.total_steps(train_size or 0) if settings.steps is not None or train_size else None
