"""Laws of networks, the VQ-VAE of one and of two levels, and the losses."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch

from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.config.renames import without_most_warmup
from vqvae.losses.terms import L1, MSE
from vqvae.model import VQVAE
from vqvae.networks import conv
from vqvae.networks.blocks import DepthToSpace, SpaceToDepth
from vqvae.quantizers import nearest
from vqvae.quantizers.base import FlatQuantized
from vqvae.quantizers.random_projection import RandomProjection
from vqvae.quantizers.scalar import FSQ
from vqvae.training.schedules import Constant, Cosine

PACKAGE = Path(__file__).resolve().parent.parent / "vqvae"
SMALL = {
    "width": 8,
    "hidden": 8,
    "residual_width": 8,
    "depth": 1,
    "residual_blocks": 1,
    "heads": 1,
}  # where a preset has them
CONV = {"widths": [8, 16], "residual_width": 8, "residual_blocks": 1}


def network_of(name: str, part: str, ndim: int, channels: int) -> torch.nn.Module:
    """The encoder or decoder of a preset of configs/model, as narrow as it goes."""
    config = resolve(compose("train", [f"model={name}"])).model[part][0]
    sizes = {key: value for key, value in SMALL.items() if key in config}
    if "widths" in config:
        sizes["widths"] = [8] * len(config.widths)
    if "transformer" in config:
        config.transformer.update({"width": 8, "heads": 1})
    if "size" in config:
        sizes["size"] = list(size_of(config.patch, ndim))
    config.update({**sizes, "ndim": ndim, "channels": channels, "dim": 6})
    return build(config, f"model.{part}.0")


def size_of(stride: int, ndim: int) -> tuple[int, ...]:
    return tuple(stride * cells for cells in (2, 3, 1)[:ndim])


@pytest.mark.parametrize("name", choices("model"))
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_encoder_and_decoder_mirror_each_other_in_every_number_of_dims(name: str, ndim: int) -> None:
    encoder, decoder = network_of(name, "encoders", ndim, 3), network_of(name, "decoders", ndim, 5)
    size = size_of(encoder.stride, ndim)
    latents = encoder(torch.randn(2, 3, *size))
    assert latents.shape == (2, 6, *encoder.latent_size(size))
    assert decoder(latents).shape == (2, decoder.channels, *size) == (2, 5, *size)


@pytest.mark.parametrize("size", [(8,), (8, 4), (4, 8, 4)])
def test_patches_become_channels_and_back_and_agree_with_pytorch_in_two_dims(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    packed = SpaceToDepth(4)(x)
    assert torch.equal(DepthToSpace(4)(packed), x)
    if len(size) == 2:
        assert torch.equal(packed, torch.nn.functional.pixel_unshuffle(x, 4))


def two_levels() -> VQVAE:
    torch.manual_seed(0)
    sizes, lower = CONV, {**CONV, "widths": [8]}
    return VQVAE(
        [conv.Encoder(2, 3, 6, **sizes), conv.Encoder(2, 6, 6, **lower)],
        [FSQ(6, [5, 5]), FSQ(6, [8, 8])],
        [conv.Decoder(2, 3, 12, **sizes), conv.Decoder(2, 6, 6, **lower)],
    )


def test_codes_are_reported_coarse_to_fine_and_decode_to_the_output() -> None:
    model = two_levels().eval()
    x = torch.randn(2, 3, 16, 24)
    out = model(x)
    assert [tuple(m.shape[1:]) for m in out.codes] == model.code_shapes((16, 24)) == [(2, 3), (4, 6)]
    assert model.codebook_sizes == [64, 25]
    assert torch.equal(model.decode(out.codes), out.decoded)
    assert all(torch.equal(a, b) for a, b in zip(model.encode(x), out.codes))


def test_every_parameter_of_both_levels_gets_a_gradient() -> None:
    model = two_levels()
    model(torch.randn(2, 3, 16, 16)).decoded.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_codebooks_come_in_the_order_of_the_code_maps() -> None:
    model = two_levels()
    model.quantizers[1] = RandomProjection(6, 10, 4)
    assert model.codebook_sizes == [10, 25]
    coarse, fine = model.codebooks()
    assert coarse is not None
    assert coarse.shape == (10, 4)
    assert fine is None  # FSQ has none


def test_histograms_of_both_levels_count_every_vector_in_eval_only() -> None:
    model = two_levels()
    for quantizer in model.quantizers:
        original = quantizer.quantize

        def quantize(z: torch.Tensor, original=original, quantizer=quantizer) -> FlatQuantized:  # type: ignore[no-untyped-def]
            flat: FlatQuantized = original(z)
            flat.histograms = {} if quantizer.training else {"rows": torch.tensor([len(z)])}
            return flat

        quantizer.quantize = quantize  # type: ignore[method-assign]
    x = torch.randn(2, 3, 16, 24)
    assert model(x).histograms == {}
    found = model.eval()(x).histograms
    assert {name: int(counts) for name, counts in found.items()} == {"level0/rows": 2 * 24, "level1/rows": 2 * 6}


def test_latents_pass_at_most_eight_functions_of_ours_on_their_way_to_the_nearest_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(resolve(compose("train", ["model=conv", "quantizer=ema"])).model, "model").eval()
    best, ways = nearest.best, []

    def recorded(scores: torch.Tensor) -> torch.Tensor:
        frames = [frame for frame, _ in traceback.walk_stack(None) if PACKAGE in Path(frame.f_code.co_filename).parents]
        ways.append(["best", *(frame.f_code.co_name for frame in frames)])
        return best(scores)

    monkeypatch.setattr(nearest, "best", recorded)
    model(torch.randn(1, 3, 32, 32))
    assert ways
    for way in ways:
        assert way[-1] == "forward"
        assert len(way) <= 8, way


def test_where_the_encoder_gets_no_gradient_the_model_says_so() -> None:
    model = two_levels()
    assert not model.has_unused_parameters
    model.quantizers[1] = RandomProjection(6, 10, 4)
    assert model.has_unused_parameters
    model(torch.randn(2, 3, 16, 16)).decoded.square().mean().backward()
    without = {name.split(".")[0] + name.split(".")[1] for name, p in model.named_parameters() if p.grad is None}
    assert without == {"encoders1"}  # the finer level's quantizer trains its own encoder


def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(
        ValueError, match="a size of 30 does not divide by the encoder's stride 8; the nearest that does is 24"
    ):
        two_levels().code_shapes((32, 30))


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry a level"):
        VQVAE([], [], [])


def test_mse_over_variance_is_one_for_the_mean_image() -> None:
    """In [-1, 1], with the variance of [-1, 1]: the factor of 4 that several projects print wrong."""
    x = torch.rand(50, 3, 8, 8) * 2 - 1
    loss = MSE(weight=1.0, over_variance=True, variance=float(x.var(unbiased=False)))
    assert float(loss.value(x.mean().expand_as(x), x)) == pytest.approx(1.0, rel=1e-5)


def test_plain_losses_match_their_definitions_whatever_the_autocast() -> None:
    x, output = torch.rand(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(MSE(1.0, False, 0.3).value(output, x)) == pytest.approx(float(((output - x) ** 2).mean()))
        assert float(L1(1.0, False, 0.3).value(output, x)) == pytest.approx(float((output - x).abs().mean()))
    assert float(L1(1.0, True, 0.25).value(output, x)) == pytest.approx(4 * float((output - x).abs().mean()))


def test_schedules_warm_up_then_decay() -> None:
    cosine = Cosine(warmup_steps=10, final=0.1)
    assert [cosine(step, 110) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert cosine(60, 110) == pytest.approx(0.55)
    assert cosine(110, 110) == pytest.approx(0.1)
    assert Constant(warmup_steps=0)(5, 10) == 1.0


@pytest.mark.parametrize("steps", [4, 60, 100, 101, 150, 199, 200, 1500])
def test_a_cosine_decays_however_short_the_run_is_beside_its_warm_up(steps: int) -> None:
    rates = [Cosine(warmup_steps=100, final=0.1, most_warmup=0.5)(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1
    assert top + 1 == min(100, steps // 2)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.6
    older = [Cosine(100, 0.1)(step, steps) for step in range(steps)]
    assert (rates == older) == (steps >= 200)


def test_a_run_stored_before_the_limit_of_the_warm_up_goes_on_without_it() -> None:
    cosine = {"_target_": "vqvae.training.schedules.Cosine", "warmup_steps": 100, "final": 0.0}
    today = {"schedule": {**cosine, "most_warmup": 0.5}, "prior": {"schedule": {**cosine, "most_warmup": 0.5}}}
    older = {"schedule": cosine, "prior": {"schedule": {"_target_": "vqvae.training.schedules.Constant"}}}
    assert without_most_warmup(today, older, typed=[]) == ["schedule.most_warmup"]
    assert without_most_warmup(today, older, typed=["schedule.most_warmup"]) == []
    assert without_most_warmup(today, today, typed=[]) == []
