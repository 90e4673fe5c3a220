"""The objects that a run's config describes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.config.build import build
from vqvae.data.base import Data, Split
from vqvae.data.code_store import CodeStore
from vqvae.data.loader import ItemLoader
from vqvae.data.waveforms import Sounds
from vqvae.errors import UserError
from vqvae.inference.inputs import DataInfo
from vqvae.inference.trained_model import TrainedModel
from vqvae.judging.judge import Judge
from vqvae.judging.observer import FrechetObserver
from vqvae.metrics.sounds import SoundObserver
from vqvae.model import VQVAE
from vqvae.networks.blocks import recompute
from vqvae.priors.base import Prior
from vqvae.priors.digits import Digits
from vqvae.priors.sampling import Sampling
from vqvae.run.conditions import KnownConditions, sample_rows
from vqvae.run.encoding import encode
from vqvae.run.folder import RunFolder
from vqvae.run.known_data import KnownData
from vqvae.run.lock import locked
from vqvae.run.parts import build_adversary, build_model, build_objective
from vqvae.stages.adversarial import AdversarialStage
from vqvae.stages.autoencoder import AutoencoderStage, Observer
from vqvae.stages.prior import PriorStage
from vqvae.storage import checkpoint


class Run:
    """A run folder with the objects that its config describes, made when first asked for."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.cfg, self.device = folder, folder.config, distributed.device()
        self.known = KnownData(folder)
        self.data: Data = self.known.data
        self.conditions = KnownConditions(folder, self.known)
        self._loaders: dict[str, ItemLoader] = {}

    def split(self, name: str) -> Split:
        """Split of the data: train, val or test. Raises UserError where it is not what the run was started on."""
        return self.known.split(name)

    def loader(self, split: str) -> ItemLoader:
        """Loader of a split: train, val or test."""
        if split not in self._loaders:
            self._loaders[split] = ItemLoader(self.data, self.split(split), self.device)
        return self._loaders[split]

    def unreadable_items(self) -> dict[str, int]:
        """Split -> the number of items that this process and the other ranks could not read, of those that are there.

        Call it on all ranks.
        """
        loaders = {name: self.loader(name) for name in ("train", "val") if self.known.is_there(name)}
        return {name: len(distributed.any_row(one.unreadable, len(one))) for name, one in loaders.items()}

    def variance(self) -> float:
        """Variance of the training items, in [-1, 1]; computed once and kept in the run folder."""
        path = self.folder.path
        if distributed.broadcast_object(not checkpoint.find(path, "variance")):
            loader = self.loader("train")  # on every rank, because it waits for rank 0 to decode
            with locked(path):
                if distributed.is_main():
                    checkpoint.save(path, "variance", {"variance": loader.variance()})
        distributed.barrier()
        file = checkpoint.find(path, "variance")[-1:]  # on another machine's disk it may not be seen yet
        variance = distributed.broadcast_object(
            checkpoint.load(file[0]).get("variance") if distributed.is_main() else 0.0
        )
        if not isinstance(variance, float) or not 0 <= variance < math.inf:
            raise UserError(f"{file} does not hold a variance; delete it to have it computed again")
        return variance

    def autoencoder_stage(self, variance: float, epoch_steps: Fraction | None = None) -> AutoencoderStage:
        """New autoencoder stage; `epoch_steps`, the steps of an epoch, is needed for training only."""
        model, head = build_model(self.cfg, self.data, variance)
        objective = build_objective(self.cfg, head, self.data, variance).to(self.device)
        if self.cfg.train == "decoder":
            model.freeze_codes()
        parts = (model, objective, variance, self.data.picture_of, epoch_steps, self.observers())
        adversary = build_adversary(self.cfg.adversary, self.data)
        stage = AutoencoderStage(*parts) if adversary is None else AdversarialStage(adversary, *parts)
        if self.cfg.evaluation.monitor == "frechet":
            stage.monitor = stage.observers[-1].monitor
        return stage

    def observers(self) -> list[Observer]:
        """What sounds, and then `evaluation.frechet`, add to evaluations. Raises UserError for what cannot be measured."""
        node = self.cfg.evaluation
        found: list[Observer] = list(sound_observers(self.data))
        if not node.frechet:
            if node.monitor == "frechet":
                raise UserError("evaluation.monitor=frechet needs a number of images, such as evaluation.frechet=2000")
            return found
        judge = Judge.load(node.backbone, node.backbone_file, self.data.channels, self.data.size, self.device)
        return [*found, FrechetObserver.of(judge, node.frechet, self.known.count("val"))]

    def tokenizer(self) -> TrainedModel:
        """Finished autoencoder, without a prior. Raises UserError if it is not finished."""
        self.folder.require("autoencoder")  # before the variance is computed of the data
        model, head = build_model(self.cfg, self.data, self.variance())
        state = self.folder.weights("autoencoder", model)["networks"]["model"]
        checkpoint.load_weights(model, state, self.folder.stage("autoencoder"))
        data = info_of(self.data)
        fingerprint = checkpoint.fingerprint(state)
        return TrainedModel(model, head, data, fingerprint).to(self.device)

    def trained_model(self) -> TrainedModel:
        """Finished autoencoder, and the prior if it is finished. Raises UserError without an autoencoder."""
        trained = self.tokenizer()
        return trained if self.folder.weights_file("prior") is None else self.with_prior(trained)

    def with_prior(self, tokenizer: TrainedModel) -> TrainedModel:
        """A finished autoencoder with the finished prior."""
        trained = copy.copy(tokenizer)
        trained.prior, trained.sampling = self.prior(trained.model), self.sampling()
        trained.guidable = self.guidable
        return trained

    def new_prior(self, model: VQVAE) -> Prior:
        """Untrained prior for the codes of `model`. Raises UserError for a head or a network that does not fit them."""
        head: Digits = build(self.cfg.prior.head, "prior.head")
        prior: Prior = build(
            self.cfg.prior.network,
            "prior.network",
            code_shapes=model.code_shapes(self.data.size),
            digits=[head.of(*codes) for codes in zip(model.codebook_sizes, model.factors())],
            num_classes=len(self.data.class_names),
        )
        head.check(prior.masks)
        if (conditions := self.conditions.found()) is not None:
            prior.condition_on(conditions)
        recompute(prior, self.cfg.prior.gradient_checkpointing)
        return prior

    def prior_stage(self, prior: Prior, tokenizer: TrainedModel) -> PriorStage:
        """Prior stage, which previews samples decoded by `tokenizer`."""
        node, names, rates = self.cfg.prior, self.data.class_names, self.conditions.rates or {}

        def draw(codes: list[Tensor]) -> Tensor:
            return self.data.picture_of(tokenizer.decode(codes))

        shares = node.class_dropout, node.label_smoothing
        return PriorStage(prior, draw, self.sampling(), *shares, names, list(rates.values()))

    def sampling(self) -> Sampling:
        """Default sampling; guided if trained with class dropout."""
        return Sampling(guidance=self.cfg.prior.guidance if self.guidable else 1.0)

    @property
    def guidable(self) -> bool:
        """True if the prior learns codes with and without conditions."""
        return bool((self.data.class_names or self.conditions.rates) and self.cfg.prior.class_dropout)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that samples can be of."""
        conditions = self.conditions.found()
        return self.data.class_names if conditions is None else conditions.class_names

    def sample_rows(self, most: int = 10) -> tuple[list[str], Tensor]:
        """Captions and labels of the rows of samples.png: see `conditions.sample_rows`."""
        return sample_rows(self.conditions.found(), self.data.class_names, most)

    def prior(self, model: VQVAE) -> Prior:
        """Finished prior. Raises UserError if it is not finished."""
        prior = self.new_prior(model)
        state = self.folder.weights("prior", prior)["networks"]["prior"]
        checkpoint.load_weights(prior, state, self.folder.stage("prior"))
        return prior.to(self.device).eval()

    def store_name(self, split: str, flipped: bool = False) -> str:
        """Folder of the codes of a split below `codes`: another one for other conditions, whose labels are others."""
        conditions = self.conditions.found()
        name = f"{split}_flipped" if flipped else split
        return name if conditions is None else f"{name}-{conditions.fingerprint}"

    def code_store(self, tokenizer: TrainedModel, split: str, flipped: bool = False) -> CodeStore:
        """Codes of a split, or of its mirrored items, encoded now unless that was done before.

        Raises UserError for a store that does not fit.
        """
        path = self.folder.codes(self.store_name(split, flipped))
        conditions = self.conditions.found()
        header: dict[str, Any] = {
            "code_shapes": tokenizer.code_shapes,
            "codebook_sizes": tokenizer.codebook_sizes,
            "tokenizer": tokenizer.fingerprint,
            "data": self.known.fingerprint(split),
            **({"flipped": True} if flipped else {}),
        }
        if conditions is not None:
            header |= {"label_width": sum(conditions.widths), "conditions": conditions.fingerprint}
        if not path.is_dir():
            loader = self.loader(split)
            with locked(self.folder.path):
                batches = encode(
                    tokenizer, loader if conditions is None else loader.numbered(), self.data.size, flipped
                )
                if conditions is not None:
                    labels = self.conditions.labels(loader.split)
                    batches = ((indices, maps, labels(items)) for indices, maps, items in batches)
                CodeStore.write(path, header, len(loader), batches)
        store = CodeStore(path)
        store.require(**header)
        if conditions is not None:
            try:
                conditions.check(store.labels)
            except UserError as error:
                raise UserError(f"{path / 'labels.npy'} is damaged: {error}; delete {path} to encode again") from error
            return store
        most = max(len(self.data.class_names) - 1, 0)
        if len(store) and not -1 <= int(store.labels.min()) <= int(store.labels.max()) <= most:
            raise UserError(f"{path / 'labels.npy'} has labels that are no class; delete {path} to encode again")
        return store


def sound_observers(data: Data) -> list[SoundObserver]:
    """What measures reconstructions of sounds; nothing for other data."""
    return [SoundObserver(data.waves, data.sample_rate)] if isinstance(data, Sounds) else []


def info_of(data: Data) -> DataInfo:
    """What a trained model has to know of its data."""
    rate, fit = getattr(data, "sample_rate", None), getattr(data, "fit", "crop")
    return DataInfo(type(data).__name__, data.channels, data.size, data.class_names, rate, fit, data.value_levels)


def load_run(path: str | Path, device: str | torch.device, allow_targets: Sequence[str]) -> TrainedModel:
    """Load the model of a run folder: see `vqvae.load`."""
    return Run(RunFolder.load(path, list(allow_targets), "path")).trained_model().to(device)
