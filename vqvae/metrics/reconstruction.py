"""PSNR and SSIM of pictures, as sums over a set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SSIM_WINDOW = 11  # gaussian, sigma 1.5 (Wang et al. 2004)


def reconstruction_sums(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Pictures (B, C, H, W) in [-1, 1], x_hat clamped to it -> sums over the batch, float64.

    squared_error: of the per-picture mean squared error in [0, 1]; psnr: of the per-picture PSNR; ssim: of SSIM with a
    gaussian window of 11 and sigma 1.5 (left out where a picture is smaller than the window); pictures: their number.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second to import

    a, b = (x_hat.float() + 1) / 2, (x + 1) / 2
    squared = (a - b).square().flatten(1).mean(1).double()  # (B,)
    psnr = -10 * torch.log10(squared.clamp_min(1e-10))  # clamp: an exact reconstruction counts as 100 dB
    sums = {"squared_error": squared.sum(), "psnr": psnr.sum(), "pictures": squared.new_tensor(float(len(squared)))}
    if min(x.shape[-2:]) >= SSIM_WINDOW:
        ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        sums["ssim"] = ssim.double().sum()
    return sums


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
