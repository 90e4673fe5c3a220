"""VQ-VAEs and priors on their codes: layers, trainer, data. See README.md for the command line.

Legend, used in every docstring and shape comment: `B` batch, `C` data channels, `*S` data dims (T), (H, W) or
(T, H, W), `*s` latent dims, `D` latent width, `d` code width, `N` = B x prod(s) vectors, `K` codebook size, `M` code maps.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

if typing.TYPE_CHECKING:
    from vqvae.export.read import Exported


def load(path: str, device: str = "cpu", allow_targets: Sequence[str] = ()) -> Exported:
    """What scripts/export.py wrote into the folder `path`: encode, decode and, where there is a prior, sample.

        model = vqvae.load("exports/cifar")
        codes = model.encode(x)                                     # x (B, C, *S) in [-1, 1] -> M code maps (B, *s_m)
        x_hat = model.decode(codes)                                 # (B, C, *S) in [-1, 1]
        drawn = model.sample(seeds=range(16), labels=[3] * 16)      # M code maps (16, *s_m), drawn by the prior
        pictures = model.decode(drawn)

    Needs torch and safetensors, not hydra. No code of the folder is run: see vqvae.export.read.load, also for what it raises.
    """
    from vqvae.export.read import load as load_export  # here, so that importing the package costs nothing

    return load_export(path, device, allow_targets)
