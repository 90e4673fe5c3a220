"""Training of both stages, each from where it stands."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import plain
from vqvae.data.buckets import BucketedTrainingSet
from vqvae.data.codes import CodeEvaluationSet, CodeTrainingSet
from vqvae.data.folder import Folder, FolderSplit
from vqvae.data.items import ItemEvaluationSet, ItemTrainingSet
from vqvae.data.loader import ItemLoader
from vqvae.errors import UserError
from vqvae.inference.trained_model import TrainedModel
from vqvae.run.report import SAMPLES_PER_CLASS, figures, stage_figures
from vqvae.run.run import Run
from vqvae.seeding import seed_everything
from vqvae.training.logger import Logger
from vqvae.training.mirror import Samples
from vqvae.training.stage import Examples, Stage
from vqvae.training.step import Updates
from vqvae.training.stop import StopRequest
from vqvae.training.trainer import Trainer

log = logging.getLogger(__name__)
SENT_PER_CLASS = 2  # samples
SEEDS = {"autoencoder": 0, "prior": 1}  # mixed with the run's seed, so that the stages draw from different streams


def train_autoencoder(run: Run, stop: StopRequest) -> None:
    """Train the autoencoder; return at once if it is finished."""
    if run.folder.weights_file("autoencoder"):
        log.info("autoencoder: finished before")
        return
    cfg = run.cfg
    with open_log(run, "autoencoder") as logger:
        train, val = run.loader("train"), run.loader("val")
        seed_everything(cfg.seed, 0)
        stage = run.autoencoder_stage(run.variance(), Fraction(len(train), cfg.trainer.batch_size))
        if cfg.init_from is not None and not run.folder.has_begun("autoencoder"):
            load_initial_weights(run, "autoencoder", stage)
        examples = Examples(training_set(run, train), ItemEvaluationSet(run.data, val), len(val))
        make_trainer(run, cfg, stop, stage, examples, logger).fit()
        send_results(run, logger)
        weights = run.folder.weights_file("autoencoder")
        logger.artifact("tokenizer", "model", weights, {"data": train.split.fingerprint}, [])


def training_set(run: Run, loader: ItemLoader) -> ItemTrainingSet | BucketedTrainingSet:
    """Training items of one shape, or of the shapes that data.buckets has."""
    size, seed = run.cfg.trainer.batch_size, run.cfg.seed
    if not getattr(run.data, "buckets", None):
        return ItemTrainingSet(run.data, loader, size, seed)
    assert isinstance(run.data, Folder)
    assert isinstance(loader.split, FolderSplit)
    batches = BucketedTrainingSet(run.data, loader.split, size, seed, run.device)
    for note in batches.notes():
        log.info("%s", note)
    return batches


def train_prior(run: Run, tokenizer: TrainedModel, stop: StopRequest) -> None:
    """Train the prior on the codes of `tokenizer`; return at once if it is finished."""
    if run.folder.weights_file("prior"):
        log.info("prior: finished before")
        return
    node = run.cfg.prior
    with open_log(run, "prior") as logger:
        train, val = [run.code_store(tokenizer, "train")], run.code_store(tokenizer, "val")
        if node.flip:
            train.append(run.code_store(tokenizer, "train", flipped=True))
        seed_everything(run.cfg.seed, 1)
        prior = run.new_prior(tokenizer.model)
        prior.start_embeddings(tokenizer.model.code_vectors(run.data.size))
        stage = run.prior_stage(prior, tokenizer)
        if run.cfg.init_from is not None and not run.folder.has_begun("prior"):
            try:
                load_initial_weights(run, "prior", stage)
            except UserError as error:  # there is none, or it is for other codes, classes or networks
                log.warning("the prior starts anew: %s", error)
        batches = CodeTrainingSet(train, node.trainer.batch_size, run.cfg.seed, run.device)
        count = len(val) + min(len(val), len(train[0]))  # as many training codes
        examples = Examples(batches, CodeEvaluationSet(val, train[0], run.device), count)
        make_trainer(run, node, stop, stage, examples, logger).fit()
        send_results(run, logger)
        logger.samples(lambda: first_samples(run, tokenizer))
        stores = {f"codes-{store.path.name}": store for store in (*train, val)}
        for name, store in stores.items():
            logger.artifact(name, "codes", store.path, store.header, ["tokenizer"])
        weights = run.folder.weights_file("prior")
        logger.artifact("prior", "model", weights, {"tokenizer": tokenizer.fingerprint}, list(stores))


def send_results(run: Run, logger: Logger) -> None:
    """Send the figures of a stage that has ended, those of the step whose weights were kept."""
    if distributed.is_main():
        reported = figures(stage_figures(run, logger.stage))
        logger.results({name: entry["value"] for name, entry in reported.items()})


def first_samples(run: Run, tokenizer: TrainedModel) -> Samples:
    """Draw the first samples of each class, those of samples.png."""
    names, labels_of_rows = run.sample_rows()
    seeds = [row * SAMPLES_PER_CLASS + i for row in range(len(names) or 4) for i in range(SENT_PER_CLASS)]
    rows = [seed // SAMPLES_PER_CLASS for seed in seeds]
    labels = labels_of_rows[rows] if names else None
    images = run.data.picture(run.data.to_items(run.with_prior(tokenizer).sample(seeds, labels)))
    return Samples(images, [names[row] if names else "" for row in rows], seeds)


def load_initial_weights(run: Run, name: str, stage: Stage) -> None:
    """Start a stage from the weights of the run that `init_from` names. Raises UserError if they do not fit."""
    source, state = run.folder.initial_weights(name)
    stage.load_weights(state["networks"], f"init_from={source}: its {name}")


def open_log(run: Run, name: str) -> Logger:
    """Log of the stage `name`, for the context of its work."""
    return Logger(run.folder.stage(name), name, build(run.cfg.logger, "logger"), plain(run.cfg))


def make_trainer(run: Run, node: Any, stop: StopRequest, stage: Stage, examples: Examples, logger: Logger) -> Trainer:
    """Trainer of the logger's stage. `node` holds optimizer, schedule and trainer: the config's top level, or its `prior`."""
    nodes = {"adversary": run.cfg.adversary}
    updates = {name: make_updates(nodes.get(name, node)) for name in stage.networks}
    return Trainer(
        stage,
        examples,
        build(node.trainer, "trainer"),
        updates,
        logger,
        run.cfg.seed * 2 + SEEDS[logger.stage],
        stop,
        "the prior" if logger.stage == "autoencoder" and "prior" in run.cfg.stages else "",
    )


def make_updates(node: Any) -> Updates:
    """How a network is updated, of a node that holds optimizer, schedule, and perhaps a start step."""
    return Updates(build(node.optimizer, "optimizer"), build(node.schedule, "schedule"), node.get("start_step", 0))
