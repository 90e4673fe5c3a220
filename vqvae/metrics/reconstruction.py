"""PSNR and SSIM, as sums over a set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SSIM_WINDOW = 11  # gaussian, sigma 1.5 (Wang et al. 2004)


def reconstruction_sums(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Data (B, C, *S) in [-1, 1], x_hat clamped to it -> sums over the batch, float64.

    squared_error: of the per-item mean squared error in [0, 1]; psnr: of the per-item PSNR; ssim: of SSIM with a gaussian
    window of 11 and sigma 1.5 (of two data dims, none smaller than the window; else left out); pictures: number of items.
    """
    a, b = (x_hat.float() + 1) / 2, (x + 1) / 2
    squared, psnr = item_squared_error(a, b), item_psnr(x_hat, x)
    sums = {"squared_error": squared.sum(), "psnr": psnr.sum(), "pictures": squared.new_tensor(float(len(squared)))}
    if x.ndim == 4 and min(x.shape[2:]) >= SSIM_WINDOW:
        from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second to import

        ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        sums["ssim"] = ssim.double().sum()
    return sums


def item_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, *S) each -> the mean squared error of each item (B,), float64."""
    return (a - b).square().flatten(1).mean(1).double()  # (B,)


def item_psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Data (B, C, *S) in [-1, 1], x_hat clamped to it -> PSNR of each item in dB (B,), float64."""
    squared = item_squared_error((x_hat.float() + 1) / 2, (x + 1) / 2)
    return -10 * torch.log10(squared.clamp_min(1e-10))  # clamp: an exact reconstruction counts as 100 dB


def reconstruction_metrics(sums: dict[str, Tensor], variance: float) -> dict[str, float]:
    """Sums over the whole set -> metrics; `variance` is the training data's in [-1, 1] (4 times that in [0, 1])."""
    pictures = float(sums["pictures"])
    mse = float(sums["squared_error"]) / pictures
    metrics = {
        "mse": mse,
        "mse_over_variance": 4 * mse / variance,
        "psnr_db": -10 * math.log10(max(mse, 1e-10)),
        "psnr_mean_db": float(sums["psnr"]) / pictures,
    }
    if "ssim" in sums:
        metrics["ssim"] = float(sums["ssim"]) / pictures
    return metrics
