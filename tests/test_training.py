"""Laws of the trainer: a stopped run ends as one that was not; a skipped step changes nothing."""

from __future__ import annotations

import copy
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    ROOT,
    SMALL_CODEBOOK,
    TINY,
    assert_same_result,
    call_inside,
    error_of,
    lines,
    stop_at,
    train_inside,
    weights,
)
from forked import Forks
from torch import nn

import vqvae
from vqvae.losses.terms import MSE
from vqvae.priors.transformer import Transformer
from vqvae.storage import checkpoint
from vqvae.training.optimizers import parameter_groups, reset_rows
from vqvae.training.weight_average import Evaluating, WeightAverage

pytestmark = pytest.mark.cpu

RUN = [
    *TINY,
    *SMALL_CODEBOOK,
    "trainer.weight_average_decay=0.9",
    "quantizer.revival.every_steps=2",
    "quantizer/init=data",
    "trainer.batch_size=24",  # 4 steps an epoch
]
LONGER = ["trainer.steps=12", "prior.trainer.steps=12"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train_inside(*RUN, *LONGER, f"run_dir={run_dir}")
    return run_dir


@pytest.mark.parametrize(("stage", "step"), [("autoencoder", 4), ("prior", 2)])
def test_sigterm_leaves_a_checkpoint_and_the_next_start_ends_as_if_nothing_had_happened(
    stage: str,
    step: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, stage, step)
        with pytest.raises(SystemExit) as stopped:
            train_inside(*RUN, *LONGER, f"run_dir={tmp_path / 'stopped'}")
    assert stopped.value.code == 143
    assert f"{stage}: stopped on request at step {step + 1} of 12" in capsys.readouterr().err
    train_inside(*RUN, *LONGER, f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(whole, tmp_path / "stopped")


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_a_run_ends_bit_identical(forks: Forks, tmp_path: Path) -> None:
    """SIGKILL again and again while lines are being written, through both stages; compared with a run never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = ["trainer.steps=150", "prior.trainer.steps=150", "trainer.checkpoint_every_steps=7"]
    arguments = [*RUN, *steps, "prior.trainer.checkpoint_every_steps=5"]
    train_inside(*arguments, f"run_dir={whole}")
    moments = random.Random(0)
    kills = {"autoencoder": 0, "prior": 0}

    def written(stage: str) -> int:
        file = killed / stage / "metrics.jsonl"
        return file.read_text().count("\n") if file.is_file() else 0

    while True:
        process = forks.start(*arguments, f"run_dir={killed}")
        wanted = written("autoencoder") + written("prior") + moments.randint(15, 30)
        while process.poll() is None and written("autoencoder") + written("prior") < wanted:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        time.sleep(moments.random() * 0.05)
        kills["prior" if written("prior") else "autoencoder"] += 1
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0
    assert min(kills.values()) >= 2, kills
    assert_same_result(whole, killed)


def test_the_same_command_on_a_finished_run_trains_nothing(finished_run: Path) -> None:
    before = (finished_run / "prior" / "metrics.jsonl").read_text()
    train_inside(*TINY, *SMALL_CODEBOOK, f"run_dir={finished_run}")
    assert (finished_run / "prior" / "metrics.jsonl").read_text() == before
    assert "prior: finished before" in (finished_run / "train.log").read_text()


def test_run_dir_alone_continues_with_the_config_that_lies_there(finished_run: Path) -> None:
    train_inside(f"run_dir={finished_run}", "logger=off")
    assert (finished_run / "train.log").read_text().count("prior: finished before") >= 1


def test_a_config_corrected_after_a_failed_start_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", f"run_dir={tmp_path / 'run'}"]
    error_of(capsys, *arguments, "init_from=/nowhere")
    train_inside(*arguments)


def test_another_config_for_the_same_folder_is_refused_with_the_difference(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *TINY, *SMALL_CODEBOOK, f"run_dir={finished_run}", "optimizer.lr=0.5")
    assert "optimizer.lr is 0.002 there, 0.5 here" in message


def test_a_damaged_last_checkpoint_is_skipped_and_the_log_says_so(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, "autoencoder", 8)
        with pytest.raises(SystemExit):
            train_inside(*RUN, *LONGER, f"run_dir={tmp_path / 'run'}")
    newest = checkpoint.find(tmp_path / "run" / "autoencoder" / "checkpoints", "step-*")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    train_inside(*RUN, *LONGER, f"run_dir={tmp_path / 'run'}")
    assert "is damaged" in (tmp_path / "run" / "train.log").read_text()
    assert_same_result(whole, tmp_path / "run")


def test_the_last_two_checkpoints_and_the_best_are_kept(finished_run: Path) -> None:
    for stage in ("autoencoder", "prior"):
        folder = finished_run / stage / "checkpoints"
        assert [p.name[:14] for p in checkpoint.find(folder, "step-*")] == ["step-000000002", "step-000000004"]
        assert len(checkpoint.find(folder, "best")) == 1


def test_accumulated_gradients_train_as_one_batch(tmp_path: Path) -> None:
    plain = [
        *TINY,
        *SMALL_CODEBOOK,
        "trainer.precision=fp32",
        "stages=[autoencoder]",
        "quantizer.revival.every_steps=2",
    ]
    for parts in (1, 4):
        train_inside(*plain, f"trainer.accumulation={parts}", f"run_dir={tmp_path / str(parts)}")
    first, second = weights(tmp_path / "1", "autoencoder"), weights(tmp_path / "4", "autoencoder")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=2e-3, atol=2e-4)


def test_two_seeds_differ_and_one_seed_repeats(finished_run: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        train_inside(*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", f"seed={seed}", f"run_dir={tmp_path / str(seed)}")
    folders = (finished_run, tmp_path / "0", tmp_path / "1")
    logs = [(folder / "autoencoder" / "metrics.jsonl").read_text() for folder in folders]
    assert logs[0] == logs[1] != logs[2]


def test_a_non_finite_loss_changes_nothing_and_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MSE, "value", lambda self, output, x: (output - x).square().mean() * float("nan"))
    arguments = [*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", "quantizer.revival.every_steps=1"]
    message = error_of(capsys, *arguments, f"run_dir={tmp_path / 'stop'}")
    assert "the loss was not finite in 2 steps up to step 2; they changed nothing" in message
    for steps in (2, 4):
        more = ["trainer.on_nonfinite=skip", f"trainer.steps={steps}", "trainer.eval_every_steps=0"]
        monkeypatch.setattr("vqvae.training.trainer.Trainer.evaluate", lambda self, step: None)
        train_inside_quietly(*arguments, *more, f"run_dir={tmp_path / str(steps)}")
    two, four = weights(tmp_path / "2", "autoencoder"), weights(tmp_path / "4", "autoencoder")
    assert all(torch.equal(two[key], four[key]) for key in two)
    assert lines(tmp_path / "4" / "autoencoder" / "metrics.jsonl")[-1]["autoencoder/train/skipped_steps"] == 4


def train_inside_quietly(*overrides: str) -> None:
    """Without the summary, which needs an evaluation."""
    from unittest.mock import patch

    with patch("vqvae.run.report.summarize", return_value=None):
        train_inside(*overrides)


def test_max_time_ends_a_run_early_and_the_prior_goes_on(tmp_path: Path) -> None:
    limited = ["trainer.steps=100000", "trainer.max_time_minutes=0.001"]
    train_inside(*TINY, *SMALL_CODEBOOK, *limited, f"run_dir={tmp_path / 'run'}")
    assert lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl")[-1]["step"] < 1000
    assert (tmp_path / "run" / "samples.png").is_file()


def test_epochs_are_turned_into_steps(tmp_path: Path) -> None:
    epochs = ["trainer.steps=null", "trainer.epochs=0.5", "stages=[autoencoder]"]
    train_inside(*TINY, *SMALL_CODEBOOK, *epochs, f"run_dir={tmp_path / 'run'}")
    assert lines(tmp_path / "run" / "autoencoder" / "metrics.jsonl")[-1]["step"] == 6  # half of 96 images, 8 a step


def test_a_second_prior_on_a_tokenizer_keeps_it_bit_for_bit(finished_run: Path, tmp_path: Path) -> None:
    small = [a for a in TINY if a.startswith(("prior", "logger", "debug"))]
    train_inside(*small, "prior.network.layers=1", f"tokenizer={finished_run}", f"run_dir={tmp_path / 'second'}")
    for name in ("header.json", "codes_0.npy", "labels.npy"):  # codes that were made before are not made again
        made, taken = (path / "codes" / "train" / name for path in (finished_run, tmp_path / "second"))
        assert made.read_bytes() == taken.read_bytes()
        assert made.stat().st_mtime_ns == taken.stat().st_mtime_ns
    first, second = weights(finished_run, "autoencoder"), weights(tmp_path / "second", "autoencoder")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (tmp_path / "second" / "samples.png").is_file()
    call_inside("sample", f"run_dir={tmp_path / 'second'}", "n=1")


def test_a_prior_that_does_not_fit_starts_anew_beside_a_tokenizer_that_does(finished_run: Path, tmp_path: Path) -> None:
    """A shallower network must not silently take the first layers of a deeper one."""
    small = ["prior.network.layers=1", "trainer.steps=1", "prior.trainer.steps=1"]
    train_inside(*TINY, *SMALL_CODEBOOK, *small, f"init_from={finished_run}", f"run_dir={tmp_path / 'run'}")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "the prior starts anew: init_from=" in log
    assert "has other weights than this config" in log


def test_a_tokenizer_brings_its_own_model(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, f"tokenizer={finished_run}", "quantizer=fsq", f"run_dir={tmp_path / 'x'}")
    assert "quantizer=fsq does not go with tokenizer=" in message


def test_init_from_starts_with_the_other_runs_weights(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, *SMALL_CODEBOOK, "quantizer/init=data", "stages=[autoencoder]", f"init_from={finished_run}"]
    train_inside(*arguments, "optimizer.lr=0", "quantizer/revival=none", f"run_dir={tmp_path / 'tuned'}")
    first, second = weights(finished_run, "autoencoder"), weights(tmp_path / "tuned", "autoencoder")
    assert all(torch.equal(first[key], second[key]) for key in first if "coders" in key)
    message = error_of(capsys, *arguments, "model.encoders.0.widths=[8,16]", f"run_dir={tmp_path / 'other'}")
    assert "its autoencoder has other weights than this config" in message


def test_weight_decay_leaves_out_codebooks_norms_and_biases() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3))
    network.register_parameter("codes", nn.Parameter(torch.zeros(4, 2)))
    network.codes.no_weight_decay = True  # type: ignore[union-attr]
    decayed, other = parameter_groups(network)
    assert [p.shape for p in decayed["params"]] == [network[0].weight.shape]
    assert len(other["params"]) == 4
    assert other["weight_decay"] == 0


def test_weight_decay_leaves_the_sharpness_of_attention_alone_and_checkpoints_number_parameters_as_before() -> None:
    prior = Transformer([(2,)], [[3]], num_classes=0, width=4, layers=2, heads=2, dropout=0.0, random_order_until=0.0)
    groups = parameter_groups(prior)
    for parameter in prior.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(prior.state_dict())
    torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5).step()
    for name, value in prior.state_dict().items():
        if name.endswith("sharpness") or value.ndim == 1:
            assert torch.equal(value, before[name]), name
        else:
            torch.testing.assert_close(value, 0.95 * before[name], msg=name)
    parameters = list(prior.parameters())
    older = [p for p in parameters if p.ndim > 1] + [p for p in parameters if p.ndim <= 1]
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in older]


@pytest.mark.parametrize("copied", [False, True])
def test_marks_of_parameters_outlive_a_copy_of_their_module(copied: bool) -> None:
    """Of codebooks and of attention's sharpness, which do not decay, and of the matrices that Muon takes."""
    prior = Transformer([(2,)], [[3]], num_classes=0, width=4, layers=1, heads=1, dropout=0.0, random_order_until=0.0)
    layers = [vqvae.quantizer(name, dim=4) for name in ("vq", "gumbel", "sqvae")]
    network = nn.ModuleList([prior, *layers, vqvae.quantizer("latent", dim=4)])
    expected = {n for n, p in network.named_parameters() if p.ndim > 1 and ("codebook" in n or "sharpness" in n)}
    hidden = sum(getattr(p, "hidden_matrix", False) for p in network.parameters())
    if copied:
        network = copy.deepcopy(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    exempt = [p for group in parameter_groups(network) if "weight_decay" in group for p in group["params"]]
    assert {names[id(p)] for p in exempt if p.ndim > 1} == expected
    assert len(expected) == 5
    assert sum(getattr(p, "hidden_matrix", False) for p in network.parameters()) == hidden > 0


def test_replaced_rows_lose_their_moments_and_others_keep_them() -> None:
    parameter = nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3, 2)
    optimizer.step()
    reset_rows([optimizer], {parameter: torch.tensor([False, True, False])})
    moments = optimizer.state[parameter]["exp_avg"]
    assert (moments != 0).any(1).tolist() == [True, False, True]


def test_the_weight_average_is_used_in_evaluation_only() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage({"net": network}, decay=0.5)
    start = network.weight.item()
    with torch.no_grad():
        network.weight += 1
    average.begin_step(100)
    average.update(torch.tensor(True), {})
    with Evaluating({"net": network}, average):
        assert network.weight.item() == pytest.approx(start + 0.5)
        assert not network.training
    assert network.weight.item() == pytest.approx(start + 1)
    assert network.training


def test_a_checkpoint_is_whole_or_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, "step-1", {"x": torch.arange(5), "note": "text"})
    assert path is not None
    assert checkpoint.load(path)["x"].tolist() == list(range(5))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="does not match the checksum"):
        checkpoint.load(path)


@pytest.mark.parametrize("decay", ["0", "0.9"])
@pytest.mark.parametrize("quantizer", ["vq", "ema"])
def test_codes_start_from_data_with_and_without_a_weight_average(
    quantizer: str, decay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqvae.quantizers.init import DataSample
    from vqvae.training.trainer import Trainer

    chosen, seen = [], []
    choose = DataSample.choose

    def record(self: DataSample, vectors: torch.Tensor, size: int) -> torch.Tensor:
        chosen.append(choose(self, vectors, size))
        return chosen[-1]

    def look(self: Trainer, kind: object, inputs: object) -> None:
        codebook = self.stage.networks["model"].quantizers[0].codebook  # type: ignore[index, union-attr]
        seen.append(codebook.codes().detach().clone())
        with self.evaluating():
            seen.append(codebook.codes().detach().clone())
        raise KeyboardInterrupt

    monkeypatch.setattr(DataSample, "choose", record)
    monkeypatch.setattr(Trainer, "train_step", look)
    overrides = [*TINY, *SMALL_CODEBOOK, f"quantizer={quantizer}", f"trainer.weight_average_decay={decay}"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_inside(*overrides, "stages=[autoencoder]", f"run_dir={tmp_path / 'run'}")
    for codes in seen:
        torch.testing.assert_close(codes, chosen[0])


def test_from_main_to_the_loss_are_at_most_seven_functions_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who follows the code from train.py's main reaches the line that computes the loss in seven functions."""
    original, depths = F.mse_loss, []

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        names = [
            frame.name
            for frame in traceback.extract_stack()
            if Path(frame.filename) == ROOT / "train.py" or (ROOT / "vqvae") in Path(frame.filename).parents
        ]
        if "train_step" in names:
            depths.append(names[names.index("main") :])
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "mse_loss", spy)
    train_inside(*TINY, *SMALL_CODEBOOK, "stages=[autoencoder]", "trainer.steps=1", f"run_dir={tmp_path / 'run'}")
    to_the_loss = [names for names in depths if names[-1] == "value"]
    assert to_the_loss
    assert all(len(names) <= 7 for names in to_the_loss), to_the_loss[0]
