"""Laws of stage 2's training: codes of mirrored images, the early stop, and overfitting in the log."""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, assert_same_result, lines, stop_at, train_inside, weights
from omegaconf import OmegaConf
from torch import Tensor
from two_processes import in_a_group

from vqvae.data.code_store import CodeStore
from vqvae.data.codes import CodeBatch, CodeEvaluationSet, CodeTrainingSet
from vqvae.data.items import center_crop
from vqvae.images import normalize
from vqvae.priors.base import Prior, Scored
from vqvae.priors.sampling import Sampling
from vqvae.run.evaluation import evaluate_run
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.stages.prior import PriorStage
from vqvae.training.stage import evaluate

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
SHAPES: list[tuple[int, ...]] = [(2,), (3, 2)]
SMALL = [*TINY, *SMALL_CODEBOOK]


# ---- the codes of mirrored images


@pytest.fixture(scope="module")
def flipped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flipped") / "run"
    train_inside(*SMALL, "data.flip=true", f"run_dir={path}")
    return path


def test_the_flipped_store_holds_the_codes_of_the_mirrored_images(flipped_run: Path) -> None:
    run = Run(RunFolder.load(flipped_run, []))
    tokenizer, loader = run.tokenizer(), run.loader("train")
    plain, flipped = (CodeStore(flipped_run / "codes" / name) for name in ("train", "train_flipped"))
    every = torch.arange(len(loader))
    images, labels = next(iter(loader.batches([every])))
    x = normalize(center_crop(images, run.data.size))
    for store, expected in ((plain, x), (flipped, x.flip(-1))):
        assert all(torch.equal(a, b) for a, b in zip(store.codes(every), tokenizer.encode(expected)))
        assert torch.equal(store.labels, labels)
    assert "flipped" not in plain.header
    assert flipped.header == {**plain.header, "flipped": True, "sha256": flipped.header["sha256"]}


def test_a_store_that_is_not_flipped_is_refused_as_a_flipped_one(flipped_run: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit: flipped is None, not True"):
        CodeStore(flipped_run / "codes" / "train").require(flipped=True)


def test_flips_follow_those_of_the_data_also_of_an_adopted_tokenizer(flipped_run: Path, tmp_path: Path) -> None:
    own = [a for a in TINY if a.startswith(("prior", "logger", "debug"))]
    shutil.copytree(flipped_run, tmp_path / "tokenizer")
    shutil.rmtree(tmp_path / "tokenizer" / "codes" / "train_flipped")  # codes that are there travel with a tokenizer
    for overrides, expected in (([], True), (["prior.flip=false"], False)):
        path = tmp_path / str(expected)
        train_inside(*own, *overrides, f"tokenizer={tmp_path / 'tokenizer'}", f"run_dir={path}")
        assert OmegaConf.load(path / "config.yaml").prior.flip is expected
        assert (path / "codes" / "train_flipped").is_dir() is expected


def write_store(path: Path, count: int, start: int) -> None:
    """Image i has the codes start + i everywhere, and label i."""
    values = torch.arange(start, start + count)
    maps = [values.view(-1, *[1] * len(shape)).expand(-1, *shape) for shape in SHAPES]
    header: dict[str, Any] = {"code_shapes": SHAPES, "codebook_sizes": [256, 256]}
    CodeStore.write(path, header, count, iter([(torch.arange(count), maps, torch.arange(count))]))


def evaluation_set_of(folder: Path) -> CodeEvaluationSet:
    training_set_of(folder)  # writes the stores
    return CodeEvaluationSet(CodeStore(folder / "val"), CodeStore(folder / "train"), CPU)


def training_set_of(folder: Path) -> CodeTrainingSet:
    """10 training images: codes 0 .. 9, flipped 100 .. 109; batches of 6. Beside it 7 validation images: 200 .. 206."""
    sizes = {"train": (10, 0), "train_flipped": (10, 100), "val": (7, 200)}
    if not folder.is_dir():
        for name, (count, start) in sizes.items():
            write_store(folder / name, count, start)
    train, flipped, _ = (CodeStore(folder / name) for name in sizes)
    return CodeTrainingSet([train, flipped], 6, seed=3, device=CPU)


def batches(examples: CodeTrainingSet, start: int, count: int) -> list[CodeBatch]:
    return list(itertools.islice(examples.batches_from(start), count))


def assert_equal_batches(first: list[CodeBatch], second: list[CodeBatch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert all(torch.equal(m, other) for m, other in zip(a.codes, b.codes, strict=True))
        assert torch.equal(a.labels, b.labels)


def test_a_batch_is_a_function_of_seed_and_step_and_holds_plain_and_flipped_codes(tmp_path: Path) -> None:
    examples = training_set_of(tmp_path / "codes")
    whole = batches(examples, 0, 50)
    assert_equal_batches(batches(examples, 20, 30), whole[20:])
    coarse, fine = (torch.cat(maps) for maps in zip(*(batch.codes for batch in whole)))
    labels = torch.cat([batch.labels for batch in whole])
    assert torch.equal(coarse % 100, labels[:, None].expand(-1, 2))  # one image's codes and label stay together
    assert torch.equal(fine[:, 0], coarse)
    flipped = coarse[:, 0] // 100
    assert set(flipped.tolist()) == {0, 1}
    assert abs(float(flipped.float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(len(flipped))  # 4 standard errors
    for epoch in labels.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    other = CodeTrainingSet(examples.stores, 6, seed=4, device=CPU)
    assert not torch.equal(torch.cat([batch.codes[0] for batch in batches(other, 0, 50)]), coarse)


def test_one_store_gives_the_batches_of_its_order_alone(tmp_path: Path) -> None:
    examples = training_set_of(tmp_path / "codes")
    plain = CodeTrainingSet(examples.stores[:1], 6, seed=3, device=CPU)
    for batch, mixed in zip(batches(plain, 0, 20), batches(examples, 0, 20)):
        assert torch.equal(batch.codes[0][:, 0], batch.labels)
        assert torch.equal(batch.labels, mixed.labels)


def test_a_run_on_flipped_codes_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, "prior.flip=true", "prior.trainer.steps=12", "prior.network.dropout=0.1"]
    train_inside(*arguments, f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patched:
        stop_at(patched, "prior", 4)
        with pytest.raises(SystemExit):
            train_inside(*arguments, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*arguments, f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(tmp_path / "whole", tmp_path / "stopped")


# ---- training and validation side by side


class Plain(Prior):
    """A prior whose nats are the codes themselves."""

    bits_name = "bits_per_code_bound"

    def __init__(self) -> None:
        super().__init__(
            SHAPES, [[256], [256]], num_classes=0, width=1, network=lambda digits, shape: torch.nn.Identity()
        )

    def forward(self, codes: list[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> Scored:
        nats = [one.float() for one in codes]
        return Scored(torch.zeros(()), nats)

    def sample_chunk(self, *arguments: Any) -> list[Tensor]:
        raise NotImplementedError


def stage_of(prior: Prior) -> PriorStage:
    return PriorStage(prior, lambda codes: codes[0], Sampling())


def test_an_evaluation_measures_all_validation_codes_and_as_many_of_training_spread_over_the_set(
    tmp_path: Path,
) -> None:
    metrics = evaluate(stage_of(Plain()), evaluation_set_of(tmp_path / "codes"), chunk=3)
    spread = [index * 10 // 7 for index in range(7)]
    train, val = (sum(values) / 7 / math.log(2) for values in (spread, range(200, 207)))
    assert metrics == pytest.approx(
        {
            "prior/bits_per_code_bound": val,
            "prior/bits_per_item_bound": val * 8,
            "prior/bits_per_code_bound_0": val,
            "prior/bits_per_code_bound_1": val,
            "prior/bits_per_code_bound_error": statistics.stdev(range(200, 207)) / math.sqrt(7) / math.log(2),
            "prior/train_bits_per_code_bound": train,
            "prior/overfitting_gap": val - train,
        }
    )


def test_the_logged_gap_is_the_difference_of_two_direct_evaluations(finished_run: Path) -> None:
    run = Run(RunFolder.load(finished_run, []))
    prior = run.prior(run.tokenizer().model)
    step = run.folder.weights("prior")["step"]
    logged = {
        k: v
        for line in lines(finished_run / "prior" / "metrics.jsonl")
        if line["step"] == step
        for k, v in line.items()
    }
    bits = {}
    for split, chosen in {"val": torch.arange(20), "train": torch.arange(20) * 96 // 20}.items():
        store = CodeStore(finished_run / "codes" / split)
        with torch.no_grad():
            (nats,) = prior(store.codes(chosen), store.labels[chosen]).nats
        bits[split] = float(nats.double().mean()) / math.log(2)
    assert logged["prior/val/bits_per_code"] == pytest.approx(bits["val"], rel=1e-6)
    assert logged["prior/val/train_bits_per_code"] == pytest.approx(bits["train"], rel=1e-6)
    assert logged["prior/val/overfitting_gap"] == pytest.approx(bits["val"] - bits["train"], abs=1e-5)


def test_a_single_split_has_no_gap(finished_run: Path) -> None:
    metrics, _ = evaluate_run(Run(RunFolder.load(finished_run, [])), "train", 32, search=0)
    assert "prior/bits_per_code" in metrics
    assert not {"prior/overfitting_gap", "prior/train_bits_per_code"} & set(metrics)


@pytest.mark.parametrize(
    ("val", "train", "warned"),
    [(4.1, 3.0, True), (4.01, 3.0, False), (4.1, 3.6, False), (3.9, 3.0, False)],
)
def test_the_warning_comes_where_validation_rises_clearly_while_training_falls(
    val: float, train: float, warned: bool
) -> None:
    names = ("prior/bits_per_code_bound", "prior/train_bits_per_code_bound")
    stage = stage_of(Plain())
    now, best = dict(zip(names, (val, train))), {"step": 8, **dict(zip(names, (4.0, 3.5)))}
    assert bool(stage.warnings(now, best)) is warned
    assert not stage.warnings(now, {})


def drawn_and_measured(codes: Path) -> dict[str, Any]:
    drawn = [tuple(batch) for batch in batches(training_set_of(codes), 5, 20)]
    return {"batches": drawn, "metrics": evaluate(stage_of(Plain()), evaluation_set_of(codes), chunk=3)}


def test_two_processes_draw_the_same_flips_as_one_and_measure_the_same(tmp_path: Path) -> None:
    examples = training_set_of(tmp_path / "codes")
    ranks = in_a_group(tmp_path, drawn_and_measured, tmp_path / "codes")
    joint = []
    for (codes, labels, origin), (more_codes, more_labels, more_origin) in zip(
        *(result["batches"] for result in ranks)
    ):
        maps = [torch.cat(pair) for pair in zip(codes, more_codes)]
        joint.append(CodeBatch(maps, torch.cat([labels, more_labels]), torch.cat([origin, more_origin])))
    assert_equal_batches(joint, batches(examples, 5, 20))
    metrics = evaluate(stage_of(Plain()), evaluation_set_of(tmp_path / "codes"), chunk=3)
    assert ranks[0]["metrics"] == ranks[1]["metrics"] == pytest.approx(metrics)


# ---- the early stop

BEST_STEP = 6


def score_by_step(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Makes the stage's monitored metric fall until BEST_STEP and rise after it, whatever it learns."""
    from vqvae.training.trainer import Trainer

    original = Trainer.evaluate

    def evaluate_at(self: Trainer, step: int) -> None:
        if self.logger.stage == stage:
            metrics_of = type(self.stage).evaluation_metrics
            score = {self.stage.monitor: 3 + abs(step - BEST_STEP) / 100}
            self.stage.evaluation_metrics = lambda sums: metrics_of(self.stage, sums) | score  # type: ignore[method-assign]
        original(self, step)

    monkeypatch.setattr(Trainer, "evaluate", evaluate_at)


@pytest.mark.parametrize(
    ("stage", "prefix", "schedule"), [("autoencoder", "", ""), ("prior", "prior.", "@prior.schedule")]
)
def test_an_early_stop_ends_after_its_evaluations_with_the_weights_of_the_best_step(
    stage: str, prefix: str, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_by_step(monkeypatch, stage)
    common = [*SMALL, f"schedule{schedule}=constant", f"{prefix}trainer.eval_every_steps=2"]
    common += ["stages=[autoencoder]"] if stage == "autoencoder" else []
    patient = [*common, f"{prefix}trainer.steps=100", f"{prefix}trainer.early_stop_evals=2"]
    train_inside(*common, f"{prefix}trainer.steps={BEST_STEP}", f"run_dir={tmp_path / 'short'}")
    train_inside(*patient, f"run_dir={tmp_path / 'whole'}")
    whole = tmp_path / "whole" / stage
    written = (whole / "metrics.jsonl").read_text()
    assert lines(whole / "metrics.jsonl")[-1]["step"] == BEST_STEP + 4
    assert f"{stage}: 2 evaluations without a better" in (tmp_path / "whole" / "train.log").read_text()
    best, last = (weights(tmp_path / name, stage) for name in ("whole", "short"))
    assert all(torch.equal(best[key], last[key]) for key in last)

    for file in whole.glob("weights-*.pt"):  # as if it had been killed just before its end
        file.unlink()
    train_inside(*patient, f"run_dir={tmp_path / 'whole'}")
    assert (whole / "metrics.jsonl").read_text() == written
    assert all(torch.equal(value, best[key]) for key, value in weights(tmp_path / "whole", stage).items())

    with monkeypatch.context() as patched:
        stop_at(patched, stage, BEST_STEP + 1)
        with pytest.raises(SystemExit):
            train_inside(*patient, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*patient, f"run_dir={tmp_path / 'stopped'}")
    assert (tmp_path / "stopped" / stage / "metrics.jsonl").read_text() == written
