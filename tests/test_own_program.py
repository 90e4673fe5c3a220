"""Laws of the package in someone's own program: presets in a line, plain loops, other precisions, pictures, wrong numbers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vqvae
from vqvae.config.build import build
from vqvae.config.compose import CONFIGS, choices, compose, resolve
from vqvae.model import VQVAE
from vqvae.quantizers.base import Quantizer
from vqvae.training.optimizers import reset_rows

ROOT = Path(__file__).resolve().parent.parent
PRESETS = choices("quantizer")
MOVED = {"ema", "vq", "gumbel", "residual", "pca", "affine"}  # codes, dead ones, temperatures, axes: see needs_steps


# ---- presets


@pytest.mark.parametrize("group", ["quantizer", "prior", "model", "loss", "quantizer/revival"])
def test_every_preset_says_what_it_is(group: str) -> None:
    said = vqvae.available(group)
    assert list(said) == choices(group)
    assert all(len(sentence) > 10 and sentence[0].isupper() for sentence in said.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_line_makes_the_quantizer_that_the_command_line_makes(name: str) -> None:
    torch.manual_seed(0)
    ours = vqvae.quantizer(name, dim=64)
    torch.manual_seed(0)
    theirs = build(resolve(compose("train", [f"quantizer={name}"])).quantizer, "quantizer")
    assert repr(ours) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))


def test_settings_and_parts_are_chosen_by_name() -> None:
    layer = vqvae.quantizer("ema", dim=8, codebook_size=32, codebook={"decay": 0.5}, revival="none", lookup="l1")
    assert (layer.dim, layer.codebook_sizes, layer.codebook.decay) == (8, [32], 0.5)
    assert (type(layer.revival).__name__, type(layer.nearest).__name__) == ("NoRevival", "L1")
    assert vqvae.quantizer("residual", codebook_size=16, depth=2).codebook_sizes == [16, 16]
    assert vqvae.quantizer("fsq", levels=[4, 4]).codebook_sizes == [16]


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        (("emma",), {}, "emma is no quantizer; did you mean ema"),
        ((3,), {}, "3 is no quantizer; valid are: affine"),
        (("ema",), {"codebook_sise": 512}, "codebook_sise is no setting of quantizer ema; did you mean codebook_size?"),
        (("ema",), {"dimm": 512}, "dimm is no setting of quantizer ema; did you mean dim?"),
        (("fsq",), {"levls": [8]}, "levls is no setting of quantizer fsq; did you mean levels?"),
        (("ema",), {"zzz": 1}, "zzz is no setting of quantizer ema; valid are: codebook_size, space"),
        (("fsq",), {"codebook_size": 8}, r"codebook_size does not go with fsq, .* levels=\[8, 8, 8\]"),
        (("ema",), {"decay": 0.5}, "decay is no setting of quantizer ema; write codebook={'decay': ...}"),
        (("ema",), {"num_embeddings": 5}, "num_embeddings is no setting of quantizer ema; write codebook_size=..."),
        (("ema",), {"codebook": {"dekay": 0.5}}, "did you mean quantizer.codebook.decay"),
        (("ema",), {"revival": "lur"}, "revival=lur is no choice of this part; did you mean lru"),
        (("fsq",), {"revival": "lru"}, "revival is no setting of quantizer fsq"),
        (("ema", 0), {}, "quantizer.dim=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told_by_its_name(arguments: tuple, settings: dict, expected: str) -> None:
    with pytest.raises(vqvae.UserError, match=expected):
        vqvae.quantizer(*arguments, **settings)


def test_a_program_of_hydra_s_keeps_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        vqvae.quantizer("fsq")
        assert hydra_compose("mine").a == 1
    assert not GlobalHydra.instance().is_initialized()


def test_the_package_brings_every_config(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "build_py",
        "--build-lib",
        str(tmp_path / "lib"),
    ]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    installed = tmp_path / "lib" / "vqvae"
    for here, there in ((CONFIGS, installed / "configs"), (ROOT / "vqvae", installed)):
        names = {file.relative_to(here) for suffix in ("*.yaml", "*.py", "py.typed") for file in here.rglob(suffix)}
        assert names <= {file.relative_to(there) for file in there.rglob("*")}
    code = "import vqvae; print(vqvae.__file__, vqvae.quantizer('ema').codebook_sizes)"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=installed.parent, check=True, capture_output=True, text=True
    )
    assert said.stdout.startswith(str(installed))
    assert said.stdout.endswith("[512]\n")


# ---- a loop of one's own


def loop(layer: Quantizer, steps: int, parts: int, mine: bool, calls: int = 1) -> tuple[list[Tensor], dict]:
    """Train a layer in the middle of two convolutions -> its state.

    mine: by the calls that the trainer makes. calls: of auto_update, else.
    """
    torch.manual_seed(1)
    encoder, decoder = nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(8, 3, 4, 4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *layer.parameters()], 1e-2)
    for _ in range(0 if mine else calls):
        vqvae.auto_update(layer, optimizer, steps=steps)
    for step in range(steps):
        if mine and step == 0:
            layer.begin_step(0, steps)
        for part in range(parts):
            x = torch.rand(4, 3, 16, 16)
            z_e = encoder(x)
            if mine and step == part == 0 and layer.init_vectors:
                layer.begin_run(z_e.detach())
            out = layer(z_e)
            loss = (decoder(out.z_q) - x).square().mean() + sum(one.value * one.weight for one in out.losses.values())
            (loss / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        if mine:
            reset_rows([optimizer], layer.after_step(torch.tensor(True)))
            layer.begin_step(step + 1, steps)
    return [*layer.state_dict().values()], optimizer.state_dict()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ema", {"codebook_size": 16, "init": {"vectors_per_code": 2}, "revival": "lru"}),
        (
            "vq",
            {"codebook_size": 16, "init": {"vectors_per_code": 2}, "revival": {"every_steps": 3, "start_weight": 0.0}},
        ),
        ("gumbel", {"codebook_size": 16, "init": "normal"}),
    ],
)
def test_one_call_moves_codes_as_the_trainer_does(name: str, settings: dict, parts: int) -> None:
    torch.manual_seed(0)
    theirs, moments = loop(vqvae.quantizer(name, dim=8, **settings), 12, parts, mine=True)
    torch.manual_seed(0)
    layer = vqvae.quantizer(name, dim=8, **settings)
    before = [value.clone() for value in layer.state_dict().values()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, own_moments = loop(layer, 12, parts, mine=False)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours))
    assert not all(torch.equal(a, b) for a, b in zip(before, ours))
    for key, state in moments["state"].items():
        assert all(torch.equal(state[name], own_moments["state"][key][name]) for name in state)


@pytest.mark.parametrize("name", ["ema", "vq"])
def test_of_several_calls_the_last_moves_the_codes_and_alone(name: str) -> None:
    """As where a cell of a notebook is run again."""
    states = []
    for calls in (1, 3):
        torch.manual_seed(0)
        layer = vqvae.quantizer(name, dim=8, codebook_size=16, init={"vectors_per_code": 2}, revival={"every_steps": 3})
        states.append(loop(layer, 12, 1, mine=False, calls=calls)[0])
    assert all(torch.equal(a, b) for a, b in zip(*states))


@pytest.mark.parametrize("name", PRESETS)
def test_a_loop_that_never_lets_the_codes_move_is_told_so_once(name: str) -> None:
    layer = vqvae.quantizer(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            layer(torch.randn(2, 64, 4, 4, requires_grad=True))
    said = [str(one.message) for one in caught if "auto_update" in str(one.message)]
    assert len(said) == layer.needs_steps
    if name in MOVED:
        assert layer.needs_steps
    if name in ("fsq", "lfq", "bsq", "simvq", "identity", "frozen"):
        assert not layer.needs_steps


def test_what_cannot_be_updated_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(vqvae.UserError, match="auto_update takes a quantizer of vqvae, got Linear"):
        vqvae.auto_update(nn.Linear(2, 2), optimizer, steps=10)
    with pytest.raises(vqvae.UserError, match="steps must be at least 1"):
        vqvae.auto_update(vqvae.quantizer("ema"), optimizer, steps=0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["ema", "affine", "pca", "residual"])
def test_gradient_checkpointing_counts_once(name: str, reentrant: bool) -> None:
    states = []
    for repeated in (False, True):
        torch.manual_seed(0)
        layer = vqvae.quantizer(name, dim=16)
        layer.begin_step(0, 10)
        z = torch.randn(4, 16, 4, 4, requires_grad=True)
        function = lambda z, layer=layer: layer(z).z_q  # noqa: E731
        out = checkpoint(function, z, use_reentrant=reentrant) if repeated else function(z)
        out.square().sum().backward()
        layer.after_step(torch.tensor(True))
        states.append([z.grad, *layer.state_dict().values(), *dict(layer.named_buffers()).values()])
    assert all(torch.equal(a, b) for a, b in zip(*states))


# ---- other precisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", PRESETS)
def test_a_cast_quantizer_chooses_the_same_codes(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = vqvae.quantizer(name).eval()
    z = torch.randn(2, 64, 4, 4).to(dtype)
    plain = layer(z.float())
    cast = layer.to(dtype)(z)
    assert cast.z_q.dtype == dtype
    assert torch.equal(cast.z_q, plain.z_q.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(cast.codes, plain.codes))


CAST = [*((name, torch.bfloat16) for name in choices("model")), ("patch", torch.float16), ("patch", torch.float64)]


@pytest.mark.parametrize(("name", "dtype"), CAST)
def test_a_cast_model_reconstructs_what_it_encodes(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = resolve(compose("train", [f"model={name}", "quantizer=fsq"]))
    model: VQVAE = build(config.model, "model").eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    whole = model(x).decoded
    model = model.to(dtype)
    out = model(x.to(dtype))
    assert out.decoded.dtype == dtype
    assert torch.equal(model.decode(out.codes), out.decoded)
    if dtype == torch.float64:
        torch.testing.assert_close(out.decoded, whole.double(), rtol=0, atol=1e-3)


# ---- a trained model


@pytest.fixture
def trained(finished_run: Path) -> vqvae.TrainedModel:
    return vqvae.load(finished_run)


def test_pictures_are_read_as_the_data_is(trained: vqvae.TrainedModel, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    side = trained.data.size[0]
    cropped = np.asarray(picture.crop((8, 0, 48, 40)).resize((side, side), Image.Resampling.BICUBIC))
    x = torch.from_numpy(cropped.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = trained.reconstruct(x)
    for pictures in ([picture], [tmp_path / "a.png"], [str(tmp_path / "a.png")]):
        assert (trained.reconstruct(pictures) - expected).abs().max() < 0.2
    assert len(trained.encode([picture, tmp_path / "a.png"])[0]) == 2
    with pytest.raises(vqvae.UserError, match="give images as a list"):
        trained.encode(picture)


def test_numbers_that_cannot_be_meant_are_refused(trained: vqvae.TrainedModel) -> None:
    x = torch.rand(1, trained.data.channels, *trained.data.size)
    for wrong in (x * 255, x * 3 - 2, torch.full_like(x, torch.nan)):
        with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]"):
            trained.encode(wrong)
    codes = trained.encode(x)
    size = trained.codebook_sizes[0]
    for code in (-1, size):
        with pytest.raises(ValueError, match=rf"codes must be integers of 0 .. {size - 1}, got torch.int64 of"):
            trained.decode([torch.full_like(codes[0], code)])
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        trained.decode([codes[0].float()])


def test_labels_may_be_class_names(trained: vqvae.TrainedModel) -> None:
    names = trained.class_names
    by_name = trained.sample_codes([0, 1], labels=[names[1], names[0]])
    by_number = trained.sample_codes([0, 1], labels=[1, 0])
    assert all(torch.equal(a, b) for a, b in zip(by_name, by_number))
    with pytest.raises(vqvae.UserError, match="discc is no class of this model's data; did you mean disc"):
        trained.sample_codes([0], labels=["discc"])
