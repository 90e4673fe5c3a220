"""Laws of monitoring: which steps a figure covers, and that logging never makes the host wait."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, train_inside
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae.data.items import ItemBatch
from vqvae.losses.heads import Pixels
from vqvae.losses.objective import Objective
from vqvae.losses.terms import MSE
from vqvae.model import VQVAE
from vqvae.networks import conv
from vqvae.quantizers.scalar import FSQ
from vqvae.stages.autoencoder import SPANS, AutoencoderStage

pytestmark = pytest.mark.cpu


def small_stage(epoch_steps: Fraction | None) -> AutoencoderStage:
    """Images (1, 8, 8) to 2 x 2 codes."""
    sizes = {"widths": [4, 4], "residual_width": 4, "residual_blocks": 1}
    model = VQVAE([conv.Encoder(2, 1, 2, **sizes)], [FSQ(2, [3, 3])], [conv.Decoder(2, 1, 2, **sizes)])
    return AutoencoderStage(
        model, Objective(Pixels(0.3), {"mse": MSE(1.0, False, 0.3)}), 0.3, lambda items: items, epoch_steps
    )


def test_each_span_counts_the_codes_of_its_own_steps() -> None:
    """An epoch of 2.5 steps: the batch across a border counts towards the epoch in which it began."""
    stage = small_stage(Fraction(5, 2))
    stage.forwards = stage.networks
    found: dict[str, list[int]] = {span: [] for span in SPANS}
    for step in range(8):
        stage.begin_step(step, 8)
        for _ in range(2):  # micro-batches, of 3 images with 2 x 2 codes
            list(stage.training_losses(ItemBatch(torch.randn(3, 1, 8, 8), torch.zeros(3))))
        stage.after_step(torch.tensor(True))
        for span, (counts,) in stage.meters.total().items():
            found[span].append(int(counts.sum()) // 24)
        if step % 4 == 3:
            assert stage.window_metrics()["autoencoder/epoch"] == (step + 1) / 2.5
    assert found == {
        "batch": [1, 1, 1, 1, 1, 1, 1, 1],
        "window": [1, 2, 3, 4, 1, 2, 3, 4],
        "epoch": [1, 2, 3, 1, 2, 1, 2, 3],
        "run": [1, 2, 3, 4, 5, 6, 7, 8],
    }


class NoReading(TorchDispatchMode):
    """Refuses operations that make the host wait for the device: reading values, and results whose shape depends on values.

    On a CPU all tensors look the same, so a number that was just drawn may be read: it is the host's own.
    """

    waits = frozenset(
        {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
    )
    drawn = 0  # address of what the call before has drawn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1])
        waits = masked or (name in self.waits and args[0].data_ptr() != self.drawn)
        assert not waits, f"{name} makes the host wait"
        result = func(*args, **(kwargs or {}))
        self.drawn = result.data_ptr() if name == "randint" else 0
        return result


def test_between_logs_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqvae.training.trainer import Trainer

    for reads in (float, lambda x: x[x > 0]):
        with pytest.raises(AssertionError, match="makes the host wait"), NoReading():
            reads(torch.ones(()))
    originals = Trainer.begin_step, Trainer.train_step

    def begin_step(self: Trainer, at: int) -> Any:
        with NoReading():
            return originals[0](self, at)

    def train_step(self: Trainer, kind: Any, inputs: Any) -> None:
        with NoReading():
            originals[1](self, kind, inputs)

    monkeypatch.setattr(Trainer, "begin_step", begin_step)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    train_inside(*TINY, *SMALL_CODEBOOK, "quantizer.revival.every_steps=1", f"run_dir={tmp_path / 'run'}")


def test_a_codebook_that_maps_share_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, other = torch.randn(5, 2), torch.randn(5, 2)
    stage = small_stage(None)
    monkeypatch.setattr(stage.model, "codebooks", lambda: [shared, None, other, shared.clone()])
    monkeypatch.setattr(stage.model, "orders", lambda: [2, 2, 2, 2])
    measured: list[torch.Tensor] = []

    def measure(codes: torch.Tensor, order: float) -> dict[str, float]:
        measured.append(codes)
        return {"first": float(codes[0, 0])}

    found = stage._of_codebooks(measure)
    assert [codes is one for codes, one in zip(measured, (shared, other))] == [True, True]
    first = float(shared[0, 0])
    assert found == {"codebook/first_0": first, "codebook/first_2": float(other[0, 0]), "codebook/first_3": first}
