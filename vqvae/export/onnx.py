"""The decoder as ONNX: code maps -> data in [-1, 1], for any batch size."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from vqvae.inference.trained_model import TrainedModel
from vqvae.surroundings.own_folder import own_folder

TRACED, CHECKED = 2, 3  # batch sizes: the second shows that the first was not built in
TOLERANCE = 1e-3  # of x_hat in [-1, 1]: an eighth of the step between two levels of 8 bits
ONE_FILE_BYTES = 1_500_000_000  # a protobuf ends at 2 GB; larger weights go to decoder.onnx.data beside it


class CannotExport(Exception):
    """Reason why a decoder cannot be exported to ONNX, in one sentence."""


class CodesToData(nn.Module):
    """M code maps (B, *s_m) int64 -> (B, C, *S) in [-1, 1]."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model, self.head = trained.model, trained.head

    def forward(self, *codes: Tensor) -> Tensor:
        return self.head.to_image(self.model.decode(list(codes)))


def write_decoder(trained: TrainedModel, file: Path) -> float:
    """Writes decoder.onnx, inputs codes_0, codes_1, ... and output x_hat -> largest difference from the decoder's x_hat.

    Raises CannotExport where torch cannot convert it, or onnxruntime does not agree with it; then no file is left.
    """
    network = copy.deepcopy(CodesToData(trained)).cpu().eval()
    try:
        convert(network, random_codes(trained, TRACED), file)
        codes = random_codes(trained, CHECKED)
        with torch.no_grad():
            error = float((run_onnx(file, codes) - network(*codes)).abs().max())
        if not error < TOLERANCE:
            raise CannotExport(f"its x_hat would be up to {error:.3g} from the decoder's own")
    except CannotExport:
        for written in file.parent.glob(f"{file.name}*"):
            written.unlink()
        raise
    return error


def convert(network: nn.Module, codes: list[Tensor], file: Path) -> None:
    """Traces the network on `codes`, their first dim free, and writes it. Raises CannotExport."""
    names = [f"codes_{m}" for m in range(len(codes))]
    batch = torch.export.Dim("batch")
    size = sum(weight.numel() * weight.element_size() for weight in network.state_dict().values())
    muted = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch and onnxscript tell their whole story; what fails is said in one sentence
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX knows no fused transformer layer
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            shapes = (tuple({0: batch} for _ in codes),)
            # strict: otherwise len(tensor) would become a number, and the batch size fixed
            program = torch.export.export(network, tuple(codes), dynamic_shapes=shapes, strict=True)
            large = size > ONE_FILE_BYTES
            torch.onnx.export(
                program, (), file, input_names=names, output_names=["x_hat"], dynamo=True, external_data=large
            )
    except Exception as error:  # of any kind: torch's tracer and onnxscript have dozens
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise CannotExport(
            f"torch.onnx.export cannot convert this decoder ({type(error).__name__}: {reason})"
        ) from error
    finally:
        logging.disable(muted)
        torch.backends.mha.set_fastpath_enabled(fused)


def random_codes(trained: TrainedModel, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return [
        torch.randint(count, (batch, *shape), generator=generator)
        for count, shape in zip(trained.codebook_sizes, trained.code_shapes)
    ]


def run_onnx(file: Path, codes: list[Tensor]) -> Tensor:
    """The file in onnxruntime on the CPU. Raises CannotExport where it does not run."""
    with own_folder():
        import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (x_hat,) = session.run(None, {f"codes_{m}": own.numpy() for m, own in enumerate(codes)})
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise CannotExport(f"onnxruntime cannot run it ({' '.join(str(error).split())[:200]})") from error
    return torch.from_numpy(x_hat)
