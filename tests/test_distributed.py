"""Laws of two processes: whole stages, evaluation and encoding give what one process gives."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, lines, weights
from quantizer_cases import own_rows
from two_processes import in_a_group

from vqvae import distributed
from vqvae.config.compose import check_train, choices, compose, resolve
from vqvae.networks.blocks import Dropout
from vqvae.priors.maskgit import draw_weights
from vqvae.priors.transformer import TransformerMap
from vqvae.run import encoding
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.run.train import train_autoencoder, train_prior
from vqvae.training.stop import StopRequest

pytestmark = pytest.mark.cpu

STEPS = 20
Both = tuple[Path, Path, list[list[str]]]
# 101 validation images in chunks of 40: rank 0 has two of them, and rank 1 has one, with 20 images in it
COMMON = [
    *[a for a in TINY if not a.startswith(("data.val_count", "prior."))],
    "data.val_count=101",
    "data.flip=true",
]
EMA = [
    *SMALL_CODEBOOK,
    "quantizer/init=kmeans",
    "quantizer/revival=random",
    "quantizer.revival.every_steps=5",
    "quantizer.revival.decay=0.5",
    "quantizer.revival.threshold=0.5",
    "trainer.weight_average_decay=0.9",
]
AUTOENCODERS = {
    "k-means, revival, weight average": EMA,
    "residual, stages dropped": ["quantizer=residual", "quantizer.inner.codebook.size=16", "quantizer.dropout=0.5"],
    "entropies": ["quantizer=lfq"],
    # from data, its logits would be so large that rounding decides a draw in a thousand
    "gumbel": ["quantizer=gumbel", "quantizer.size=16", "quantizer/init=uniform"],
    "axes of a moving PCA": ["quantizer=pca", *SMALL_CODEBOOK, "quantizer.lookup.components=4"],
    "fewer images than ranks x chunk": [*SMALL_CODEBOOK, "trainer.eval_batch_size=128"],
    "micro-batches": [*SMALL_CODEBOOK, "trainer.accumulation=2"],
    "micro-batches, revival, start from four batches": [
        *EMA,
        "quantizer.init.vectors_per_code=128",
        "trainer.accumulation=2",
    ],
    "adversary, micro-batches": [
        *SMALL_CODEBOOK,
        "adversary=patch",
        "adversary.network.widths=[8,8]",
        "+adversary/term@adversary.terms.r1=r1",
        "+adversary/term@adversary.terms.lecam=lecam",
        "adversary.terms.r1.every=3",
        "adversary.augment=[color,translation,cutout]",
        "adversary.start_step=5",
        "+adversary.optimizer.eps=1e-3",
        "trainer.accumulation=2",
    ],
    "bf16": [*SMALL_CODEBOOK, "trainer.precision=bf16"],
}
BF16_METRICS = {
    "autoencoder/train/loss",
    "autoencoder/val/loss",
    "autoencoder/val/psnr_db",
    "codebook/train/run_perplexity_0",
    "codebook/val/perplexity_0",
}
MUON = "maskgit, Muon"
PRIORS = {**{name: name for name in choices("prior")}, MUON: "maskgit"}
SCALES = ["quantizer=multiscale", "quantizer.inner.codebook.size=16"]
CODES = {name: SCALES if name == "next_scale" else SMALL_CODEBOOK for name in choices("prior")}
SIZES = {"pixelcnn": "layers=2", "pixelsnail": "blocks=1", "wavenet": "layers=2"}  # others: layers=1


def settings(steps: int) -> list[str]:
    return [f"trainer.steps={steps}", f"trainer.eval_every_steps={steps // 2}", "trainer.eval_batch_size=40"]


def prior_settings(case: str) -> list[str]:
    name = PRIORS[case]
    network = ["width=8", "dropout=0.3", SIZES.get(name, "layers=1")]
    network += {
        "transformer": ["random_order_until=1", "heads=2"],
        "maskgit": ["heads=2"],
        "next_scale": ["heads=2"],
        "delayed": ["heads=2"],
        "pixelsnail": ["layers=1"],
    }.get(name, [])
    return [
        f"prior={name}",
        *CODES[name],
        *[f"prior.{one}" for one in settings(STEPS)],
        *[f"prior.network.{one}" for one in network],
        "prior.class_dropout=0.3",
        f"prior.trainer.accumulation={2 if name == 'pixelcnn' else 1}",
        "prior.label_smoothing=0.1",
        # where a gradient is 0 but for rounding, Adam's division makes a full step of it, and so does Muon's matrix
        *([] if case == MUON else ["optimizer@prior.optimizer=adamw", "+prior.optimizer.eps=1e-3"]),
    ]


def run_of(path: Path, *overrides: str) -> Run:
    cfg = resolve(compose("train", [*COMMON, *overrides]))
    cfg.run_dir = str(path)
    check_train(cfg)
    folder = RunFolder(path, cfg)
    folder.create()
    return Run(folder)


def train_all(base: Path, tokenizer: Path) -> list[str]:
    """Runs every case in a folder of its own below `base` -> the paths that this process wrote there."""
    written = writes_below(base)
    encoding.CHUNK = 40  # items, so that both ranks have some
    for name, overrides in AUTOENCODERS.items():
        own = [*settings(STEPS), "trainer.precision=fp32", "+optimizer.eps=1e-3", *overrides]
        train_autoencoder(run_of(base / name, *own), StopRequest())
    for name in PRIORS:
        run = run_of(base / name, *prior_settings(name), "prior.trainer.precision=fp32")
        if distributed.is_main():
            source = tokenizer / ("scales" if CODES[PRIORS[name]] is SCALES else "one map")
            shutil.copytree(source / "autoencoder", base / name / "autoencoder")
        distributed.barrier()
        train_prior(run, run.tokenizer(), StopRequest())
    return written


def writes_below(base: Path) -> list[str]:
    """A list that grows by every path below `base` that this process, from now on, opens for writing, makes or moves."""
    found: list[str] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (event == "open" and arguments[2] & writing):
            path = str(arguments[0])
            if path.startswith(str(base)):
                found.append(path.removeprefix(f"{base}/"))

    sys.addaudithook(listen)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Folders of one and of two processes, and what each of the two wrote."""
    folder = tmp_path_factory.mktemp("both")
    tokenizer = folder / "tokenizer"
    for name, codes in (("one map", SMALL_CODEBOOK), ("scales", SCALES)):
        train_autoencoder(run_of(tokenizer / name, *settings(2), *codes), StopRequest())
    written = in_a_group(folder, train_all, folder / "two", tokenizer)
    train_all(folder / "one", tokenizer)
    return folder / "one", folder / "two", written


def counts(run_dir: Path) -> torch.Tensor:
    """How often each code was chosen: in the last step, since the last log, in the epoch, in the run."""
    checkpoint = sorted((run_dir / "autoencoder" / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(checkpoint, weights_only=True)["meters"]["counts"]


def assert_same_metrics(one: Path, two: Path, relative: float = 1e-3, absolute: float = 1e-4) -> None:
    first, second = lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl")
    assert len(first) == len(second) > 2
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        numbers = [key for key in a if not isinstance(a[key], dict)]
        assert {key: b[key] for key in numbers} == pytest.approx(
            {key: a[key] for key in numbers}, rel=relative, abs=absolute
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in AUTOENCODERS if name != "bf16"])
def test_two_processes_train_an_autoencoder_as_one(both: Both, name: str) -> None:
    one, two = both[0] / name, both[1] / name
    assert torch.equal(counts(one), counts(two))
    assert_same_metrics(one / "autoencoder", two / "autoencoder")
    torch.testing.assert_close(weights(two, "autoencoder"), weights(one, "autoencoder"), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_in_bf16_the_losses_of_two_processes_are_within_a_hundredth(both: Both) -> None:
    first, second = (lines(folder / "bf16" / "autoencoder" / "metrics.jsonl") for folder in both[:2])
    for a, b in zip(first, second, strict=True):
        keys = BF16_METRICS & a.keys()
        assert keys
        assert {key: b[key] for key in keys} == pytest.approx({key: a[key] for key in keys}, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRIORS if name != MUON])
def test_two_processes_train_a_prior_as_one(both: Both, name: str) -> None:
    """With dropout, hidden classes, random orders and masked codes: every draw is that of the whole batch."""
    one, two = both[0] / name, both[1] / name
    for split in ("train", "val", "train_flipped"):
        for file in ("codes_0.npy", "labels.npy", "header.json"):
            assert (one / "codes" / split / file).read_bytes() == (two / "codes" / split / file).read_bytes()
    assert_same_metrics(one / "prior", two / "prior")
    torch.testing.assert_close(weights(two, "prior"), weights(one, "prior"), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_with_muon_the_losses_of_two_processes_are_within_a_hundredth(both: Both) -> None:
    """It makes matrices orthogonal in bfloat16, so that rounding shows."""
    assert_same_metrics(both[0] / MUON / "prior", both[1] / MUON / "prior", relative=0.01)


@pytest.mark.slow
def test_rank_0_alone_writes_but_for_the_codes_that_each_rank_has_made(
    both: Both,
) -> None:
    main, other = both[2]
    assert any(path.endswith("prior/metrics.jsonl") for path in main)
    assert any("weights-" in path for path in main)
    assert other
    assert all("/codes/" in path and path.endswith(".npy") for path in other)


# ---- draws, in this process: what each rank would draw


def on_each_rank(monkeypatch: pytest.MonkeyPatch, work: Callable[[slice], torch.Tensor], rows: int) -> torch.Tensor:
    """What two ranks make of their parts of `rows` rows, put together."""
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        torch.manual_seed(0)
        parts.append(work(own_rows(rows)))
    monkeypatch.undo()
    return torch.cat(parts)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_ranks_drop_what_one_process_drops(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(8, 6, 5, 4).to(dtype).to(memory_format=layout)
    dropout = Dropout(0.3)
    two = on_each_rank(monkeypatch, lambda own: dropout(x[own]), len(x))
    torch.manual_seed(0)
    one = torch.nn.functional.dropout(x, 0.3)
    assert torch.equal(one, two)
    assert 0.2 < (two == 0).float().mean() < 0.4
    assert not torch.equal(two[:4] == 0, two[4:] == 0)
    assert torch.equal(on_each_rank(monkeypatch, lambda own: dropout.eval()(x[own]), len(x)), x)


def test_two_ranks_hide_the_codes_and_follow_the_orders_that_one_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.zeros(8, 12, dtype=torch.int64)
    network = TransformerMap([5], (3, 4), width=8, layers=1, heads=2, dropout=0.0, random_orders=True)
    network.random_share.fill_(0.5)
    draws: dict[str, Callable[[slice], torch.Tensor]] = {
        "hidden": lambda own: draw_weights(codes[own], None),
        "orders": lambda own: network.draw_order(len(codes[own])),
    }
    for work in draws.values():
        two = on_each_rank(monkeypatch, work, len(codes))
        torch.manual_seed(0)
        assert torch.equal(work(slice(0, 8)), two)
        assert not torch.equal(two[:4], two[4:])


def test_a_masked_bound_is_that_of_its_batch_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.zeros(4, 12, dtype=torch.int64)

    def weights_of_batch(own: slice) -> torch.Tensor:
        return draw_weights(codes, torch.Generator().manual_seed(0))

    first, second = on_each_rank(monkeypatch, weights_of_batch, 8).chunk(2)
    assert torch.equal(first, second)
