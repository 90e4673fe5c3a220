"""Encoder and decoder as ONNX: data in [-1, 1] -> code maps -> data, for any batch size; encoders for any size if they can."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae.inference.tiles import has_fixed_size
from vqvae.inference.trained_model import TrainedModel
from vqvae.quantizers.multiscale import MultiScale
from vqvae.surroundings.own_folder import own_folder

TRACED, CHECKED = 2, 3  # batch sizes: the second shows that the first was not built in
TOLERANCE = 1e-3  # of x_hat in [-1, 1]: an eighth of the step between two levels of 8 bits
LEAST_EQUAL = 0.99  # share of codes: a vector in the middle between two codes may get the other one
X_TO_CODES, OWN_CODES = "x in [-1, 1] -> codes", "of random items' codes are the encoder's own in onnxruntime"
ONE_FILE_BYTES = 1_500_000_000  # a protobuf ends at 2 GB; larger weights go to <name>.onnx.data beside it


class CannotExport(Exception):
    """Reason why a network cannot be exported to ONNX, in one sentence."""


class CodesToData(nn.Module):
    """M code maps (B, *s_m) int64 -> (B, C, *S) in [-1, 1]."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model, self.head = trained.model, trained.head

    def forward(self, *codes: Tensor) -> Tensor:
        return self.head.to_image(self.model.decode(list(codes)))


class DataToCodes(nn.Module):
    """x (B, C, *S) in [-1, 1] -> M code maps (B, *s_m) int64."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(x))


def write_decoder(trained: TrainedModel, file: Path) -> str:
    """Writes decoder.onnx, inputs codes_0, codes_1, ... and output x_hat -> what it does, for the user.

    Raises CannotExport where torch cannot convert it, or onnxruntime does not agree with it; then no file is left.
    """
    names, batch = code_names(trained), torch.export.Dim("batch")
    shapes = (tuple({0: batch} for _ in names),)
    with written(file):
        network = copied(CodesToData(trained))
        convert(network, random_codes(trained, TRACED), shapes, file, names, ["x_hat"])
        codes = random_codes(trained, CHECKED)
        with torch.no_grad():
            error = float((run_onnx(file, dict(zip(names, codes)))[0] - network(*codes)).abs().max())
        if not error < TOLERANCE:
            raise CannotExport(f"its x_hat would be up to {error:.3g} from the decoder's own")
    return f"codes -> x_hat in [-1, 1], at most {error:.1e} from the decoder's own in onnxruntime"


def write_encoder(trained: TrainedModel, file: Path) -> str:
    """Writes encoder.onnx, input x and outputs codes_0, codes_1, ... -> what it does, for the user.

    Raises CannotExport where torch cannot convert it, or onnxruntime does not agree with it; then no file is left.
    """
    rounds_sizes = any(
        isinstance(quantizer, MultiScale) for quantizer in trained.model.quantizers
    )  # ONNX has no such sizes
    if not rounds_sizes and not has_fixed_size(trained.model, trained.data.size):
        with contextlib.suppress(CannotExport):
            share = write_encoder_of(trained, file, any_size=True)
            strides = trained.model.strides(len(trained.data.size))
            return f"{X_TO_CODES}, any size that divides by {' x '.join(map(str, strides))}; {share:.2%} {OWN_CODES}"
    share = write_encoder_of(trained, file, any_size=False)
    return f"{X_TO_CODES}; {share:.2%} {OWN_CODES}"


def write_encoder_of(trained: TrainedModel, file: Path, any_size: bool) -> float:
    """Writes the encoder for data of any size or the trained one -> the share of codes that are its own in onnxruntime."""
    size, names = trained.data.size, code_names(trained)
    strides = trained.model.strides(len(size))
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if any_size:
        dims |= {2 + i: stride * torch.export.Dim(f"places_{i}", min=2) for i, stride in enumerate(strides)}
    with written(file):
        network = copied(DataToCodes(trained))
        convert(network, [random_x(trained, TRACED, size)], (dims,), file, ["x"], names)
        x = random_x(trained, CHECKED, tuple(map(sum, zip(size, strides))) if any_size else size)
        with torch.no_grad():
            equal = [(a == b).float() for a, b in zip(run_onnx(file, {"x": x}), network(x), strict=True)]
        share = float(torch.cat([one.flatten() for one in equal]).mean())
        if not share >= LEAST_EQUAL:
            raise CannotExport(f"only {share:.1%} of its codes would be the encoder's own")
    return share


def copied(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).cpu().eval()


@contextlib.contextmanager
def written(file: Path) -> Any:
    """Context that removes what was written of a file where it cannot be whole."""
    try:
        yield
    except CannotExport:
        for part in file.parent.glob(f"{file.name}*"):
            part.unlink()
        raise


def convert(
    network: nn.Module, inputs: list[Tensor], shapes: tuple[Any, ...], file: Path, names: list[str], outputs: list[str]
) -> None:
    """Traces the network on `inputs`, whose dims in `shapes` are free, and writes it. Raises CannotExport."""
    size = sum(weight.numel() * weight.element_size() for weight in network.state_dict().values())
    muted = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch and onnxscript tell their whole story; what fails is said in one sentence
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX knows no fused transformer layer
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            # strict: otherwise len(tensor) would become a number, and the batch size fixed
            program = torch.export.export(network, tuple(inputs), dynamic_shapes=shapes, strict=True)
            torch.onnx.export(
                program,
                (),
                file,
                input_names=names,
                output_names=outputs,
                dynamo=True,
                external_data=size > ONE_FILE_BYTES,
                custom_translation_table={torch.ops.vqvae.nearest_code.default: nearest_code_in_onnx()},
            )
    except Exception as error:  # of any kind: torch's tracer and onnxscript have dozens
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise CannotExport(
            f"torch.onnx.export cannot convert this network ({type(error).__name__}: {reason})"
        ) from error
    finally:
        logging.disable(muted)
        torch.backends.mha.set_fastpath_enabled(fused)


def nearest_code_in_onnx() -> Callable[..., Any]:
    """The lookup `vqvae::nearest_code` in operations of ONNX. It holds all N x K scores."""
    from onnxscript import opset18

    op: Any = opset18  # its types know no lists of axes

    def nearest(z: Any, codes: Any, metric: str = "euclidean") -> Any:
        if metric != "euclidean":
            raise NotImplementedError(f"the lookup {metric} has no form in ONNX")
        center = op.ReduceMean(codes, [0], keepdims=1)  # (1, d): little cancels about it
        codes = op.Sub(codes, center)
        half = op.Mul(op.ReduceSum(op.Mul(codes, codes), [1], keepdims=0), 0.5)  # (K,)
        scores = op.Sub(op.MatMul(op.Sub(z, center), op.Transpose(codes, perm=[1, 0])), half)  # (N, K)
        return op.ArgMax(scores, axis=1, keepdims=0)

    return nearest


def code_names(trained: TrainedModel) -> list[str]:
    return [f"codes_{m}" for m in range(len(trained.codebook_sizes))]


def random_x(trained: TrainedModel, batch: int, size: tuple[int, ...]) -> Tensor:
    """(B, C, *S) in [-1, 1]."""
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, trained.data.channels, *size, generator=generator) * 2 - 1


def random_codes(trained: TrainedModel, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return [
        torch.randint(count, (batch, *shape), generator=generator)
        for count, shape in zip(trained.codebook_sizes, trained.code_shapes)
    ]


def run_onnx(file: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of the file in onnxruntime on the CPU. Raises CannotExport where it does not run."""
    with own_folder():
        import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise CannotExport(f"onnxruntime cannot run it ({' '.join(str(error).split())[:200]})") from error
    return [torch.from_numpy(output) for output in outputs]
