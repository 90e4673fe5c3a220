"""Checks of a whole run before any work: everything is built once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vqvae.config.build import build
from vqvae.errors import UserError
from vqvae.inference.inputs import DataInfo
from vqvae.inference.trained_model import TrainedModel
from vqvae.run.folder import STAGES
from vqvae.run.parts import build_model
from vqvae.run.run import Run
from vqvae.run.train import load_initial_weights
from vqvae.training.settings import TrainerConfig


def check_run(run: Run) -> dict[str, nn.Module]:
    """Build everything once. Returns the untrained networks: `model`, and `prior` if it is to be trained.

    Raises UserError for whatever does not fit, or cannot be read.
    """
    model, head = build_model(run.cfg, run.data, variance=1.0)
    data = DataInfo(type(run.data).__name__, run.data.channels, run.data.size, run.data.class_names)
    trained = TrainedModel(model, head, data, fingerprint="")
    if run.cfg.search_sweeps:
        try:
            trained.check_searchable(run.data.size)
        except UserError as error:
            raise UserError(f"search_sweeps={run.cfg.search_sweeps}: {error}; 0 turns the search off") from error
    if "autoencoder" in run.cfg.stages and run.folder.weights_file("autoencoder") is None:
        if run.cfg.train == "decoder" and run.cfg.init_from is None:
            raise UserError(
                "train=decoder needs init_from=<run_dir of a finished run>, whose encoder and codes it keeps"
            )
        stage = run.autoencoder_stage(variance=1.0)
        if run.cfg.init_from is not None and not run.folder.has_begun("autoencoder"):
            load_initial_weights(run, "autoencoder", stage)
    if "autoencoder" not in run.cfg.stages and run.cfg.tokenizer is None:
        run.folder.weights("autoencoder")
    build(run.cfg.logger, "logger").check()
    check_data(run, bool(model.codebook_sizes))
    run.conditions.found()
    trains = {stage: run.folder.weights_file(stage) is None for stage in STAGES}
    trains["autoencoder"] &= run.cfg.tokenizer is None
    check_settings(run.cfg, "", run.known.count("train") if trains["autoencoder"] else None)
    if run.cfg.adversary.network is not None:
        check_adversary(run)
    networks: dict[str, nn.Module] = {"model": model}
    if "prior" in run.cfg.stages:
        networks["prior"] = prior = run.new_prior(model)
        run.prior_stage(prior, trained)
        check_settings(run.cfg.prior, "prior.", run.known.count("train") if trains["prior"] else None)
    return networks


def check_data(run: Run, has_codes: bool) -> None:
    """Look for the items that the run was started on. Raises UserError where they are needed, and are not as they were."""
    try:
        for split in ("train", "val"):
            run.split(split)
    except (UserError, OSError) as error:
        if needs_data(run, has_codes):
            raise
        run.folder.note(f"goes on without its data, which it does not need any more: {error}")


def needs_data(run: Run, has_codes: bool) -> bool:
    """True if something of a run is still to be made of its data."""
    folder, source = run.folder, run.folder.source
    trains = [stage for stage in run.cfg.stages if folder.weights_file(stage) is None]
    stores = (["train", *(["train_flipped"] if run.cfg.prior.flip else [])] if "prior" in trains else []) + ["val"]
    if run.conditions.rates is not None and run.conditions.recorded() is None:
        return True
    made = (
        all((source / "codes" / run.store_name(store) / "header.json").is_file() for store in stores) or not has_codes
    )
    trains_items = "autoencoder" in trains and source == folder.path
    return run.known.record is None or trains_items or run.cfg.search_sweeps > 0 or bool(folder.longer) or not made


def check_settings(node: Any, prefix: str, train_size: int | None) -> None:
    """Build the trainer's parts of a stage. train_size: None where it trains no more. Raises UserError, naming the key."""
    settings: TrainerConfig = build(node.trainer, prefix + "trainer")
    build(node.schedule, prefix + "schedule")
    check_optimizer(node.optimizer, prefix)
    if train_size is not None and settings.batch_size > train_size:
        raise UserError(
            f"{prefix}trainer.batch_size={settings.batch_size} is larger than the training set; at most {train_size} fits"
        )


def check_adversary(run: Run) -> None:
    """Raises UserError, naming the key, for what does not fit in how the adversary is trained."""
    node, settings = run.cfg.adversary, build(run.cfg.trainer, "trainer")
    if settings.sharding == "fsdp":
        raise UserError(
            "trainer.sharding=fsdp does not go with an adversary, because its weight needs the gradient of a single layer: "
            "take trainer.sharding=none"
        )
    build(node.schedule, "adversary.schedule")
    check_optimizer(node.optimizer, "adversary.")
    steps = settings.total_steps(run.known.count("train"))
    if node.start_step >= steps:
        raise UserError(f"adversary.start_step={node.start_step} is beyond the end of the run, which has {steps} steps")
    if node.adaptive_limit is not None and settings.compiles(run.device, steps):
        raise UserError(
            f"adversary.adaptive_limit={node.adaptive_limit} does not go with trainer.compile={settings.compile}, because "
            "compiled networks do not give the gradients of one layer alone: set one to null, or the other to false"
        )


def check_optimizer(node: Any, prefix: str) -> None:
    """Build an optimizer. Raises UserError, naming the key, for what does not fit."""
    hidden = torch.nn.Parameter(torch.zeros(1, 1))
    hidden.hidden_matrix = True  # type: ignore[attr-defined]  # gives Muon a matrix, too
    try:
        build(node, prefix + "optimizer")([{"params": [torch.nn.Parameter(torch.zeros(1)), hidden]}])
    except ValueError as error:
        if not isinstance(error, UserError) and not node["_target_"].startswith("torch.optim."):
            raise
        raise UserError(f"{prefix}optimizer: {error}") from error
