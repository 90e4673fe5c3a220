"""Laws of training with an adversary, and of training the decoder alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of, lines, stop_at, train_inside, weights
from torch import Tensor

import vqvae
from vqvae.losses.adversarial import Hinge
from vqvae.losses.terms import MSE
from vqvae.metrics.registry import find, without_split
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.stages.adversarial import AdversarialStage
from vqvae.stages.adversary import Adversary
from vqvae.training.trainer import Trainer

pytestmark = pytest.mark.cpu

FIRST = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", "trainer.weight_average_decay=0.9"]
PLAYS = ["adversary=patch", "adversary.network.widths=[8,8]"]
FULL = [
    *PLAYS,
    "+adversary/term@adversary.terms.r1=r1",
    "+adversary/term@adversary.terms.lecam=lecam",
    "adversary.terms.r1.every=2",
    "adversary.augment=[color,translation,cutout]",
    "trainer.accumulation=2",
]


def of(networks: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in networks.items() if key.startswith(f"{name}/")}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, "autoencoder", step)
        with pytest.raises(SystemExit):
            train_inside(*words)


def test_a_run_with_an_adversary_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the adversary begins, and after; with all that it can have."""
    more = [*FIRST, *FULL, "trainer.steps=8", "adversary.start_step=3", "trainer.log_every_steps=4"]
    train_inside(*more, f"run_dir={tmp_path / 'whole'}")
    for step in (2, 5):
        stopped_at(step, monkeypatch, *more, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*more, f"run_dir={tmp_path / 'stopped'}")
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    assert equal(weights(whole, "autoencoder"), weights(stopped, "autoencoder"))
    logs = [(folder / "autoencoder" / "metrics.jsonl").read_text() for folder in (whole, stopped)]
    assert logs[0] == logs[1]
    assert of(weights(whole, "autoencoder"), "adversary")


def test_until_the_start_step_a_run_is_that_without_an_adversary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []
    train_step = Trainer.train_step

    def watch(self: Trainer, kind: object, inputs: object) -> None:
        train_step(self, kind, inputs)
        states.append({k: v.clone() for k, v in self.stage.networks["model"].state_dict().items()})
        rates.append({name: rate.value for name, rate in self.lr.items()})

    rates: list[dict[str, float]] = []
    monkeypatch.setattr(Trainer, "train_step", watch)
    train_inside(*FIRST, "adversary=none", f"run_dir={tmp_path / 'without'}")
    train_inside(*FIRST, *PLAYS, "adversary.start_step=2", f"run_dir={tmp_path / 'with'}")
    assert [equal(a, b) for a, b in zip(states[:4], states[4:])] == [True, True, False, False]
    assert [rate["adversary"] for rate in rates[4:]] == [0, 0, 5e-4, 5e-4]
    first, last = (
        line for line in lines(tmp_path / "with" / "autoencoder" / "metrics.jsonl") if "autoencoder/train/loss" in line
    )
    for name in ("adversary_loss", "adversarial_weight", "adversary_accuracy", "grad_norm_adversary"):
        assert first[f"autoencoder/train/{name}"] == 0 < last[f"autoencoder/train/{name}"]


@pytest.mark.parametrize("part", ["reconstruction", "decoder", "discriminator", "gradient"])
def test_a_step_that_is_not_finite_in_either_part_changes_neither(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In step 2 of 4: the loss of one of both, or a gradient of the second that is infinite though its loss is not."""
    states: list[dict[str, Tensor]] = []
    train_step, at = Trainer.train_step, -1

    def watch(self: Trainer, kind: object, inputs: object) -> None:
        nonlocal at
        at = int(self.skipped.step)
        train_step(self, kind, inputs)
        assert self.average is not None
        state = {k: v for network in self.stage.networks.values() for k, v in network.state_dict().items()}
        state |= {f"average{i}": weight for i, weight in enumerate(self.average.weights)}
        moments = [m for o in self.optimizers.values() for p in o.state.values() for m in p.values()]
        state |= {f"moment{i}": one for i, one in enumerate(moments) if one.ndim}
        states.append({key: value.clone() for key, value in state.items()})

    def spoil(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def spoilt(self: Any, *args: Tensor) -> Tensor:
            value = original(self, *args)
            if at != 2 or not torch.is_grad_enabled():
                return value
            if part == "gradient":
                return value + (args[0] - args[0].detach()).abs().sqrt().sum()  # 0, and its slope is not finite
            return value * float("nan")

        monkeypatch.setattr(cls, name, spoilt)

    spoil(
        MSE if part == "reconstruction" else Hinge,
        {"reconstruction": "value", "decoder": "decoder"}.get(part, "discriminator"),
    )
    monkeypatch.setattr(Trainer, "train_step", watch)
    train_inside(*FIRST, *FULL, "trainer.on_nonfinite=skip", f"run_dir={tmp_path / 'run'}")
    before, skipped, after = states[1:4]
    assert equal(before, skipped)
    moment = next(key for key in after if key.startswith("moment"))
    assert not any(torch.equal(skipped[key], after[key]) for key in ("averages", "average0", moment))
    last = [
        line for line in lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl") if "autoencoder/train/loss" in line
    ][-1]
    assert last["autoencoder/train/skipped_steps"] == 1


def test_a_loss_moves_its_own_network_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network of a run in which the other one's learning rate is 0 moves as if there were only its own loss."""
    seen: dict[str, list[str]] = {}

    def watch(self: Trainer, names: list[str], applied: Tensor) -> Tensor:
        for name, network in self.stage.networks.items():
            seen.setdefault(name, []).extend(key for key, p in network.named_parameters() if p.grad is None)
        return update(self, names, applied)

    update, losses = Trainer.update, AdversarialStage.losses_of

    def without_second(self: AdversarialStage, *args: Any) -> Any:
        yield next(losses(self, *args))

    monkeypatch.setattr(Trainer, "update", watch)
    monkeypatch.setattr(AdversarialStage, "losses_of", without_second)
    monkeypatch.setattr(Adversary, "after_step", lambda self, applied: None)
    train_inside(*FIRST, *PLAYS, f"run_dir={tmp_path / 'run'}")
    assert not any("encoders" in key or "decoders" in key for key in seen["model"])
    assert len(seen["adversary"]) == 4 * 6  # in 4 steps: weights and biases of three layers


def test_micro_batches_play_as_one_batch(tmp_path: Path) -> None:
    """With a constant weight: an adaptive one is that of the first micro-batch."""
    more = ["adversary.adaptive_limit=null", "+adversary/term@adversary.terms.lecam=lecam", "trainer.precision=fp32"]
    for parts in (1, 2):
        own = [f"trainer.accumulation={parts}", "+optimizer.eps=1e-3", "+adversary.optimizer.eps=1e-3"]
        train_inside(*FIRST, *PLAYS, *more, *own, f"run_dir={tmp_path / str(parts)}")
    one, two = (weights(tmp_path / name, "autoencoder") for name in "12")
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.precision=bf16"],
        ["trainer.precision=fp16"],
        ["model.gradient_checkpointing=true"],
        ["adversary.network.norm=group", "adversary/loss=non_saturating"],
        ["loss=logistic"],
        ["quantizer=vq"],
        ["adversary.optimizer.lr=0"],
    ],
    ids=str,
)
def test_with_other_settings_all_figures_are_finite_and_declared_and_the_weight_is_at_work(
    more: list[str], tmp_path: Path
) -> None:
    train_inside(*FIRST, *FULL, *more, f"run_dir={tmp_path / 'run'}")
    logged = [
        line for line in lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl") if "autoencoder/train/loss" in line
    ]
    for name, value in logged[-1].items():
        assert name == "step" or find(without_split(name)[0]), name
        assert isinstance(value, dict) or abs(value) < 1e6, name
    assert logged[-1]["autoencoder/train/skipped_steps"] == 0
    assert logged[-1]["autoencoder/train/adversarial_weight"] > 0
    assert logged[-1]["autoencoder/train/adversary_term_r1"] > 0


def test_both_networks_are_kept_so_that_another_run_starts_from_them_and_one_without_gets_a_new_adversary(
    tmp_path: Path,
) -> None:
    train_inside(*FIRST, "adversary=none", f"run_dir={tmp_path / 'without'}")
    train_inside(*FIRST, *PLAYS, f"init_from={tmp_path / 'without'}", f"run_dir={tmp_path / 'with'}")
    still = ["optimizer.lr=0", "adversary.optimizer.lr=0", "quantizer=vq", *SMALL_CODEBOOK]
    for name in ("a", "b"):
        own = [*FIRST, *PLAYS, "quantizer=vq"]
        source = [] if name == "a" else [*still, f"init_from={tmp_path / 'a'}"]
        train_inside(*own, *source, f"run_dir={tmp_path / name}")
    one, two = (of(weights(tmp_path / name, "autoencoder"), "adversary") for name in "ab")
    own = {key for key in one if "averages" not in key and "left" not in key}
    assert all(torch.equal(one[key], two[key]) for key in own)


# ---- the decoder alone


@pytest.mark.parametrize("quantizer", ["ema", "gumbel"])
def test_training_the_decoder_alone_keeps_codes_and_all_that_they_depend_on_bit_for_bit(
    quantizer: str, tmp_path: Path
) -> None:
    """Of two levels, of which the coarser decoder feeds the finer codes. A prior trained before decodes through the new one."""
    model = [word for word in TINY if not word.startswith(("model", "quantizer"))]
    words = [
        *model,
        "model=conv_2level",
        f"quantizer={quantizer}",
        "quantizer.dim=8",
        "trainer.weight_average_decay=0.9",
    ]
    train_inside(*words, f"run_dir={tmp_path / 'first'}")
    more = [*PLAYS, "train=decoder", f"init_from={tmp_path / 'first'}", "stages=[autoencoder]"]
    train_inside(*words, *more, f"run_dir={tmp_path / 'second'}")
    first, second = (weights(tmp_path / name, "autoencoder") for name in ("first", "second"))
    trained = {key for key in first if key.startswith("model/decoders.0.")}
    assert all(torch.equal(first[key], second[key]) for key in first.keys() - trained)
    assert not any(torch.equal(first[key], second[key]) for key in trained)
    (prior,) = (tmp_path / "first" / "prior").glob("weights-*.pt")
    shutil.copy(prior, tmp_path / "second" / "prior")
    models = [vqvae.load(tmp_path / name) for name in ("first", "second")]
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = [model.encode(x) for model in models]
    assert all(torch.equal(one, other) for one, other in zip(*codes))
    drawn = [model.sample_codes([1, 2]) for model in models]
    assert all(torch.equal(one, other) for one, other in zip(*drawn))
    assert not torch.equal(*(model.decode(codes) for model, codes in zip(models, drawn)))


def test_training_the_decoder_alone_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_inside(*FIRST, f"run_dir={tmp_path / 'first'}")
    more = [*FIRST, "train=decoder", f"init_from={tmp_path / 'first'}"]
    train_inside(*more, f"run_dir={tmp_path / 'whole'}")
    stopped_at(1, monkeypatch, *more, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*more, f"run_dir={tmp_path / 'stopped'}")
    assert equal(weights(tmp_path / "whole", "autoencoder"), weights(tmp_path / "stopped", "autoencoder"))


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["adversary=patch", "adversary.network.widths=[8,8,8,8,8]"],
            "adversary.network.widths=[8, 8, 8, 8, 8] halves",
        ),
        (
            ["adversary=patch", "adversary.start_step=4"],
            "adversary.start_step=4 is beyond the end of the run, which has 4 steps",
        ),
        (["adversary=patch", "adversary.weight=-1"], "adversary.weight=-1 must be at least 0"),
        (["adversary=patch", "adversary.adaptive_limit=0"], "adversary.adaptive_limit=0 must be above 0"),
        (["adversary=patch", "adversary.augment=[mirror]"], "adversary.augment=['mirror'] must have every value"),
        (
            ["adversary=patch", "adversary.network.norm=batch"],
            "adversary.network.norm=batch must be one of spectral, group",
        ),
        (["adversary=patch", "adversary.optimizer.lr=-1"], "adversary.optimizer: Invalid learning rate"),
        (
            ["adversary=patch", "+adversary/term@adversary.terms.r1=r1", "adversary.terms.r1.weight=-1"],
            "adversary.terms.r1.weight=-1 must be at least 0",
        ),
        (["adversary=patch", "trainer.compile=true"], "does not go with trainer.compile=True"),
        (["train=decoder"], "train=decoder needs init_from="),
        (["train=encoder"], "train=encoder must be one of all, decoder"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *FIRST, *words, f"run_dir={tmp_path / 'run'}")
    assert said in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_longer_run_is_refused_where_the_adversary_s_rate_was_planned_for_the_shorter_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*FIRST, *PLAYS, "schedule=constant"]
    train_inside(*own, f"run_dir={tmp_path / 'a'}")
    train_inside(*own, "trainer.steps=6", f"run_dir={tmp_path / 'a'}")
    own.append("schedule@adversary.schedule=cosine")
    train_inside(*own, f"run_dir={tmp_path / 'b'}")
    assert "adversary.schedule=cosine" in error_of(capsys, *own, "trainer.steps=6", f"run_dir={tmp_path / 'b'}")


def test_a_finished_run_is_used_without_its_adversary(tmp_path: Path) -> None:
    train_inside(*FIRST, *PLAYS, f"run_dir={tmp_path / 'run'}")
    run = Run(RunFolder.load(tmp_path / "run", []))
    assert set(dict(run.tokenizer().model.named_children())) == {"encoders", "quantizers", "decoders", "merges"}
