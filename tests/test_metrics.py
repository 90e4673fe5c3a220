"""Laws of metrics: whole-set figures from counts and sums, never from means of batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lines
from plain_parts import vector_quantizer
from torch import nn

from vqvae.losses.terms import MSE
from vqvae.metrics import codebook, spacing
from vqvae.metrics.codebook import CodeCounts, binned, count_codes, describe, histogram, perplexity
from vqvae.metrics.reconstruction import SSIM, reconstruction_metrics, reconstruction_sums
from vqvae.metrics.registry import FIGURES
from vqvae.model import VQVAE
from vqvae.quantizers.base import Quantizer
from vqvae.quantizers.codebook import FrozenCodebook
from vqvae.quantizers.compose import Product
from vqvae.quantizers.lookup import L1, CodebookPCA, Cosine, Euclidean, LInf, Lookup
from vqvae.stages.autoencoder import AutoencoderStage
from vqvae.training import metric_window
from vqvae.training.metric_window import MetricWindow
from vqvae.training.wandb_values import to_wandb


def test_perplexity_is_one_for_one_code_and_k_for_uniform_use() -> None:
    assert float(perplexity(torch.tensor([9, 0, 0, 0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([5, 5, 5, 5]))) == pytest.approx(4)
    assert describe(torch.tensor([5, 0, 1, 0]))["usage"] == 0.5


def test_three_batches_of_a_known_distribution_give_its_figures() -> None:
    """Each batch has other codes, so figures of the last batch, or a mean over batches, would be far off."""
    batches = [torch.tensor([[0, 0, 0, 0]]), torch.tensor([[1, 1, 2, 2]]), torch.tensor([[3, 3, 3, 3]])]
    counts = CodeCounts([6], ("run",))
    for batch in batches:
        counts.add([count_codes(batch, 6)])
    p = np.array([4, 2, 2, 4]) / 12
    figures = describe(counts.total()["run"][0])
    assert figures["perplexity"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert (figures["usage"], figures["used_codes"], figures["dead_codes"]) == (4 / 6, 4, 2)


def test_counts_are_exact_beyond_the_integers_of_float32() -> None:
    counts = CodeCounts([2], ("run",))
    counts.add([torch.tensor([2**24, 0])])
    counts.add([torch.tensor([1, 1])])
    assert counts.total()["run"][0].tolist() == [2**24 + 1, 1]


def test_the_histogram_counts_every_code_once() -> None:
    counts = torch.tensor([0, 0, 10, 20, 30])
    found = histogram(counts, bins=4)
    assert sum(found["counts"]) == 5
    assert found["edges"][0] == 0
    assert found["edges"][-1] == pytest.approx(30 * 5 / 60)


def test_resetting_a_span_clears_its_counts_alone() -> None:
    counts = CodeCounts([2, 3], ("window", "run"))
    first, second = [torch.tensor([1, 0]), torch.tensor([0, 0, 2])], [torch.tensor([0, 4]), torch.tensor([5, 0, 0])]
    counts.add(first)
    counts.reset("window")
    counts.add(second)
    total = counts.total()
    assert [one.tolist() for one in total["window"]] == [[0, 4], [5, 0, 0]]
    assert [one.tolist() for one in total["run"]] == [[1, 4], [5, 0, 2]]


def test_a_checkpoint_holds_the_sum_over_ranks_and_restores_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [CodeCounts([2], ("run",)) for _ in range(2)]
    ranks[0].add([torch.tensor([1, 2])])
    ranks[1].add([torch.tensor([10, 20])])
    total = sum(one.counts for one in ranks)
    monkeypatch.setattr(codebook.distributed, "all_reduce_sum", lambda tensors: [total])
    states = []
    for rank, one in enumerate(ranks):
        monkeypatch.setattr(codebook.distributed, "is_main", lambda rank=rank: rank == 0)
        states.append({name: value.clone() for name, value in one.state_dict().items()})
    assert states[0]["counts"].tolist() == [[11, 22]]
    assert torch.equal(sum(one.counts for one in ranks), total)  # training goes on with the same sum
    for rank, one in enumerate(ranks):
        monkeypatch.setattr(codebook.distributed, "is_main", lambda rank=rank: rank == 0)
        one.load_state_dict(states[0])
    assert torch.equal(sum(one.counts for one in ranks), total)


def test_a_window_restored_on_every_rank_closes_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over ranks in a checkpoint would round otherwise than the sums of a run that was not stopped."""
    yes, losses = torch.tensor(True), torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) + 0.1

    def steps(window: MetricWindow, values: torch.Tensor) -> MetricWindow:
        for value in values:
            window.begin_step()
            window.add({"loss": value})
            window.end_step(yes)
        return window

    whole = [steps(MetricWindow(torch.device("cpu")), own) for own in losses]
    stopped = [steps(MetricWindow(torch.device("cpu")), own[:3]) for own in losses]
    monkeypatch.setattr(metric_window.distributed, "gather_rows", lambda rows: torch.stack([w.sums for w in stopped]))
    monkeypatch.setattr(metric_window.distributed, "world_size", lambda: 2)
    state = stopped[0].state_dict()
    again = []
    for rank, own in enumerate(losses):
        monkeypatch.setattr(metric_window.distributed, "rank", lambda rank=rank: rank)
        window = MetricWindow(torch.device("cpu"))
        window.load_state_dict({**state, "counted": state["counted"].clone()})
        again.append(steps(window, own[3:]))
    assert all(torch.equal(a.sums, b.sums) and a.counted == b.counted for a, b in zip(again, whole))
    means = state["sums"].mean(0)
    window.load_state_dict({**state, "sums": torch.stack([means] * 3)})  # of three ranks, on two
    assert torch.equal(window.sums, means)


FOUR_CODES = torch.tensor([[3.0, 3], [1, 2], [5, -1], [0, 0]])


@pytest.mark.parametrize(
    ("order", "pairs", "closest"),
    [
        (1, [3, 6, 6, 7, 3, 6], [3, 3, 6, 3]),
        (2, [5**0.5, 20**0.5, 18**0.5, 5, 5**0.5, 26**0.5], [5**0.5, 5**0.5, 20**0.5, 5**0.5]),
        (math.inf, [2, 4, 3, 4, 2, 5], [2, 2, 4, 2]),
    ],
)
def test_spacing_of_four_codes_matches_a_hand_calculation(
    order: float, pairs: list[float], closest: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunk in (4, 2**20):  # a row at a time, and all rows at once
        monkeypatch.setattr(spacing, "CHUNK_ELEMENTS", chunk)
        rows, distances = (torch.cat(parts) for parts in zip(*spacing.distance_rows(FOUR_CODES, order)))
        assert rows.tolist() == [0, 1, 2, 3]
        assert distances[tuple(torch.triu_indices(4, 4, 1))].tolist() == pytest.approx(pairs)
        found = spacing.spacing(FOUR_CODES, order)
        assert found["spacing_min"] == found["closest_min"] == pytest.approx(min(pairs))
        assert found["spacing_mean"] == pytest.approx(sum(pairs) / 6)
        assert found["closest_mean"] == pytest.approx(sum(closest) / 4)
        mean = 1.01 * found["spacing_mean"]  # so that no pair lies on an edge
        relative = np.array(pairs) / mean
        counts = spacing.spacing_histogram(FOUR_CODES, mean, order)
        assert counts["counts"] == np.histogram(relative, np.linspace(0, 2, 41))[0].tolist()


def test_spacing_finds_two_equal_codes_far_from_the_origin() -> None:
    """In float32, |a|^2 - 2 <a, b> + |b|^2 would leave some 0.5 of nothing here."""
    codes = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) + 1000
    codes[7] = codes[200]
    found = spacing.spacing(codes)
    assert found["spacing_min"] == pytest.approx(0, abs=1e-3)
    assert found["spacing_mean"] == pytest.approx(float(torch.pdist(codes.double()).mean()), rel=1e-9)


def test_spacing_of_a_codebook_too_large_for_all_pairs_is_that_of_evenly_spaced_codes_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    full = torch.cdist(codes, codes).double()
    monkeypatch.setattr(spacing, "MAX_PAIRS", 90 * 30)
    found = spacing.spacing(codes)
    assert found["spacing_mean"] == pytest.approx(float(full[::3].sum() / (30 * 89)), rel=1e-5)
    assert found["closest_mean"] == pytest.approx(float((full + 99 * torch.eye(90))[::3].amin(1).mean()), rel=1e-5)


def test_codes_all_equal_have_no_spacing_and_a_histogram_of_all_pairs() -> None:
    found = spacing.spacing_with_histogram(torch.ones(5, 2))
    assert found["spacing_mean"] == found["closest_mean"] == 0
    assert found["spacing_histogram"]["counts"] == [10, *[0] * 39]


@pytest.mark.parametrize(
    ("lookup", "norm"),
    [(L1(), 1), (Euclidean(), 2), (LInf(), math.inf), (CodebookPCA(L1(), 2), 1), (Cosine(), 2)],
)
@pytest.mark.parametrize("compose", [lambda inner: inner, lambda inner: Product(8, inner, 2, False, None)])
def test_spacing_is_logged_in_the_norm_of_the_lookup(
    lookup: Lookup, norm: float, compose: Callable[[Quantizer], Quantizer]
) -> None:
    quantizer = compose(vector_quantizer(FrozenCodebook(5, 4), lookup=lookup))
    stage = AutoencoderStage(
        VQVAE([nn.Identity()], [quantizer], [nn.Identity()]), MSE(1.0, False, 1.0), 1.0, lambda x: x
    )
    figures = stage.window_metrics()
    for m, codes in enumerate(quantizer.codebooks()):
        assert codes is not None
        distances = (codes.double()[:, None] - codes.double()).norm(p=norm, dim=2)
        assert figures[f"codebook/spacing_mean_{m}"] == pytest.approx(float(distances.sum() / 20))
        closest = (distances + 1e9 * torch.eye(5)).amin(1)
        assert figures[f"codebook/closest_mean_{m}"] == pytest.approx(float(closest.mean()))


def test_spacing_has_three_norms() -> None:
    with pytest.raises(ValueError, match="order must be 1, 2 or infinity, got 3"):
        spacing.spacing(FOUR_CODES, 3)


def test_bins_of_equal_width_span_their_range() -> None:
    assert binned(torch.tensor([1, 0, 2, 3]), -1, 1) == {"edges": [-1, -0.5, 0, 0.5, 1], "counts": [1, 0, 2, 3]}


def test_histograms_reach_wandb_as_its_own_and_numbers_as_they_are() -> None:
    wandb = pytest.importorskip("wandb")
    sent = to_wandb(binned(torch.tensor([1, 0, 2, 3]), -1, 1))
    assert isinstance(sent, wandb.Histogram)
    assert list(sent.histogram) == [1, 0, 2, 3]
    assert list(sent.bins) == [-1, -0.5, 0, 0.5, 1]
    assert to_wandb(0.5) == 0.5


def test_every_vector_of_the_validation_set_and_every_pair_of_codes_is_in_its_histogram(finished_run: Path) -> None:
    (shape,) = json.loads((finished_run / "codes" / "val" / "header.json").read_text())["code_shapes"]
    val = lines(finished_run / "autoencoder" / "metrics.jsonl")[-1]
    for name in ("similarity", "relative_error"):
        assert sum(val[f"autoencoder/val/{name}_histogram_0"]["counts"]) == 20 * math.prod(shape)
    assert sum(val["codebook/val/spacing_histogram_0"]["counts"]) == 16 * 15 // 2
    assert val["codebook/val/spacing_min_0"] <= val["codebook/val/closest_mean_0"] <= val["codebook/val/spacing_mean_0"]


def test_reconstruction_figures_match_numpy_over_batches_of_different_size() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (7, 3, 16, 16)).astype(np.float32)
    x_hat = np.clip(x + rng.normal(0, 0.1, x.shape), -1, 1).astype(np.float32)
    parts = [reconstruction_sums(torch.tensor(x_hat[s]), torch.tensor(x[s])) for s in (slice(0, 5), slice(5, 7))]
    metrics = reconstruction_metrics({key: parts[0][key] + parts[1][key] for key in parts[0]}, variance=0.25)
    squared = (((x - x_hat) / 2) ** 2).mean((1, 2, 3))
    assert metrics["autoencoder/mse"] == pytest.approx(squared.mean(), rel=1e-5)
    assert metrics["autoencoder/psnr_db"] == pytest.approx(-10 * math.log10(squared.mean()), rel=1e-5)
    assert metrics["autoencoder/psnr_mean_db"] == pytest.approx((-10 * np.log10(squared)).mean(), rel=1e-5)
    assert metrics["autoencoder/mse_over_variance"] == pytest.approx(((x - x_hat) ** 2).mean() / 0.25, rel=1e-5)


def test_the_error_of_psnr_is_that_of_sets_drawn_again() -> None:
    """Against the spread of PSNR over 400 resamplings of the same items (bootstrap)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 4, 4, generator=generator) * 2 - 1
    x_hat = x + torch.randn(x.shape, generator=generator) * torch.rand(200, 1, 1, 1, generator=generator)
    whole = reconstruction_metrics(reconstruction_sums(x_hat.clamp(-1, 1), x), 1.0)
    squared = ((x_hat.clamp(-1, 1) - x) / 2).square().flatten(1).mean(1)
    again = squared[torch.randint(200, (400, 200), generator=generator)].mean(1)
    assert whole["autoencoder/psnr_error_db"] == pytest.approx(float((-10 * again.log10()).std()), rel=0.15)
    assert "autoencoder/psnr_error_db" not in reconstruction_metrics(reconstruction_sums(x_hat[:1], x[:1]), 1.0)


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    values = [
        float(reconstruction_sums((x + e * torch.randn_like(x)).clamp(-1, 1), x)["ssim"]) / 2 for e in (0, 0.2, 0.6)
    ]
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2]


def test_ssim_counts_all_pixels_beyond_the_border_of_a_mirrored_image_and_its_protocol_says_so() -> None:
    x, y = np.random.default_rng(0).random((2, 17, 20))
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(a: Any) -> Any:
        """Weighted means around every pixel of a (17, 20)."""
        patches = np.lib.stride_tricks.sliding_window_view(np.pad(a, 5, mode="reflect"), (11, 11))
        return (patches * window).sum((2, 3))

    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    light = (2 * mean(x) * mean(y) + 1e-4) / (mean(x) ** 2 + mean(y) ** 2 + 1e-4)
    expected = light * (2 * covariance + 9e-4) / (variances + 9e-4)
    found = reconstruction_sums(*(torch.tensor(2 * a - 1).float()[None, None] for a in (y, x)))["ssim"]
    assert float(found) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(found) != pytest.approx(expected[5:-5, 5:-5].mean(), rel=1e-2)  # what scikit-image counts
    assert "mirrored beyond its borders" in FIGURES[SSIM].protocol


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    assert "ssim" not in reconstruction_sums(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
