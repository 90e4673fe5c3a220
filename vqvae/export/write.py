"""A finished run as a folder for others: weights as safetensors, a JSON config beside each, the decoder as ONNX."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqvae.config.compose import plain
from vqvae.errors import UserError
from vqvae.export.onnx import CannotExport, write_decoder
from vqvae.export.read import FORMAT
from vqvae.inference.tokenizer import Tokenizer
from vqvae.run.run import Run
from vqvae.storage import checkpoint
from vqvae.storage.files import write_bytes

log = logging.getLogger(__name__)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_run(run: Run, out: Path) -> list[str]:
    """Writes the folder `out`, which appears when it is whole -> what there is to say about it, line by line.

    Raises UserError where the autoencoder is not finished, or `out` is there already.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"out={out} is there already: name a new folder")
    tokenizer = run.tokenizer()
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    said = [f"{out}/tokenizer.safetensors, tokenizer.json: {describe(tokenizer)}"]
    write(temporary, "tokenizer", tokenizer.model, tokenizer_config(run, tokenizer))
    if run.folder.weights_file("prior") is not None:
        prior = run.prior(tokenizer.model)
        write(temporary, "prior", prior, prior_config(run, tokenizer))
        said.append(f"{out}/prior.safetensors, prior.json: {type(prior).__name__}")
    elif "prior" in run.cfg.stages:
        said.append("no prior: this run has not finished it")
    said.append(f"{out}/{export_onnx(tokenizer, run.data.size, temporary)}")
    temporary.rename(out)
    return said


def describe(tokenizer: Tokenizer) -> str:
    count = sum(one.numel() for one in tokenizer.model.parameters())
    return f"{count:,} parameters, codebooks of {tokenizer.model.codebook_sizes}, fingerprint {tokenizer.fingerprint}"


def export_onnx(tokenizer: Tokenizer, size: tuple[int, ...], folder: Path) -> str:
    """decoder.onnx -> what to say about it, beginning with its name; where it cannot be written, it is left out."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if not tokenizer.model.codebook_sizes:
        return "decoder.onnx was not written: this autoencoder has no codes"
    if missing:
        return f"decoder.onnx was not written: pip install {' '.join(missing)} and export again for it"
    try:
        error = write_decoder(tokenizer, size, folder / "decoder.onnx")
    except CannotExport as cannot:
        return f"decoder.onnx was not written: {cannot}"
    return f"decoder.onnx: codes -> x_hat in [-1, 1], at most {error:.1e} from the decoder's own in onnxruntime"


def tokenizer_config(run: Run, tokenizer: Tokenizer) -> dict[str, Any]:
    """All that `vqvae.load` needs beside the weights."""
    cfg, model, data = plain(run.cfg), tokenizer.model, run.data
    node = cfg["model"]
    node["decoders"][0]["channels"] = model.decoders[0].channels  # the loss has set it: see pipeline.build_model
    return {
        "format": FORMAT,
        "fingerprint": tokenizer.fingerprint,
        "data": type(data).__name__,
        "sample_rate": getattr(data, "sample_rate", None),
        "channels": data.channels,
        "size": list(data.size),
        "class_names": list(data.class_names),
        "code_shapes": [list(shape) for shape in model.code_shapes(data.size)],
        "codebook_sizes": model.codebook_sizes,
        "model": node,
        "loss": {**cfg["loss"], "variance": run.variance()},
    }


def prior_config(run: Run, tokenizer: Tokenizer) -> dict[str, Any]:
    node = plain(run.cfg)["prior"]
    return {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "guidance": float(run.sampling().guidance),
        "guidable": bool(run.data.class_names and node["class_dropout"]),
        "network": node["network"],
    }


def write(folder: Path, name: str, network: nn.Module, config: dict[str, Any]) -> None:
    """<name>.safetensors and <name>.json, with the fingerprint of the weights."""
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, and parts of a quantizer may.
    state: dict[str, Tensor] = {key: value.cpu().contiguous().clone() for key, value in network.state_dict().items()}
    config = {**config, "fingerprint": checkpoint.fingerprint(state)}
    write_bytes(folder / f"{name}.safetensors", save(state, {"format": "pt", "of": f"vqvae {name}"}))
    write_bytes(folder / f"{name}.json", (json.dumps(config, indent=2) + "\n").encode())
