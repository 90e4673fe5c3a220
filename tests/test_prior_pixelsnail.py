"""Laws of PixelSNAIL: which codes its convolutions and its attention see, and that its cache changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_priors import logits_of
from torch import Tensor

from vqvae.priors.pixelsnail import CausalAttention, CausalConv2d, PixelSNAIL
from vqvae.priors.sampling import Sampling

MAPS = {
    "one map": ([(4, 4)], [7]),
    "wide": ([(2, 5)], [7]),
    "tall": ([(5, 2)], [7]),
    "coarse and fine": ([(2, 3), (4, 6)], [5, 7]),
    "two equal maps": ([(2, 2)] * 2, [4, 4]),
    "one dim": ([(6,)], [5]),
    "one code": ([(1, 1)], [3]),
}


def prior_of(shapes: list[tuple[int, ...]], sizes: list[int], **changed: Any) -> PixelSNAIL:
    torch.manual_seed(0)
    settings = {"num_classes": 3, "width": 8, "blocks": 2, "layers": 2, "heads": 2, "dropout": 0.1, **changed}
    prior = PixelSNAIL(shapes, [[size] for size in sizes], **settings)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        torch.nn.init.normal_(parameter, std=0.3)
    return prior.double().eval()


def random_codes(shapes: list[tuple[int, ...]], sizes: list[int], batch: int) -> list[Tensor]:
    return [torch.randint(size, (batch, *shape)) for shape, size in zip(shapes, sizes)]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("own", [True, False])
def test_a_causal_convolution_sees_all_of_its_window_and_nothing_else(kernel: int, own: bool) -> None:
    half, (height, width) = kernel // 2, (5, 6)
    conv = CausalConv2d(1, 1, kernel, own)
    for r in range(height):
        for c in range(width):
            x = torch.randn(1, 1, height, width, requires_grad=True)
            conv(x)[0, 0, r, c].backward()
            for i in range(height):
                for j in range(width):
                    above = r - half <= i < r and abs(c - j) <= half
                    beside = i == r and c - half <= j < c + own
                    assert (x.grad[0, 0, i, j] != 0) == (above or beside), (r, c, i, j)  # type: ignore[index]


def test_a_position_reads_every_code_before_it_and_no_other() -> None:
    attention = CausalAttention(8, 2).double()
    condition = torch.randn(1, 8, 3, 4, dtype=torch.float64)
    for place in range(12):
        h, x = torch.randn(2, 1, 8, 3, 4, dtype=torch.float64).requires_grad_().unbind()
        h.retain_grad(), x.retain_grad()
        attention(h, x, condition)[0, :, place // 4, place % 4].square().sum().backward()
        assert (x.grad[0].flatten(1).abs().sum(0) > 0).tolist() == [i < place for i in range(12)]  # type: ignore[index]
        assert (h.grad[0].flatten(1).abs().sum(0) > 0).tolist() == [i <= place for i in range(12)]  # type: ignore[index]


def test_logits_depend_on_every_code_before_and_on_no_other() -> None:
    """With one layer, the attention reads the codes that the convolutions cannot see."""
    shapes, sizes = [(5, 7)], [6]
    prior, labels = prior_of(shapes, sizes, blocks=1, layers=1), torch.tensor([1])
    codes = random_codes(shapes, sizes, 1)[0]
    before = logits_of(prior, [codes], labels)[0].flatten(2)
    for position in range(35):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 6
        after = logits_of(prior, [changed], labels)[0].flatten(2)
        assert (before != after).any(1)[0].tolist() == [position < other for other in range(35)]


def test_a_coarse_map_and_the_class_reach_every_code_of_a_fine_map() -> None:
    shapes, sizes = MAPS["coarse and fine"]
    prior, codes = prior_of(shapes, sizes), random_codes(*MAPS["coarse and fine"], batch=1)
    before = logits_of(prior, codes, torch.tensor([0]))[1]
    coarse = logits_of(prior, [(codes[0] + 1) % sizes[0], codes[1]], torch.tensor([0]))[1]
    other_class = logits_of(prior, codes, torch.tensor([-1]))[1]
    assert (before != coarse).any(1).all()
    assert (before != other_class).any(1).all()


@pytest.mark.parametrize("maps", MAPS)
def test_cached_logits_are_those_of_the_whole_network_and_read_no_later_code(maps: str) -> None:
    shapes, sizes = MAPS[maps]
    prior, codes, labels = prior_of(shapes, sizes), random_codes(*MAPS[maps], batch=4), torch.tensor([0, 1, 2, -1])
    for m, (network, expected) in enumerate(zip(prior.networks, logits_of(prior, codes, labels))):
        with torch.no_grad():
            cache = network.begin(prior.condition(m, codes, labels))
            for position in range(codes[m][0].numel()):
                flat = codes[m].flatten(1).clone()
                flat[:, position:] = torch.randint(sizes[m], flat[:, position:].shape)
                logits = network.head.logits(network.next_hidden(cache, flat, position))
                assert torch.allclose(logits, expected.flatten(2)[..., position], rtol=0, atol=1e-12)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_cached_sampling_draws_the_codes_of_uncached_sampling_one_by_one(maps: str, guidance: float) -> None:
    prior, labels = prior_of(*MAPS[maps]), torch.tensor([0, 1, 2, 1])
    drawn: dict[str, list[tuple[list[Tensor], list[Tensor]]]] = {"cached": [], "uncached": []}
    for method, seen in drawn.items():
        prior.sample(
            list(range(4)),
            labels,
            Sampling(method=method, guidance=guidance),
            on_progress=lambda codes, done, seen=seen: seen.append(
                ([m.clone() for m in codes], [m.clone() for m in done])
            ),
        )
    assert len(drawn["cached"]) == len(drawn["uncached"]) == prior.codes_per_sample
    for cached, uncached in zip(drawn["cached"], drawn["uncached"]):
        for a, b in zip(cached[0] + cached[1], uncached[0] + uncached[1]):
            assert torch.equal(a, b)


def test_a_cache_is_not_shared_between_two_samplings() -> None:
    prior, labels = prior_of([(3, 3)], [9]), torch.tensor([0, 1])
    first = prior.sample([0, 1], labels, Sampling())[0]
    prior.sample([2, 3], labels, Sampling())
    assert torch.equal(prior.sample([0, 1], labels, Sampling())[0], first)


def test_dropout_acts_in_training_only() -> None:
    prior, codes, labels = prior_of([(3, 3)], [5], dropout=0.5), torch.randint(5, (1, 3, 3)), torch.tensor([0])
    assert torch.equal(logits_of(prior, [codes], labels)[0], logits_of(prior, [codes], labels)[0])
    prior.train()
    assert not torch.equal(logits_of(prior, [codes], labels)[0], logits_of(prior, [codes], labels)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"layers": -1}, "layers must be at least 1, got -1"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide width=8, got 3"),
        ({"dropout": 1.0}, "dropout must be below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0, got -0.1"),
    ],
)
def test_impossible_network_sizes_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior_of([(2, 2)], [4], **changed)


def test_three_dims_are_refused_and_the_message_names_what_takes_them() -> None:
    with pytest.raises(ValueError, match=r"1 or 2 dims, got \[\(2, 2, 2\)\].*prior=transformer"):
        prior_of([(2, 2, 2)], [4])
