"""Laws of the quantizers that are classes of their own: by coordinate, by bit, through a softmax."""

from __future__ import annotations

import math

import pytest
import torch
from plain_parts import vector_quantizer

from vqvae.quantizers.base import Quantizer
from vqvae.quantizers.binary import BSQ, LFQ
from vqvae.quantizers.codebook import EMACodebook, GradientCodebook
from vqvae.quantizers.estimator import DiVeQ, StraightThrough
from vqvae.quantizers.init import FirstBatch, Normal
from vqvae.quantizers.lookup import CosineVote
from vqvae.quantizers.random_projection import RandomProjection
from vqvae.quantizers.scalar import FSQ, LatentQuantizer, SymmetricFSQ
from vqvae.quantizers.sf_diveq import SFDiVeQ
from vqvae.quantizers.soft import IBQ, SQVAE, GumbelSoftmax

# ---- by coordinate


def test_fsq_indices_follow_the_paper() -> None:
    fsq = FSQ(4, [8, 5, 5, 5]).eval()
    assert fsq.basis.tolist() == [1, 8, 40, 200]
    assert fsq(torch.zeros(1, 4, 1)).codes[0].item() == 4 + 2 * 8 + 2 * 40 + 2 * 200
    assert fsq(torch.full((1, 4, 1), 50.0)).codes[0].item() == 999
    assert fsq(torch.full((1, 4, 1), -50.0)).codes[0].item() == 0


def test_every_fsq_code_decodes_to_a_different_vector_and_encodes_back() -> None:
    fsq = FSQ(4, [8, 5, 5, 5]).eval()
    codes = torch.arange(1000)[None]
    values = fsq.decode([codes])  # (1, 4, 1000)
    assert len({tuple(v) for v in values[0].t().tolist()}) == 1000
    bounded = values * (fsq.levels // 2)[:, None]
    inside = ((bounded + fsq.offset[:, None]) / fsq.half_range[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    z = torch.atanh(inside) - fsq.shift[:, None]
    assert torch.equal(fsq(z).codes[0], codes)


@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq_codes_and_values_are_those_of_vector_quantize_pytorch(symmetric: bool) -> None:
    peer_module = pytest.importorskip("vector_quantize_pytorch")
    peer = peer_module.FSQ([8, 5, 5, 5], preserve_symmetry=symmetric)
    # the peer's bound has (1 + epsilon) where the paper's code has (1 - epsilon)
    same_sign = type("FSQ", (FSQ,), {"epsilon": -1e-3})
    ours = (SymmetricFSQ(4, [8, 5, 5, 5], 0.0) if symmetric else same_sign(4, [8, 5, 5, 5])).eval()
    z = torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(0))
    values, indices = peer(z)
    out = ours(z.movedim(2, 1))
    assert torch.equal(out.codes[0], indices.long())
    torch.testing.assert_close(out.z_q.movedim(1, 2), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("levels", [[1], [8, 2], []])
def test_fsq_refuses_levels_below_three(levels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"at least 3|must not be empty"):
        FSQ(4, levels)


def test_symmetric_levels_are_evenly_spaced_from_minus_one_to_one() -> None:
    values = SymmetricFSQ(1, [4], 0.0).decode([torch.arange(4)[None]])
    torch.testing.assert_close(values.flatten(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    assert SymmetricFSQ(1, [2], 0.0).eval()(torch.tensor([[[0.3, -0.3]]])).z_q.flatten().tolist() == [1.0, -1.0]


def test_fsq_noise_stays_within_half_a_step_and_ends_with_training() -> None:
    torch.manual_seed(0)
    fsq, z = SymmetricFSQ(2, [5, 5], noise=1.0), torch.randn(1, 2, 100)
    assert (fsq(z).z_q - torch.tanh(z)).abs().max() <= 0.25 + 1e-6
    out = fsq.eval()(z)
    assert torch.equal(out.z_q, fsq.decode(out.codes))


def test_latent_values_are_learned_and_stay_what_codes_decode_to() -> None:
    torch.manual_seed(0)
    latent = LatentQuantizer(3, [4, 5, 2], 1.0, 0.1)
    z = torch.randn(2, 3, 10)
    latent(z).losses["quantization"].value.backward()
    assert latent.codebook.grad is not None
    with torch.no_grad():
        latent.codebook -= latent.codebook.grad
    out = latent.eval()(z)
    assert torch.equal(out.z_q, latent.decode(out.codes))
    assert out.codes[0].max() < 40


# ---- by bit


def lfq(bits: int, bits_per_map: int, temperature: float = 0.7) -> LFQ:
    return LFQ(bits, bits, bits_per_map, temperature, 1.0, 1.0, 0.25)


def test_lfq_codes_and_signs_are_in_bijection_highest_bit_first() -> None:
    quantizer = lfq(10, 10).eval()
    codes = torch.arange(1024)[None]
    values = quantizer.decode([codes])
    assert torch.equal(quantizer(values).codes[0], codes)
    assert values[0, :, 1].tolist() == [-1.0] * 9 + [1.0]
    several = lfq(10, 5).eval()
    assert torch.equal(torch.stack(several(values).codes), torch.stack([codes // 32, codes % 32]))


@pytest.mark.parametrize("bits", [2, 5, 9])
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_bit_entropies_equal_brute_force_over_all_corners(kind: type[LFQ], bits: int) -> None:
    torch.manual_seed(0)
    quantizer = kind(bits, bits, bits, 0.7, 1.0, 1.0, 0.25)
    z = quantizer.normalize(torch.randn(30, bits))
    corners = quantizer.decode([torch.arange(2**bits)[None]])[0].t()  # (K, d)
    p = (2 * z @ corners.t() / 0.7).softmax(1)
    torch.testing.assert_close(quantizer.sample_entropy(z), torch.special.entr(p).sum(1).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantizer.codebook_entropy(z), torch.special.entr(p.mean(0)).sum(), rtol=1e-4, atol=1e-5)


def test_lfq_entropies_are_those_of_vector_quantize_pytorch() -> None:
    peer_module = pytest.importorskip("vector_quantize_pytorch")
    peer = peer_module.LFQ(dim=6, codebook_size=64, entropy_loss_weight=1.0, commitment_loss_weight=0.25)
    z = 0.1 * torch.randn(1, 200, 6, generator=torch.Generator().manual_seed(0))
    (_, indices, _), parts = peer(z, inv_temperature=1 / 0.5, return_loss_breakdown=True)
    out = lfq(6, 6, 0.5)(z.movedim(2, 1))
    assert torch.equal(out.codes[0], indices)
    torch.testing.assert_close(out.losses["sample_entropy"].value, parts.per_sample_entropy, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(-out.losses["codebook_entropy"].value, parts.batch_entropy, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out.losses["commitment"].value, parts.commitment)


def test_bsq_codes_lie_on_the_unit_sphere() -> None:
    quantizer = BSQ(18, 18, 9, 1.0, 0.1, 0.1, 0.0).eval()
    assert quantizer.codebook_sizes == [512, 512]
    norms = quantizer(torch.randn(2, 18, 7)).z_q.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_entropies_of_one_bit_a_map_are_exact_for_independent_bits() -> None:
    """Where one vector is the whole batch, its distribution is the mean, and both entropies agree."""
    quantizer, z = lfq(8, 1), torch.randn(1, 8)
    torch.testing.assert_close(quantizer.sample_entropy(z), quantizer.codebook_entropy(z))


# ---- through a softmax


def test_the_gumbel_draw_follows_the_logits_and_kl_is_zero_at_uniform() -> None:
    torch.manual_seed(0)
    quantizer = GumbelSoftmax(2, 3, 2, Normal(1.0), 1.0, 1.0, 1.0, 1.0)
    z = torch.randn(2)
    out = quantizer(z[None, :, None].expand(1, 2, 20_000))
    drawn = torch.bincount(out.codes[0].flatten(), minlength=3) / 20_000
    torch.testing.assert_close(drawn, quantizer.logits(z).softmax(0), atol=0.015, rtol=0)
    torch.nn.init.zeros_(quantizer.logits.weight)
    torch.nn.init.zeros_(quantizer.logits.bias)
    torch.testing.assert_close(quantizer(torch.randn(1, 2, 5)).losses["kl_to_uniform"].value, torch.tensor(0.0))


@pytest.mark.parametrize("kind", [GumbelSoftmax, SQVAE])
def test_temperature_falls_from_start_to_end(kind: type[GumbelSoftmax | SQVAE]) -> None:
    quantizer = kind(4, 8, 4, Normal(1.0), 1.0, 1.0, 0.1, 1.0)
    values = []
    for step in range(11):
        quantizer.begin_step(step, 10)
        values.append(float(quantizer.temperature))
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == pytest.approx((1.0, 0.1))


SOFT = {
    "gumbel": lambda speed: GumbelSoftmax(4, 8, 4, Normal(1.0), speed, 1.0, 1.0, 0.1),
    "sqvae": lambda speed: SQVAE(4, 8, 4, Normal(1.0), speed, 1.0, 1.0, 0.1),
    "ibq": lambda speed: IBQ(4, 8, 4, Normal(1.0), speed, 0.25, 0.1, 0.5),
}


@pytest.mark.parametrize("name", SOFT)
def test_speed_multiplies_the_learning_rate_of_adam_for_all_that_a_soft_quantizer_learns(name: str) -> None:
    results = []
    for speed, rate in ((8.0, 1e-3), (1.0, 8e-3)):
        torch.manual_seed(0)
        quantizer = SOFT[name](speed)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=rate, eps=1e-20)
        for step in range(3):
            torch.manual_seed(step)
            z = torch.randn(16, 4, 2)
            out = quantizer(z)
            loss = (out.z_q * torch.randn(16, 4, 2)).sum() + sum(one.value for one in out.losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append([speed * parameter for parameter in quantizer.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SOFT)
def test_speed_changes_nothing_before_the_first_step(name: str) -> None:
    outs = []
    for speed in (1.0, 8.0):
        torch.manual_seed(0)
        quantizer = SOFT[name](speed)
        quantizer.init_vectors, quantizer.init = 1, FirstBatch()
        quantizer.begin_run(torch.randn(2, 4, 8))
        torch.manual_seed(1)
        outs.append(quantizer(torch.randn(2, 4, 5)))
    torch.testing.assert_close(outs[0].z_q, outs[1].z_q)
    for one in outs[0].losses:
        torch.testing.assert_close(outs[0].losses[one].value, outs[1].losses[one].value)


def test_the_gradient_of_ibq_is_that_of_its_formula() -> None:
    """out = (onehot + p - sg p) E, by autograd on the whole matrix."""
    torch.manual_seed(0)
    quantizer, z, upstream = IBQ(4, 16, 4, Normal(1.0), 1.0, 0.25, 0.0, 0.01), torch.randn(6, 4), torch.randn(6, 4)
    z.requires_grad_()
    logits = z @ quantizer.codebook.t()
    p = logits.softmax(1)
    onehot = torch.zeros_like(p).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    wanted = torch.autograd.grad(
        (((onehot + p - p.detach()) @ quantizer.codebook) * upstream).sum(), [z, quantizer.codebook]
    )
    ours = torch.autograd.grad((quantizer(z[:, :, None]).z_q[:, :, 0] * upstream).sum(), [z, quantizer.codebook])
    torch.testing.assert_close(ours, wanted)


def test_ibq_gives_every_code_a_gradient_and_returns_a_code() -> None:
    torch.manual_seed(0)
    quantizer = IBQ(4, 16, 4, Normal(1.0), 1.0, 0.25, 0.0, 0.01)
    out = quantizer(torch.randn(1, 4, 3))
    torch.testing.assert_close(out.z_q[0].t(), quantizer.codebook[out.codes[0][0]])
    out.z_q.square().sum().backward()
    assert quantizer.codebook.grad is not None
    assert torch.all(quantizer.codebook.grad.abs().sum(1) > 0)


def test_sqvae_losses_equal_their_formula() -> None:
    torch.manual_seed(0)
    quantizer, z = SQVAE(4, 8, 4, Normal(1.0), 1.0, 1.0, 0.1, 1.0), torch.randn(6, 4)
    torch.nn.init.constant_(quantizer.log_variance, math.log(0.3))
    squared = torch.cdist(z, quantizer.codebook).square()
    p = (-squared / 0.6).softmax(1)
    losses = quantizer(z[:, :, None]).losses
    torch.testing.assert_close(losses["precision"].value, (p * squared).sum(1).mean() / 0.6)
    torch.testing.assert_close(losses["negative_entropy"].value, -torch.special.entr(p).sum(1).mean())


def test_space_filling_points_lie_between_consecutive_codes_and_train_both_ends() -> None:
    torch.manual_seed(0)
    book = GradientCodebook(3, 2, 1.0)
    quantizer = vector_quantizer(book, kind=SFDiVeQ, estimator=DiVeQ(0.0), regularizers={})
    book.start(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    z = torch.tensor([[0.5, -0.2], [1.2, 0.5]])
    z_q = quantizer(z[:, :, None]).z_q[:, :, 0]
    points = z_q.detach()
    assert 0 <= points[0, 0] <= 1
    assert abs(float(points[0, 1])) < 1e-5
    assert abs(float(points[1, 0]) - 1) < 1e-5
    z_q.sum().backward()
    assert book.weight.grad is not None
    assert torch.all(book.weight.grad.abs().sum(1) > 0)


@pytest.mark.parametrize(
    ("parts", "way_out"),
    [
        ({"codebook": EMACodebook(8, 4, 0.9, 1e-5)}, "estimator=diveq"),
        ({"lookup": CosineVote(3, None, False, 0.0), "estimator": DiVeQ(0.0)}, "lookup=euclidean"),
    ],
)
def test_space_filling_refuses_parts_that_do_not_train_it(parts: dict[str, object], way_out: str) -> None:
    chosen = {"codebook": GradientCodebook(8, 4, 1.0), "regularizers": {}, "estimator": StraightThrough(), **parts}
    with pytest.raises(ValueError, match=way_out):
        vector_quantizer(**chosen, kind=SFDiVeQ)  # type: ignore[arg-type]


def test_random_projection_is_frozen_and_gives_the_encoder_no_gradient() -> None:
    quantizer = RandomProjection(8, 16, 4)
    assert {name for name, _ in quantizer.named_parameters()} == {"project_out.weight", "project_out.bias"}
    z = torch.randn(2, 8, 5, requires_grad=True)
    quantizer(z).z_q.sum().backward()
    assert z.grad is None
    assert quantizer.project_out.weight.grad is not None
    torch.testing.assert_close(quantizer(3 * z + 1).codes[0], quantizer(z).codes[0])  # layer norm


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LFQ(8, 8, 3, 1.0, 0.1, 0.1, 0.0), "bits_per_map=3 does not divide bits=8"),
        (lambda: LFQ(8, 19, 19, 1.0, 0.1, 0.1, 0.0), "bits_per_map must be at most 18, got 19"),
        (lambda: SymmetricFSQ(8, [4, 1], 0.0), "at least 2"),
        (lambda: GumbelSoftmax(8, 16, 8, Normal(1.0), 1.0, 1.0, 0.0, 0.1), "end must be above 0, got 0.0"),
        (lambda: LatentQuantizer(8, [], 1.0, 1.0), "levels must not be empty"),
    ],
)
def test_values_out_of_range_are_refused(build: type[Quantizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
