"""Laws of reconstruction losses, likelihoods before all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.images import normalize
from vqvae.losses.heads import Head
from vqvae.losses.likelihood import LEVELS, Categorical, Likelihood, Logistic, clipped_mean, to_levels
from vqvae.losses.objective import Objective

SHAPES = [(8,), (4, 6), (2, 4, 4)]
X = normalize(torch.arange(LEVELS))  # every level once
VARIANCE = math.pi**2 / 3  # of a logistic of scale 1: outputs are log scales as they are
LIKELIHOODS = [Categorical(1.0, VARIANCE), Logistic(1.0, 3, VARIANCE)]
each_likelihood = pytest.mark.parametrize("loss", LIKELIHOODS, ids=lambda loss: loss.name)


def made(name: str) -> Objective:
    loss = resolve(compose("train", [f"loss={name}"])).loss
    terms = {term: build(node, term, variance=0.3) for term, node in loss.terms.items()}
    return Objective(build(loss.head, "loss.head", variance=0.3), terms)


def total(loss: Objective, output: Tensor, x: Tensor) -> Tensor:
    return torch.stack([*loss(output, x).values()]).sum()


def images(*shape: int) -> Tensor:
    return normalize(torch.randint(LEVELS, shape, generator=torch.Generator().manual_seed(1)))


def outputs(loss: Head, channels: int, *shape: int, spread: float = 2.0) -> Tensor:
    """Decoder outputs (1, ., *shape) at random."""
    size = (1, loss.decoder_channels(channels), *shape)
    return spread * torch.randn(size, generator=torch.Generator().manual_seed(2))


# ---- of every loss


@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", choices("loss"))
def test_a_loss_makes_images_of_the_decoder_output_that_it_asks_for(
    name: str, channels: int, shape: tuple[int, ...]
) -> None:
    loss = made(name)
    output = outputs(loss.head, channels, *shape, spread=20.0).requires_grad_()
    image = loss.head.to_image(output)
    assert image.shape == (1, channels, *shape)
    assert float(image.detach().abs().max()) <= 1
    value = total(loss, output, images(1, channels, *shape))
    value.backward()
    assert (value.shape, value.dtype) == ((), torch.float32)
    assert output.grad is not None
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("name", choices("loss"))
def test_a_loss_is_the_same_whatever_the_autocast_and_the_memory_format(name: str) -> None:
    loss, x = made(name), images(1, 3, 8, 8)
    output = outputs(loss.head, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            total(loss, output.contiguous(memory_format=torch.channels_last), x), total(loss, output, x)
        )


@pytest.mark.parametrize("name", choices("loss"))
def test_gradient_descent_on_the_output_of_a_loss_finds_the_image(name: str) -> None:
    loss, x = made(name), images(1, 3, 4, 4)
    output = outputs(loss.head, 3, 4, 4, spread=0.1).requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        total(loss, output, x).backward()
        optimizer.step()
    assert float((loss.head.to_image(output.detach()) - x).abs().max()) < 0.1


# ---- of every likelihood


@each_likelihood
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_the_256_values_of_a_dimension_have_probabilities_that_sum_to_one(loss: Likelihood, spread: float) -> None:
    output = outputs(loss, 1, 20, spread=spread)
    nats = torch.stack([loss.nats(output[:, :, [i]].expand(LEVELS, -1, 1), X[:, None, None]) for i in range(20)])
    torch.testing.assert_close(nats.neg().exp().sum(1), torch.ones(20))


@each_likelihood
def test_the_values_of_two_channels_have_joint_probabilities_that_sum_to_one(loss: Likelihood) -> None:
    """Exhaustively, so that the first channel's part in the second is right whatever the first is."""
    both = torch.cartesian_prod(X, X)[:, :, None]  # (65536, 2, 1)
    output = outputs(loss, 2, 1)
    assert float(loss.nats(output.expand(len(both), -1, -1), both).neg().exp().sum()) == pytest.approx(1, abs=1e-4)


@each_likelihood
def test_the_last_of_three_channels_sums_to_what_the_first_two_have(loss: Likelihood) -> None:
    """p(a, b) of a head of three channels is that of the head of two with the same numbers."""
    output = outputs(loss, 3, 1)
    two = output[:, : 2 * LEVELS]
    if isinstance(loss, Logistic):
        fields = output.view(1, 3, 10, 1)  # logit, three means, three log scales, ba, ca, cb
        two = fields[:, :, [0, 1, 2, 4, 5, 7]].flatten(1, 2)
    x = images(1, 3, 1).repeat(LEVELS, 1, 1)
    x[:, 2, 0] = X
    total = loss.nats(output.expand(LEVELS, -1, -1), x).neg().logsumexp(0)
    assert float(total) == pytest.approx(-float(loss.nats(two, x[:1, :2])), rel=1e-5)


@each_likelihood
def test_nats_are_those_of_each_image_and_the_loss_is_their_mean_over_dimensions(loss: Likelihood) -> None:
    x, output = images(5, 3, 4, 4), torch.randn(5, loss.decoder_channels(3), 4, 4)
    nats = loss.nats(output, x)
    single = torch.cat([loss.nats(output[[i]], x[[i]]) for i in range(5)])
    torch.testing.assert_close(nats, single)
    assert float(loss.losses(output, x)[loss.name]) == pytest.approx(float(nats.sum()) / x.numel())
    assert loss.figures({loss.name: math.log(2)}) == {"model/bits_per_dim_reconstruction": 1.0}


@each_likelihood
def test_values_drawn_from_a_head_cost_its_entropy(loss: Likelihood) -> None:
    output, count = outputs(loss, 1, 1, spread=1.0), 200000
    nats = loss.nats(output.expand(LEVELS, -1, -1), X[:, None, None]).double()
    p = nats.neg().exp()
    entropy = float((p * nats).sum())
    drawn = X[torch.multinomial(p, count, replacement=True, generator=torch.Generator().manual_seed(0))]
    costs = loss.nats(output.expand(count, -1, -1), drawn[:, None, None])
    assert float(costs.mean()) == pytest.approx(entropy, abs=4 * float(costs.std()) / count**0.5)


@each_likelihood
def test_the_image_is_the_mean_of_the_distribution(loss: Likelihood) -> None:
    output = outputs(loss, 1, 50)
    nats = torch.stack([loss.nats(output[:, :, [i]].expand(LEVELS, -1, 1), X[:, None, None]) for i in range(50)])
    means = nats.neg().exp() @ X
    half_a_level = 0.5 / 127.5 + 1e-5
    assert float((loss.to_image(output)[0, 0] - means).abs().max()) < half_a_level


def peaked(loss: Likelihood, x: Tensor, height: float) -> Tensor:
    """An output whose distribution lies at x (1, C, *S)."""
    if isinstance(loss, Categorical):
        hot = torch.nn.functional.one_hot(to_levels(x), LEVELS).float().movedim(-1, 2)  # (1, C, 256, *S)
        return height * hot.flatten(1, 2)
    channels = x.shape[1]
    output = torch.zeros(1, 3, (channels + 1) * (channels + 2) // 2, *x.shape[2:])
    output[:, 0, 1 : 1 + channels], output[:, :, 1 + channels : 1 + 2 * channels] = x, -height
    return output.flatten(1, 2)


@each_likelihood
def test_a_narrow_distribution_at_x_has_x_as_its_image_and_costs_almost_nothing(loss: Likelihood) -> None:
    x = torch.stack([X, X.flip(0), X.roll(40)])[None]
    output = peaked(loss, x, 1e4)
    torch.testing.assert_close(loss.to_image(output), x, atol=1e-3, rtol=0)
    assert float(loss.losses(output, x)[loss.name]) < 0.03


@each_likelihood
@pytest.mark.parametrize("height", [1e4, -1e4])
def test_extreme_outputs_have_finite_losses_and_gradients_at_every_level(loss: Likelihood, height: float) -> None:
    right = X.expand(1, 3, -1)
    for x in (right, right.flip(2)):  # the right levels, and the farthest ones
        output = peaked(loss, right, height).requires_grad_()
        (value,) = loss.losses(output, x).values()
        value.backward()
        assert value.isfinite()
        assert output.grad is not None
        assert output.grad.isfinite().all()


# ---- of one


def test_uniform_logits_are_8_bits_per_dim() -> None:
    loss, x = Categorical(1.0, 1.0), images(2, 3, 4, 4)
    value = float(loss.losses(torch.full((2, loss.decoder_channels(3), 4, 4), 7.0), x)["categorical"])
    assert loss.figures({"categorical": value})["model/bits_per_dim_reconstruction"] == pytest.approx(8, rel=1e-6)


def test_categorical_logits_lie_level_by_level_of_each_channel() -> None:
    loss, x = Categorical(1.0, 1.0), images(2, 3, 4, 5)
    output = torch.randn(2, 3 * LEVELS, 4, 5)
    log_p = output.view(2, 3, LEVELS, 4, 5).log_softmax(2).gather(2, to_levels(x)[:, :, None])
    torch.testing.assert_close(loss.nats(output, x), -log_p.flatten(1).sum(1))


def integral(low: float, high: float, mean: float, scale: float) -> float:
    """Mass of a logistic between two values, by Simpson's rule on its density in float64, without the far tails."""
    low, high = max(low, mean - 45 * scale), min(high, mean + 45 * scale)
    if low >= high:
        return 0.0
    t = (np.linspace(low, high, 20001) - mean) / scale
    density = 1 / (4 * scale * np.cosh(t / 2) ** 2)
    weights = np.array([1, *[4, 2] * 9999, 4, 1]) / 3
    return float((density * weights).sum() * (high - low) / 20000)


def test_a_logistic_head_is_the_integral_of_its_density_for_every_channel() -> None:
    """Two components, three channels, by the formula of the docstring, on pixels at both edges and between."""
    loss = Logistic(1.0, 2, VARIANCE)
    x = normalize(torch.tensor([[0, 255, 128], [255, 0, 3], [100, 90, 255], [7, 200, 31]]))
    output = outputs(loss, 3, 4, spread=0.7)
    fields = output.view(2, 10, 4).double().numpy()
    fields[1, 1:4] += fields[0, 1:4]  # means after the first are relative to it
    for pixel in range(4):
        values = x[pixel].double().numpy()
        p = 0.0
        weights = np.exp(fields[:, 0, pixel]) / np.exp(fields[:, 0, pixel]).sum()
        for k in range(2):
            means, scales, (ba, ca, cb) = np.split(fields[k, 1:, pixel], [3, 6])
            at = [means[0], means[1] + np.tanh(ba) * values[0]]
            at.append(means[2] + np.tanh(ca) * values[0] + np.tanh(cb) * values[1])
            mass = 1.0
            for c in range(3):
                low = -np.inf if values[c] == -1 else values[c] - 1 / 255
                high = np.inf if values[c] == 1 else values[c] + 1 / 255
                mass *= integral(low, high, at[c], math.exp(scales[c]))
            p += weights[k] * mass
        own = loss.nats(output[:, :, [pixel]], x[pixel, :, None][None])
        assert float(own) == pytest.approx(-math.log(p), rel=1e-5)


def test_values_drawn_from_a_logistic_cost_its_differential_entropy_whatever_its_channels_depend_on() -> None:
    """The entropy is ln s + 2 nats, less the log of the step 2 / 255; samples by the inverse of F, channel by channel."""
    loss, count, scales = Logistic(1.0, 1, VARIANCE), 200000, torch.tensor([0.02, 0.03, 0.05])
    coefficients = torch.tensor([0.4, -0.3, 0.2])
    output = torch.cat([torch.zeros(1), torch.zeros(3), scales.log(), coefficients.atanh()])[None, :, None]
    noise = torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).logit() * scales
    x = torch.zeros(count, 3, dtype=torch.float64)
    for c, shifts in enumerate([(), (0.4,), (-0.3, 0.2)]):
        x[:, c] = noise[:, c] + sum(a * x[:, j] for j, a in enumerate(shifts))
        x[:, c] = normalize(((x[:, c] + 1) * 127.5).round().clamp(0, 255))
    costs = loss.nats(output.expand(count, -1, -1), x.float()[:, :, None])
    entropy = float(scales.log().sum()) + 3 * (2 - math.log(2 / 255))
    assert float(costs.mean()) == pytest.approx(entropy, abs=4 * float(costs.std()) / count**0.5)


def test_a_logistic_head_whose_output_is_zero_is_as_wide_as_the_data() -> None:
    loss = Logistic(1.0, 4, 0.01)
    nats = loss.nats(torch.zeros(LEVELS, loss.decoder_channels(1), 1), X[:, None, None])
    assert float((nats.neg().exp() * X.square()).sum()) == pytest.approx(0.01, rel=0.01)


def test_the_closed_form_of_a_clipped_mean_is_within_half_a_level_of_the_sum() -> None:
    means, log_scales = torch.meshgrid(torch.linspace(-2, 2, 101), torch.linspace(-7, 2, 19), indexing="ij")
    edges = (torch.arange(255) + 0.5) / 127.5 - 1
    exact = torch.sigmoid((means[..., None] - edges) / log_scales.exp()[..., None]).double().sum(-1) / 127.5 - 1
    error = (clipped_mean(means, log_scales) - exact).abs() * 127.5  # in levels
    assert float(error.max()) < 0.51
    assert float(error[:, log_scales[0] > math.log(1 / 127.5)].max()) < 0.01


def test_levels_come_back_from_normalized_images() -> None:
    assert to_levels(X).tolist() == list(range(LEVELS))


def test_a_mixture_of_zero_components_is_refused() -> None:
    with pytest.raises(ValueError, match="mixtures must be at least 1, got 0"):
        Logistic(1.0, 0, 1.0)
