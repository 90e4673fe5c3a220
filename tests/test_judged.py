"""Laws of Frechet distances, and of evaluations by a pretrained network."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, train_inside
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

import vqvae
from vqvae.backbones.named import load_backbone
from vqvae.data.items import ItemEvaluationSet
from vqvae.metrics.frechet import frechet_distance, moments
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")


def with_covariance(variances: list[float], mean: float, count: int = 50) -> Tensor:
    """Vectors (count, F) float64 with exactly this mean, and this diagonal covariance (unbiased)."""
    x = torch.randn(count, len(variances), dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(count - 1)
    return x * torch.tensor(variances, dtype=torch.float64).sqrt() + mean


def theirs(a: Tensor, b: Tensor) -> float:
    """The distance by torchmetrics."""

    class Same(nn.Module):
        num_features = a.shape[1]

        def forward(self, features: Tensor) -> Tensor:
            return features

    metric = FrechetInceptionDistance(feature=Same())
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())


def test_normal_distributions_have_the_distance_of_the_closed_form() -> None:
    a, b = with_covariance([1.0, 4.0, 9.0], 0.0), with_covariance([4.0, 4.0, 0.25], 2.0)
    expected = 3 * 2.0**2 + (2 - 1) ** 2 + 0 + (3 - 0.5) ** 2
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, abs=1e-9)


def test_the_distance_is_that_of_an_independent_computation_in_both_orders() -> None:
    mixing = torch.randn(12, 12, dtype=torch.float64)
    a, b = torch.randn(300, 12, dtype=torch.float64) @ mixing, torch.randn(200, 12, dtype=torch.float64) + 1
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(theirs(a, b), rel=1e-6)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(theirs(a, b), rel=1e-6)
    assert frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-6)


def test_parts_add_up_whatever_their_order_and_size() -> None:
    x = torch.randn(100, 5)
    whole = moments(x)
    parts = sum(moments(part) for part in x[torch.randperm(100)].split(7))
    torch.testing.assert_close(parts, whole)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged") / "run"
    more = ["data.val_count=120", "data.train_count=160"]
    train_inside(*TINY, *SMALL_CODEBOOK, *more, f"run_dir={path}")
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    import timm

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(timm.create_model("test_convnext", num_classes=0).state_dict(), file)
    return str(file)


@needs_timm
def test_an_evaluation_judges_reconstructions_samples_and_real_images_by_the_same_rule(
    run_dir: Path, weights: str, tmp_path: Path
) -> None:
    out = tmp_path / "figures.json"
    judged = ["backbone=test_convnext", f"backbone_file={weights}", "samples=70", "batch_size=50"]
    call_inside("scripts.evaluate", f"run_dir={run_dir}", *judged, f"out={out}")
    said = json.loads(out.read_text())
    figures = {name: entry["value"] for name, entry in said["figures"].items()}
    assert (said["backbone"], said["samples"]) == ("test_convnext", 70)

    run, model, backbone = (
        Run(RunFolder.load(run_dir, [])),
        vqvae.load(run_dir),
        load_backbone("test_convnext", weights),
    )
    real, train = (
        torch.cat([batch.x for batch in ItemEvaluationSet(run.data, run.loader(split)).batches(64)])
        for split in ("val", "train")
    )
    train = train[torch.arange(120) * 160 // 120]
    samples = model.sample(range(70), labels=[seed % 10 for seed in range(70)])
    for name, images in {
        "autoencoder/rfd_test_convnext": model.reconstruct(real),
        "autoencoder/rfd_floor_test_convnext": train,
        "prior/gfd_test_convnext": samples,
    }.items():
        assert figures[name] == pytest.approx(theirs(backbone.pooled(real), backbone.pooled(images)), rel=1e-2)
    assert figures["autoencoder/rfd_floor_test_convnext"] < figures["autoencoder/rfd_test_convnext"]


@needs_timm
def test_too_few_images_are_told_with_the_number_that_is_needed(
    run_dir: Path, weights: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    judged = [f"run_dir={run_dir}", "backbone=test_convnext", f"backbone_file={weights}"]
    with pytest.raises(SystemExit):
        call_inside("scripts.evaluate", *judged, "samples=64")
    assert "samples=64 are too few: test_convnext has 64 features, and needs more than that" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call_inside("scripts.evaluate", f"run_dir={run_dir}", "samples=100")
    assert "name it with backbone=efficientnet_lite0" in capsys.readouterr().err
