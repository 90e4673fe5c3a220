"""A finished run as a folder for others: weights as safetensors, a JSON config beside each, the decoder as ONNX."""

from __future__ import annotations

import glob
import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqvae import __version__
from vqvae.config.compose import plain
from vqvae.errors import UserError
from vqvae.export.onnx import CannotExport, write_decoder
from vqvae.export.read import FORMAT
from vqvae.inference.trained_model import TrainedModel
from vqvae.run.run import Run
from vqvae.storage import checkpoint
from vqvae.storage.files import remove_leftovers, temporary_name, write_bytes

log = logging.getLogger(__name__)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_run(run: Run, out: Path) -> list[str]:
    """Writes the folder `out`, which appears when it is whole -> what there is to say about it, line by line.

    Raises UserError where the autoencoder is not finished, or `out` is there already.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there already: name a new folder")
    trained = run.trained_model()
    remove_leftovers(out.parent, glob.escape(out.name))
    temporary = temporary_name(out)
    temporary.mkdir(parents=True)
    try:
        said = write_all(run, trained, temporary, out)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    temporary.rename(out)
    return said


def write_all(run: Run, trained: TrainedModel, temporary: Path, out: Path) -> list[str]:
    """Writes all files into `temporary`, which becomes `out` -> what there is to say about them."""
    said = [f"{out}/tokenizer.safetensors, tokenizer.json: {describe(trained)}"]
    write(temporary, "tokenizer", trained.model, tokenizer_config(run, trained))
    if trained.prior is not None:
        write(temporary, "prior", trained.prior, prior_config(run, trained))
        said.append(f"{out}/prior.safetensors, prior.json: {type(trained.prior).__name__}")
    elif "prior" in run.cfg.stages:
        said.append("no prior: this run has not finished it")
    said.append(f"{out}/{export_onnx(trained, temporary)}")
    return said


def describe(trained: TrainedModel) -> str:
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    return f"{count:,} parameters, codebooks of {trained.codebook_sizes}, fingerprint {trained.fingerprint}"


def export_onnx(trained: TrainedModel, folder: Path) -> str:
    """decoder.onnx -> what to say about it, beginning with its name; where it cannot be written, it is left out."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if not trained.codebook_sizes:
        return "decoder.onnx was not written: this autoencoder has no codes"
    if missing:
        return f"decoder.onnx was not written: pip install {' '.join(missing)} and export again for it"
    try:
        error = write_decoder(trained, folder / "decoder.onnx")
    except CannotExport as cannot:
        return f"decoder.onnx was not written: {cannot}"
    return f"decoder.onnx: codes -> x_hat in [-1, 1], at most {error:.1e} from the decoder's own in onnxruntime"


def tokenizer_config(run: Run, trained: TrainedModel) -> dict[str, Any]:
    """Everything beside the weights that `vqvae.load` needs."""
    cfg, data = plain(run.cfg), trained.data
    return {
        "format": FORMAT,
        "version": __version__,
        "fingerprint": trained.fingerprint,
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
        "format": FORMAT,
        "tokenizer": trained.fingerprint,
        "guidance": float(trained.sampling.guidance),
        "guidable": trained.guidable,
        "network": plain(run.cfg)["prior"]["network"],
    }


def write(folder: Path, name: str, network: nn.Module, config: dict[str, Any]) -> None:
    """<name>.safetensors and <name>.json, with the fingerprint of the weights."""
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, and parts of a quantizer may.
    state: dict[str, Tensor] = {key: value.cpu().contiguous().clone() for key, value in network.state_dict().items()}
    config = {**config, "fingerprint": checkpoint.fingerprint(state)}
    # One entry of metadata: several are written in random order, and the same run would give other bytes each time.
    write_bytes(folder / f"{name}.safetensors", save(state, {"format": "pt"}))
    write_bytes(folder / f"{name}.json", (json.dumps(config, indent=2) + "\n").encode())
