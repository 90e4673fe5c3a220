"""What people type that is no key here, and what to type instead."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from vqvae.config.compose import CONFIGS, choices, compose
from vqvae.config.keys import GROUPS
from vqvae.errors import UserError

RATE = "optimizer.lr= sets the learning rate, and prior.optimizer.lr= that of the prior"
SEVERAL = "torchrun --nproc_per_node=2 train.py ... uses two GPUs; device=cpu none"
GOES_ON = "the same command with run_dir=<the run> continues it"
PICTURES = "data=folder data.root=<it> takes a folder of images"
MEANT = {
    "lr": RATE,
    "learning_rate": RATE,
    "gpus": SEVERAL,
    "gpu": SEVERAL,
    "devices": SEVERAL,
    "num_gpus": SEVERAL,
    "resume": GOES_ON,
    "checkpoint": GOES_ON,
    "ckpt": GOES_ON,
    "load": "init_from=<a run> starts from its weights; " + GOES_ON,
    "root": PICTURES,
    "dataset": PICTURES,
    "data_dir": PICTURES,
    "data_path": PICTURES,
    "path": PICTURES,
    "folder": PICTURES,
    "name": "run_dir=runs/<name> names a run",
    "output": "run_dir=<folder> names the folder of a run",
    "out": "run_dir=<folder> names the folder of a run",
    "output_dir": "run_dir=<folder> names the folder of a run",
    "codebook_size": "quantizer.codebook.size= is the number of codes",
    "num_embeddings": "quantizer.codebook.size= is the number of codes",
    "embedding_dim": "quantizer.codebook.dim= is the width of the codes, quantizer.dim= that of the latents",
    "commitment_cost": "quantizer.regularizers.commitment.weight= is the commitment loss",
    "beta": "quantizer.regularizers.commitment.weight= is the commitment loss",
    "wandb": "logger=off turns wandb off, logger.project= names a project",
}
INSTEAD = {  # choices that do not exist: what is meant
    "prior=none": "stages=[autoencoder] trains without a prior",
    "logger=none": "logger=off writes files only",
    "quantizer=none": "quantizer=identity passes latents on",
    "quantizer=vqvae": "quantizer=ema is the default, and quantizer=vq learns its codes by gradient",
    "adversary=gan": "adversary=patch is a discriminator of patches",
    "data=imagenet": "data=folder data.root=<it> data.image_size=128 takes a folder of images",
}
INSTALLED = {
    "hydra/launcher": "pip install 'vqvae[slurm]' brings submitit_slurm",
    "hydra/sweeper": "pip install hydra-optuna-sweeper, or another of Hydra's plugins, brings one",
}
OPTIONS = {
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
}
MOST_NAMED = 3  # choices that have a key
LIKELIEST = {"data=folder"}  # named before the other choices that have a key


def check_options(arguments: list[str], config_name: str) -> None:
    """Raises UserError for options with dashes that do not exist, and for a path alone."""
    for place, argument in enumerate(arguments):
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in OPTIONS:
            value = argument.partition("=")[2] or next(iter(arguments[place + 1 :]), "...")
            key = name.lstrip("-").replace("-", "_")
            better = MEANT.get(key, f"{whole_key(key, config_name)}={value}")
            raise UserError(f"{name} is no option: settings are written key=value, without dashes; {better}")
        before = arguments[place - 1] if place else ""
        after, *more = [*arguments[place + 1 : place + 3], ""]
        if "=" not in argument and before.endswith("="):
            raise UserError(f"there are no blanks around =: {before}{argument}")
        if "=" not in argument and after.startswith("="):
            raise UserError(f"there are no blanks around =: {argument}{after}{more[0] if after == '=' else ''}")
        if (
            "=" not in argument
            and argument[:1] not in "-~+"
            and before not in OPTIONS - {"-m", "--multirun", "--resolve"}
        ):
            key = "run_dir=" if config_name != "train" else "data=folder data.root="
            raise UserError(f"{argument} alone says nothing: settings are written key=value, such as {key}{argument}")


def whole_key(name: str, config_name: str) -> str:
    """A key's name as it is typed, trainer.steps for steps; the name itself where no section of the config has it."""
    sections = OmegaConf.to_container(compose(config_name, []), resolve=False)
    if not isinstance(sections, dict) or name in sections:
        return name
    having = [section for section, values in sections.items() if isinstance(values, dict) and name in values]
    return ".".join([str(having[0]), name]) if len(having) == 1 else name


def meant_below(key: str) -> str | None:
    """What is meant by a dotted key whose last name is no key anywhere: a learning rate, or a key of the same group."""
    group, last = key.split(".")[0], key.rpartition(".")[2]
    hint = MEANT.get(last, "")
    return hint if hint == RATE or hint.startswith(f"{group}.") else None


def absent_choice(group: str, choice: str) -> str | None:
    """What is meant by a choice that does not exist, or None."""
    if group in INSTALLED:
        return INSTALLED[group]
    if group == "data" and f"data={choice}" not in INSTEAD:
        return f"data=folder data.root={choice} takes a folder of that name; choices are {', '.join(choices('data'))}"
    return INSTEAD.get(f"{group}={choice}")


def of_another_choice(key: str, chosen: list[str]) -> str | None:
    """Which choices of its group have a key that the chosen one has not; None where none has. chosen: group=choice."""
    group = key.split(".")[0]
    if "." not in key or group not in GROUPS or not choices(group):
        return None
    current = next(
        (one.partition("=")[2] for one in reversed(chosen) if one.startswith(f"{group}=")), default_of(group)
    )
    own = compose("train", [f"{group}={current}"])[group]
    files = {choice: OmegaConf.load(CONFIGS / group / f"{choice}.yaml") for choice in choices(group)}
    below = key.partition(".")[2]
    owners = [f"{group}={choice}" for choice, config in files.items() if choice != current and has(config, below)]
    owners.sort(key=lambda one: one not in LIKELIEST)
    usual = default_of(group)
    if not owners and usual not in ("", current) and has(compose("train", [f"{group}={usual}"]), key):
        owners = [f"{group}={usual}"]  # of its parts
    if not owners:
        return None
    names = [str(name) for name in own if not str(name).startswith("_")]
    needed_first = sorted(names, key=lambda name: not OmegaConf.is_missing(own, name))
    there = ", ".join(f"{group}.{name}" for name in needed_first)
    return f"it is a key of {', '.join(owners[:MOST_NAMED])}; {group}={current} has {there}"


def has(config: Any, key: str) -> bool:
    """Whether a config has a key, perhaps without a value yet."""
    node = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def default_of(group: str) -> str:
    """The choice of a group in train.yaml."""
    defaults = OmegaConf.load(CONFIGS / "train.yaml").defaults
    return next((str(one[group]) for one in defaults if OmegaConf.is_dict(one) and group in one), "")
