"""Laws of clips: drawn from a seed, moving and never leaving, shown as contact sheets, and a stride for each of their dims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_result, error_of, run, stop_at, train_inside
from PIL import Image

import vqvae
from vqvae.data.moving_shapes import MovingShapes, bounced, draw_clips
from vqvae.data.shapes import SIGNED_DISTANCES
from vqvae.errors import UserError
from vqvae.model import VQVAE
from vqvae.networks import conv

SIZES: dict[str, Any] = {"residual_width": 4, "residual_blocks": 1}


def clips(cache: Path, **settings: Any) -> MovingShapes:
    plain: dict[str, Any] = {
        "ndim": 3,
        "channels": 3,
        "frames": 5,
        "image_size": [16, 24],
        "flip": False,
        "limit": None,
    }
    more = {
        "resident": "memory",
        "workers": 0,
        "cache_dir": str(cache),
        "train_count": 60,
        "val_count": 9,
        "draw_seed": 0,
    }
    return MovingShapes(**{**plain, **more, **settings})


def test_clips_are_a_function_of_the_seed_and_hold_all_classes(tmp_path: Path) -> None:
    first, again, other = (draw_clips(80, 4, (16, 16), seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert set(first[1].tolist()) == set(range(len(SIGNED_DISTANCES)))
    splits = [clips(tmp_path).split(name) for name in ("train", "val", "test")]
    assert len({split.fingerprint for split in splits}) == 3
    assert splits[0].read(0).shape == (3, 5, 16, 24)
    assert splits[0].read(0).dtype == torch.uint8


def test_a_shape_moves_from_frame_to_frame_and_stays_inside() -> None:
    """Shapes are brighter than the background."""
    drawn, _ = draw_clips(60, 16, (32, 32), 0)
    bright = (drawn.float().mean(1) > 127).float()  # (n, T, H, W)
    area = bright.sum((2, 3))
    assert bool((area > 0).all())
    places = torch.stack(
        [(bright * torch.arange(32.0)[:, None]).sum((2, 3)), (bright * torch.arange(32.0)).sum((2, 3))]
    )
    moved = (places / area).diff(dim=2).square().sum(0).sqrt()  # (n, T - 1), in pixels
    assert float(moved.mean()) > 0.5
    assert float(moved.max()) < 6


def test_what_leaves_at_one_end_comes_back() -> None:
    place = torch.linspace(-10, 10, 2001)
    thrown = bounced(place, torch.tensor(0.7))
    assert float(thrown.abs().max()) <= 0.7 + 1e-5
    assert torch.allclose(thrown[place.abs() <= 0.7], place[place.abs() <= 0.7], atol=1e-5)
    assert float(thrown.diff().abs().max()) < 0.0101


def test_a_contact_sheet_shows_every_frame_in_order(tmp_path: Path) -> None:
    items = torch.arange(5, dtype=torch.uint8).view(1, 1, 5, 1, 1).expand(1, 3, 5, 16, 24)
    sheet = clips(tmp_path).picture(items)
    assert sheet.shape == (1, 3, 32, 72)
    assert sheet[0, 0, ::16, ::24].tolist() == [[0, 1, 2], [3, 4, 255]]


def test_a_clip_is_written_as_a_gif_and_read_again(tmp_path: Path) -> None:
    data = clips(tmp_path)
    item = data.split("val").read(1)
    file = data.save(tmp_path / "a.b", item)
    assert file.name == "a.b.gif"
    assert float((data.load(file).float() - item.float()).abs().mean()) < 3  # 256 colors
    with pytest.raises(OSError, match="it has 5 frames, and a clip has 6"):
        clips(tmp_path, frames=6).load(file)
    Image.new("RGB", (8, 8)).save(tmp_path / "still.gif")
    with pytest.raises(OSError, match="it has 1 frames"):
        data.load(tmp_path / "still.gif")


@pytest.mark.parametrize(("ndim", "strides"), [(3, [2, 4, 4]), (3, [4, 1, 2]), (2, [1, 4]), (2, [2, 4, 4]), (1, [4])])
def test_each_dim_has_its_own_stride(ndim: int, strides: list[int]) -> None:
    """Of fewer dims, the last ones count."""
    encoder = conv.Encoder(ndim, 2, 3, [4, 4], **SIZES, strides=strides)
    decoder = conv.Decoder(ndim, 2, 3, [4, 4], **SIZES, strides=strides)
    x = torch.randn(1, 2, *[8] * ndim)
    cells = tuple(8 // stride for stride in strides[-ndim:])
    assert encoder(x).shape[2:] == encoder.latent_size((8,) * ndim) == cells
    assert decoder(encoder(x)).shape == x.shape


def test_without_strides_of_its_own_a_network_is_what_it_was() -> None:
    networks = []
    for strides in (None, [4, 4]):
        torch.manual_seed(0)
        networks.append(conv.Encoder(2, 3, 4, [8, 8], **SIZES, strides=strides))
    x = torch.randn(1, 3, 16, 16)
    assert networks[0].stride == networks[1].stride == 4
    assert torch.equal(networks[0](x), networks[1](x))


def test_sizes_are_compared_with_the_stride_of_their_dim() -> None:
    strides = [2, 4, 4]
    parts = conv.Encoder(3, 1, 4, [4, 4], **SIZES, strides=strides), vqvae.FSQ(4, [8, 5, 5])
    model = VQVAE([parts[0]], [parts[1]], [conv.Decoder(3, 1, 4, [4, 4], **SIZES, strides=strides)])
    assert model.code_shapes((2, 8, 4)) == [(1, 2, 1)]
    assert model.strides(3) == (2, 4, 4)
    with pytest.raises(UserError, match="a size of 6 does not divide by the encoder's stride 4"):
        model.code_shapes((6, 6, 4))
    with pytest.raises(UserError, match="one stride for all dims"):
        _ = model.stride


@pytest.mark.parametrize("strides", [[2, 4], [2, 2, 2], [3, 4, 4], [8, 4, 4]])
def test_strides_that_the_layers_cannot_make_are_one_sentence(strides: list[int]) -> None:
    with pytest.raises(UserError, match="strides"):
        conv.Encoder(3, 1, 4, [4, 4], **SIZES, strides=strides)


def test_the_experiment_on_clips_does_all_that_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        "debug=fast",
        "logger=off",
        "quantizer.levels=[4,4]",
        "data.train_count=24",
        "data.val_count=8",
        "data.frames=4",
    ]
    small += ["data.image_size=16", "model.encoders.0.widths=[4,4]", "model.encoders.0.residual_width=4"]
    small += ["quantizer.dim=8", "prior.network.width=16", "prior.network.layers=1", f"data.cache_dir={tmp_path / 'c'}"]
    path, again = tmp_path / "run", tmp_path / "again"
    train_inside("experiment=video", *small, f"run_dir={path}")
    stop_at(monkeypatch, "autoencoder", 3)
    with pytest.raises(SystemExit):
        train_inside("experiment=video", *small, f"run_dir={again}")
    monkeypatch.undo()
    train_inside("experiment=video", *small, f"run_dir={again}")
    assert_same_result(path, again)
    assert json.loads((path / "codes" / "val" / "header.json").read_text())["code_shapes"] == [[2, 4, 4]]
    run("sample.py", f"run_dir={path}", "n=2", "gif=true", f"out={tmp_path / 'drawn'}")
    drawn = np.load(tmp_path / "drawn" / "samples.npz")["items"]
    assert drawn.shape == (2, 3, 4, 16, 16)
    files = sorted((tmp_path / "drawn").glob("0*.gif"))
    assert len(files) == 2
    with Image.open(files[0]) as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]
    run(
        "sample.py",
        f"run_dir={path}",
        "mode=complete",
        f"image={files[0]}",
        "mask=0,0,2,16,16,4",
        f"out={tmp_path / 'o'}",
    )
    assert np.load(tmp_path / "o" / "completions.npz")["kept_0"].tolist() == [[[True] * 4] * 4, [[False] * 4] * 4]
    run("scripts/evaluate.py", f"run_dir={path}", "search=1")
    run("scripts/export.py", f"run_dir={path}", f"out={tmp_path / 'export'}")
    model = vqvae.load(tmp_path / "export")
    assert model.code_shapes == [(2, 4, 4)]
    with pytest.raises(UserError, match="one stride for all dims"):
        model.reconstruct(torch.zeros(1, 3, 4, 32, 32), tile="auto")


def test_a_size_that_the_strides_do_not_divide_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, "experiment=video", "logger=off", "data.image_size=34", f"run_dir={tmp_path / 'run'}")
    assert (
        "data.image_size=34: a size of 34 does not divide by the encoder's stride 4; the nearest that does is 32"
        in said
    )


def test_a_clip_whose_frames_are_alike_is_read_back_whole(tmp_path: Path) -> None:
    data = clips(tmp_path)
    still = torch.zeros(3, 5, 16, 24, dtype=torch.uint8)
    still[:, :, 4:9, 4:9] = 255
    still[:, 2:] = 0
    assert torch.equal(data.load(data.save(tmp_path / "still", still)), still)
