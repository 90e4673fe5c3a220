"""A folder that scripts/export.py wrote, read back with torch and safetensors alone: what `vqvae.load` returns."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.config.renames import rename_targets
from vqvae.config.schema import ALLOWED_PREFIXES, check_node
from vqvae.config.types import fits
from vqvae.errors import UserError
from vqvae.inference.tokenizer import Tokenizer
from vqvae.losses.reconstruction import ReconstructionLoss
from vqvae.model import VQVAE
from vqvae.priors.base import Prior
from vqvae.priors.sampling import Sampling
from vqvae.storage import checkpoint

FORMAT = 1  # raised when older files can no longer be read
BASES = ("torch.", "vqvae.model.", "vqvae.networks.", "vqvae.quantizers.", "vqvae.losses.", "vqvae.priors.")
KEYS: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "format": int,
        "fingerprint": str,
        "model": dict,
        "loss": dict,
        "data": str,
        "sample_rate": int | None,
        "channels": int,
        "size": list[int],
        "class_names": list[str],
        "code_shapes": list[list[int]],
        "codebook_sizes": list[int],
    },
    "prior": {
        "format": int,
        "fingerprint": str,
        "tokenizer": str,
        "network": dict,
        "guidance": float,
        "guidable": bool,
    },
}


@dataclass
class Exported:
    """A tokenizer and, where the run had one, the prior on its codes; all in float32, on one device.

    data is the class of the run's data set, channels C and size *S what an item of it measures; sample_rate, of sounds alone,
    whose x are mu-law levels (vqvae.data.waveforms.compand and expand). sampling is how the run drew its samples, guidable
    whether they can be guided by their class.

    On a GPU, convolutions may use TF32 unless torch.backends.cudnn.allow_tf32 is False, as it is in a run.
    """

    tokenizer: Tokenizer
    prior: Prior | None
    data: str
    sample_rate: int | None
    channels: int
    size: tuple[int, ...]
    class_names: list[str]
    sampling: Sampling
    guidable: bool

    @property
    def code_shapes(self) -> list[tuple[int, ...]]:
        """Dims of each code map of an item, coarse to fine."""
        return self.tokenizer.model.code_shapes(self.size)

    @property
    def codebook_sizes(self) -> list[int]:
        """K of each code map."""
        return self.tokenizer.model.codebook_sizes

    @property
    def device(self) -> torch.device:
        return next(self.tokenizer.model.parameters()).device

    def encode(self, x: Tensor, search_sweeps: int = 0) -> list[Tensor]:
        """x (B, C, *S) in [-1, 1] -> M code maps (B, *s_m): the encoder's, or better ones found by search.

        Raises ValueError for another shape or type, and where there is nothing to search.
        """
        wanted = (self.channels, *self.size)
        if x.dtype != torch.float32 or x.ndim != len(wanted) + 1 or x.shape[1] != self.channels:
            raise UserError(
                f"x must be float32 in [-1, 1] of shape (B, {', '.join(map(str, wanted))}), got {x.dtype} of {tuple(x.shape)}"
            )
        self.tokenizer.model.code_shapes(tuple(x.shape[2:]))  # other sizes go too, if the stride divides them
        return self.tokenizer.encode(x.to(self.device), search_sweeps)

    def decode(self, codes: list[Tensor]) -> Tensor:
        """M code maps (B, *s_m) -> (B, C, *S) in [-1, 1]. Raises ValueError for another number of maps."""
        if len(codes) != len(self.codebook_sizes):
            raise UserError(f"this tokenizer has {len(self.codebook_sizes)} code maps, got {len(codes)}")
        return self.tokenizer.decode([one.to(self.device) for one in codes])

    def sample(
        self, seeds: Sequence[int], labels: Sequence[int] | Tensor | None = None, **settings: Any
    ) -> list[Tensor]:
        """One set of code maps per seed -> M maps (n, *s_m), for `decode`; sample i depends on seed i and label i alone.

        labels: numbers of classes, -1 or None for none. settings: fields of vqvae.priors.sampling.Sampling that differ from
        the run's own, such as temperature=0.9 or guidance=1. Raises ValueError without a prior, and for values out of range.
        """
        if self.prior is None:
            raise UserError("this export has no prior: export a run whose prior is finished")
        if unknown := set(settings) - set(Sampling.__dataclass_fields__):
            raise UserError(f"{min(unknown)} is no setting of sampling: {', '.join(Sampling.__dataclass_fields__)}")
        sampling = replace(self.sampling, **settings)
        if sampling.guided and not self.guidable:
            raise UserError(f"guidance={sampling.guidance} needs a prior that was trained with and without classes")
        chosen = torch.full((len(seeds),), -1) if labels is None else torch.as_tensor(labels)
        if chosen.shape != (len(seeds),) or bool(((chosen < -1) | (chosen >= len(self.class_names))).any()):
            raise UserError(
                f"labels must be {len(seeds)} numbers, one a seed, of -1 .. {len(self.class_names) - 1}; got {labels}"
            )
        return self.prior.sample(list(seeds), chosen.long().to(self.device), sampling)


def load(path: str | Path, device: str | torch.device = "cpu", allow_targets: Sequence[str] = ()) -> Exported:
    """Reads a folder that scripts/export.py wrote; see `Exported`. Nothing in it is run.

    Only this package's and torch.nn's classes are built, and those of packages in `allow_targets`, such as "my_package.".
    Raises ValueError, in one sentence, for a folder that is no export, or is damaged.
    """
    folder = Path(path)
    config = read_config(folder, "tokenizer")
    allowed = (*ALLOWED_PREFIXES, *allow_targets)
    state = read_weights(folder, "tokenizer", config)
    model = fill(construct("model", config["model"], VQVAE, allowed), state, folder / "tokenizer.safetensors")
    reconstruction = construct("loss", config["loss"], ReconstructionLoss, allowed)
    tokenizer = Tokenizer(model.to(device).eval(), reconstruction.to(device).eval(), config["fingerprint"])
    about = {key: config[key] for key in ("data", "sample_rate", "channels", "class_names")}
    size = tuple(config["size"])
    result = Exported(tokenizer, None, size=size, **about, sampling=Sampling(), guidable=False)
    if not (folder / "prior.json").is_file():
        return result
    config = read_config(folder, "prior")
    if config["tokenizer"] != tokenizer.fingerprint:
        raise UserError(f"{folder}: prior.json belongs to another tokenizer ({config['tokenizer']})")
    prior = construct(
        "network",
        config["network"],
        Prior,
        allowed,
        code_shapes=model.code_shapes(size),
        codebook_sizes=model.codebook_sizes,
        num_classes=len(result.class_names),
    )
    fill(prior, read_weights(folder, "prior", config), folder / "prior.safetensors")
    sampling = Sampling(guidance=config["guidance"])
    return replace(result, prior=prior.to(device).eval(), sampling=sampling, guidable=config["guidable"])


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """<name>.json with its keys and their types checked. Raises UserError."""
    file = folder / f"{name}.json"
    if not file.is_file():
        found = " (it is a run folder)" if (folder / "config.yaml").is_file() else ""
        raise UserError(
            f"{folder} holds no export{found}: there is no {file}; python scripts/export.py run_dir=... out=... writes one"
        )
    try:
        config = rename_targets(json.loads(file.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or not fits(config.get("format"), int):
        raise UserError(f"{file} is not the config of an export")
    if config["format"] != FORMAT:
        raise UserError(f"{file} has format {config['format']}, and this version of vqvae reads format {FORMAT}")
    for key, kind in KEYS[name].items():
        if key not in config or not fits(config[key], kind):
            raise UserError(f"{file}: {key}={config.get(key)} is not what an export has there")
    return config


def read_weights(folder: Path, name: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """<name>.safetensors. Raises UserError where the tensors are not those that the config was written with."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / f"{name}.safetensors"  # never a name out of the config
    if not file.is_file():
        raise UserError(f"{folder} is not whole: there is no {file}")
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if checkpoint.fingerprint(state) != config["fingerprint"]:
        raise UserError(f"{file} is damaged, or belongs to another {name}.json: its tensors have another fingerprint")
    return state


def construct(path: str, node: Any, base: type, allowed: tuple[str, ...], **runtime: Any) -> Any:
    """Checks a node and all below it as a run's config is checked, then builds it: an instance of `base`.

    Raises UserError for what is not allowed there, before anything is built, and for values that make no network.
    """
    try:
        check_parts(path, node)
        check_node(path, node, allowed, given=runtime)
        built = assemble(node, runtime)
    except UserError:
        raise
    except Exception as error:  # of any kind: torch's networks check their sizes, or do not
        raise UserError(f"{path} cannot be built: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(built, base):
        raise UserError(f"{path}._target_ is not a {base.__name__}")
    return built


def check_parts(path: str, node: Any) -> None:
    """Raises UserError for targets of ours that are no parts of networks: of a stranger's file, not even a logger."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        check_parts(f"{path}.{key}", value)
        if key == "_target_" and value.startswith(("vqvae.", "torch.")) and not value.startswith(BASES):
            raise UserError(f"{path}._target_={value} is no part of a network")


def assemble(node: Any, runtime: dict[str, Any]) -> Any:
    """A checked node -> what it describes; nested nodes first, as hydra builds them."""
    if isinstance(node, list):
        return [assemble(one, {}) for one in node]
    if not isinstance(node, dict):
        return node
    built = {key: assemble(value, {}) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return built
    module, _, name = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    return functools.partial(target, **built, **runtime) if node.get("_partial_") else target(**built, **runtime)


def fill(network: nn.Module, state: dict[str, Tensor], file: Path) -> Any:
    """Loads all weights -> the network. Raises UserError where they do not fit."""
    checkpoint.load_weights(network, state, file)
    return network
