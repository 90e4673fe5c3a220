"""What a config describes: the model, the objective, the adversary."""

from __future__ import annotations

from typing import Any

import torch

from vqvae.config.build import build
from vqvae.data.base import Data
from vqvae.errors import UserError
from vqvae.inference.tiles import has_fixed_size
from vqvae.losses.heads import Head
from vqvae.losses.likelihood import Likelihood
from vqvae.losses.objective import Objective
from vqvae.model import VQVAE
from vqvae.stages.adversary import Adversary


def build_model(cfg: Any, data: Data, variance: float) -> tuple[VQVAE, Head]:
    """Networks and output head of a config. Raises UserError if they do not fit each other, or the data."""
    build(cfg.quantizer, "quantizer")  # by itself, so that errors name the user's key and not its copy below `model`
    head: Head = build(cfg.loss.head, "loss.head", variance=variance)
    model: VQVAE = build(cfg.model, "model")
    if isinstance(head, Likelihood) and data.item_type != torch.uint8:
        raise UserError(
            f"loss={head.name} is a likelihood of 8-bit values, and those of this data are {data.value_type}: choose loss=mse"
        )
    wanted, channels = head.decoder_channels(data.channels), model.decoders[0].channels
    if channels != wanted:
        raise UserError(
            f"model.decoders.0.channels={channels} does not suit the head, which needs {wanted}: "
            "write ${decoder_channels:} there"
        )
    try:
        model.code_shapes(data.size)
    except UserError as error:
        raise UserError(f"data.{data.size_key}={getattr(data, data.size_key)}: {error}") from error
    check_buckets(model, data)
    return model, head


def sizes_of(data: Data) -> list[tuple[int, ...]]:
    """Sizes of all items that the autoencoder sees."""
    return [data.size, *(tuple(size) for size in getattr(data, "buckets", None) or [])]


def check_buckets(model: VQVAE, data: Data) -> None:
    """Raise UserError where the networks do not take all shapes of data.buckets."""
    for size in sizes_of(data)[1:]:
        if has_fixed_size(model, data.size):
            raise UserError("data.buckets needs networks that take images of any size, such as model=conv or resnet")
        try:
            model.code_shapes(size)
        except UserError as error:
            raise UserError(f"data.buckets, {list(size)}: {error}") from error


def build_objective(cfg: Any, head: Head, data: Data, variance: float) -> Objective:
    """Reconstruction objective of a config. Raises UserError where it has no term, or one that does not suit the data."""
    terms = {}
    for name, node in cfg.loss.terms.items():
        key = f"loss.terms.{name}"
        terms[name] = build(node, key, variance=variance)
        try:
            for size in sizes_of(data):
                terms[name].check(data.channels, size)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    objective = Objective(head, terms)
    if not objective.weights:
        raise UserError("loss has no terms: add one, such as +loss/term@loss.terms.mse=mse")
    return objective


def build_adversary(node: Any, data: Data) -> Adversary | None:
    """Adversary of a config; None where there is none. Raises UserError for one that cannot judge the data."""
    if node.network is None:
        return None
    network = build(node.network, "adversary.network")
    try:
        for size in sizes_of(data):
            network.check(size)
    except UserError as error:
        raise UserError(f"adversary.network.{error}") from error
    loss = build(node.loss, "adversary.loss")
    terms = {name: build(term, f"adversary.terms.{name}") for name, term in node.terms.items()}
    return Adversary(network, loss, terms, [*node.augment], node.weight, node.adaptive_limit, node.start_step)
