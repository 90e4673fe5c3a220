"""Laws of every quantizer, whatever it is made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.quantizers.base import Quantizer

GRIDS = [(7,), (3, 5), (2, 3, 4)]
CASES = list(itertools.product(choices("quantizer"), GRIDS))


def quantizer_of(name: str, *overrides: str) -> Quantizer:
    torch.manual_seed(0)
    cfg = resolve(compose("train", [f"quantizer={name}", *overrides]))
    quantizer = build(cfg.quantizer, "quantizer")
    quantizer.begin_step(0, 10)
    return quantizer


def latents(quantizer: Quantizer, grid: tuple[int, ...]) -> Tensor:
    return torch.randn(3, quantizer.dim, *grid, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_in_eval_decoded_codes_are_the_output_bit_for_bit(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name).eval()
    out = quantizer(latents(quantizer, grid))
    assert out.z_q.shape == (3, quantizer.dim, *grid)
    assert [tuple(m.shape[1:]) for m in out.codes] == quantizer.code_shapes(grid)
    if out.codes:
        assert torch.equal(quantizer.decode(out.codes), out.z_q)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_codes_are_int64_and_below_the_codebook_size(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name)
    out = quantizer(latents(quantizer, grid))
    assert len(out.codes) == len(quantizer.codebook_sizes)
    for codes, size in zip(out.codes, quantizer.codebook_sizes):
        assert codes.dtype == torch.int64
        assert int(codes.min()) >= 0
        assert int(codes.max()) < size


@pytest.mark.parametrize("name", choices("quantizer"))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_still_give_codes_within_the_codebook(name: str, value: float) -> None:
    """A step with such latents is skipped, but its codes are counted before that is known."""
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, (3, 5)).detach()
    z_e[1] = value
    for out in (quantizer(z_e), quantizer.eval()(z_e)):
        for codes, size in zip(out.codes, quantizer.codebook_sizes):
            assert int(codes.min()) >= 0
            assert int(codes.max()) < size


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_the_output_gradient_reaches_the_encoder(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, grid)
    z_q = quantizer(z_e).z_q
    assert torch.isfinite(z_q).all()
    (gradient,) = torch.autograd.grad(z_q.square().sum(), z_e, allow_unused=True)
    assert (gradient is not None) == quantizer.trains_encoder
    if gradient is not None:
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", choices("quantizer"))
def test_every_parameter_learns_from_the_output_or_from_a_loss(name: str) -> None:
    quantizer = quantizer_of(name)
    trained = dict(quantizer.named_parameters())
    learning = set()
    for _ in range(2):  # a layer that starts at zero keeps those before it from learning for one step
        out = quantizer(latents(quantizer, (3, 5)))
        weighted = [loss.value * loss.weight for loss in out.losses.values()]
        quantizer.zero_grad()
        if trained:
            (out.z_q.square().sum() + torch.stack([torch.zeros(()), *weighted]).sum()).backward()
        for key, parameter in trained.items():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
            learning |= {key} if parameter.grad.any() else set()
            parameter.data -= 1e-3 * parameter.grad
    assert learning == set(trained)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_eval_writes_no_buffer_and_training_forward_moves_no_code(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name).eval()
    z_e = latents(quantizer, grid)
    everything = {key: value.clone() for key, value in [*quantizer.named_buffers(), *quantizer.named_parameters()]}
    before = quantizer(z_e)
    assert all(torch.equal(everything[key], value) for key, value in [*quantizer.named_buffers()])
    quantizer.train()(z_e)
    after = quantizer.eval()(z_e)
    assert torch.equal(before.z_q, after.z_q)


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_autocast_changes_nothing_inside(name: str, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(name).eval()
    z_e = latents(quantizer, grid)
    with torch.autocast("cpu", torch.bfloat16):
        low = quantizer(z_e)
    full = quantizer(z_e)
    assert low.z_q.dtype == torch.float32
    assert torch.equal(low.z_q, full.z_q)


@pytest.mark.parametrize("name", choices("quantizer"))
def test_losses_are_the_same_in_eval_as_in_training(name: str) -> None:
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, (3, 5))
    trained, evaluated = quantizer(z_e).losses, quantizer.eval()(z_e).losses
    assert trained.keys() == evaluated.keys()
    assert all(torch.equal(trained[key].value, evaluated[key].value) for key in trained)


@pytest.mark.parametrize("name", choices("quantizer"))
def test_a_state_dict_restores_the_output(name: str) -> None:
    quantizer = quantizer_of(name)
    z_e = latents(quantizer, (4,))
    quantizer(z_e)
    quantizer.after_step(torch.tensor(True))
    torch.manual_seed(5)
    other = build(resolve(compose("train", [f"quantizer={name}"])).quantizer, "quantizer")
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(other.eval()(z_e).z_q, quantizer.eval()(z_e).z_q)


@pytest.mark.parametrize("name", ["ema", "vq"])
@pytest.mark.parametrize("part", ["space=sphere", "init=data", "revival=none"])
def test_parts_are_swapped_by_one_override(name: str, part: str) -> None:
    quantizer = quantizer_of(name, f"quantizer/{part}", "quantizer.codebook.size=8").eval()
    out = quantizer(latents(quantizer, (3, 5)))
    assert torch.equal(quantizer.decode(out.codes), out.z_q)


def test_a_narrow_code_width_projects_in_and_out() -> None:
    quantizer = quantizer_of("ema", "quantizer.codebook.dim=4").eval()
    z_e = latents(quantizer, (3, 5))
    out = quantizer(z_e)
    assert quantizer.code_dim == 4
    assert out.z_q.shape == z_e.shape
    assert torch.equal(quantizer.decode(out.codes), out.z_q)
