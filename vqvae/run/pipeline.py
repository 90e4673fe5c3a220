"""The two stages put together from a config: what the entry points share."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import plain
from vqvae.data.base import Data, Split
from vqvae.data.code_store import CodeFeed, CodeStore
from vqvae.data.loader import PictureFeed, PictureLoader, centre_crop
from vqvae.data.sampler import chunks_of_rank
from vqvae.errors import UserError
from vqvae.images import normalise, to_uint8
from vqvae.inference.tokenizer import Tokenizer
from vqvae.losses.reconstruction import ReconstructionLoss
from vqvae.model import VQVAE
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Sampling
from vqvae.run.folder import RunFolder
from vqvae.seeding import seed_everything
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.stages.prior import PriorStage
from vqvae.storage import checkpoint
from vqvae.training.hardware import keep_freed_memory
from vqvae.training.logger import Logger
from vqvae.training.settings import TrainerConfig
from vqvae.training.stop import StopRequest
from vqvae.training.trainer import Trainer

log = logging.getLogger(__name__)
AUTOENCODER_SEED, PRIOR_SEED = 0, 1  # mixed with the run's seed, so that the stages draw from different streams


class Run:
    """One run folder with the objects that its config describes, made when they are first asked for."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.cfg, self.device = folder, folder.config, distributed.device()
        keep_freed_memory()
        torch.backends.cudnn.allow_tf32 = False  # where float32 is promised it is float32; training has bf16
        self.data: Data = build(self.cfg.data, "data")
        self._splits: dict[str, Split] = {}
        self._loaders: dict[str, PictureLoader] = {}

    def split(self, name: str) -> Split:
        if name not in self._splits:
            split = self.data.split(name)
            self._splits[name] = split.limited(self.data.limit) if self.data.limit else split
        return self._splits[name]

    def loader(self, split: str) -> PictureLoader:
        """The items of a split: train, val or test."""
        if split not in self._loaders:
            self._loaders[split] = PictureLoader(self.data, self.split(split), self.device)
        return self._loaders[split]

    def variance(self) -> float:
        """Of the training pictures, in [-1, 1]; computed once and kept in the run folder."""
        path = self.folder.path
        if distributed.broadcast_object(not checkpoint.find(path, "variance")):
            loader = self.loader("train")  # on every rank, for it waits for rank 0 to decode
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

    def check(self) -> None:
        """Builds everything once, so that whatever does not fit is said before any work is done.

        Raises UserError, or ValueError for data that cannot be read.
        """
        stage = self.autoencoder_stage(variance=1.0)
        model = stage.model
        if self.cfg.init_from is not None:
            RunFolder.load(self.cfg.init_from, list(self.cfg.allow_targets), "init_from").start("autoencoder", stage)
        if "autoencoder" not in self.cfg.stages and self.cfg.tokenizer is None:
            self.folder.weights("autoencoder")
        build(self.cfg.logger, "logger")
        check_settings(self.cfg, "", len(self.split("train")))
        self.split("val")
        if "prior" in self.cfg.stages:
            self.prior_stage(self.new_prior(model), Tokenizer(model, stage.reconstruction, fingerprint=""))
            check_settings(self.cfg.prior, "prior.", len(self.split("train")))

    def autoencoder_stage(self, variance: float, epoch_steps: Fraction | None = None) -> AutoencoderStage:
        """A new, untrained stage 1; to train it, it is told how many steps an epoch has."""
        model, reconstruction = build_model(self.cfg, self.data, variance)
        return AutoencoderStage(model, reconstruction, variance, self.data.show, epoch_steps)

    def tokenizer(self) -> Tokenizer:
        """The finished stage 1. Raises UserError where it is not finished."""
        state = self.folder.weights("autoencoder")["networks"]["model"]
        stage = self.autoencoder_stage(self.variance())
        checkpoint.load_weights(stage.model, state, self.folder.stage("autoencoder"))
        stage.model.to(self.device).eval()
        return Tokenizer(stage.model, stage.reconstruction, checkpoint.fingerprint(state))

    def new_prior(self, model: VQVAE) -> Prior:
        """An untrained prior for the codes of `model`."""
        return build(
            self.cfg.prior.network,
            "prior.network",
            code_shapes=model.code_shapes(self.data.size),
            codebook_sizes=model.codebook_sizes,
            num_classes=len(self.data.class_names),
        )

    def prior_stage(self, prior: Prior, tokenizer: Tokenizer) -> PriorStage:
        """Stage 2; its previews are what the data set shows of the tokenizer's reconstructions."""
        node = self.cfg.prior

        def draw(codes: list[Tensor]) -> Tensor:
            return self.data.show(to_uint8(tokenizer.decode(codes)))

        return PriorStage(prior, draw, self.sampling(), node.class_dropout, node.label_smoothing)

    def sampling(self) -> Sampling:
        """How this run's samples are drawn where nobody says otherwise: guided, where the prior knows what no class is."""
        node = self.cfg.prior
        return Sampling(guidance=node.guidance if self.data.class_names and node.class_dropout else 1.0)

    def prior(self, model: VQVAE) -> Prior:
        """The finished stage 2. Raises UserError where it is not finished."""
        prior = self.new_prior(model)
        state = self.folder.weights("prior")["networks"]["prior"]
        checkpoint.load_weights(prior, state, self.folder.stage("prior"))
        return prior.to(self.device).eval()

    def code_store(self, tokenizer: Tokenizer, split: str, flipped: bool = False) -> CodeStore:
        """The codes of a split, or of its mirror images, encoded now if that was not done before.

        Raises ValueError for a store that does not fit.
        """
        path, loader = self.folder.codes(f"{split}_flipped" if flipped else split), self.loader(split)
        header: dict[str, Any] = {
            "code_shapes": tokenizer.model.code_shapes(self.data.size),
            "codebook_sizes": tokenizer.model.codebook_sizes,
            "tokenizer": tokenizer.fingerprint,
            "data": loader.split.fingerprint,
            **({"flipped": True} if flipped else {}),
        }
        if not path.is_dir():
            CodeStore.write(path, header, len(loader), encode(tokenizer, loader, self.data.size, flipped))
        store = CodeStore(path)
        store.require(**header)
        most = max(len(self.data.class_names) - 1, 0)
        if len(store) and not -1 <= int(store.labels.min()) <= int(store.labels.max()) <= most:
            raise UserError(f"{path / 'labels.npy'} has labels that are no class; delete {path} to encode again")
        return store

    def trainer(self, stage_name: str, node: Any, stop: StopRequest, stage: Any, feed: Any) -> Trainer:
        """`node` holds optimizer, schedule and trainer: the top level of the config, or its `prior`."""
        wandb = build(self.cfg.logger, "logger")
        logger = Logger(self.folder.stage(stage_name), stage_name, wandb, plain(self.cfg))
        seed = self.cfg.seed * 2 + (PRIOR_SEED if stage_name == "prior" else AUTOENCODER_SEED)
        return Trainer(
            stage,
            feed,
            build(node.trainer, "trainer"),
            build(node.optimizer, "optimizer"),
            build(node.schedule, "schedule"),
            logger,
            seed,
            stop,
        )


def build_model(cfg: Any, data: Data, variance: float) -> tuple[VQVAE, ReconstructionLoss]:
    """The networks and the reconstruction loss of a config. Raises UserError where they do not fit the data."""
    build(cfg.quantizer, "quantizer")  # by itself, so that an error names the user's key and not its copy below `model`
    reconstruction: ReconstructionLoss = build(cfg.loss, "loss", variance=variance)
    node = cfg.model.copy()
    finest = node.decoders[0]  # the one that makes the output
    finest.channels = reconstruction.decoder_channels(data.channels)
    model: VQVAE = build(node, "model")
    try:
        model.code_shapes(data.size)
    except UserError as error:
        raise UserError(f"data.{data.size_key}={getattr(data, data.size_key)}: {error}") from error
    if model.search_sweeps:
        try:
            Tokenizer(model, reconstruction, fingerprint="").check_searchable(data.size)
        except UserError as error:
            raise UserError(f"model.search_sweeps={model.search_sweeps}: {error}; 0 turns the search off") from error
    return model, reconstruction


def check_settings(node: Any, prefix: str, train_size: int) -> None:
    """Builds the trainer's parts of a stage. Raises UserError that names the key for values out of range."""
    settings: TrainerConfig = build(node.trainer, prefix + "trainer")
    build(node.schedule, prefix + "schedule")
    hidden = torch.nn.Parameter(torch.zeros(1, 1))
    hidden.hidden_matrix = True  # type: ignore[attr-defined]  # so that what Muon takes is seen, too
    try:
        build(node.optimizer, prefix + "optimizer")([{"params": [torch.nn.Parameter(torch.zeros(1)), hidden]}])
    except ValueError as error:
        if not isinstance(error, UserError) and not node.optimizer["_target_"].startswith("torch.optim."):
            raise
        raise UserError(f"{prefix}optimizer: {error}") from error
    if settings.batch_size > train_size:
        raise UserError(
            f"{prefix}trainer.batch_size={settings.batch_size} is larger than the training set; at most {train_size} fits"
        )


def encode(
    tokenizer: Tokenizer, loader: PictureLoader, size: tuple[int, ...], flipped: bool, chunk: int = 256
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """This rank's items of a split, or their mirror images -> (indices, code maps, labels), in chunks."""
    chunks = chunks_of_rank(len(loader), chunk)
    bar = tqdm(
        total=sum(map(len, chunks)),
        desc=f"encoding {loader.split.name}",
        unit="picture",
        disable=distributed.bar_hidden(),
    )
    for indices, (images, labels) in zip(chunks, loader.batches(chunks)):
        x = normalise(centre_crop(images, size))  # (b, C, *S)
        yield indices, tokenizer.encode(x.flip(-1) if flipped else x), labels.cpu()
        bar.update(len(indices))
    bar.close()


def train_autoencoder(run: Run, stop: StopRequest) -> None:
    """Stage 1, from where it stands; returns at once if it is finished."""
    if run.folder.weights_file("autoencoder"):
        log.info("autoencoder: finished before")
        return
    cfg = run.cfg
    train, val = run.loader("train"), run.loader("val")
    seed_everything(cfg.seed, 0)
    stage = run.autoencoder_stage(run.variance(), Fraction(len(train), cfg.trainer.batch_size))
    if cfg.init_from is not None:
        RunFolder.load(cfg.init_from, list(cfg.allow_targets), "init_from").start("autoencoder", stage)
    feed = PictureFeed(run.data, train, val, cfg.trainer.batch_size, cfg.seed)
    trainer = run.trainer("autoencoder", cfg, stop, stage, feed)
    try:
        trainer.fit()
        weights = run.folder.weights_file("autoencoder")
        trainer.logger.artifact("tokenizer", "model", weights, {"data": train.split.fingerprint}, [])
    finally:
        trainer.logger.finish()


def train_prior(run: Run, tokenizer: Tokenizer, stop: StopRequest) -> None:
    """Stage 2, from where it stands; returns at once if it is finished."""
    if run.folder.weights_file("prior"):
        log.info("prior: finished before")
        return
    node = run.cfg.prior
    train, val = [run.code_store(tokenizer, "train")], run.code_store(tokenizer, "val")
    if node.flip:
        train.append(run.code_store(tokenizer, "train", flipped=True))
    seed_everything(run.cfg.seed, 1)
    prior = run.new_prior(tokenizer.model)
    prior.start_embeddings(tokenizer.model.code_vectors(run.data.size))
    stage = run.prior_stage(prior, tokenizer)
    if run.cfg.init_from is not None:
        other = RunFolder.load(run.cfg.init_from, list(run.cfg.allow_targets), "init_from")
        try:
            other.start("prior", stage)
        except UserError as error:  # it has none, or one for other codes, classes or networks
            log.warning("the prior starts anew: %s", error)
    feed = CodeFeed(train, val, node.trainer.batch_size, run.cfg.seed, run.device)
    trainer = run.trainer("prior", node, stop, stage, feed)
    try:
        trainer.fit()
        stores = {f"codes-{store.path.name}": store for store in (*train, val)}
        for name, store in stores.items():
            trainer.logger.artifact(name, "codes", store.path, store.header, ["tokenizer"])
        weights = run.folder.weights_file("prior")
        trainer.logger.artifact("prior", "model", weights, {"tokenizer": tokenizer.fingerprint}, list(stores))
    finally:
        trainer.logger.finish()
