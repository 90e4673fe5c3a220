"""A finished run as a folder for others, as model hubs expect it: weights as safetensors, config.json, a model card, ONNX."""

from __future__ import annotations

import glob
import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqvae import __version__
from vqvae.config.compose import plain
from vqvae.errors import UserError
from vqvae.export.card import write_card
from vqvae.export.onnx import CannotExport, write_decoder, write_encoder
from vqvae.export.read import CONFIG, FORMAT
from vqvae.inference.trained_model import TrainedModel
from vqvae.run.run import Run
from vqvae.storage import checkpoint
from vqvae.storage.files import remove_leftovers, temporary_name, write_bytes, write_json

log = logging.getLogger(__name__)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_run(run: Run, out: Path, name: str | None = None, license_name: str | None = None) -> list[str]:
    """Writes the folder `out`, which appears when it is whole -> what there is to say about it, line by line.

    name, license_name: for the model card: how others load it, such as owner/name, and the license of the weights.
    Raises UserError where the autoencoder is not finished, or `out` is there already.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there already: name a new folder")
    trained = run.trained_model()
    remove_leftovers(out.parent, glob.escape(out.name))
    temporary = temporary_name(out)
    temporary.mkdir(parents=True)
    try:
        said = write_all(run, trained, temporary, out, (name or f"path/to/{run.folder.path.name}", license_name))
    except BaseException:
        shutil.rmtree(temporary)
        raise
    temporary.rename(out)
    return said


def write_all(run: Run, trained: TrainedModel, temporary: Path, out: Path, card: tuple[str, str | None]) -> list[str]:
    """Writes all files into `temporary`, which becomes `out` -> what there is to say about them."""
    config: dict[str, Any] = {"library_name": "vqvae", "version": __version__, "format": FORMAT}
    fingerprint = write_weights(temporary / "tokenizer.safetensors", trained.model)
    config["tokenizer"] = {**tokenizer_config(run, trained), "fingerprint": fingerprint}
    said = [f"{out}/tokenizer.safetensors: {describe(trained)}"]
    if trained.prior is not None:
        fingerprint = write_weights(temporary / "prior.safetensors", trained.prior)
        config["prior"] = {**prior_config(run, trained), "fingerprint": fingerprint}
        said.append(f"{out}/prior.safetensors: {type(trained.prior).__name__}")
    elif "prior" in run.cfg.stages:
        said.append("no prior: this run has not finished it")
    write_json(temporary / CONFIG, config)
    write_card(run, trained, temporary, *card)
    said.append(f"{out}/{CONFIG}, README.md: what vqvae.load reads, and a model card")
    said += [f"{out}/{line}" for line in export_onnx(trained, temporary)]
    return said


def describe(trained: TrainedModel) -> str:
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    return f"{count:,} parameters, codebooks of {trained.codebook_sizes}, fingerprint {trained.fingerprint}"


def export_onnx(trained: TrainedModel, folder: Path) -> list[str]:
    """encoder.onnx and decoder.onnx -> a line about each; one that cannot be written is left out."""
    missing = missing_packages()
    if not trained.codebook_sizes:
        return ["encoder.onnx and decoder.onnx were not written: this autoencoder has no codes"]
    if missing:
        return [
            f"encoder.onnx and decoder.onnx were not written: pip install {' '.join(missing)} and export again for them"
        ]
    said = []
    for name, write in {"encoder.onnx": write_encoder, "decoder.onnx": write_decoder}.items():
        try:
            said.append(f"{name}: {write(trained, folder / name)}")
        except CannotExport as cannot:
            said.append(f"{name} was not written: {cannot}")
    return said


def missing_packages() -> list[str]:
    return [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def tokenizer_config(run: Run, trained: TrainedModel) -> dict[str, Any]:
    """Everything beside the weights that `vqvae.load` needs."""
    cfg, data = plain(run.cfg), trained.data
    return {
        "data": data.name,
        "sample_rate": data.sample_rate,
        "channels": data.channels,
        "size": list(data.size),
        "fit": data.fit,
        "levels": None if data.levels is None else data.levels._asdict(),
        "class_names": list(data.class_names),
        "code_shapes": [list(shape) for shape in trained.code_shapes],
        "codebook_sizes": trained.codebook_sizes,
        "model": cfg["model"],
        "head": {**cfg["loss"]["head"], "variance": run.variance()},
    }


def prior_config(run: Run, trained: TrainedModel) -> dict[str, Any]:
    return {
        "tokenizer": trained.fingerprint,
        "guidance": float(trained.sampling.guidance),
        "guidable": trained.guidable,
        "conditions": None if trained.prior is None or (own := trained.prior.conditions) is None else own.plain(),
        "network": plain(run.cfg)["prior"]["network"],
        "head": plain(run.cfg)["prior"]["head"],
    }


def write_weights(file: Path, network: nn.Module) -> str:
    """Writes a network's weights as safetensors -> their fingerprint."""
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, and parts of a quantizer may.
    state: dict[str, Tensor] = {key: value.cpu().contiguous().clone() for key, value in network.state_dict().items()}
    # One entry of metadata: several are written in random order, and the same run would give other bytes each time.
    write_bytes(file, save(state, {"format": "pt"}))
    return checkpoint.fingerprint(state)
