"""Laws of metrics: whole-set figures from counts and sums, never from means of batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vqvae.metrics.codebook import CodeCounts, count_codes, describe, histogram, perplexity, usage
from vqvae.metrics.reconstruction import reconstruction_metrics, reconstruction_sums


def test_perplexity_is_one_for_one_code_and_k_for_uniform_use() -> None:
    assert float(perplexity(torch.tensor([9, 0, 0, 0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([5, 5, 5, 5]))) == pytest.approx(4)
    assert float(usage(torch.tensor([5, 0, 1, 0]))) == 0.5


def test_three_batches_of_a_known_distribution_give_its_figures() -> None:
    """Each batch sees other codes, so the last batch, or a mean over batches, would be far off."""
    batches = [torch.tensor([[0, 0, 0, 0]]), torch.tensor([[1, 1, 2, 2]]), torch.tensor([[3, 3, 3, 3]])]
    counts = CodeCounts([6])
    for batch in batches:
        counts.add([count_codes(batch, 6)])
    p = np.array([4, 2, 2, 4]) / 12
    figures = describe(counts.total()[0])
    assert figures["perplexity"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert (figures["usage"], figures["used_codes"], figures["dead_codes"]) == (4 / 6, 4, 2)


def test_counts_are_exact_beyond_the_integers_of_float32() -> None:
    counts = CodeCounts([2])
    counts.add([torch.tensor([2**24, 0])])
    counts.add([torch.tensor([1, 1])])
    assert counts.total()[0].tolist() == [2**24 + 1, 1]


def test_the_histogram_counts_every_code_once() -> None:
    counts = torch.tensor([0, 0, 10, 20, 30])
    found = histogram(counts, bins=4)
    assert sum(found["codes"]) == 5
    assert found["edges"][0] == 0
    assert found["edges"][-1] == pytest.approx(30 * 5 / 60)


def test_reconstruction_figures_match_numpy_over_batches_of_different_size() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (7, 3, 16, 16)).astype(np.float32)
    x_hat = np.clip(x + rng.normal(0, 0.1, x.shape), -1, 1).astype(np.float32)
    parts = [reconstruction_sums(torch.tensor(x_hat[s]), torch.tensor(x[s])) for s in (slice(0, 5), slice(5, 7))]
    metrics = reconstruction_metrics({key: parts[0][key] + parts[1][key] for key in parts[0]}, variance=0.25)
    squared = (((x - x_hat) / 2) ** 2).mean((1, 2, 3))
    assert metrics["mse"] == pytest.approx(squared.mean(), rel=1e-5)
    assert metrics["psnr_db"] == pytest.approx(-10 * math.log10(squared.mean()), rel=1e-5)
    assert metrics["psnr_mean_db"] == pytest.approx((-10 * np.log10(squared)).mean(), rel=1e-5)
    assert metrics["mse_over_variance"] == pytest.approx(((x - x_hat) ** 2).mean() / 0.25, rel=1e-5)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    values = [
        float(reconstruction_sums((x + e * torch.randn_like(x)).clamp(-1, 1), x)["ssim"]) / 2 for e in (0, 0.2, 0.6)
    ]
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2]


def test_pictures_smaller_than_the_window_have_no_ssim() -> None:
    assert "ssim" not in reconstruction_sums(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
