"""Laws of sharded networks: two ranks that share one out train as one process does, and write the same whole files."""

from __future__ import annotations

import contextlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of, weights
from test_distributed import EMA, assert_same_metrics, prior_settings, run_of, settings
from test_priors import prior_of
from torch import nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm
from two_processes import in_a_group

from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.errors import UserError
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Sampling
from vqvae.run import encoding
from vqvae.run.checks import check_adversary
from vqvae.run.train import train_autoencoder, train_prior
from vqvae.storage.forms import form_of, mistake
from vqvae.training.optimizers import Muon, guarded_step, parameter_groups
from vqvae.training.stop import Stopped, StopRequest
from vqvae.training.trainer import Trainer
from vqvae.training.weight_average import Evaluating

pytestmark = pytest.mark.cpu

STEPS = 20
MUON: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "momentum": 0.95, "weight_decay": 0.0}
AVERAGED = ["trainer.weight_average_decay=0.9", "trainer.clip_grad_norm=0.1"]
K_MEANS = "k-means, revival, weight average, clipping"
AUTOENCODERS = {
    K_MEANS: [*EMA, "trainer.clip_grad_norm=0.1"],
    "codebook with gradients, micro-batches": [
        "quantizer=vq",
        *SMALL_CODEBOOK,
        *AVERAGED,
        "trainer.accumulation=2",
    ],
}
PRIORS = ["transformer", "maskgit, Muon"]


def overrides_of(name: str) -> list[str]:
    """Of a case, which is an autoencoder or a prior."""
    if name in AUTOENCODERS:
        return [*settings(STEPS), "trainer.precision=fp32", "+optimizer.eps=1e-3", *AUTOENCODERS[name]]
    return [*prior_settings(name), "prior.trainer.precision=fp32"]


def train(base: Path, name: str, tokenizer: Path, sharding: str) -> None:
    """Trains a case in a folder of its own below `base`, or goes on."""
    encoding.CHUNK = 40  # items, so that both ranks have some
    if name in AUTOENCODERS:
        run = run_of(base / name, *overrides_of(name), f"trainer.sharding={sharding}")
        return train_autoencoder(run, StopRequest())
    run = run_of(base / name, *overrides_of(name), f"prior.trainer.sharding={sharding}")
    if distributed.is_main() and not (base / name / "autoencoder").exists():
        shutil.copytree(tokenizer / "autoencoder", base / name / "autoencoder")
    distributed.barrier()
    train_prior(run, run.tokenizer(), StopRequest())


def train_all(base: Path, tokenizer: Path, sharding: str) -> None:
    for name in [*AUTOENCODERS, *PRIORS]:
        train(base, name, tokenizer, sharding)


def train_until(step: int, base: Path, tokenizer: Path, sharding: str) -> None:
    """Trains an autoencoder and a prior until a step, or to the end."""
    original = Trainer.after_step

    def after_step(self: Trainer, done: int, bar: tqdm) -> None:
        original(self, done, bar)
        if done == step < STEPS:
            self.save_and_stop(done, [])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "after_step", after_step)
        for name in (K_MEANS, "transformer"):
            with contextlib.nullcontext() if step == STEPS else pytest.raises(Stopped):
                train(base, name, tokenizer, sharding)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "run"
    train_autoencoder(run_of(path, *settings(2), *SMALL_CODEBOOK), StopRequest())
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> tuple[Path, Path]:
    """Folders of one process, and of two that share out the networks."""
    folder = tmp_path_factory.mktemp("sharded")
    in_a_group(folder, train_all, folder / "two", tokenizer, "fsdp")
    train_all(folder / "one", tokenizer, "none")
    return folder / "one", folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AUTOENCODERS, "transformer"])
def test_two_ranks_that_share_out_a_network_train_and_evaluate_it_as_one_does(
    both: tuple[Path, Path], name: str
) -> None:
    """With weight average and clipping, dropout, gradients of parts that stay whole, and unequal numbers of batches."""
    one, two = both[0] / name, both[1] / name
    stage = "autoencoder" if name in AUTOENCODERS else "prior"
    assert_same_metrics(one / stage, two / stage)
    torch.testing.assert_close(weights(two, stage), weights(one, stage), rtol=1e-3, atol=1e-4)
    assert {path.name for path in (two / stage).rglob("*.png")} == {path.name for path in (one / stage).rglob("*.png")}


@pytest.mark.slow
def test_with_muon_their_losses_are_within_a_hundredth(both: tuple[Path, Path]) -> None:
    """It makes matrices orthogonal in bfloat16, so that rounding shows."""
    assert_same_metrics(*(folder / "maskgit, Muon" / "prior" for folder in both), relative=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AUTOENCODERS, *PRIORS])
def test_their_files_are_whole_and_of_the_same_form(both: tuple[Path, Path], name: str) -> None:
    stage = "autoencoder" if name in AUTOENCODERS else "prior"
    files = [
        sorted(path for path in (folder / name / stage).rglob("*.pt") if "variance" not in path.name) for folder in both
    ]
    assert len(files[0]) == len(files[1]) > 2
    for one, two in zip(*files):
        first, second = (torch.load(path, weights_only=True) for path in (one, two))
        for state in (first, second):
            state.get("window", {}).pop("sums", None)  # a row of each rank
            for own in state.get("optimizers", {}).values():
                for part in [own] if "param_groups" in own else own.values():  # groups may be cut in other places
                    part["param_groups"] = [number for group in part["param_groups"] for number in group["params"]]
                    assert part["param_groups"] == list(range(len(part["param_groups"])))
        assert mistake(second, form_of(first, finite=False)) is None
        assert not any(type(leaf).__name__ == "DTensor" for leaf in tree_leaves(second))


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_ranks_sharded_or_not(
    both: tuple[Path, Path], tokenizer: Path, tmp_path: Path
) -> None:
    """Two that share it out, one alone, two that do not, and again two that do."""
    for number, (step, sharding) in enumerate([(6, "fsdp"), (11, None), (15, "none"), (STEPS, "fsdp")]):
        if sharding is None:
            train_until(step, tmp_path / "run", tokenizer, "none")
        else:
            (folder := tmp_path / str(number)).mkdir()
            in_a_group(folder, train_until, step, tmp_path / "run", tokenizer, sharding)
    for name, stage in ((K_MEANS, "autoencoder"), ("transformer", "prior")):
        ours, right = (weights(base / name, stage) for base in (tmp_path / "run", both[0]))
        torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-4)


def what_is_shared(prior: Prior, model: nn.Module) -> dict[str, Any]:
    """What a rank has of two networks once they are shared out, and what a prior draws before and after it is trained."""
    codes, labels = [torch.arange(16).view(4, 2, 2) % 7], torch.tensor([0, 1, 2, -1])
    wanted = prior.eval().sample([0, 1], labels[:2], Sampling())
    optimizer_reads = {name: dict(vars(p)) for name, p in prior.named_parameters()}
    for network in (prior, model):
        distributed.shard(network)
    assert all(optimizer_reads[name].items() <= vars(p).items() for name, p in prior.named_parameters())
    drawn = []
    for _ in range(2):
        with Evaluating({"prior": prior}, None):
            drawn.append(prior.sample([0, 1], labels[:2], Sampling()))
        prior(codes, labels).loss.backward()
    gradients = [p.grad for p in prior.parameters() if p.grad is not None]
    are_parts = len(gradients) > 20 and all(map(distributed.is_sharded, gradients))
    moved = []
    for new in (partial(torch.optim.AdamW, lr=1e-2, fused=True), partial(Muon, **MUON)):
        optimizer = new(parameter_groups(prior))
        for applied in (False, True):
            before = [distributed.local(p).clone() for p in prior.parameters()]
            prior(codes, labels).loss.backward()
            guarded_step(optimizer, torch.tensor(applied))
            pairs = zip(before, map(distributed.local, prior.parameters()))
            moved.append(sum(not torch.equal(one, other) for one, other in pairs))
    kept = {name: distributed.local(p).numel() / p.numel() for name, p in model.named_parameters()}
    return {
        "moved": moved,
        "draws": [torch.equal(one[0], wanted[0]) for one in drawn],
        "prior": [distributed.local(p).numel() / p.numel() for p in prior.parameters() if p.ndim > 1],
        "gradients": are_parts,
        "model": kept,
    }


def test_each_rank_keeps_a_part_of_every_weight_but_of_quantizers_and_a_prior_can_draw_at_any_time(
    tmp_path: Path,
) -> None:
    """And a step that is not applied moves nothing."""
    model = build(resolve(compose("train", [*TINY, "quantizer=vq", *SMALL_CODEBOOK])).model, "model")
    shared = in_a_group(tmp_path, what_is_shared, prior_of("transformer", [(2, 2)], [7]), model)
    assert all(rank["draws"] == [True, True] and rank["gradients"] for rank in shared)
    for rank in shared:
        assert rank["moved"][0] == rank["moved"][2] == 0
        assert min(rank["moved"][1], rank["moved"][3]) > 20
    for first, second in zip(*(rank["prior"] for rank in shared)):
        assert first + second == 1
    for name, first in shared[0]["model"].items():
        assert first + shared[1]["model"][name] == (2 if name.startswith("quantizers") else 1)
    assert any(name.startswith("quantizers") for name in shared[0]["model"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["trainer.sharding=fsdp"],
            "trainer.sharding=fsdp shares out a network among processes, and there is one alone",
        ),
        (["prior.trainer.sharding=fsdp"], "prior.trainer.sharding=fsdp shares out a network among processes"),
        (["trainer.sharding=ddp"], "trainer.sharding=ddp must be one of none, fsdp"),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, *TINY, *SMALL_CODEBOOK, *more, f"run_dir={tmp_path / 'run'}")
    assert message in said
    assert said.count("\n") == 1


def test_a_network_with_an_adversary_is_not_shared_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    more = [*SMALL_CODEBOOK, "adversary=patch", "trainer.sharding=fsdp", f"run_dir={tmp_path / 'run'}"]
    run = run_of(tmp_path / "run", *more)
    with pytest.raises(UserError, match=r"trainer\.sharding=fsdp does not go with an adversary"):
        check_adversary(run)
