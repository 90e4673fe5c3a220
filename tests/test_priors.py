"""Laws of priors: causality, calibration of sampling, independence of samples."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vqvae.config import build, choices, compose, resolve
from vqvae.priors.base import SAMPLE_CHUNK, AutoregressivePrior, Sampling
from vqvae.priors.pixelcnn import GatedPixelCNN

MAPS = {
    "one map": ([(4, 4)], [7]),
    "not square": ([(3, 5)], [7]),
    "coarse and fine": ([(2, 3), (4, 6)], [5, 7]),
    "three equal maps": ([(2, 2)] * 3, [4, 4, 4]),
    "one dim": ([(6,)], [5]),
}


def prior_of(name: str, shapes: list[tuple[int, ...]], sizes: list[int], classes: int = 3) -> AutoregressivePrior:
    torch.manual_seed(0)
    node = resolve(compose("train", [f"prior={name}", "prior.network.width=8"])).prior.network
    prior = build(node, "prior.network", code_shapes=shapes, codebook_sizes=sizes, num_classes=classes)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        torch.nn.init.normal_(parameter, std=0.3)
    return prior.eval()


def random_codes(shapes: list[tuple[int, ...]], sizes: list[int], batch: int = 1) -> list[Tensor]:
    return [torch.randint(size, (batch, *shape)) for shape, size in zip(shapes, sizes)]


@pytest.mark.parametrize(("name", "maps"), itertools.product(choices("prior"), MAPS))
def test_changing_a_code_never_changes_its_own_logits_or_those_before(name: str, maps: str) -> None:
    shapes, sizes = MAPS[maps]
    prior, labels = prior_of(name, shapes, sizes), torch.tensor([1])
    codes, order = random_codes(shapes, sizes), list(prior_of(name, shapes, sizes).order())
    before = prior.logits(codes, labels)
    for count, (index, position) in enumerate(order):
        changed = [m.clone() for m in codes]
        flat = changed[index].view(1, -1)
        flat[0, position] = (flat[0, position] + 1) % sizes[index]
        after = prior.logits(changed, labels)
        for m, p in order[: count + 1]:
            assert torch.equal(before[m].flatten(2)[..., p], after[m].flatten(2)[..., p])


def test_a_deep_pixelcnn_has_no_blind_spot() -> None:
    """Every code before a position has an influence on its logits."""
    shapes, sizes = [(5, 5)], [7]
    prior, labels = prior_of("pixelcnn", shapes, sizes), torch.tensor([0])
    codes = random_codes(shapes, sizes)
    before = prior.logits(codes, labels)[0].flatten(2)
    for position in range(24):
        changed = codes[0].clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 7
        after = prior.logits([changed], labels)[0].flatten(2)
        assert (before[..., -1] != after[..., -1]).any(), position


def test_coarse_maps_condition_fine_ones() -> None:
    shapes, sizes = MAPS["coarse and fine"]
    prior, labels = prior_of("pixelcnn", shapes, sizes), torch.tensor([0])
    codes = random_codes(shapes, sizes)
    other = [(codes[0] + 1) % sizes[0], codes[1]]
    assert not torch.equal(prior.logits(codes, labels)[1], prior.logits(other, labels)[1])


@pytest.mark.parametrize("name", choices("prior"))
def test_the_likelihood_sums_to_one_over_all_codes_of_a_tiny_grid(name: str) -> None:
    prior = prior_of(name, [(2, 2)], [3])
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    nats = prior([every], torch.full((len(every),), 2))[0].flatten(1).sum(1)
    assert torch.exp(-nats.double()).sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", choices("prior"))
def test_classes_matter_and_minus_one_is_a_class_of_its_own(name: str) -> None:
    prior = prior_of(name, [(2, 2)], [5])
    codes = random_codes([(2, 2)], [5])
    seen = [prior.logits(codes, torch.tensor([label]))[0] for label in (-1, 0, 1)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_sample_i_depends_on_seed_i_alone() -> None:
    prior = prior_of("pixelcnn", [(3, 3)], [9])
    seeds = list(range(5, 5 + SAMPLE_CHUNK + 3))
    many = prior.sample(seeds, torch.ones(len(seeds), dtype=torch.int64), Sampling())[0]
    for index in (0, 7, SAMPLE_CHUNK + 1):
        alone = prior.sample([seeds[index]], torch.ones(1, dtype=torch.int64), Sampling())[0]
        assert torch.equal(alone[0], many[index])
    assert len({tuple(m.flatten().tolist()) for m in many}) == len(seeds)


def test_samples_follow_the_prior() -> None:
    """Frequencies of the first code over 3,200 seeds against its probabilities."""
    prior = prior_of("pixelcnn", [(1, 1)], [4])
    labels = torch.zeros(3200, dtype=torch.int64)
    drawn = prior.sample(list(range(3200)), labels, Sampling())[0].flatten()
    wanted = prior.logits([torch.zeros(1, 1, 1, dtype=torch.int64)], labels[:1])[0].flatten().softmax(0)
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.all((share - wanted).abs() < 4 * (wanted * (1 - wanted) / len(drawn)).sqrt())  # 4 standard errors


def test_sampling_settings_restrict_the_codes_as_they_say() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(1000, 1)
    noise = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    drawn = {
        "plain": Sampling().draw(logits, noise),
        "top_k": Sampling(top_k=2).draw(logits, noise),
        "top_p": Sampling(top_p=0.6).draw(logits, noise),
        "zero": Sampling(temperature=0).draw(logits, noise),
        "hot": Sampling(temperature=100).draw(logits, noise),
    }
    shares = {name: (torch.bincount(codes, minlength=4) / 1000).tolist() for name, codes in drawn.items()}
    assert shares["plain"] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=2e-3)
    assert shares["top_k"] == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    assert shares["top_p"] == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    assert shares["zero"] == [1, 0, 0, 0]
    assert shares["hot"] == pytest.approx([0.25] * 4, abs=0.01)


def test_a_code_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    noise = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    assert Sampling().draw(logits, noise).tolist() == [1, 3, 3]


@pytest.mark.parametrize(("key", "value"), [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5)])
def test_sampling_refuses_values_out_of_range(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        Sampling(**{key: value})


def test_three_dims_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 2 dims"):
        GatedPixelCNN([(2, 2, 2)], [4], 0, 0.0, 8, 2, 3, 0.0)
