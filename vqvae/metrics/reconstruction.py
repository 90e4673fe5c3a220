"""PSNR and SSIM, as sums over a set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqvae.metrics.registry import figure
from vqvae.surroundings.own_folder import own_folder

MSE = figure(
    "autoencoder/mse",
    "mean squared error over all items of the split, values in [0, 1] (tones: companded), reconstructions clamped, float32",
    better="lower",
)
MSE_OVER_VARIANCE = figure(
    "autoencoder/mse_over_variance", "mse over the variance of the training items", better="lower"
)
PSNR = figure(
    "autoencoder/psnr_db",
    "PSNR of the mean squared error over the split",
    better="higher",
    panel="reconstruction, dB",
    sweep=True,
    dashboard=True,
)
PSNR_ERROR = figure(
    "autoencoder/psnr_error_db",
    "standard error of psnr_db over the items of the split; two runs measured on the same items differ by less",
)
PSNR_MEAN = figure("autoencoder/psnr_mean_db", "mean over items of each item's PSNR", better="higher")
SSIM = figure(
    "autoencoder/ssim",
    "mean SSIM over images, gaussian window 11, sigma 1.5, data range 1, per channel; over all pixels, where the image is "
    "mirrored beyond its borders (torchmetrics; scikit-image leaves out the 5 outermost pixels)",
    better="higher",
    sweep=True,
    dashboard=True,
)
MS_SSIM = figure(
    "autoencoder/ms_ssim_{scales}_scales",
    "mean MS-SSIM over images, with the first so many of the five scales of Wang et al. 2003, weights divided by their "
    "sum: all five from sides of 176 pixels on; otherwise as ssim",
    better="higher",
)
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli and Bovik 2003, the finest scale first
SSIM_WINDOW = 11  # gaussian, sigma 1.5 (Wang et al. 2004)


def reconstruction_sums(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Data (B, C, *S) in [-1, 1], x_hat clamped to it -> sums over the batch, float64.

    squared_error: of the per-item mean squared error in [0, 1]; squares: of its square; psnr: of the per-item PSNR; ssim: of
    SSIM with a gaussian window of 11, sigma 1.5 (of two data dims, none smaller than the window; else left out); items: number.
    """
    a, b = (x_hat.float() + 1) / 2, (x + 1) / 2
    squared, psnr = item_squared_error(a, b), item_psnr(x_hat, x)
    sums = {
        "squared_error": squared.sum(),
        "squares": squared.square().sum(),
        "psnr": psnr.sum(),
        "items": squared.new_tensor(float(len(squared))),
    }
    if x.ndim == 4 and min(x.shape[2:]) >= SSIM_WINDOW:
        with own_folder():  # it imports matplotlib, which reads the matplotlibrc of the current one; and takes a second
            from torchmetrics.functional.image import structural_similarity_index_measure

        ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        sums["ssim"] = ssim.double().sum()
    return sums


def scales_of(size: tuple[int, ...]) -> int:
    """How many scales, each of half the sides, the smallest side has room for; 0 where there is none."""
    return min(len(SCALE_WEIGHTS), (min(size) // SSIM_WINDOW).bit_length())


def scale_weights(scales: int) -> tuple[float, ...]:
    """Weights of the first `scales` scales, whose sum is 1."""
    return tuple(weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales])


def multi_scale_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] with sides from 11 on -> MS-SSIM of each (B,), as many scales as `scales_of` says."""
    with own_folder():
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    found = multiscale_structural_similarity_index_measure(
        (x_hat.float() + 1) / 2,
        (x + 1) / 2,
        data_range=1.0,
        betas=scale_weights(scales_of(tuple(x.shape[2:]))),
        normalize="relu",
        reduction="none",
    )
    return found.double()


def item_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, *S) each -> the mean squared error of each item (B,), float64."""
    return (a - b).square().flatten(1).mean(1).double()  # (B,)


def item_psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Data (B, C, *S) in [-1, 1], x_hat clamped to it -> PSNR of each item in dB (B,), float64."""
    squared = item_squared_error((x_hat.float() + 1) / 2, (x + 1) / 2)
    return -10 * torch.log10(squared.clamp_min(1e-10))  # clamp: an exact reconstruction counts as 100 dB


def reconstruction_metrics(sums: dict[str, Tensor], variance: float) -> dict[str, float]:
    """Sums over the whole set -> figures by name; `variance` is the training data's in [-1, 1] (4 times that in [0, 1])."""
    items = float(sums["items"])
    mse = float(sums["squared_error"]) / items
    metrics = {
        MSE: mse,
        MSE_OVER_VARIANCE: 4 * mse / variance,
        PSNR: -10 * math.log10(max(mse, 1e-10)),
        PSNR_MEAN: float(sums["psnr"]) / items,
    }
    if items > 1 and mse > 0:
        metrics[PSNR_ERROR] = 10 / math.log(10) * error_of_mean(mse * items, float(sums["squares"]), items) / mse
    if "ssim" in sums:
        metrics[SSIM] = float(sums["ssim"]) / items
    return metrics


def error_of_mean(total: float, squares: float, count: float) -> float:
    """Standard error of the mean of `count` > 1 values, from their sum and the sum of their squares."""
    variance = (squares - total**2 / count) / (count - 1)
    return math.sqrt(max(variance, 0.0) / count)
