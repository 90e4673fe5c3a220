"""Values that a program gives to models and layers: what cannot be meant is one sentence, and no error of torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqvae

pytestmark = pytest.mark.cpu
QUANTIZERS = ("ema", "fsq", "bsq", "multiscale", "residual_fsq")
X = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def model() -> vqvae.TrainedModel:
    return vqvae.load("shapes")


def codes_of(model: vqvae.TrainedModel) -> torch.Tensor:
    return model.encode(X)[0]


MISTAKES: dict[str, Callable[[vqvae.TrainedModel], Any]] = {
    "seeds must be one or more whole numbers, such as range(16), got []": lambda model: model.sample(seeds=[]),
    "seeds must be one or more whole numbers, such as range(16), got 3": lambda model: model.sample(3),
    "seeds must be one or more whole numbers, such as range(16), got [0.5]": lambda model: model.sample_codes([0.5]),
    "labels must be a list of 1, one per seed: class names, or numbers of -1": lambda m: m.sample([0], labels=3),
    "class names, or numbers of -1 (none) .. 9; got 'disc'": lambda m: m.sample([0], "disc"),
    "class names, or numbers of -1 (none) .. 9; got [0.5]": lambda m: m.sample([0], [0.5]),
    "path must be a text or a path, such as 'runs/mine', got 3": lambda _: vqvae.load(3),  # type: ignore[arg-type]
    "device='gpu' is none that PyTorch knows": lambda _: vqvae.load("shapes", device="gpu"),
    "device=cuda: PyTorch finds no GPU here; take cpu": lambda model: model.to("cuda"),
    "allow_targets must be a list of texts": lambda _: vqvae.load("shapes", allow_targets="mine."),
    "codes must be a list of tensors, one for each code map, got Tensor": lambda m: m.decode(codes_of(m)),
    "codes must be a list of tensors, one for each code map, got a list of list": lambda m: m.decode([[1]]),
    "codes must be integers of 0 .. 255, got torch.int64 of 256": lambda m: m.decode([codes_of(m) * 0 + 256]),
    "codes must be integers (B, *s), got torch.bool of (1, 8, 8)": lambda m: m.decode([codes_of(m) > 0]),
    "code maps must be (B, 8, 8), got (8, 8)": lambda m: m.decode([codes_of(m)[0]]),
    "x must be a tensor (B, 3, 32, 32) or a list of images (Pillow's, paths or arrays), got list": lambda m: m.encode(
        []
    ),
    "x must be a tensor (B, 3, 32, 32) or a list of images (Pillow's, paths or arrays), got a list of Tensor": (
        lambda m: m.encode([X[0]])
    ),
    "arrays must be uint8 (H, W) or (H, W, 3), got float32 of (32, 32, 3)": (
        lambda m: m.encode([np.zeros((32, 32, 3), np.float32)])
    ),
    "search must be a number of sweeps, 0 for none, got -1": lambda model: model.encode(X, search=-1),
    "tile must be the side of a tile, its 2 sides, or auto, got 'big'": lambda model: model.reconstruct(X, tile="big"),
    "x must be of shape (B, 3, *S), got (1, 4, 32, 32)": lambda m: m.model(torch.zeros(1, 4, 32, 32)),
    "this model has 1 code maps, got 0": lambda model: model.model.decode([]),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_cannot_be_meant_is_one_sentence(said: str, model: vqvae.TrainedModel) -> None:
    with pytest.raises(vqvae.UserError) as raised:
        MISTAKES[said](model)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named_and_nan_is_called_so(model: vqvae.TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for name in ("bad.jpg", "absent.jpg"):
        with pytest.raises(OSError, match=f"{name} cannot be read: "):
            model.encode([tmp_path / name])
    with pytest.raises(ValueError, match="it holds NaN"):
        model.encode(X * torch.nan)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_refuses_codes_and_latents_that_are_not_its_own(name: str) -> None:
    quantizer = vqvae.quantizer(name, dim=16).eval()
    codes, size = quantizer(torch.randn(2, 16, 8, 8)).codes, quantizer.codebook_sizes[0]
    wrong = {
        f"codes must be integers of 0 .. {size - 1}": [[m * 0 + size for m in codes], [m * 0 - 1 for m in codes]],
        "codes must be integers (B, *s), got torch.float32": [[m.float() for m in codes]],
        f"this quantizer has {len(codes)} code maps, got {len(codes) - 1}": [codes[1:]],
        "codes must be a list of tensors": [codes[0]],
    }
    for said, given in wrong.items():
        for one in given:
            with pytest.raises(vqvae.UserError) as raised:
                quantizer.decode(one)
            assert said in str(raised.value)
    with pytest.raises(vqvae.UserError, match=r"this quantizer takes \(B, 16, \*s\)"):
        quantizer(torch.randn(2, 15, 8, 8))
    with pytest.raises(vqvae.UserError, match=r"takes latents of a float type, got torch\.int64"):
        quantizer(torch.zeros(2, 16, 8, 8, dtype=torch.int64))


def test_maps_of_a_quantizer_must_go_together() -> None:
    for name in ("residual_fsq", "multiscale"):
        quantizer = vqvae.quantizer(name, dim=16).eval()
        codes = quantizer(torch.randn(2, 16, 8, 8)).codes
        with pytest.raises(vqvae.UserError, match=r"code maps of this quantizer must be"):
            quantizer.decode([*codes[:-1], codes[-1][:, :3]])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_values_of_codes_are_not_looked_at_where_the_host_would_wait(name: str) -> None:
    quantizer = vqvae.quantizer(name, dim=16).eval()
    codes = quantizer(torch.randn(2, 16, 8, 8)).codes
    quantizer.check_codes([m.to("meta") for m in codes])  # a tensor there has no values: looking at them would raise
    with pytest.raises(vqvae.UserError, match=r"got torch\.float32"):
        quantizer.check_codes([m.to("meta", torch.float32) for m in codes])


def test_codes_of_any_integer_type_decode_alike() -> None:
    for name in QUANTIZERS:
        quantizer = vqvae.quantizer(name, dim=16).eval()
        codes = quantizer(torch.randn(2, 16, 8, 8)).codes
        assert torch.equal(quantizer.decode([m.to(torch.int16) for m in codes]), quantizer.decode(codes))


def test_no_items_give_no_items(model: vqvae.TrainedModel) -> None:
    assert model.reconstruct(X[:0]).shape == (0, 3, 32, 32)
    assert model.decode([codes_of(model)[:0]]).shape == (0, 3, 32, 32)


def test_seeds_and_labels_may_be_numbers_of_any_library(model: vqvae.TrainedModel) -> None:
    expected = model.sample_codes([0, 1], [2, -1])[0]
    for make in (torch.tensor, np.array):
        assert torch.equal(model.sample_codes(make([0, 1]), make([2, -1]))[0], expected)
    assert torch.equal(model.sample_codes(range(2), ["square", None])[0], expected)
