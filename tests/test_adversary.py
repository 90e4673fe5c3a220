"""Laws of discriminators and of what they and the decoder are trained for: every value is derived a second time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.errors import UserError
from vqvae.losses.adversarial import R1, AdversarialLoss, DiscriminatorTerm, Hinge, LeCAM, NonSaturating
from vqvae.losses.augmentation import WAYS, augmented, color, cutout, translation
from vqvae.networks.discriminator import Discriminator, Patch, SpectralNorm
from vqvae.stages.adversary import DELTA, MEMORY, Adversary

YES, NO = torch.tensor(True), torch.tensor(False)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Linear(Discriminator):
    """One logit an item: the product of its values with given ones."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.slope).flatten(1).sum(1).view(-1, 1, 1)


def adversary(
    network: Discriminator,
    loss: AdversarialLoss | None = None,
    terms: dict[str, DiscriminatorTerm] | None = None,
    weight: float = 1.0,
    adaptive_limit: float | None = None,
) -> Adversary:
    made = Adversary(network, loss or Hinge(), terms or {}, [], weight, adaptive_limit, start_step=0)
    made.begin_step(0)
    return made


# ---- losses


def test_the_hinge_loss_is_that_of_its_paper() -> None:
    real, fake = 2 * values(5, 1, 3), 2 * values(5, 1, 3, seed=1)
    a, b = real.double().numpy(), fake.double().numpy()
    expected = np.maximum(0, 1 - a).mean() + np.maximum(0, 1 + b).mean()
    assert float(Hinge().discriminator(real, fake)) == pytest.approx(expected, rel=1e-6)
    assert float(Hinge().decoder(fake)) == pytest.approx(-b.mean(), rel=1e-6)


def test_the_non_saturating_loss_is_the_cross_entropy_of_probabilities() -> None:
    real, fake = 2 * values(5, 1, 3), 2 * values(5, 1, 3, seed=1)
    p, q = (1 / (1 + np.exp(-logits.double().numpy())) for logits in (real, fake))
    expected = -np.log(p).mean() - np.log(1 - q).mean()
    assert float(NonSaturating().discriminator(real, fake)) == pytest.approx(expected, rel=1e-6)
    assert float(NonSaturating().decoder(fake)) == pytest.approx(-np.log(q).mean(), rel=1e-6)


def test_the_non_saturating_loss_has_a_gradient_however_sure_the_discriminator_is() -> None:
    fake = torch.tensor([-1e4], requires_grad=True)
    NonSaturating().decoder(fake).backward()
    assert fake.grad is not None
    assert float(fake.grad) == pytest.approx(-1)


def test_r1_is_half_the_squared_slope_and_the_discriminator_feels_it() -> None:
    """Of a linear discriminator, whose slope is known: half its squared length, with itself as the gradient."""
    slope = values(2, 7)
    network = Linear(slope.clone())
    value = R1(weight=1.0).value(network, values(3, 2, 7, seed=1), slope, slope, (slope, slope))
    value.backward()
    assert float(value.detach()) == pytest.approx(float(slope.double().square().sum() / 2), rel=1e-6)
    assert network.slope.grad is not None
    torch.testing.assert_close(network.slope.grad, slope)


@pytest.mark.parametrize("norm", ["spectral", "group"])
def test_r1_is_what_finite_differences_give(norm: str) -> None:
    torch.manual_seed(0)
    network, x = Patch(1, 2, [4, 4], norm).double(), values(2, 2, 8, seed=1).double()  # type: ignore[arg-type]
    none = (torch.zeros(()), torch.zeros(()))
    value = R1(weight=1.0).value(network, x, torch.zeros(1), torch.zeros(1), none)
    expected = 0.0
    for item in range(2):
        for index in np.ndindex(2, 8):
            step = torch.zeros_like(x)
            step[(item, *index)] = 1e-5
            slope = (network(x + step)[item].mean() - network(x - step)[item].mean()) / 2e-5
            expected += float(slope.detach()) ** 2 / 2 / 2  # half, and the mean of two items
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_lecam_is_the_distance_to_the_means_of_the_other_side() -> None:
    real, fake = values(5, 1, 3), values(5, 1, 3, seed=1)
    means = (torch.tensor(0.7), torch.tensor(-0.3))
    a, b = real.double().numpy(), fake.double().numpy()
    expected = ((a + 0.3) ** 2).mean() + ((b - 0.7) ** 2).mean()
    value = LeCAM(weight=1.0).value(lambda x: x, real, real, fake, means)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_a_term_that_is_due_every_third_step_counts_three_times_there() -> None:
    slope = values(2, 7)
    one = adversary(Linear(slope), terms={"r1": R1(weight=10.0, every=3)})
    x, x_hat = values(4, 2, 7, seed=1), values(4, 2, 7, seed=2)
    losses, kinds = [], []
    for step in range(4):
        kinds.append(one.begin_step(step))
        losses.append(float(one.losses(one, x, x_hat)[0]))
    assert losses[1] == losses[2] != losses[0] == losses[3]
    assert losses[0] - losses[1] == pytest.approx(3 * 10 * float(slope.square().sum()) / 2, rel=1e-5)
    assert kinds[1] == kinds[2] != kinds[0] == kinds[3]


# ---- the adaptive weight


def decoder_losses(one: Adversary, last: nn.Parameter, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error and the decoder's loss of a decoder whose last layer is a matrix: x_hat = last h."""
    x_hat = torch.einsum("cd,bds->bcs", last, h)
    return (x_hat - x).square().mean(), one.decoder_loss(x_hat)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer() -> None:
    last, h, x, slope = (
        nn.Parameter(values(2, 3)),
        values(4, 3, 7, seed=1),
        values(4, 2, 7, seed=2),
        values(2, 7, seed=3),
    )
    one = adversary(Linear(slope), weight=0.5, adaptive_limit=1e4)
    error, loss = decoder_losses(one, last, h, x)
    weight = one.decoder_weight(error, loss, last)
    w, hidden, target, d = (t.detach().double().numpy() for t in (last, h, x, slope))
    x_hat = np.einsum("cd,bds->bcs", w, hidden)
    of_error = 2 * np.einsum("bcs,bds->cd", x_hat - target, hidden) / target.size
    of_loss = -np.einsum("cs,bds->cd", d, hidden) / len(target)
    ratio = np.linalg.norm(of_error) / (np.linalg.norm(of_loss) + DELTA)
    assert float(weight) == pytest.approx(0.5 * ratio, rel=1e-5)
    assert not weight.requires_grad
    (error + weight * loss).backward()  # the graph is still whole
    assert last.grad is not None
    np.testing.assert_allclose(last.grad.double().numpy(), of_error + float(weight) * of_loss, rtol=1e-4)


def test_an_exploding_adaptive_weight_is_bounded_and_a_dead_discriminator_s_is_finite() -> None:
    last, h, x = nn.Parameter(values(2, 3)), values(4, 3, 7, seed=1), values(4, 2, 7, seed=2)
    for slope in (1e-5, 0.0):
        one = adversary(Linear(slope * values(2, 7, seed=3)), weight=0.5, adaptive_limit=100.0)
        assert float(one.decoder_weight(*decoder_losses(one, last, h, x), last)) == 50


def test_the_weight_of_a_step_is_that_of_its_first_micro_batch() -> None:
    last, slope = nn.Parameter(values(2, 3)), values(2, 7, seed=3)
    one = adversary(Linear(slope), adaptive_limit=1e4)
    batches = [(values(4, 3, 7, seed=seed), values(4, 2, 7, seed=seed + 1)) for seed in (1, 10)]
    first, second = (one.decoder_weight(*decoder_losses(one, last, *batch), last) for batch in batches)
    assert torch.equal(first, second)
    one.begin_step(1)
    assert not torch.equal(one.decoder_weight(*decoder_losses(one, last, *batches[1]), last), first)


def test_the_ratio_is_that_of_the_gradients_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    last, slope = nn.Parameter(values(2, 3)), values(2, 7, seed=3)
    h, x = values(8, 3, 7, seed=1), values(8, 2, 7, seed=2)
    one = adversary(Linear(slope), adaptive_limit=1e4)
    whole = one.decoder_weight(*decoder_losses(one, last, h, x), last)
    gradients = [
        [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in decoder_losses(one, last, h[rows], x[rows])]
        for rows in (slice(0, 4), slice(4, 8))
    ]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    scale = 2.0**12
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda _: [(a + b) * scale for a, b in zip(*gradients)])
    one.begin_step(1)
    torch.testing.assert_close(one.decoder_weight(*decoder_losses(one, last, h[:4], x[:4]), last), whole)


SMALL_MODELS = {
    "conv": ["model.encoders.0.widths=[8,8]", "model.encoders.0.residual_width=4"],
    "conv_2level": [],
    "patch": [],
    "resnet": ["model.encoders.0.widths=[8,8,8]"],
    "tokens": [],
    "vit": [],
}


@pytest.mark.parametrize("name", choices("model"))
def test_the_last_weight_of_a_decoder_is_that_of_the_layer_that_puts_out_the_data(name: str) -> None:
    """The output is affine in it, and in no weight before."""
    model = (
        build(resolve(compose("train", [f"model={name}", *SMALL_MODELS.get(name, [])])).model, "model").double().eval()
    )
    codes = [torch.zeros(1, *shape, dtype=torch.int64) for shape in model.code_shapes((32, 32))]
    last = model.decoders[0].last_weight
    start, outputs = last.detach().clone(), []
    with torch.no_grad():
        for factor in (0.0, 1.0, 2.0):
            last.copy_(factor * start)
            outputs.append(model.decode(codes))
    torch.testing.assert_close(outputs[2] - outputs[1], outputs[1] - outputs[0])
    assert not torch.equal(outputs[1], outputs[0])


# ---- networks


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("norm", ["spectral", "group"])
def test_a_discriminator_judges_regions_of_items_of_1_to_3_dims_each_by_itself(ndim: int, norm: str) -> None:
    network, x = Patch(ndim, 3, [8, 8, 8], norm), values(4, 3, *[24, 13, 12][:ndim])  # type: ignore[arg-type]
    logits = network(x)
    assert logits.shape == (4, 1, *[4, 1, 1][:ndim])
    torch.testing.assert_close(torch.cat([network(x[:1]), network(x[1:])]), logits)


@pytest.mark.parametrize(
    ("widths", "side", "said"), [(3, 11, "at most 2 widths fit"), (4, 23, "at most 3"), (1, 2, "3 at least")]
)
def test_items_that_are_too_small_are_said_with_what_would_fit(widths: int, side: int, said: str) -> None:
    network = Patch(2, 3, [8] * widths)
    with pytest.raises(UserError, match=said):
        network.check((40, side))
    network.check((40, side + 1))
    assert network(torch.zeros(1, 3, 40, side + 1)).numel()
    if side > 2:
        Patch(2, 3, [8] * (widths - 1)).check((side, side))


def test_spectral_norm_makes_the_largest_singular_value_1_once_the_weight_rests() -> None:
    torch.manual_seed(0)
    network = Patch(2, 3, [8, 8])
    convs = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    for _ in range(300):
        network.after_step(YES)
    for layer in convs:
        assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, rel=1e-3)


def test_spectral_norm_moves_in_applied_steps_alone_and_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    weight = values(8, 3, 4, 4)
    norm = SpectralNorm(weight)
    before, plain = norm.left.clone(), norm(weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(weight), plain)
    norm.after_step(weight, NO)
    assert torch.equal(norm.left, before)
    norm.after_step(weight, YES)
    assert not torch.equal(norm.left, before)


# ---- augmentation


@pytest.mark.parametrize("shape", [(24,), (16, 24), (8, 9, 10)], ids=len)
@pytest.mark.parametrize("name", WAYS)
def test_an_augmentation_keeps_the_shape_and_gradients_reach_the_items(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = values(4, 3, *shape).requires_grad_()
    out = augmented(x, [name])  # type: ignore[list-item]
    out.sum().backward()
    assert out.shape == x.shape
    assert not torch.equal(out, x)
    assert x.grad is not None
    assert all(one.any() for one in x.grad)


def test_a_translation_moves_an_item_by_up_to_an_eighth_and_brings_zeros_in() -> None:
    torch.manual_seed(0)
    x, seen = values(64, 2, 16) + 5, set()
    for before, after in zip(x, translation(x)):
        moved = [
            by
            for by in range(-15, 16)
            if torch.equal(after, torch.roll(before, by, 1) * torch.tensor([0 <= i - by < 16 for i in range(16)]))
        ]
        assert len(moved) == 1
        seen.add(moved[0])
    assert seen == {-2, -1, 0, 1, 2}


def test_cutout_takes_a_box_of_half_of_each_side_out() -> None:
    torch.manual_seed(0)
    out = cutout(torch.ones(200, 1, 16, 16))
    rows, columns = ((out[:, 0] == 0).any(dim).sum(1) for dim in (2, 1))
    assert (out.flatten(1) == 0).sum(1).tolist() == (rows * columns).tolist()
    assert max(rows) == max(columns) == 8
    assert min(rows) == 4


def test_color_changes_brightness_saturation_and_contrast_and_nothing_else() -> None:
    """Each item stays an affine function of itself and of its own gray image."""
    torch.manual_seed(0)
    x = values(8, 3, 6, 6).double()
    for before, after in zip(x, color(x)):
        gray = before.mean(0, keepdim=True).expand_as(before)
        columns = torch.stack([before.flatten(), gray.flatten(), torch.ones(before.numel(), dtype=torch.float64)], 1)
        solved = torch.linalg.lstsq(columns, after.flatten()[:, None])
        torch.testing.assert_close(columns @ solved.solution, after.flatten()[:, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_augment_as_one_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, parts = values(6, 3, 16), []
    torch.manual_seed(0)
    whole = augmented(x, [name])  # type: ignore[list-item]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        parts.append(augmented(x[3 * rank : 3 * rank + 3], [name]))  # type: ignore[list-item]
    torch.testing.assert_close(torch.cat(parts), whole)


# ---- what is remembered, and warnings


def played(one: Adversary, steps: int, x: Tensor, x_hat: Tensor, applied: Tensor = YES) -> Adversary:
    for step in range(steps):
        one.begin_step(step)
        one.losses(one, x, x_hat)
        one.after_step(applied)
    return one


def test_averages_are_those_of_logits_and_accuracy_and_a_skipped_step_does_not_count() -> None:
    slope, x, x_hat = values(2, 7), values(8, 2, 7, seed=1), values(8, 2, 7, seed=2)
    one = played(adversary(Linear(slope)), 1, x, x_hat)
    real, fake = ((items * slope).flatten(1).sum(1).double().numpy() for items in (x, x_hat))
    accuracy = ((real > 0).mean() + (fake < 0).mean()) / 2
    seen = np.array([real.mean(), fake.mean(), accuracy, np.concatenate([real, fake]).__pow__(2).mean()])
    np.testing.assert_allclose(one.averages.numpy(), MEMORY * np.array([0, 0, 0.5, 1]) + (1 - MEMORY) * seen, rtol=1e-5)
    before = one.averages.clone()
    assert torch.equal(played(one, 1, x, x_hat * math.nan, NO).averages, before)


def test_a_discriminator_that_wins_for_long_is_warned_of_and_one_that_has_just_begun_is_not() -> None:
    slope = values(2, 7)
    x = slope.sign()[None].repeat(4, 1, 1)
    one = adversary(Linear(slope))
    assert played(one, 200, x, -x).warnings() == {}
    title, text = played(one, 300, x, -x).warnings().popitem()
    assert title == "the discriminator has won"
    assert "adversary.optimizer.lr" in text
    assert "lecam" in text


def test_a_dead_discriminator_is_warned_of_and_one_that_is_fooled_is_not() -> None:
    x, x_hat = values(4, 2, 7), values(4, 2, 7, seed=1)
    assert played(adversary(Linear(values(2, 7))), 1500, x, x).warnings() == {}
    title, text = played(adversary(Linear(torch.zeros(2, 7))), 1500, x, x_hat).warnings().popitem()
    assert title == "the discriminator is dead"
    assert "adversary.network.norm=group" in text
