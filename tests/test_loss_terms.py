"""Loss terms: their values, and objectives that have several."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
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
from omegaconf import OmegaConf
from test_backbones import needs_lite, needs_lpips, vgg_file  # noqa: F401  (a fixture)
from torch import Tensor

import vqvae
from vqvae.backbones.named import load_backbone
from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.data.items import ItemEvaluationSet
from vqvae.losses.heads import Pixels
from vqvae.losses.objective import Objective
from vqvae.losses.perceptual import perceptual_distance
from vqvae.losses.terms import Term
from vqvae.metrics.reconstruction import SCALE_WEIGHTS
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run

VARIANCE = 0.25
SHAPES = [(40,), (24, 33), (12, 13, 14)]
TERMS = [pytest.param(name, marks=needs_lite if name == "perceptual" else ()) for name in choices("loss/term")]
PERCEPTUAL = "+loss/term@loss.terms.perceptual=perceptual"


def made(name: str) -> Term:
    node = resolve(compose("train", [f"loss/term@loss.terms.mse={name}"])).loss.terms.mse
    return build(node, name, variance=VARIANCE)


def items(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- of every term


@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_zero_for_the_data_itself_and_more_the_further_from_it(name: str, shape: tuple[int, ...]) -> None:
    if name == "perceptual" and len(shape) == 1:
        pytest.skip("it sees images only")
    term, x, noise = made(name), items(2, 3, *shape), items(2, 3, *shape, seed=1)
    values = [float(term.value(x + amount * noise, x)) for amount in (0, 0.1, 0.5)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", TERMS)
def test_a_term_has_a_finite_gradient_also_where_all_is_equal_black_or_far_out(name: str) -> None:
    term, x = made(name), items(2, 3, 24, 24)
    for target in (x, torch.full_like(x, -1.0), torch.zeros_like(x)):
        for start in (target, torch.zeros_like(x), -target, x * 100):
            x_hat = start.clone().requires_grad_()
            value = term.value(x_hat, target)
            value.backward()
            assert value.isfinite()
            assert (value.shape, value.dtype) == ((), torch.float32)
            assert x_hat.grad is not None
            assert x_hat.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_the_mean_over_items(name: str) -> None:
    term, x, x_hat = made(name), items(3, 3, 24, 24), items(3, 3, 24, 24, seed=1)
    single = torch.stack([term.value(x_hat[[i]], x[[i]]) for i in range(3)])
    torch.testing.assert_close(term.value(x_hat, x), single.mean())


@pytest.mark.parametrize("name", [name for name in choices("loss/term") if name != "perceptual"])
def test_a_term_without_a_network_is_the_same_under_autocast(name: str) -> None:
    term, x, x_hat = made(name), items(2, 3, 24, 24), items(2, 3, 24, 24, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = term.value(x_hat, x)
    assert torch.equal(inside, term.value(x_hat, x))


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_below_zero_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, *TINY, f"+loss/term@loss.terms.mine={name}", "loss.terms.mine.weight=-1")
    assert message == "error: loss.terms.mine.weight=-1 must be at least 0\n"


# ---- of one


def ms_ssim_by_hand(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    """MS-SSIM of one channel in [0, 1] in float64, from all windows of 11 along each dim (Wang, Simoncelli and Bovik 2003)."""
    dims = tuple(range(a.ndim))
    line = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = line
    for _ in dims[1:]:
        window = np.multiply.outer(window, line)
    window, similarity = window / window.sum(), 1.0
    for scale in range(scales):
        x, y = (np.lib.stride_tricks.sliding_window_view(v, (11,) * a.ndim) for v in (a, b))
        over = tuple(range(a.ndim, 2 * a.ndim))
        mx, my = (x * window).sum(over, keepdims=True), (y * window).sum(over, keepdims=True)
        vx, vy, cov = (
            ((u - mu) * (v - mv) * window).sum(over)
            for u, mu, v, mv in [(x, mx, x, mx), (y, my, y, my), (x, mx, y, my)]
        )
        mx, my = mx.squeeze(over), my.squeeze(over)
        structure = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
        luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        both = structure * luminance if scale == scales - 1 else structure
        similarity *= both.mean() ** (SCALE_WEIGHTS[scale] / sum(SCALE_WEIGHTS[:scales]))
        for dim in dims:
            half = a.shape[dim] // 2
            a, b = (v.take(range(0, 2 * half, 2), dim) / 2 + v.take(range(1, 2 * half, 2), dim) / 2 for v in (a, b))
    return similarity


@pytest.mark.parametrize(
    ("shape", "scales"), [((100,), 4), ((32, 32), 2), ((21, 40), 1), ((180, 177), 5), ((22, 24, 23), 2)]
)
def test_ssim_is_ms_ssim_at_as_many_scales_as_fit(shape: tuple[int, ...], scales: int) -> None:
    x = items(1, 1, *shape)
    for dim in range(2, x.ndim):  # smooth, so that all scales have something in common
        x = (x + x.roll(1, dim) + x.roll(2, dim)) / 3
    x_hat = x + 0.2 * items(1, 1, *shape, seed=1)
    a, b = (((v[0, 0].double() + 1) / 2).numpy() for v in (x, x_hat))
    assert float(made("ssim").value(x_hat, x)) == pytest.approx(1 - ms_ssim_by_hand(a, b, scales), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_frequency_is_the_mean_difference_of_magnitudes_and_blind_to_shifts(shape: tuple[int, ...]) -> None:
    x, x_hat, dims = items(2, 3, *shape), items(2, 3, *shape, seed=1), tuple(range(2, 2 + len(shape)))
    ours, true = (np.abs(np.fft.rfftn(v.double().numpy(), axes=dims, norm="ortho")) for v in (x_hat, x))
    term = made("frequency")
    assert float(term.value(x_hat, x)) == pytest.approx(np.abs(ours - true).mean(), rel=1e-5)
    assert float(term.value(x.roll(3, -1), x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_gradient_is_the_mean_difference_of_differences_and_blind_to_brightness(shape: tuple[int, ...]) -> None:
    x, x_hat = items(2, 3, *shape), items(2, 3, *shape, seed=1)
    per_dim = [
        np.abs(np.diff(x_hat.numpy(), axis=d) - np.diff(x.numpy(), axis=d)).mean() for d in range(2, 2 + len(shape))
    ]
    term = made("gradient")
    assert float(term.value(x_hat, x)) == pytest.approx(np.mean(per_dim), rel=1e-5)
    assert float(term.value(x + 0.5, x)) == pytest.approx(0, abs=1e-6)


def test_huber_is_half_the_square_within_delta_and_linear_beyond() -> None:
    x = torch.zeros(1, 1, 2)
    value = float(made("huber").value(torch.tensor([[[0.05, 0.5]]]), x))
    assert value == pytest.approx((0.5 * 0.05**2 + 0.1 * (0.5 - 0.05)) / 2 / VARIANCE)


@needs_lite
def test_the_perceptual_distance_is_that_of_directions_at_each_position_averaged_over_depths() -> None:
    backbone, x, x_hat = load_backbone("efficientnet_lite0"), items(2, 3, 64, 64), items(2, 3, 64, 64, seed=1)
    distances = []
    for a, b in zip(backbone.features(x), backbone.features(x_hat)):
        a, b = a.double().numpy(), b.double().numpy()
        cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        distances.append((2 - 2 * cosine).mean((1, 2)))  # |u - v|^2 of unit vectors
    np.testing.assert_allclose(perceptual_distance(backbone, x_hat, x), np.mean(distances, 0), rtol=1e-4)


@needs_lpips
def test_with_vgg16_the_distance_is_lpips(vgg_file: Path) -> None:  # noqa: F811
    lpips = pytest.importorskip("lpips")
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = torch.load(vgg_file, weights_only=True)
    for name, parameter in reference.net.named_parameters():
        parameter.data = state["features." + name.split(".", 1)[1]]
    x, x_hat = items(2, 3, 64, 64), items(2, 3, 64, 64, seed=1)
    ours = perceptual_distance(load_backbone("vgg16_lpips", str(vgg_file)), x_hat, x)
    torch.testing.assert_close(ours, reference(x_hat, x).flatten().detach(), rtol=1e-3, atol=1e-5)


@needs_lite
def test_in_an_objective_the_network_computes_in_bf16_where_training_does_and_values_stay_exact() -> None:
    objective = Objective(Pixels(VARIANCE), {"mse": made("mse"), "perceptual": made("perceptual")})
    x, x_hat = items(2, 3, 64, 64), items(2, 3, 64, 64, seed=1)
    exact = objective(x_hat, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(x_hat, x)
    assert torch.equal(rough["mse"], exact["mse"])
    assert rough["perceptual"].dtype == torch.float32
    assert 0 < abs(float(rough["perceptual"] / exact["perceptual"]) - 1) < 0.05


@needs_lite
def test_volumes_are_compared_slice_by_slice() -> None:
    term, x, x_hat = made("perceptual"), items(2, 1, 3, 32, 32), items(2, 1, 3, 32, 32, seed=1)
    single = torch.stack([term.value(x_hat[:, :, t], x[:, :, t]) for t in range(3)])
    torch.testing.assert_close(term.value(x_hat, x), single.mean())


# ---- of objectives


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a likelihood and two terms."""
    path = tmp_path_factory.mktemp("several") / "run"
    added = ["loss=logistic", "+loss/term@loss.terms.ssim=ssim", "+loss/term@loss.terms.edges=gradient"]
    train_inside(*TINY, *SMALL_CODEBOOK, *added, "loss.terms.edges.weight=0.25", f"run_dir={path}")
    return path


def test_every_term_is_logged_by_its_name_plain_and_weighted_and_the_loss_is_their_sum(several: Path) -> None:
    for line in lines(several / "autoencoder" / "metrics.jsonl"):
        for split in ("train", "val"):
            if f"autoencoder/{split}/loss" not in line:
                continue
            own = {name: line[f"autoencoder/{split}/reconstruction_{name}"] for name in ("logistic", "ssim", "edges")}
            total = own["logistic"] + own["ssim"] + 0.25 * own["edges"]
            total += line[f"autoencoder/{split}/commitment_weighted_0"]
            assert line[f"autoencoder/{split}/loss"] == pytest.approx(total, rel=1e-4)


def test_the_saved_config_describes_the_model_whole(several: Path) -> None:
    cfg = OmegaConf.load(several / "config.yaml")
    own = weights(several, "autoencoder")
    model = build(cfg.model, "model")
    model.load_state_dict({name.removeprefix("networks.model."): value for name, value in own.items()}, strict=False)
    assert cfg.model.decoders[0].channels == 50
    assert model.decoders[0].channels == 50
    assert list(cfg.loss.terms) == ["ssim", "edges"]


def test_an_export_of_a_run_with_terms_reconstructs_as_the_run_does(several: Path, tmp_path: Path) -> None:
    call_inside("scripts.export", f"run_dir={several}", f"out={tmp_path / 'export'}")
    x = items(2, 3, 32, 32)
    run, export = vqvae.load(several), vqvae.load(tmp_path / "export")
    assert torch.equal(run.reconstruct(x), export.reconstruct(x))


@needs_lite
def test_a_run_with_a_perceptual_term_keeps_no_pretrained_weights_and_is_used_without_them(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    train_inside(*TINY, *SMALL_CODEBOOK, PERCEPTUAL, "stages=[autoencoder]", f"run_dir={path}")
    last = lines(path / "autoencoder" / "metrics.jsonl")[-1]
    assert last["autoencoder/val/reconstruction_perceptual"] > 0
    assert sum(file.stat().st_size for file in path.rglob("*.pt")) < 2**20
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "timm" else find(name))
    assert vqvae.load(path).reconstruct(items(1, 3, 32, 32)).isfinite().all()
    call_inside("sample", f"run_dir={path}", "mode=reconstruct", "n=2", f"out={tmp_path / 'out'}")


@needs_lite
def test_a_stopped_run_with_a_perceptual_term_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*TINY, *SMALL_CODEBOOK, PERCEPTUAL, "trainer.checkpoint_every_steps=1"]
    train_inside(*own, f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as context:
        stop_at(context, "autoencoder", 2)
        with pytest.raises(SystemExit):
            train_inside(*own, f"run_dir={tmp_path / 'stopped'}")
    train_inside(*own, f"run_dir={tmp_path / 'stopped'}")
    assert_same_result(tmp_path / "whole", tmp_path / "stopped")


@needs_lite
def test_an_evaluation_has_the_perceptual_distance_of_all_items_by_the_network_that_is_named(
    several: Path, tmp_path: Path
) -> None:
    out = tmp_path / "figures.json"
    call_inside("scripts.evaluate", f"run_dir={several}", "backbone=efficientnet_lite0", f"out={out}")
    figures = json.loads(out.read_text())["figures"]
    run = Run(RunFolder.load(several, []))
    (batch,) = ItemEvaluationSet(run.data, run.loader("val")).batches(20)
    x_hat = vqvae.load(several).reconstruct(batch.x)
    expected = perceptual_distance(load_backbone("efficientnet_lite0"), x_hat, batch.x).mean()
    assert figures["autoencoder/perceptual_efficientnet_lite0"]["value"] == pytest.approx(float(expected), rel=1e-4)


def test_a_network_that_an_evaluation_cannot_have_is_one_sentence(
    several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call_inside("scripts.evaluate", f"run_dir={several}", "backbone=efficientnet_lite0", "backbone_file=no.pth")
    assert capsys.readouterr().err == "error: backbone=efficientnet_lite0: backbone_file=no.pth is not there\n"


# ---- bad input


SOUNDS = ["logger=off", "debug=fast", "data=tones", "model=patch", "model.encoders.0.patch=32", *SMALL_CODEBOOK]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        pytest.param(
            [*SOUNDS, PERCEPTUAL],
            "loss.terms.perceptual: a pretrained network sees images of 1 or 3 channels, and these items are 1x4096",
            marks=needs_lite,
        ),
        (
            [*TINY, "data.image_size=8", "+loss/term@loss.terms.ssim=ssim"],
            "loss.terms.ssim: needs items of at least 11 values along each side, and these are 8x8",
        ),
        (
            [*TINY, PERCEPTUAL, "loss.terms.perceptual.file=/no/such.pth"],
            "loss.terms.perceptual.file=/no/such.pth is not",
        ),
        (
            [*TINY, PERCEPTUAL, "loss.terms.perceptual.backbone=efficientnet_lite"],
            "loss.terms.perceptual.backbone=efficientnet_lite is no network of timm; did you mean",
        ),
        ([*TINY, "~loss.terms.mse"], "loss has no terms: add one, such as +loss/term@loss.terms.mse=mse"),
        (
            [*TINY, "loss=logistic", "+loss/term@loss.terms.logistic=l1"],
            "loss.terms.logistic has the name of the head's",
        ),
        ([*TINY, "+loss/term@loss.terms.My-Term=l1"], "loss.terms.My-Term is no name for the log"),
        ([*TINY, "loss=logistic", "data.channels=three"], "data.channels=three is not an integer"),
        ([*TINY, "loss=logistic", "loss.head.mixtures=0"], "loss.head.mixtures=0 must be at least 1"),
        (
            [*TINY, "loss=logistic", "model.decoders.0.channels=3"],
            "model.decoders.0.channels=3 does not suit the head, which needs 50: write ${decoder_channels:} there",
        ),
    ],
)
def test_a_mistake_in_the_loss_is_one_sentence(
    overrides: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *overrides, f"run_dir={tmp_path / 'run'}")
    assert said in message
    assert message.count("\n") == 1
