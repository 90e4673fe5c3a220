"""Laws of reconstruction in tiles: no seams, any size, the whole result where networks look no farther than a tile."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call_inside
from PIL import Image
from test_sample import mistake
from torch import Tensor

import vqvae
from vqvae import FSQ
from vqvae.errors import UserError
from vqvae.inference.inputs import DataInfo
from vqvae.inference.tiles import in_tiles, reach_of
from vqvae.inference.trained_model import TrainedModel
from vqvae.losses.heads import Pixels
from vqvae.model import VQVAE
from vqvae.networks import conv, patch, resnet, tokens, vit
from vqvae.networks.attention import Transformer

SMALL = {"widths": [8, 12], "residual_width": 4, "residual_blocks": 1}


def conv_model(ndim: int) -> VQVAE:
    torch.manual_seed(ndim)
    return VQVAE([conv.Encoder(ndim, 2, 4, **SMALL)], [FSQ(4, [5, 5, 5])], [conv.Decoder(ndim, 2, 4, **SMALL)])


def patch_model(ndim: int) -> VQVAE:
    torch.manual_seed(ndim)
    sizes = {"patch": 4, "width": 12, "hidden": 8, "depth": 2}
    return VQVAE([patch.Encoder(ndim, 2, 4, **sizes)], [FSQ(4, [5, 5, 5])], [patch.Decoder(ndim, 2, 4, **sizes)])


def two_levels(ndim: int) -> VQVAE:
    torch.manual_seed(ndim)
    finer: dict[str, Any] = {"widths": [6], "residual_width": 4, "residual_blocks": 1}
    encoders = [conv.Encoder(ndim, 2, 4, **SMALL), conv.Encoder(ndim, 4, 4, **finer)]
    decoders = [conv.Decoder(ndim, 2, 8, **SMALL), conv.Decoder(ndim, 4, 4, **finer)]
    return VQVAE(encoders, [FSQ(4, [5, 5, 5]), FSQ(4, [5, 5, 5])], decoders)


def attentive(ndim: int) -> VQVAE:
    torch.manual_seed(ndim)
    parts = [make(ndim, 2, 4, patch=4, transformer=Transformer(16, 1, 2)) for make in (vit.Encoder, vit.Decoder)]
    return VQVAE([parts[0]], [FSQ(4, [5, 5, 5])], [parts[1]])  # type: ignore[list-item]


def of_tokens(ndim: int) -> VQVAE:
    torch.manual_seed(ndim)
    shared: dict[str, Any] = {"patch": 4, "tokens": 6}
    encoder = tokens.Encoder(ndim, 2, 4, **shared, transformer=Transformer(16, 1, 2))
    decoder = tokens.Decoder(ndim, 2, 4, size=16, **shared, transformer=Transformer(16, 1, 2))
    return VQVAE([encoder], [FSQ(4, [5, 5, 5])], [decoder])


def trained(model: VQVAE, ndim: int) -> TrainedModel:
    return TrainedModel(model.eval(), Pixels(1.0), DataInfo("Noise", 2, (16,) * ndim, []), "")


def data(*size: int) -> Tensor:
    return torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("make", "ndim", "size"),
    [
        *[(make, 1, (640,)) for make in (conv_model, patch_model, two_levels)],
        *[(make, 2, (136, 264)) for make in (conv_model, patch_model, two_levels)],
        (conv_model, 3, (88, 8, 16)),
    ],
)
@torch.no_grad()
def test_tiles_of_convolutional_networks_are_the_whole(make: Any, ndim: int, size: tuple[int, ...]) -> None:
    model = trained(make(ndim), ndim)
    x, reach = data(*size), reach_of(model.model, data(*size))
    assert reach is not None
    whole = model.reconstruct(x)
    tile = 2 * reach + 2 * model.model.stride
    assert tile < max(size)
    tiled = model.reconstruct(x, tile=tile)
    assert float((whole - tiled).abs().max()) < 1e-5
    assert float((whole - model.reconstruct(x, tile="auto")).abs().max()) < 1e-5


@pytest.mark.parametrize("make", [conv_model, patch_model, two_levels])
def test_the_reach_of_a_network_is_where_its_influence_ends(make: Any) -> None:
    """By gradients, which the quantizer passes on."""
    model = make(1)
    reach = reach_of(model.eval(), data(1024))
    assert reach is not None
    touched = torch.zeros(1024, dtype=torch.bool)
    for place in range(512, 512 + model.stride):
        x = data(1024).requires_grad_()
        (gradient,) = torch.autograd.grad(model.train()(x).decoded[..., place].sum(), x)
        touched |= (gradient != 0).any(0).any(0).roll(512 - place)
    farthest = int((touched.nonzero() - 512).abs().max())
    inside = model.stride - 1  # of a position's own cell
    assert reach - 3 * model.stride * len(model.encoders) <= farthest <= reach + inside


@pytest.mark.parametrize("make", [attentive, of_tokens])
@pytest.mark.parametrize("size", [(16, 16), (48, 40), (37, 50), (9, 16)])
@torch.no_grad()
def test_networks_without_a_reach_take_any_size_and_their_tiles_go_over_into_each_other(
    make: Any, size: tuple[int, ...]
) -> None:
    model = trained(make(2), 2)
    assert reach_of(model.model, data(*size)) is None
    x = data(*size)
    tiled = model.reconstruct(x, tile="auto")
    assert tiled.shape == x.shape
    if size == (16, 16):
        assert torch.allclose(tiled, model.reconstruct(x), atol=1e-6)


@torch.no_grad()
def test_values_of_smooth_tiles_are_means_of_tiles() -> None:
    """A model that answers each tile with a number of its own: a seam would be a jump."""
    answers = iter(range(100))
    model, x = attentive(1).eval(), data(64)[:1]
    found = in_tiles(lambda part: torch.full_like(part, float(next(answers))), model, x, (16,))[0, 0]
    assert float(found.diff().abs().max()) < 1 / 7
    assert (float(found[0]), float(found[-1])) == (0, next(answers) - 1)


@torch.no_grad()
def test_the_last_values_are_repeated_where_the_stride_does_not_divide() -> None:
    model = trained(conv_model(2), 2)
    x = data(70, 93)
    longer = torch.cat([x, *[x[:, :, -1:]] * 2], 2)
    longer = torch.cat([longer, *[longer[..., -1:]] * 3], 3)
    wanted = model.reconstruct(longer)[:, :, :70, :93]
    assert torch.allclose(model.reconstruct(x, tile="auto"), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "tile", "message"),
    [
        (conv_model, 34, "must be 2 multiples of the encoder's stride 4"),
        (conv_model, [64], "must be 2 multiples"),
        (conv_model, 8, "is too small for this model, which needs at least"),
        (of_tokens, 32, "makes items of (16, 16) alone"),
    ],
)
def test_tiles_that_cannot_be_are_one_sentence(make: Any, tile: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        trained(make(2), 2).reconstruct(data(64, 64), tile=tile)
    assert message in str(raised.value)


def test_normalization_over_positions_has_no_reach() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": [8, 8], "depth": 1, "attention_strides": []}
    encoder, decoder = resnet.Encoder(2, 2, 4, **sizes), resnet.Decoder(2, 2, 4, **sizes)
    assert reach_of(VQVAE([encoder], [FSQ(4, [5, 5, 5])], [decoder]).eval(), data(32, 32)) is None


# ---- sample.py


def test_images_keep_their_size_and_each_has_its_file(finished_run: Path, tmp_path: Path) -> None:
    sizes = {"a/wide.png": (90, 41), "b.jpg": (33, 64), "tiny.png": (7, 5)}
    for index, (name, size) in enumerate(sizes.items()):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    call_inside(
        "sample",
        f"run_dir={finished_run}",
        "mode=reconstruct",
        f"folder={tmp_path / 'in'}",
        "size=original",
        f"out={out}",
    )
    rows = {name: float(psnr) for name, psnr in list(csv.reader((out / "psnr.csv").open()))[1:]}
    assert rows.keys() == sizes.keys()
    model = vqvae.load(finished_run)
    for name, size in sizes.items():
        (file,) = [one for one in out.glob("*.png") if f"{Path(name).stem}_reconstructed" in one.name]
        made = np.asarray(Image.open(file))
        assert made.shape == (size[1], size[0], 3)
        truth = np.asarray(Image.open(tmp_path / "in" / name)).astype(float)
        psnr = -10 * np.log10(np.mean(((made - truth) / 255) ** 2))
        assert rows[name] == pytest.approx(psnr, abs=0.05)  # the file is rounded
        again = model.values(model.reconstruct([tmp_path / "in" / name], tile="auto"))[0]
        assert np.array_equal(np.moveaxis(again, 0, -1), made)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=reconstruct", "size=original"], "size=original needs folder=..."),
        (["mode=reconstruct", "folder=.", "size=large"], "size=large must be original"),
        (["mode=generate", "size=original"], "size= does not belong to mode=generate"),
    ],
)
def test_mistakes_of_sizes_are_one_sentence(
    overrides: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in mistake(capsys, finished_run, *overrides)
