"""Laws of figures of sets of images, and of evaluations by a pretrained network."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, call_inside, lines, train_inside
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from two_processes import in_a_group

import vqvae
from vqvae.backbones.base import Backbone
from vqvae.backbones.named import load_backbone
from vqvae.data.items import ItemBatch, ItemEvaluationSet
from vqvae.errors import UserError
from vqvae.judging.drawn import DrawnSamples
from vqvae.judging.figures import Sets, compared, floors
from vqvae.judging.judge import Judge
from vqvae.judging.statistics import Statistics, collect
from vqvae.losses.ssim import SSIM
from vqvae.metrics.frechet import Gaussian, frechet_distance, moments
from vqvae.metrics.likeness import inception_score, kernel_distance, manifold_figures
from vqvae.metrics.reconstruction import multi_scale_ssim, scales_of
from vqvae.run.folder import RunFolder
from vqvae.run.judged import read_reference
from vqvae.run.run import Run

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
needs_fidelity = pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="needs torch-fidelity")


def with_covariance(variances: list[float], mean: float, count: int = 50) -> Tensor:
    """Vectors (count, F) float64 with exactly this mean, and this diagonal covariance (unbiased)."""
    x = torch.randn(count, len(variances), dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(count - 1)
    return x * torch.tensor(variances, dtype=torch.float64).sqrt() + mean


def fitted(x: Tensor) -> Gaussian:
    return Gaussian.of(moments(x))


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
    assert frechet_distance(fitted(a), fitted(b)) == pytest.approx(expected, abs=1e-9)


def test_the_distance_is_that_of_an_independent_computation_in_both_orders() -> None:
    mixing = torch.randn(12, 12, dtype=torch.float64)
    a, b = torch.randn(300, 12, dtype=torch.float64) @ mixing, torch.randn(200, 12, dtype=torch.float64) + 1
    assert frechet_distance(fitted(a), fitted(b)) == pytest.approx(theirs(a, b), rel=1e-6)
    assert frechet_distance(fitted(b), fitted(a)) == pytest.approx(theirs(a, b), rel=1e-6)
    assert frechet_distance(fitted(a), fitted(a)) == pytest.approx(0, abs=1e-6)


def test_parts_add_up_whatever_their_order_and_size() -> None:
    x = torch.randn(100, 5)
    whole = moments(x)
    parts = sum(moments(part) for part in x[torch.randperm(100)].split(7))
    torch.testing.assert_close(parts, whole)


def test_the_distance_is_scipys_in_float64() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (
        torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64),
        torch.randn(90, 8).double(),
    )
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0).numpy(), np.cov(x.numpy().T)) for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(fitted(a), fitted(b)) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_the_unbiased_sum_over_pairs_in_disjoint_blocks() -> None:
    made, real = torch.randn(2000, 6), torch.randn(2400, 6) + 0.3

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().t() / 6 + 1) ** 3

    values = []
    for block in range(2):
        x, y = made[block::2][:1000], real[block::2][:1000]
        off = 1 - torch.eye(1000, dtype=torch.float64)
        within = [(kernel(one, one) * off).sum() / (1000 * 999) for one in (x, y)]
        values.append(float(sum(within) - 2 * kernel(x, y).mean()))
    value, error = kernel_distance(made, real)
    assert value == pytest.approx(sum(values) / 2, rel=1e-9)
    assert error == pytest.approx(abs(values[0] - values[1]) / 2, rel=1e-6)
    assert math.isnan(kernel_distance(made[:500], real)[1])


@needs_fidelity
def test_the_kernel_distance_is_that_of_torch_fidelity_over_one_block() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    made, real = torch.randn(300, 16), torch.randn(300, 16) * 1.2
    theirs = kid_features_to_metric(made, real, kid_subsets=1, kid_subset_size=300, verbose=False)
    assert kernel_distance(made, real)[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


def test_precision_recall_density_and_coverage_are_those_of_a_brute_force_count() -> None:
    made, real = torch.randn(60, 4) * 0.7, torch.randn(50, 4)

    def distance(x: Tensor, y: Tensor) -> float:
        return float((x - y).double().square().sum().sqrt())

    def radius(x: Tensor, own: Tensor, k: int) -> float:
        return sorted(distance(x, y) for y in own)[k]  # the first is x itself

    near = [radius(y, real, 3) for y in real]
    near_made = [radius(x, made, 3) for x in made]
    wide = [radius(y, real, 5) for y in real]
    expected = {
        "precision": np.mean([any(distance(x, y) <= r for y, r in zip(real, near)) for x in made]),
        "recall": np.mean([any(distance(x, y) <= r for x, r in zip(made, near_made)) for y in real]),
        "density": sum(distance(x, y) <= r for x in made for y, r in zip(real, wide)) / (5 * 60),
        "coverage": np.mean([any(distance(x, y) <= r for x in made) for y, r in zip(real, wide)]),
    }
    assert manifold_figures(made, real) == pytest.approx(expected, abs=1e-9)
    assert manifold_figures(real, real)["coverage"] == 1


@needs_fidelity
def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    made, real = torch.randn(400, 8) * 0.8, torch.randn(300, 8)
    precision, recall = calculate_precision_recall_full(made, real, 3)
    found = manifold_figures(made, real)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-6)


def test_the_inception_score_is_1_for_images_that_all_look_alike_and_the_number_of_classes_for_certain_ones() -> None:
    def sums(p: Tensor) -> Tensor:
        return torch.cat([p.sum(0), torch.special.xlogy(p, p).sum()[None]])

    alike = sums(torch.full((8, 4), 0.25))
    certain = sums(torch.eye(4).repeat(2, 1))
    assert inception_score(alike[None])[0] == pytest.approx(1)
    assert inception_score(certain[None])[0] == pytest.approx(4)
    assert inception_score(torch.stack([alike, certain])) == pytest.approx((2.5, 1.5))


class Seen(Backbone):
    """The first pixels of an image as features; classes by the first of them."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity(), [0.5] * 3, [0.5] * 3, 1, classifier=(torch.eye(width)[:2], torch.zeros(2)))
        self.seen = width

    def maps(self, prepared: Tensor) -> list[Tensor]:
        return [prepared]

    def vectors(self, prepared: Tensor) -> Tensor:
        return prepared.flatten(1)[:, : self.seen]


class Images:
    """Images and labels as an image set of one process."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels

    def batches(self, chunk: int) -> list[ItemBatch]:
        return [ItemBatch(*pair) for pair in zip(self.x.split(chunk), self.labels.split(chunk))]


def seen(x: Tensor, labels: Tensor, classes: int = 2) -> tuple[Judge, Statistics]:
    judge = Judge(Seen(6), "seen", 6, 1)
    return judge, collect(judge, Images(x, labels), len(x), classes, "images")


def test_statistics_are_those_of_all_vectors_whatever_the_batches() -> None:
    x, labels = torch.rand(300, 3, 4, 4) * 2 - 1, torch.arange(300) % 2
    judge, found = seen(x, labels)
    vectors = judge.features(x)
    torch.testing.assert_close(found.moments, moments(vectors))
    order = places(300)
    torch.testing.assert_close(found.folds[1], moments(vectors[order % 5 == 1]))
    torch.testing.assert_close(found.kept, vectors[order.argsort()])
    torch.testing.assert_close(found.class_moments[1], moments(vectors[1::2]))
    assert len(found) == 300
    p = vectors[:, :2].softmax(1)
    torch.testing.assert_close(found.probabilities[3, :2].float(), p[order % 10 == 3].sum(0))


def test_parts_of_a_set_hold_all_classes_where_these_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in samples: every fifth or tenth of them would be of one or two classes alone."""
    monkeypatch.setattr("vqvae.judging.statistics.KEPT", 200)
    labels = torch.arange(1000) % 10
    x = torch.zeros(1000, 3, 4, 4)
    x[torch.arange(1000), 0, labels.div(4, rounding_mode="floor"), labels % 4] = 1  # a pixel of its own for each class
    judge = Judge(Seen(12), "seen", 12, 1)
    found = collect(judge, Images(x, labels), 1000, 10, "images")
    counts = found.labels.long().bincount(minlength=10)
    assert counts.sum() == 200
    assert counts.min() >= 10
    means = found.folds[:, 0, 1:13] / found.folds[:, 0, :1]  # of each pixel of the first row of three, in each fifth
    assert (means[:, :10] - means[:, :10].mean(0)).abs().max() < 0.1
    alike = found.probabilities[:, :-1] / found.probabilities[:, :-1].sum(1, keepdim=True)
    assert (alike - alike.mean(0)).abs().max() < 0.05


def test_slices_of_volumes_are_counted_and_never_seen_by_the_thousands() -> None:
    """A volume of 50 slices is as many images, so that two of them are seen at once."""
    x, labels = torch.rand(5, 1, 50, 4, 4) * 2 - 1, torch.arange(5) % 2
    judge, counts = Judge(Seen(6), "seen", 6, 50), list[int]()
    pooled = judge.backbone.pooled
    judge.backbone.pooled = lambda images: counts.append(len(images)) or pooled(images)  # type: ignore[method-assign,func-returns-value]
    found = collect(judge, Images(x, labels), 5, 2, "volumes")
    assert counts == [100, 100, 50]
    torch.testing.assert_close(found.moments, moments(pooled(x[:, 0].flatten(0, 1)[:, None])))
    assert found.labels.long().bincount().tolist() == [150, 100]


def on_each_rank(folder: Path) -> tuple[Statistics, Statistics, list[str]]:
    """Statistics of the items of a split and of 70 samples, and the files that hold these."""
    run = Run(RunFolder.load(folder, []))
    judge = Judge(Seen(6), "seen", 6, 1)
    items = ItemEvaluationSet(run.data, run.loader("val"))
    found = collect(judge, items, len(items.loader), 10, "items")
    drawn = DrawnSamples(run.trained_model(), 70, {"chunk": 20}, folder.parent / "drawn")
    drawn.draw()
    samples = collect(judge, drawn, 70, 10, "samples")
    return found, samples, sorted(file.name for file in drawn.folder.iterdir())


@pytest.mark.cpu
def test_two_ranks_collect_and_draw_what_one_does(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "two" / "run")
    first, second = in_a_group(tmp_path, on_each_rank, tmp_path / "two" / "run")
    alone = on_each_rank(run_dir)
    for ours in (first, second):
        for found, right in zip(ours[:2], alone[:2]):
            for field in ("folds", "class_sums", "labels", "probabilities"):
                torch.testing.assert_close(getattr(found, field), getattr(right, field))
    assert first[2] == alone[2]


def places(count: int) -> Tensor:
    """Where each of `count` vectors lies in the random order of their set."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def test_at_most_ten_thousand_vectors_are_kept_from_all_over_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqvae.judging.statistics.KEPT", 40)
    x = torch.rand(300, 3, 4, 4) * 2 - 1
    judge, found = seen(x, torch.arange(300) % 2)
    kept = places(300).argsort()[:40]
    torch.testing.assert_close(found.kept, judge.features(x)[kept])
    assert found.labels.tolist() == (kept % 2).tolist()


def test_statistics_that_were_kept_are_the_same_and_damaged_ones_are_made_again(tmp_path: Path) -> None:
    _, found = seen(torch.rand(50, 3, 4, 4) * 2 - 1, torch.arange(50) % 2)
    found.save(tmp_path / "kept.npz")
    again = Statistics.read(tmp_path / "kept.npz")
    assert again is not None
    torch.testing.assert_close(again.folds, found.folds, rtol=0, atol=0)
    torch.testing.assert_close(again.kept, found.kept, rtol=0, atol=0)
    whole = (tmp_path / "kept.npz").read_bytes()
    (tmp_path / "kept.npz").write_bytes(whole[: len(whole) // 2])
    assert Statistics.read(tmp_path / "kept.npz") is None
    assert Statistics.read(tmp_path / "nothing.npz") is None


def test_a_reference_or_statistics_that_numpy_cannot_read_are_no_traceback(tmp_path: Path) -> None:
    judge = Judge(Seen(6), "seen", 6, 1)
    file, damaged = tmp_path / "a.npz", [b"PK\x03\x04and no zip", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8',"]
    np.savez_compressed(file, mu=np.arange(6.0), sigma=np.eye(6))
    damaged.append(file.read_bytes()[:60] + b"x" * 15 + file.read_bytes()[75:])
    for content in damaged:
        file.write_bytes(content)
        assert Statistics.read(file) is None
        with pytest.raises(UserError, match="holds no arrays mu and sigma"):
            read_reference(str(file), judge)
    for mean, said in ((np.float64(1), r"mu of the shape \(\)"), (np.full(6, math.nan), "holds NaN")):
        np.savez(file, mu=mean, sigma=np.eye(6))
        with pytest.raises(UserError, match=said):
            read_reference(str(file), judge)


def test_identical_sets_have_no_distance_and_per_class_distances_are_the_mean_over_classes() -> None:
    x, labels = torch.rand(400, 3, 4, 4) * 2 - 1, torch.arange(400) % 2
    judge, real = seen(x, labels)
    _, made = seen(x.flip(0) * 0.8, labels)
    kinds = ("frechet", "kernel", "manifold", "classes")
    same = compared(judge, "prior/g", Sets(real, real, None), kinds)
    assert same["prior/gfd_seen"] == pytest.approx(0, abs=1e-9)
    assert same["prior/gprecision_seen"] == same["prior/gcoverage_seen"] == 1
    other = compared(judge, "prior/g", Sets(made, real, real), kinds)
    ours, theirs = judge.features(x.flip(0) * 0.8), judge.features(x)
    per_class = [frechet_distance(fitted(ours[c::2]), fitted(theirs[c::2])) for c in (0, 1)]
    assert other["prior/gfd_per_class_seen"] == pytest.approx(sum(per_class) / 2)
    assert set(other) >= {"prior/ginception_score_seen", "prior/graccuracy_seen".replace("gr", "g")}
    assert floors(judge, real, real, kinds)["autoencoder/rfd_floor_seen"] == pytest.approx(0, abs=1e-9)


def test_the_error_of_a_distance_is_its_spread_over_sets_that_are_drawn_again() -> None:
    """The jackknife's error against the standard deviation over 60 sets, within a factor that five folds allow."""
    judge, real = seen(torch.rand(4000, 3, 4, 4) * 2 - 1, torch.zeros(4000).long())
    found = [
        compared(
            judge,
            "prior/g",
            Sets(seen(torch.rand(400, 3, 4, 4) * 1.5 - 1, torch.zeros(400).long())[1], real, None),
            ["frechet"],
        )
        for _ in range(60)
    ]
    spread = torch.tensor([one["prior/gfd_seen"] for one in found]).std()
    said = torch.tensor([one["prior/gfd_error_seen"] for one in found]).mean()
    assert 0.6 < said / spread < 1.6


def test_a_linear_classifier_tells_classes_that_a_plane_parts() -> None:
    x, labels = torch.rand(600, 3, 4, 4) - 0.5, torch.arange(600) % 2
    x[:, 0, 0, 0] = torch.where(labels == 1, x[:, 0, 0, 0].abs() + 0.1, -x[:, 0, 0, 0].abs() - 0.1)
    judge, training = seen(x, labels)
    _, swapped = seen(x[:200], 1 - labels[:200])
    accuracy = [
        compared(judge, "autoencoder/r", Sets(one, training, training), ["classes"]) for one in (training, swapped)
    ]
    assert accuracy[0]["autoencoder/raccuracy_seen"] > 0.98
    assert accuracy[1]["autoencoder/raccuracy_seen"] < 0.02


def random_inception(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of Inception's form with random weights, which is taken for the published one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from vqvae.storage.files import digest

    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    state = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x").state_dict()
    monkeypatch.undo()
    torch.save(state, folder / "weights.pth")
    monkeypatch.setattr("vqvae.backbones.inception.CHECKSUM", digest(folder / "weights.pth")[:8])
    return str(folder / "weights.pth")


@needs_fidelity
def test_inception_sees_what_clean_fid_shows_it_and_computes_what_torch_fidelity_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = random_inception(tmp_path, monkeypatch)
    ours = load_backbone("inception", file)
    levels = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    bands = [
        [
            np.asarray(Image.fromarray(band.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
            for band in one
        ]
        for one in levels
    ]
    shown = (torch.tensor(np.array(bands)).clamp(0, 255) - 128) / 128
    torch.testing.assert_close(ours.prepare(levels / 127.5 - 1), shown, atol=1e-4, rtol=0)

    whole = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)  # nothing to resize
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)
    features, logits = theirs(whole)
    torch.testing.assert_close(ours.pooled(whole / 127.5 - 1), features, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.probabilities(features), logits.softmax(1), atol=1e-4, rtol=1e-3)
    assert Judge(ours, "inception", 2048, 1).figure("prior/gfd_error") == "prior/gfid_error_inception"


@needs_fidelity
def test_other_weights_are_no_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = random_inception(tmp_path, monkeypatch)
    monkeypatch.undo()
    with pytest.raises(UserError, match="does not hold the published weights of the FID"):
        load_backbone("inception", file)
    with pytest.raises(UserError, match=r"file=nothing\.pth is not there"):
        load_backbone("inception", "nothing.pth")


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
    judged = ["backbone=test_convnext", f"backbone_file={weights}", "samples=70", "sampling.top_k=5", "batch_size=50"]
    call_inside("scripts.evaluate", f"run_dir={run_dir}", *judged, f"out={out}")
    said = json.loads(out.read_text())
    figures = {name: entry["value"] for name, entry in said["figures"].items()}
    assert said["judged"]["samples"] == 70
    assert said["judged"]["sampling"]["guidance"] == 3.0

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
    samples = model.sample(range(70), labels=[seed % 10 for seed in range(70)], top_k=5)
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


WRONG = {
    "samples=100": "samples=100 needs a pretrained network: name it with backbone=efficientnet_lite0",
    "reference=fid.npz": "reference=fid.npz needs a pretrained network",
    "metrics=[frechet,kernal]": "metrics=[kernal] does not exist; did you mean kernel?",
    "metrics=frechet": "metrics=frechet is not a list of items",
    "backbone=inception": "backbone=inception",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_one_sentence(override: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_inside("scripts.evaluate", f"run_dir={run_dir}", override)
    said = capsys.readouterr().err
    assert WRONG[override] in said
    assert said.count("\n") == 1


@needs_timm
def test_a_wrong_reference_or_way_to_draw_is_one_sentence(
    run_dir: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = [f"run_dir={run_dir}", "backbone=test_convnext", f"backbone_file={weights}", "metrics=[frechet]"]
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "empty.npz", mu=np.zeros(3))
    for override, sentence in {
        f"reference={tmp_path / 'other.npz'}": "has mu of the shape (3,) and sigma of (3, 3), and test_convnext has 64",
        f"reference={tmp_path / 'empty.npz'}": "holds no arrays mu and sigma",
        f"reference={tmp_path / 'nothing.npz'}": "holds no arrays mu and sigma",
        "samples=70 sampling.top_p=2": "top_p",
    }.items():
        with pytest.raises(SystemExit):
            call_inside("scripts.evaluate", *judged, *override.split(" "))
        said = capsys.readouterr().err
        assert sentence in said
        assert [line for line in said.splitlines() if line.startswith("error: ")] == said.splitlines()[-1:]


@needs_timm
def test_published_statistics_take_the_place_of_the_items(run_dir: Path, weights: str, tmp_path: Path) -> None:
    run, backbone = Run(RunFolder.load(run_dir, [])), load_backbone("test_convnext", weights)
    real = torch.cat([batch.x for batch in ItemEvaluationSet(run.data, run.loader("val")).batches(64)])
    own = fitted(backbone.pooled(real))
    np.savez(tmp_path / "published.npz", mu=own.mean.numpy(), sigma=own.covariance.numpy())
    judged = [f"run_dir={run_dir}", "backbone=test_convnext", f"backbone_file={weights}", "metrics=[frechet]"]
    found = []
    for number, more in enumerate([[], [f"reference={tmp_path / 'published.npz'}"]]):
        out = tmp_path / f"{number}.json"
        call_inside("scripts.evaluate", *judged, *more, f"out={out}")
        found.append(json.loads(out.read_text())["figures"])
    for name in ("autoencoder/rfd_test_convnext", "autoencoder/rfd_error_test_convnext"):
        assert found[0][name]["value"] == pytest.approx(found[1][name]["value"], rel=1e-6)
    assert not any(name.startswith(("autoencoder/psnr", "codebook/", "prior/bits")) for name in found[0])


def test_samples_are_drawn_once_and_what_a_stop_left_is_kept(run_dir: Path, tmp_path: Path) -> None:
    model = vqvae.load(run_dir)
    drawn = DrawnSamples(model, 25, {"temperature": 0.5, "chunk": 10}, tmp_path)
    drawn.draw()
    whole = torch.cat([batch.x for batch in drawn.batches(7)])
    expected = model.sample(range(25), [seed % 10 for seed in range(25)], temperature=0.5, chunk=10)
    torch.testing.assert_close(whole, expected)

    files = sorted(drawn.folder.iterdir())
    assert [file.name for file in files] == ["00000000.npz", "00000010.npz", "00000020.npz"]
    before = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:50])
    more = DrawnSamples(model, 31, {"temperature": 0.5, "chunk": 10}, tmp_path)
    more.draw()
    assert files[0].stat().st_mtime_ns == before[files[0]]
    torch.testing.assert_close(torch.cat([batch.x for batch in more.batches(7)])[:25], whole)
    assert DrawnSamples(model, 25, {"temperature": 0.6, "chunk": 10}, tmp_path).folder != drawn.folder


@needs_timm
def test_training_logs_the_distance_and_may_choose_its_best_step_by_it(weights: str, tmp_path: Path) -> None:
    wanted = ["evaluation.frechet=80", "evaluation.backbone=test_convnext", f"evaluation.backbone_file={weights}"]
    more = [
        "data.val_count=120",
        "stages=[autoencoder]",
        "trainer.early_stop_evals=5",
        "trainer.eval_every_steps=1",
        "evaluation.monitor=frechet",
    ]
    run_dir = tmp_path / "run"
    train_inside(*TINY, *SMALL_CODEBOOK, *wanted, *more, f"run_dir={run_dir}")
    logged = [line for line in lines(run_dir / "autoencoder" / "metrics.jsonl") if "autoencoder/val/mse" in line]
    (seen,) = {name for line in logged for name in line if "observed" in name}
    assert seen == "autoencoder/val/observed_fd_test_convnext"
    best = min(logged, key=lambda line: line[seen])
    assert Run(RunFolder.load(run_dir, [])).folder.weights("autoencoder")["step"] == best["step"]

    run, backbone = Run(RunFolder.load(run_dir, [])), load_backbone("test_convnext", weights)
    batch_size = run.cfg.trainer.eval_batch_size
    firsts = [
        batch.x[: math.ceil(len(batch.x) * 80 / 120)]
        for batch in ItemEvaluationSet(run.data, run.loader("val")).batches(batch_size)
    ]
    real, made = (torch.cat(parts) for parts in (firsts, [vqvae.load(run_dir).reconstruct(x) for x in firsts]))
    expected = frechet_distance(fitted(backbone.pooled(made)), fitted(backbone.pooled(real)))
    assert best[seen] == pytest.approx(expected, rel=1e-3)


@needs_timm
def test_an_observation_of_too_few_images_is_refused_at_the_start(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["evaluation.backbone=test_convnext", f"evaluation.backbone_file={weights}", "stages=[autoencoder]"]
    for more, sentence in {
        "evaluation.frechet=64": "evaluation.frechet=64 of 20 validation items are too few: test_convnext has 64 features",
        "evaluation.monitor=frechet": "evaluation.monitor=frechet needs a number of images",
        "evaluation.frechet=-1": "evaluation.frechet=-1 must be at least 0",
    }.items():
        with pytest.raises(SystemExit):
            train_inside(*TINY, *wanted, "data.val_count=20", more, f"run_dir={tmp_path / 'run'}")
        assert sentence in capsys.readouterr().err


def test_ms_ssim_has_as_many_scales_as_its_name_says_and_is_near_the_loss() -> None:
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    x_hat = (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)
    assert [scales_of((side, 500)) for side in (8, 16, 32, 64, 160, 176, 512)] == [0, 1, 2, 3, 4, 5, 5]
    assert multi_scale_ssim(x, x).tolist() == pytest.approx([1, 1])
    loss = SSIM(1.0, 1.0).value(x_hat, x)  # without the mirrored borders
    assert float(1 - multi_scale_ssim(x_hat, x).mean()) == pytest.approx(float(loss), abs=0.01)
