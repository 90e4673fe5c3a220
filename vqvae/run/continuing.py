"""What may differ where a run goes on: what does not change its past."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from vqvae.config.build import build
from vqvae.config.compose import compose, plain, resolve
from vqvae.training.schedules import Schedule
from vqvae.training.settings import TrainerConfig

Change = tuple[str, Any, Any]  # key, old value, new value
MOST_SHOWN = 8  # differences in a message
MANY_ALIKE = 4
# Keys that decide where, for how long, how often and how a run works, and not what it has come to.
FREE_KEYS = re.compile(
    r"^(run_dir|stages|search_sweeps|device|allow_targets|logger|evaluation|report|(model|prior)\.gradient_checkpointing"
    r"|data\.(root|path|urls|val_urls|resident|workers|cache_dir|most_unreadable|most_pixels|show)"
    r"|(prior\.)?trainer\.(max_time_minutes|on_nonfinite|max_skipped_steps|eval_batch_size|accumulation|compile|cuda_graph|sharding"
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


def typed_keys(overrides: Iterable[str]) -> list[str]:
    """The keys of the config that overrides set: quantizer/init@quantizer.inner.init=normal -> quantizer.inner.init."""
    keys = (override.lstrip("+~").split("=")[0] for override in overrides)
    return [key.rpartition("@")[2].replace("/", ".") for key in keys]


def may_merge(stored: dict[str, Any], new: dict[str, Any], typed: list[str], begun: list[str]) -> bool:
    """True if nothing that was typed changes what may not differ. What names no key of the config, as an experiment, may."""
    if all(may_differ(key, begun) for key in typed):
        return True
    return all(key.split(".")[0] in new for key in typed) and not any(
        is_within(key, typed) and not may_differ(key, begun) for key, *_ in differences(stored, new)
    )


def due_to(changes: list[Change], typed: list[str]) -> list[Change]:
    """Those changes that were typed, or are no default, and so follow from what was typed."""
    defaults = plain(resolve(compose("train")))
    return [one for one in changes if is_within(one[0], typed) or one[2] != value_of(defaults, one[0])]


def is_within(key: str, typed: list[str]) -> bool:
    return any(f"{key}.".startswith(f"{one}.") for one in typed)


def value_of(node: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        if isinstance(node, list):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node


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


def sentence(changes: list[Change], typed: list[str]) -> str:
    """'key is old there, new here; ...', those that were typed first, and not more than a few.

    Of a part of another class, the class is named, and nothing in it.
    """
    classes = {key.removesuffix("_target_"): pair for key, *pair in changes if key.endswith("_target_")}
    outer = {key: pair for key, pair in classes.items() if not key.startswith(tuple(classes.keys() - {key}))}
    told = [(key[:-1], {"_target_": old}, {"_target_": new}) for key, (old, new) in outer.items()]
    told += without_their_likes([change for change in changes if not change[0].startswith(tuple(outer))])
    ordered = sorted(told, key=lambda change: not is_within(change[0], typed))
    shown = [f"{key} is {named(old, new)} there, {named(new, old)} here" for key, old, new in ordered[:MOST_SHOWN]]
    return "; ".join(shown) + (f"; and {len(ordered) - MOST_SHOWN} more" if ordered[MOST_SHOWN:] else "")


def without_their_likes(changes: list[Change]) -> list[Change]:
    """The changes, but of a group of parts that comes or goes as a whole, such as an adversary, its first part alone."""
    comes = {key.split(".")[0]: old is None for key, old, new in changes if is_node(new if old is None else old)}
    found: dict[str, list[Change]] = {}
    for change in changes:
        group = change[0].split(".")[0]
        whole = group in comes and change[1 if comes[group] else 2] is None
        found.setdefault(group if whole else change[0], []).append(change)
    return [one for alike in found.values() for one in (alike[:1] if len(alike) >= MANY_ALIKE else alike)]


def named(value: Any, other: Any) -> Any:
    """The class of a part, with its module where the other's has the same name; of a list, of each; else the value."""
    if isinstance(value, list) and any(map(is_node, value)):
        return f"[{', '.join(str(named(one, {'_target_': ''})) for one in value)}]"
    names = [str(one["_target_"]).split(".") for one in (value, other) if isinstance(one, dict) and "_target_" in one]
    if isinstance(value, dict) and "_target_" not in value:
        return f"[{', '.join(map(str, value))}]"
    if not isinstance(value, dict):
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
