"""Laws of transformers as encoders, of images as tokens, and of gradient checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_CODEBOOK, TINY, error_of
from torch import nn

from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.model import VQVAE
from vqvae.networks import resnet, tokens, vit
from vqvae.networks.attention import Transformer
from vqvae.networks.blocks import conv, conv_transpose
from vqvae.sampling.complete import kept_codes

TOKENS = {"patch": 4, "tokens": 6}


def model_of(name: str, *overrides: str) -> VQVAE:
    torch.manual_seed(0)
    config = resolve(compose("train", [f"model={name}", "quantizer=fsq", *overrides]))
    model: VQVAE = build(config.model, "model")
    return model


def gradients_and_bytes(model: VQVAE, x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Gradients of the parameters, and the bytes that the forward pass keeps for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x).decoded.square().mean()
    size = sum(kept.values())
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], size


@pytest.mark.parametrize("name", choices("model"))
def test_gradient_checkpointing_gives_the_same_gradients_with_less_memory(name: str) -> None:
    x = torch.randn(4, 3, 32, 32)
    whole, large = gradients_and_bytes(model_of(name), x)
    again, small = gradients_and_bytes(model_of(name, "model.gradient_checkpointing=true"), x)
    assert all(torch.equal(a, b) for a, b in zip(whole, again))
    assert small < 0.85 * large


def test_gradient_checkpointing_repeats_dropout() -> None:
    overrides = ("model.encoders.0.dropout=0.5", "model.gradient_checkpointing=")
    runs = []
    for chosen in ("false", "true"):
        model = model_of("resnet", overrides[0], overrides[1] + chosen)
        torch.manual_seed(1)
        runs.append(gradients_and_bytes(model, torch.randn(2, 3, 16, 16))[0])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_weights_of_a_residual_network_have_the_same_names_with_dropout() -> None:
    plain, dropped = (resnet.Encoder(2, 3, 8, [8, 8], 1, [2], dropout=share) for share in (0.0, 0.3))
    assert list(plain.state_dict()) == list(dropped.state_dict())
    dropped.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(dropped.eval()(x), plain(x))


def test_a_vision_transformer_tells_places_apart() -> None:
    encoder = vit.Encoder(2, 3, 5, patch=4, transformer=Transformer(16, 2, 2))
    x = torch.randn(1, 3, 8, 8)
    turned = x.unflatten(3, (2, 4)).flip(3).flatten(3)  # its patches change places from left to right
    assert not torch.allclose(encoder(turned), encoder(x).flip(3), atol=1e-3)
    for block in encoder.transformer.blocks:  # without attention a patch knows nothing of its place
        nn.init.zeros_(block.out.weight)
    torch.testing.assert_close(encoder(turned), encoder(x).flip(3))


def test_images_of_any_size_become_the_same_number_of_tokens() -> None:
    encoder = tokens.Encoder(2, 3, 5, **TOKENS, transformer=Transformer(16, 2, 2))
    for size in ((8, 8), (16, 12), (4, 32)):
        assert encoder(torch.randn(2, 3, *size)).shape == (2, 5, 6)
        assert encoder.latent_size(size) == (6,)


def test_every_token_reaches_every_pixel_and_a_prefix_decodes_without_the_others() -> None:
    decoder = tokens.Decoder(2, 3, 5, size=[8, 12], **TOKENS, transformer=Transformer(16, 2, 2)).eval()
    z = torch.randn(2, 5, 6)
    whole = decoder(z)
    assert whole.shape == (2, 3, 8, 12)
    for token in range(6):
        other = z.clone()
        other[:, :, token] += 1
        assert bool((decoder(other) != whole).flatten(2).any(1).all())
    prefix = decoder(z[:, :, :4])
    assert prefix.shape == whole.shape
    assert not torch.allclose(prefix, whole)


def test_nested_dropout_keeps_a_random_number_of_first_tokens_in_training_alone() -> None:
    decoder = tokens.Decoder(2, 3, 5, size=8, **TOKENS, transformer=Transformer(16, 2, 2), nested_dropout=0.5)
    z = torch.randn(400, 5, 6)

    def changed_by(token: int) -> float:
        """Share of items whose output depends on a token."""
        outputs = []
        for shift in (0, 1):
            torch.manual_seed(3)
            moved = z.clone()
            moved[:, :, token] += shift
            outputs.append(decoder(moved))
        return float((outputs[0] != outputs[1]).flatten(1).any(1).float().mean())

    shares = [changed_by(token) for token in range(6)]
    assert shares[0] == 1
    for token, share in enumerate(shares):  # half are whole; of the others, (6 - token) / 6 keep it
        assert abs(share - (0.5 + 0.5 * (6 - token) / 6)) < 0.08
    decoder.eval()
    assert changed_by(5) == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model=vit", "model.encoders.0.transformer.heads=3"],
            "model.encoders.0.transformer.heads must divide half of width=128",
        ),
        (["model=vit", "model.encoders.0.transformer.heads=64"], "gives each head 2 channels, and 2 dims need 4"),
        (["model=tokens", "model.decoders.0.size=30"], "size=30 must be 2 multiples of patch=4"),
        (["model=tokens", "search_sweeps=1"], "search needs codes with a place"),
    ],
)
def test_sizes_that_make_no_network_are_refused(
    overrides: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [one for one in TINY if not one.startswith("model")]
    assert expected in error_of(capsys, *own, *SMALL_CODEBOOK, *overrides, f"run_dir={tmp_path / 'run'}")


def test_completion_needs_codes_that_have_a_place() -> None:
    region = torch.ones(8, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs codes with a place in the data"):
        kept_codes(region, [torch.zeros(1, 6, dtype=torch.long)])


@pytest.mark.parametrize(
    ("make", "shape", "kernel"),
    [
        (conv, (2, 8, 8), {"kernel_size": 3, "padding": 1}),
        (conv, (4, 2, 2), {"kernel_size": 4, "stride": 2, "padding": 1}),
        (conv, (8, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
        (conv, (1,), {"kernel_size": 3, "stride": 2, "padding": 1}),
        (conv_transpose, (2, 8, 8), {"kernel_size": 3, "padding": 1}),
    ],
)
def test_gradients_of_kernels_are_right_in_bf16_over_maps_that_are_shorter_than_they(
    make: Any, shape: tuple[int, ...], kernel: dict[str, int]
) -> None:
    """On CPUs, where torch's own are made of unwritten memory."""
    torch.manual_seed(0)
    layer, x = make(len(shape), 8, 16, **kernel), torch.randn(4, 8, *shape)
    found = []
    for type_of_products in (None, torch.bfloat16):
        layer.zero_grad()
        with torch.autocast("cpu", type_of_products, enabled=type_of_products is not None):
            layer(x).float().sum().backward()
        found.append(layer.weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05 * float(found[0].abs().max()))


def test_maps_that_are_as_long_as_the_kernel_are_convolved_in_bf16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(2, 8, 8, 3, padding=1)(torch.randn(1, 8, 3, 3)).dtype == torch.bfloat16
        assert conv(2, 8, 8, 3, padding=1)(torch.randn(1, 8, 2, 3)).dtype == torch.float32
