"""Laws of estimators and of the losses on codes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from plain_parts import vector_quantizer
from torch import Tensor

from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.quantizers import chunked
from vqvae.quantizers.chunked import centered_distances
from vqvae.quantizers.codebook import GradientCodebook
from vqvae.quantizers.estimator import (
    NSVQ,
    DiVeQ,
    Estimator,
    Reflection,
    Rotation,
    RotationLifted,
    RotationUnscaled,
    Synchronised,
)
from vqvae.quantizers.lookup import L1
from vqvae.quantizers.regularizers import (
    AllCodes,
    CodebookDistance,
    CodebookEntropy,
    Contrastive,
    Coulomb,
    NearestCoulomb,
    Orthogonal,
    Regularizer,
    SampleEntropy,
)


def jacobian(estimator: Estimator, z: Tensor, q: Tensor) -> Tensor:
    """d out / d z of one vector (d, d)."""
    return torch.autograd.functional.jacobian(lambda x: estimator(x[None], q[None])[0], z)  # type: ignore[return-value]


def test_the_rotation_trick_is_a_scaled_rotation_that_takes_z_to_q() -> None:
    torch.manual_seed(0)
    z, q = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    scaled = jacobian(Rotation(), z, q)
    rotation = scaled * z.norm() / q.norm()
    torch.testing.assert_close(rotation.t() @ rotation, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(scaled @ z, q)


def turned(z: Tensor, q: Tensor) -> Tensor:
    """The rotation in the plane of z and q that takes the direction of z to that of q, by the angle between them (d, d)."""
    u, v = z / z.norm(), q / q.norm()
    across = v - (u @ v) * u
    across = across / across.norm()
    cosine, sine = u @ v, v @ across
    plane = torch.stack([u, across], dim=1)  # (d, 2)
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    return torch.eye(len(z), dtype=z.dtype) - plane @ plane.t() + plane @ turn @ plane.t()


def test_the_unscaled_rotation_turns_the_gradient_and_keeps_its_length() -> None:
    torch.manual_seed(0)
    z, q = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(jacobian(RotationUnscaled(), z, q), turned(z, q))


def test_the_lifted_rotation_is_that_of_vectors_with_one_coordinate_more() -> None:
    torch.manual_seed(0)
    z, q = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    high_z, high_q = torch.cat([z, z.norm()[None]]), torch.cat([q, z.norm()[None]])
    wanted = turned(high_z, high_q) * high_q.norm() / high_z.norm()
    torch.testing.assert_close(jacobian(RotationLifted(), z, q), wanted[:6, :6])


def test_the_reflection_mirrors_z_onto_q() -> None:
    torch.manual_seed(0)
    z, q = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    scaled = jacobian(Reflection(), z, q)
    mirror = scaled * z.norm() / q.norm()
    torch.testing.assert_close(mirror @ mirror, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(mirror), torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(scaled @ z, q)


def test_the_rotation_tricks_gradient_is_that_of_vector_quantize_pytorch() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    torch.manual_seed(0)
    z, q, upstream = torch.randn(3, 32, 8)
    grads = []
    for function in (Rotation(), peer.rotate_to):
        leaf = z.clone().requires_grad_()
        (function(leaf, q) * upstream).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "estimator", [Rotation(), RotationUnscaled(), Reflection()], ids=lambda one: type(one).__name__
)
def test_where_no_rotation_exists_value_and_gradient_are_straight_through(estimator: Estimator) -> None:
    z = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0], [1.0, 2.0]], requires_grad=True)
    q = torch.tensor([[-1.0, -2.0], [1.0, 0.0], [0.0, 0.0], [1.0, 2.0]])  # opposite, zero z, zero q, equal
    out = estimator(z, q)
    assert torch.equal(out, q)
    upstream = torch.tensor([[1.0, 3.0]]).expand(4, 2)
    (gradient,) = torch.autograd.grad((out * upstream).sum(), z)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient[1:], upstream[1:])


@pytest.mark.parametrize("estimator", [DiVeQ(0.3), NSVQ()], ids=["diveq", "nsvq"])
def test_noise_substitution_keeps_the_length_of_the_error_and_trains_codes(estimator: Estimator) -> None:
    torch.manual_seed(0)
    z, q = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    out = estimator(z, q)
    torch.testing.assert_close((out - z).norm(dim=1), (q - z).norm(dim=1), rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(out.square().sum(), [z, q])
    assert all(torch.isfinite(g).all() and (g != 0).any() for g in grads)


def test_diveq_without_noise_is_the_code_itself() -> None:
    z, q = torch.randn(2, 50, 4)
    torch.testing.assert_close(DiVeQ(0.0)(z, q), q)


def test_synchronized_update_gives_nu_of_the_gradient_to_the_codes() -> None:
    z, q = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    upstream = torch.randn(5, 3)
    to_z, to_q = torch.autograd.grad((Synchronised(0.25)(z, q) * upstream).sum(), [z, q])
    torch.testing.assert_close(to_z, upstream)
    torch.testing.assert_close(to_q, 0.25 * upstream)


# ---- losses

Z = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
CODES = torch.tensor([[3.0, 3.0], [1.0, 2.0], [5.0, -1.0], [0.0, 0.0]])  # L1 spacing 3, 6, 6, 7, 3, 6


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CodebookDistance(1.0, 1), (3 + 7) / 2),
        (CodebookDistance(1.0, 2), (5**0.5 + 5) / 2),
        (CodebookDistance(1.0, float("inf")), (2 + 4) / 2),
        (AllCodes(1.0, 1), ((6 + 3 + 6 + 0) + (1 + 4 + 7 + 7)) / 2),
        (Coulomb(1.0, 1, 100.0), -2 * (3 + 6 + 6 + 7 + 3 + 6) / 4),
        (Coulomb(1.0, 1, 5.0), -2 * (3 + 5 + 5 + 5 + 3 + 5) / 4),
        (NearestCoulomb(1.0, 1, 100.0), -(3 + 3 + 6 + 3)),
        (NearestCoulomb(1.0, 1, 5.0), -(3 + 3 + 5 + 3)),
    ],
)
def test_losses_on_distances_equal_a_calculation_by_hand(loss: Regularizer, expected: float) -> None:
    q = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(loss(Z, q, CODES), torch.tensor(float(expected)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "norm"), [("l1", 1), ("euclidean", 2), ("linf", math.inf)])
def test_the_losses_of_the_preset_seeds_follow_the_norm_of_its_lookup(name: str, norm: float) -> None:
    node = resolve(compose("train", ["quantizer=seeds", f"quantizer/lookup={name}"])).quantizer
    node.update(dim=4)
    node.codebook.update(size=16, dim=4)
    quantizer = build(node, "quantizer")
    z = torch.randn(3, 4, 10)
    losses = {name: float(loss.value.detach()) for name, loss in quantizer(z).losses.items()}
    codes, vectors = quantizer.codebook.codes().double(), z.double().movedim(1, 2).reshape(-1, 1, 4)
    distances = (vectors - codes).norm(p=norm, dim=2)  # (N, K)
    between = (codes[:, None] - codes).norm(p=norm, dim=2) + 1e9 * torch.eye(16)
    assert losses["alpha"] == pytest.approx(float(distances.amin(1).mean()))
    assert losses["beta"] == pytest.approx(float(distances.sum(1).mean()))
    assert losses["coulomb"] == pytest.approx(-float(between.amin(1).sum()))


def test_the_norm_of_a_loss_can_be_another_than_that_of_the_lookup() -> None:
    losses = {"own": CodebookDistance(1.0, 2), "lookup": CodebookDistance(1.0, None)}
    vector_quantizer(GradientCodebook(4, 2, 1.0), lookup=L1(), regularizers=losses)
    assert [loss.order for loss in losses.values()] == [2, 1]


@pytest.mark.parametrize("loss", [AllCodes(1.0, 2), Coulomb(1.0, 2, 9.0), NearestCoulomb(1.0, 2, 9.0)])
def test_losses_on_distances_have_finite_gradients_where_vectors_coincide(loss: Regularizer) -> None:
    codes = torch.zeros(4, 3, requires_grad=True)
    loss(torch.zeros(5, 3), codes[:1].expand(5, 3), codes).backward()
    assert codes.grad is not None
    assert torch.isfinite(codes.grad).all()


def test_coulomb_pushes_codes_apart() -> None:
    for loss in (Coulomb(1.0, 2, 100.0), NearestCoulomb(1.0, 2, 100.0)):
        codes = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
        loss(Z, codes, codes).backward()
        assert codes.grad is not None
        moved = codes.detach() - 0.1 * codes.grad
        assert (moved[0] - moved[1]).norm() > 1


def test_the_orthogonal_loss_is_zero_for_orthonormal_codes_and_follows_its_formula() -> None:
    torch.testing.assert_close(Orthogonal(1.0, 128)(Z, Z, 3 * torch.eye(4)), torch.tensor(0.0))
    codes = torch.randn(5, 3)
    cosines = F.cosine_similarity(codes[:, None], codes, dim=2)
    expected = cosines.square().sum() / 25 - 1 / 5
    torch.testing.assert_close(Orthogonal(1.0, 128)(Z, Z, codes), expected)


def test_entropies_equal_brute_force_over_all_pairs() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(40, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    p = (-torch.cdist(z, codes).square() / 0.5).softmax(1)
    torch.testing.assert_close(SampleEntropy(1.0, 0.5)(z, z, codes), torch.special.entr(p).sum(1).mean())
    torch.testing.assert_close(CodebookEntropy(1.0, 0.5)(z, z, codes), -torch.special.entr(p.mean(0)).sum())


def test_the_contrastive_loss_falls_when_codes_move_to_vectors() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 8)
    codes = torch.randn(8, 8, requires_grad=True)
    loss = Contrastive(1.0, 1.0)
    before = loss(z, z, codes)
    before.backward()
    assert codes.grad is not None
    assert loss(z, z, codes.detach() - 0.01 * codes.grad) < before


@pytest.mark.parametrize(
    "loss",
    [AllCodes(1.0, 2), AllCodes(1.0, 1), SampleEntropy(1.0, 1.0), CodebookEntropy(1.0, 1.0), Coulomb(1.0, 2, 9.0)],
)
def test_losses_over_all_pairs_do_not_depend_on_the_chunks(loss: Regularizer, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    results = []
    z, codes = torch.randn(50, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    for elements in (2**21, 100):
        monkeypatch.setattr(chunked, "CPU_CHUNK_ELEMENTS", elements)
        value = loss(z, z, codes)
        results.append([value, *torch.autograd.grad(value, [codes])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_squared_distances_are_exact_far_from_the_origin() -> None:
    z, codes = torch.randn(20, 4) + 1000, torch.randn(5, 4) + 1000
    exact = torch.cdist(z.double(), codes.double()).square()
    torch.testing.assert_close(centered_distances(z, codes).double(), exact, rtol=1e-4, atol=1e-3)
