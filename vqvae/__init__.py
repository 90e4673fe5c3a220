"""VQ-VAEs and priors on their codes: layers, trainer, data. See README.md for the command line.

    model = vqvae.load("runs/mine")            # a run folder or an export: see TrainedModel
    codes = model.encode(x)                    # x (B, C, *S) in [-1, 1] -> M code maps
    images = model.sample(range(16))           # (16, C, *S) in [-1, 1]
    layer = vqvae.quantizer("ema", dim=64, codebook_size=512)      # of available("quantizer"), for a network of one's own

Symbols in docstrings and shape comments: `B` batch, `C` data channels, `*S` data dims (T), (H, W) or (T, H, W), `*s` latent
dims, `D` latent width, `d` code width, `N` = B x prod(s) vectors, `K` codebook size, `M` code maps.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import typing
from collections.abc import Sequence
from pathlib import Path

if typing.TYPE_CHECKING:
    import torch

    from vqvae.config.presets import available, quantizer
    from vqvae.errors import UserError
    from vqvae.inference.trained_model import TrainedModel
    from vqvae.model import VQVAE
    from vqvae.quantizers.binary import BSQ, LFQ
    from vqvae.quantizers.compose import Product, Residual
    from vqvae.quantizers.identity import Identity
    from vqvae.quantizers.multiscale import MultiScale
    from vqvae.quantizers.random_projection import RandomProjection
    from vqvae.quantizers.rotated import Rotated
    from vqvae.quantizers.scalar import FSQ, LatentQuantizer, SymmetricFSQ
    from vqvae.quantizers.sf_diveq import SFDiVeQ
    from vqvae.quantizers.soft import IBQ, SQVAE, GumbelSoftmax
    from vqvae.quantizers.vector import VectorQuantizer
    from vqvae.training.plain_loop import auto_update

try:
    __version__ = importlib.metadata.version("vqvae")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0.2.0"

PLACES = {  # public name -> module, imported when the name is first used, so that `import vqvae` costs nothing
    "BSQ": "vqvae.quantizers.binary",
    "FSQ": "vqvae.quantizers.scalar",
    "GumbelSoftmax": "vqvae.quantizers.soft",
    "IBQ": "vqvae.quantizers.soft",
    "Identity": "vqvae.quantizers.identity",
    "LFQ": "vqvae.quantizers.binary",
    "LatentQuantizer": "vqvae.quantizers.scalar",
    "MultiScale": "vqvae.quantizers.multiscale",
    "Product": "vqvae.quantizers.compose",
    "RandomProjection": "vqvae.quantizers.random_projection",
    "Residual": "vqvae.quantizers.compose",
    "Rotated": "vqvae.quantizers.rotated",
    "SFDiVeQ": "vqvae.quantizers.sf_diveq",
    "SQVAE": "vqvae.quantizers.soft",
    "SymmetricFSQ": "vqvae.quantizers.scalar",
    "TrainedModel": "vqvae.inference.trained_model",
    "UserError": "vqvae.errors",
    "VQVAE": "vqvae.model",
    "VectorQuantizer": "vqvae.quantizers.vector",
    "auto_update": "vqvae.training.plain_loop",
    "available": "vqvae.config.presets",
    "quantizer": "vqvae.config.presets",
}
__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "SQVAE",
    "VQVAE",
    "GumbelSoftmax",
    "Identity",
    "LatentQuantizer",
    "MultiScale",
    "Product",
    "RandomProjection",
    "Residual",
    "Rotated",
    "SFDiVeQ",
    "SymmetricFSQ",
    "TrainedModel",
    "UserError",
    "VectorQuantizer",
    "auto_update",
    "available",
    "load",
    "quantizer",
]


def __getattr__(name: str) -> object:
    if name not in PLACES:
        raise AttributeError(f"module 'vqvae' has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def load(path: str | Path, device: str | torch.device = "cpu", allow_targets: Sequence[str] = ()) -> TrainedModel:
    """Load the trained model of a run folder, of a folder written by scripts/export.py, or by its name.

        model = vqvae.load("exports/mine")                          # or a run, "runs/mine"
        model = vqvae.load("shapes")                                # a small model that comes with the package
        model = vqvae.load("owner/name")                            # from the Hugging Face Hub; @<revision> may follow
        codes = model.encode(x)                                     # x (B, C, *S) in [-1, 1] -> M code maps (B, *s_m)
        x_hat = model.decode(codes)                                 # (B, C, *S) in [-1, 1]
        images = model.sample(seeds=range(16), labels=[3] * 16)     # (16, C, *S) in [-1, 1], drawn by the prior

    allow_targets: packages, such as "my_package.", whose classes the folder's config may name. No other code is run: folders
    may be a stranger's. An export needs torch and safetensors, a run folder also Hydra and its data set.
    A folder of that path comes before a name. Raises UserError for a folder that is neither, or is damaged, and for a name that
    the Hub does not know or cannot give.
    """
    from vqvae.errors import UserError
    from vqvae.export.hub import download, is_hub_name
    from vqvae.shipped.runs import shipped_run

    if not isinstance(path, (str, Path)):
        raise UserError(f"path must be a text or a path, such as 'runs/mine', got {path!r}")
    if isinstance(allow_targets, str):
        raise UserError(f"allow_targets must be a list of texts, such as ['my_package.'], got {allow_targets!r}")
    path = shipped_run(path) or path
    if is_hub_name(path):
        path = download(str(path))
    if (Path(path) / "config.yaml").is_file():
        from vqvae.run.run import load_run

        return load_run(path, device, allow_targets)
    from vqvae.export.read import load_export

    return load_export(path, device, allow_targets)
