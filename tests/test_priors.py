"""Laws of priors: causality, calibration, exact caches, independence of samples. Every YAML of configs/prior is tested."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vqvae.config.build import build
from vqvae.config.compose import choices, compose, resolve
from vqvae.networks.blocks import recompute
from vqvae.priors.autoregressive import AutoregressivePrior
from vqvae.priors.base import Prior
from vqvae.priors.context import ContextNetwork
from vqvae.priors.pixelcnn import GatedPixelCNN
from vqvae.priors.sampling import Known, Sampling

MAPS = {
    "one map": ([(4, 4)], [7]),
    "not square": ([(3, 5)], [7]),
    "coarse and fine": ([(2, 3), (4, 6)], [5, 7]),
    "three equal maps": ([(2, 2)] * 3, [4, 4, 4]),
    "one dim": ([(6,)], [5]),
}
LABELS = [0, 2, -1]  # -1: no class
CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(2,), (5,), (3, 4), (8, 2), (2, 3, 2)])
@pytest.mark.parametrize("before", [7, 4, 1])
def test_every_code_of_the_maps_before_has_a_part_in_the_condition_whatever_the_ratio_of_grids(
    grid: tuple[int, ...], before: int
) -> None:
    torch.manual_seed(0)
    context = ContextNetwork(len(grid), [before**3], 4)
    codes = torch.arange(before ** len(grid)).view(1, *[before] * len(grid))  # each code occurs once
    out = context([codes], grid)
    assert out.shape == (1, 4, *grid)
    out.square().sum().backward()
    gradient = context.get_submodule("embeddings").get_parameter("0.weight").grad
    assert gradient is not None
    assert (gradient[: codes.numel()] != 0).any(1).all()


def prior_of(
    name: str,
    shapes: list[tuple[int, ...]],
    sizes: list[int],
    classes: int = 3,
    digits: list[list[int]] | None = None,
    dropout: float = 0.0,
) -> Prior:
    if name == "next_scale" and len(shapes) == 1:
        pytest.skip("next_scale predicts a map given coarser ones")
    if name == "delayed" and len(set(shapes)) > 1:
        pytest.skip("delayed predicts maps of one size")
    torch.manual_seed(0)
    node = resolve(compose("train", [f"prior={name}"])).prior.network
    node.update(
        {key: min(most, node[key]) for key, most in {"width": 16, "layers": 4, "blocks": 2}.items() if key in node}
    )
    node.dropout = dropout
    digits = digits or [[size] for size in sizes]
    prior = build(node, "prior.network", code_shapes=shapes, digits=digits, num_classes=classes)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        torch.nn.init.normal_(parameter, std=0.3)
    return prior.eval()


def maps_of(name: str, shape: tuple[int, ...], size: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """One map, and for next_scale a coarser one before it."""
    coarser = [tuple(1 for _ in shape)] if name == "next_scale" else []
    return [*coarser, shape], [size] * (1 + len(coarser))


def exact(name: str, shapes: list[tuple[int, ...]], sizes: list[int]) -> Prior:
    prior = prior_of(name, shapes, sizes)
    if prior.bits_name != "bits_per_code":
        pytest.skip(f"{name} has a bound on its likelihood alone")
    return prior


def autoregressive(name: str, shapes: list[tuple[int, ...]], sizes: list[int]) -> AutoregressivePrior:
    prior = prior_of(name, shapes, sizes)
    if not isinstance(prior, AutoregressivePrior):
        pytest.skip(f"{name} is not autoregressive")
    return prior


def logits_of(prior: AutoregressivePrior, codes: list[Tensor], labels: Tensor) -> list[Tensor]:
    """M maps (B, *s_m) -> M logits (B, K_m, *s_m) of the first digit of each code."""
    return [network.head.logits(h) for network, h in zip(prior.networks, prior.hidden(codes, labels))]


def random_codes(shapes: list[tuple[int, ...]], sizes: list[int], batch: int = 1) -> list[Tensor]:
    return [torch.randint(size, (batch, *shape)) for shape, size in zip(shapes, sizes)]


@pytest.mark.parametrize(("name", "maps"), itertools.product(choices("prior"), MAPS))
def test_changing_a_code_never_changes_its_own_logits_or_those_before(name: str, maps: str) -> None:
    shapes, sizes = MAPS[maps]
    prior, labels = autoregressive(name, shapes, sizes), torch.tensor([1])
    codes, order = random_codes(shapes, sizes), list(prior.order())
    before = logits_of(prior, codes, labels)
    for count, (index, position) in enumerate(order):
        changed = [m.clone() for m in codes]
        flat = changed[index].view(1, -1)
        flat[0, position] = (flat[0, position] + 1) % sizes[index]
        after = logits_of(prior, changed, labels)
        for m, p in order[: count + 1]:
            assert torch.equal(before[m].flatten(2)[..., p], after[m].flatten(2)[..., p])


@pytest.mark.parametrize("name", choices("prior"))
def test_there_is_no_blind_spot(name: str) -> None:
    """Every code before a position has an influence on its logits."""
    shapes, sizes = [(4, 4)], [7]
    prior, labels = autoregressive(name, shapes, sizes), torch.tensor([0])
    codes = random_codes(shapes, sizes)
    before = logits_of(prior, codes, labels)[0].flatten(2)
    for position in range(15):
        changed = codes[0].clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 7
        after = logits_of(prior, [changed], labels)[0].flatten(2)
        assert (before[..., -1] != after[..., -1]).any(), position


@pytest.mark.parametrize("name", choices("prior"))
def test_coarse_maps_condition_fine_ones(name: str) -> None:
    shapes, sizes = MAPS["coarse and fine"]
    prior, labels = prior_of(name, shapes, sizes), torch.tensor([0])
    codes = random_codes(shapes, sizes)
    other = [(codes[0] + 1) % sizes[0], codes[1]]
    assert not torch.equal(prior(codes, labels).nats[1], prior(other, labels).nats[1])


@pytest.mark.parametrize("name", choices("prior"))
@pytest.mark.parametrize(("shapes", "sizes"), [([(2, 2)], [3]), ([(1, 1), (1, 2)], [2, 3])])
def test_the_likelihood_sums_to_one_over_all_codes_of_a_tiny_grid(
    name: str, shapes: list[tuple[int, ...]], sizes: list[int]
) -> None:
    prior = exact(name, shapes, sizes)
    alphabets = [range(size) for shape, size in zip(shapes, sizes) for _ in range(shape[0] * shape[1])]
    every = torch.tensor(list(itertools.product(*alphabets)))
    parts = every.split([shape[0] * shape[1] for shape in shapes], dim=1)
    maps = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes)]
    nats = prior(maps, torch.full((len(every),), 2)).nats
    total = sum(one.flatten(1).sum(1) for one in nats)
    assert torch.exp(-total.double()).sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", choices("prior"))
def test_classes_matter_and_minus_one_is_a_class_of_its_own(name: str) -> None:
    shapes, sizes = maps_of(name, (2, 2), 5)
    prior, codes = prior_of(name, shapes, sizes), random_codes(shapes, sizes)
    seen = [prior(codes, torch.tensor([label])).nats[-1] for label in (-1, 0, 1)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("name", choices("prior"))
def test_label_smoothing_changes_the_loss_as_its_formula_says_and_not_the_likelihood(name: str) -> None:
    shapes, sizes = [(3, 3)], [5]
    prior, codes, labels = autoregressive(name, shapes, sizes), random_codes([(3, 3)], [5], 4), torch.zeros(4).long()
    plain, smoothed = prior(codes, labels), prior(codes, labels, 0.3)
    wanted = torch.nn.functional.cross_entropy(logits_of(prior, codes, labels)[0], codes[0], label_smoothing=0.3)
    torch.testing.assert_close(smoothed.loss, wanted)
    assert torch.equal(plain.nats[0], smoothed.nats[0])
    torch.testing.assert_close(plain.loss, plain.nats[0].mean())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", choices("prior"))
def test_gradient_checkpointing_gives_a_prior_the_same_gradients_with_less_memory(name: str, dropout: float) -> None:
    prior = prior_of(name, *maps_of(name, (8, 8), 5), dropout=dropout).train()
    codes = random_codes(prior.code_shapes, prior.codebook_sizes, 4)
    results, sizes = [], []
    for recomputed in (False, True):
        recompute(prior, recomputed)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = prior(codes, torch.tensor([0, 1, 2, -1])).loss
        sizes.append(sum(kept.values()))
        results.append(torch.autograd.grad(loss, list(prior.parameters()), allow_unused=True))
    for one, again in zip(*results):
        assert (one is None) == (again is None)
        assert one is None or torch.equal(one, again)
    assert sizes[1] < 0.85 * sizes[0]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("name", "maps"), itertools.product(choices("prior"), MAPS))
def test_all_ways_of_sampling_draw_the_same_codes_from_the_same_noise(name: str, maps: str, guidance: float) -> None:
    """In float64, with classes and without, guided and not."""
    prior = exact(name, *MAPS[maps]).double()
    drawn = [
        prior.sample(
            list(range(3)), torch.tensor(LABELS), Sampling(method=m, guidance=guidance, guidance_schedule="linear")
        )
        for m in prior.methods
    ]
    for other in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0], other))


@pytest.mark.parametrize(("name", "maps"), itertools.product(choices("prior"), MAPS))
@torch.no_grad()
def test_logits_from_the_cache_are_those_of_the_whole_network(name: str, maps: str) -> None:
    """Teacher-forced, in float32, to 1e-4 of their scale."""
    shapes, sizes = MAPS[maps]
    prior, labels = autoregressive(name, shapes, sizes), torch.tensor(LABELS)
    codes = random_codes(shapes, sizes, len(labels))
    for m, (network, whole) in enumerate(zip(prior.networks, logits_of(prior, codes, labels))):
        cache, flat = network.begin(prior.condition(m, codes, labels)), codes[m].flatten(1)
        cached = torch.stack(
            [network.head.logits(network.next_hidden(cache, flat, p)) for p in range(flat.shape[1])], dim=2
        )
        assert (cached - whole.flatten(2)).abs().max() <= 1e-4 * max(1, whole.abs().max())


@pytest.mark.parametrize("name", choices("prior"))
def test_sample_i_depends_on_seed_i_alone(name: str) -> None:
    prior = prior_of(name, *maps_of(name, (3, 3), 9))
    count = prior.samples_at_a_time + 3
    seeds = list(range(5, 5 + count))
    many = prior.sample(seeds, torch.ones(count, dtype=torch.int64), Sampling(temperature=4))[-1]
    for index in (0, 7, count - 2):
        alone = prior.sample([seeds[index]], torch.ones(1, dtype=torch.int64), Sampling(temperature=4))[-1]
        assert torch.equal(alone[0], many[index])
    assert not many.is_inference()  # so a network may be trained on samples
    assert len({tuple(m.flatten().tolist()) for m in many}) > 0.9 * count


@pytest.mark.parametrize("name", choices("prior"))
@pytest.mark.parametrize("maps", ["not square", "coarse and fine"])
def test_known_codes_stay_whatever_the_way_of_sampling(name: str, maps: str) -> None:
    shapes, sizes = MAPS[maps]
    prior, labels = prior_of(name, shapes, sizes), torch.tensor(LABELS)
    codes = random_codes(shapes, sizes, 3)
    kept = [torch.rand(m.shape) < 0.5 for m in codes]
    for method in prior.methods:
        drawn = prior.sample([0, 1, 2], labels, Sampling(method=method), Known(codes, kept))
        assert all(torch.equal(a[k], b[k]) for a, b, k in zip(drawn, codes, kept))
        assert all((a[~k] != b[~k]).any() for a, b, k in zip(drawn, codes, kept))


@pytest.mark.parametrize("name", choices("prior"))
def test_neutral_settings_are_plain_sampling(name: str) -> None:
    """Guidance towards 1, top_p 1 and top_k of all codes draw what plain sampling draws."""
    prior, labels = prior_of(name, *maps_of(name, (3, 4), 6)).double(), torch.tensor(LABELS)
    plain = prior.sample([0, 1, 2], labels, Sampling())[-1]
    for settings in ({"guidance": 1 + 1e-12}, {"top_p": 1.0, "top_k": 6}, {"top_p": 1 - 1e-12}):
        assert torch.equal(prior.sample([0, 1, 2], labels, Sampling(**settings))[-1], plain)


def test_guidance_two_is_the_extrapolation_from_no_class() -> None:
    with_class, without = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    progress = torch.tensor([0.0, 0.5, 1.0])
    for schedule, weights in {"constant": [2, 2, 2], "linear": [1, 1.5, 2], "cosine": [1, 1.5, 2]}.items():
        guided = (
            Sampling(guidance=2, guidance_schedule=schedule).on(CPU).guide(torch.cat([with_class, without]), progress)
        )
        torch.testing.assert_close(guided, without + torch.tensor(weights) * (with_class - without))


@pytest.mark.parametrize("name", choices("prior"))
def test_on_progress_sees_codes_filled_in_to_the_end(name: str) -> None:
    prior = prior_of(name, *MAPS["coarse and fine"])
    shares = []
    drawn = prior.sample(
        [0, 1],
        torch.tensor([0, 1]),
        Sampling(),
        on_progress=lambda codes, done: shares.append(sum(m.double().sum() for m in done).item() / done[0].shape[0]),
    )
    assert shares == sorted(shares)
    assert shares[-1] == sum(m[0].numel() for m in drawn)


def test_jacobi_needs_fewer_network_calls_where_codes_can_be_foreseen() -> None:
    """A prior whose codes do not depend on each other is drawn in two calls: a guess, and its confirmation."""
    prior = prior_of("pixelcnn", [(4, 4)], [7])
    for module in prior.networks.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.zeros_(module.weight)
    calls: list[int] = []
    prior.networks[0].register_forward_hook(lambda *_: calls.append(1))
    prior.sample([0, 1], torch.tensor([0, 1]), Sampling(method="jacobi"))
    assert len(calls) == 2


@pytest.mark.parametrize("name", choices("prior"))
def test_samples_follow_the_prior(name: str) -> None:
    """Frequencies of the first code over 3,200 seeds against its probabilities."""
    shapes, sizes = maps_of(name, (1, 1), 4)
    prior = prior_of(name, shapes, sizes)
    labels = torch.zeros(3200, dtype=torch.int64)
    drawn = prior.sample(list(range(3200)), labels, Sampling())[0].flatten()
    every = torch.arange(4).view(4, 1, 1)
    wanted = torch.exp(-prior([every for _ in shapes], labels[:4]).nats[0].flatten())
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.all((share - wanted).abs() < 4 * (wanted * (1 - wanted) / len(drawn)).sqrt())  # 4 standard errors


def test_sampling_settings_restrict_the_codes_as_they_say() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(1000, 1)
    noise = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    drawn = {
        "plain": Sampling().on(CPU).draw(logits, noise),
        "top_k": Sampling(top_k=2).on(CPU).draw(logits, noise),
        "top_p": Sampling(top_p=0.6).on(CPU).draw(logits, noise),
        "zero": Sampling(temperature=0).on(CPU).draw(logits, noise),
        "hot": Sampling(temperature=100).on(CPU).draw(logits, noise),
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
    assert Sampling().on(CPU).draw(logits, noise).tolist() == [1, 3, 3]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("guidance", -1),
        ("guidance_schedule", "up"),
        ("steps", 0),
    ],
)
def test_sampling_refuses_values_out_of_range(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        Sampling(**{key: value})


def test_three_dims_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 2 dims"):
        GatedPixelCNN([(2, 2, 2)], [[4]], 0, 8, 2, 3, 0.0)


def test_a_method_of_another_prior_and_guidance_without_classes_are_refused() -> None:
    prior = prior_of("pixelcnn", [(2, 2)], [4], classes=0)
    with pytest.raises(ValueError, match="method must be one of cached, jacobi, uncached for this prior, got 'halton'"):
        prior.sample([0], torch.tensor([-1]), Sampling(method="halton"))
    with pytest.raises(ValueError, match="guidance=2 needs a prior that was trained with classes"):
        prior.sample([0], torch.tensor([-1]), Sampling(guidance=2))
