"""Laws of the masked prior: its bound is a bound, and it samples from the distribution that it scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vqvae.priors import maskgit
from vqvae.priors.masked import halton_order
from vqvae.priors.maskgit import MaskGIT, draw_weights, plan
from vqvae.priors.sampling import Known, Sampling

ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4) of a 2x2 grid
EVERY = torch.tensor(list(itertools.product(range(3), repeat=4)))  # (81, 4): all codes of a 2x2 grid, K = 3
COARSE_AND_FINE: tuple[list[tuple[int, ...]], list[int]] = ([(2, 3), (4, 6)], [5, 7])


def prior_of(shapes: list[tuple[int, ...]], sizes: list[int], classes: int = 3) -> MaskGIT:
    torch.manual_seed(0)
    prior = MaskGIT(shapes, [[size] for size in sizes], classes, width=8, layers=2, heads=2, dropout=0.0, steps=3)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        torch.nn.init.normal_(parameter, std=0.4)
    return prior.eval()


def nats_in_order(prior: MaskGIT, codes: Tensor, order: Tensor) -> Tensor:
    """codes (n, 4) of class 2, drawn one by one in `order` (4,) -> their nats (n,), float64."""
    known = torch.zeros_like(codes, dtype=torch.bool)
    condition = prior.condition(0, [], torch.full((len(codes),), 2))
    nats = torch.zeros(len(codes), dtype=torch.float64)
    for position in order:
        hidden = prior.networks[0](codes, known, condition)
        log_p = prior.networks[0].head.logits(hidden, dim=2).double().log_softmax(2)
        nats -= log_p[torch.arange(len(codes)), position, codes[:, position]]
        known[:, position] = True
    return nats


@pytest.fixture(scope="module")
def tiny() -> MaskGIT:
    return prior_of([(2, 2)], [3])


@pytest.fixture(scope="module")
@torch.no_grad()
def every_order(tiny: MaskGIT) -> Tensor:
    """Nats of all codes in all orders, (24, 81)."""
    return torch.stack([nats_in_order(tiny, EVERY, order) for order in ORDERS])


# ---- the likelihood


def test_each_order_is_a_distribution_of_its_own(every_order: Tensor) -> None:
    torch.testing.assert_close((-every_order).exp().sum(1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-6)
    assert every_order.std(0).max() > 0.01  # so that the tests below tell orders apart


@torch.no_grad()
def test_the_estimate_expects_the_mean_over_orders_which_bounds_the_mixture(
    tiny: MaskGIT, every_order: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exhaustively over n and which n codes are hidden, all equally likely as `draw_weights` makes them."""
    subsets = [
        torch.isin(torch.arange(4), torch.tensor(s)) for n in range(1, 5) for s in itertools.combinations(range(4), n)
    ]
    expected = torch.zeros(81, dtype=torch.float64)
    for hidden in subsets:
        n = int(hidden.sum())
        weight = hidden * torch.full((81, 4), 4 / n)
        monkeypatch.setattr(maskgit, "draw_weights", lambda *_, weight=weight: weight)
        nats = tiny([EVERY.view(-1, 2, 2)], torch.full((81,), 2)).nats[0].flatten(1)
        assert torch.equal(nats == 0, ~hidden.expand(81, 4))
        expected += nats.double().sum(1) / (4 * math.comb(4, n))
    torch.testing.assert_close(expected, every_order.mean(0), rtol=0, atol=1e-5)
    mixture = -(torch.logsumexp(-every_order, 0) - math.log(24))
    assert torch.all(mixture < expected)


def test_every_number_of_hidden_codes_is_equally_likely_and_spread_over_any_part_of_the_batch() -> None:
    codes = torch.zeros(640, 64, dtype=torch.int64)
    weights = draw_weights(codes, torch.Generator().manual_seed(0))
    hidden = (weights > 0).sum(1)
    torch.testing.assert_close(weights.max(1).values, 64 / hidden)
    for part in hidden.split(64):
        assert abs(float(part.float().mean()) - 32.5) < 1.5  # independent draws: 2.3 is one standard error
        assert len(part.unique()) > 32
    torch.manual_seed(0)
    first = torch.stack([(draw_weights(codes[:3], None) > 0).sum(1) for _ in range(2000)])  # (2000, 3)
    for example in first.T:
        assert abs(float(example.float().mean()) - 32.5) < 4 * 64 / math.sqrt(12 * 2000)  # 4 standard errors
        assert set(example.tolist()) == set(range(1, 65))
    assert (weights > 0).float().mean(0).sub(0.5).abs().max() < 4 * 0.5 / math.sqrt(640)  # no position is preferred


@torch.no_grad()
def test_evaluation_is_deterministic_and_training_is_not() -> None:
    shapes, sizes = COARSE_AND_FINE
    prior = prior_of(shapes, sizes)
    codes = [torch.randint(k, (5, *shape)) for shape, k in zip(shapes, sizes)]
    labels = torch.tensor([0, 1, 2, -1, 0])
    one, other = (prior(codes, labels) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.nats, other.nats))
    assert [nats.shape for nats in one.nats] == [(5, *shape) for shape in shapes]
    assert one.loss.item() == pytest.approx(float(torch.cat([nats.flatten() for nats in one.nats]).mean()), rel=1e-5)
    assert prior(codes, labels, label_smoothing=0.1).loss != one.loss
    prior.train()
    assert not torch.equal(prior(codes, labels).loss, prior(codes, labels).loss)


@torch.no_grad()
def test_hidden_codes_have_no_influence_and_known_ones_coarser_maps_and_the_class_have() -> None:
    shapes, sizes = COARSE_AND_FINE
    prior = prior_of(shapes, sizes)
    codes = [torch.randint(k, (1, *shape)) for shape, k in zip(shapes, sizes)]
    flat, known = codes[1].flatten(1), (torch.arange(24) % 2 == 0)[None]

    def logits(flat: Tensor, coarse: Tensor, label: int) -> Tensor:
        return prior.networks[1](flat, known, prior.condition(1, [coarse], torch.tensor([label])))

    plain = logits(flat, codes[0], 1)
    assert torch.equal(logits(torch.where(known, flat, (flat + 1) % 7), codes[0], 1), plain)
    for position in range(0, 24, 2):  # before and behind: every position's logits change
        changed = flat.clone()
        changed[0, position] = (changed[0, position] + 1) % 7
        assert (logits(changed, codes[0], 1) != plain).any(2).all()
    assert not torch.equal(logits(flat, (codes[0] + 1) % 5, 1), plain)
    assert not torch.equal(logits(flat, codes[0], 0), plain)
    assert not torch.equal(logits(flat, codes[0], -1), plain)


# ---- sampling


@torch.no_grad()
def test_one_code_a_step_in_halton_order_draws_from_the_model_in_that_order(tiny: MaskGIT) -> None:
    """Frequencies of all 81 codes over 6,400 seeds against the products of the conditionals."""
    count = 6400
    drawn = tiny.sample(list(range(count)), torch.full((count,), 2), Sampling(method="halton", steps=4))[0].flatten(1)
    share = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81) / count
    p = (-nats_in_order(tiny, EVERY, halton_order((2, 2)))).exp()
    errors = (share - p) / (p * (1 - p) / count).sqrt()
    assert errors.abs().max() < 4
    assert abs(float((errors**2).mean()) - 1) < 4 * math.sqrt(2 / 80)  # of 80 degrees of freedom


@pytest.mark.parametrize("method", MaskGIT.methods)
@pytest.mark.parametrize("steps", [1, 3, 1000, None])
@torch.no_grad()
def test_any_number_of_steps_fills_every_position_and_keeps_what_is_drawn(method: str, steps: int | None) -> None:
    shapes, sizes = COARSE_AND_FINE
    prior, seen = prior_of(shapes, sizes), []

    def watch(codes: list[Tensor], done: list[Tensor]) -> None:
        seen.append(([m.clone() for m in codes], [m.clone() for m in done]))

    drawn = prior.sample([3, 4], torch.tensor([0, -1]), Sampling(method=method, steps=steps), on_progress=watch)
    assert len(seen) == sum(min(steps or prior.steps, math.prod(shape)) for shape in shapes)
    for (codes, done), (_, later) in itertools.pairwise(seen):
        assert all(torch.equal(a & b, a) for a, b in zip(done, later))
        assert sum(int(b[0].sum()) for b in later) > sum(int(a[0].sum()) for a in done)
        assert all(torch.equal(c[:2][d[:2]], x[d[:2]]) for c, d, x in zip(codes, done, drawn))
    assert all(bool(m.all()) for m in seen[-1][1])
    assert all(m.min() >= 0 and m.max() < k for m, k in zip(drawn, sizes))


@pytest.mark.parametrize("method", MaskGIT.methods)
@torch.no_grad()
def test_a_sample_depends_on_its_seed_class_and_known_codes_alone(method: str) -> None:
    shapes, sizes = COARSE_AND_FINE
    prior = prior_of(shapes, sizes)
    count = prior.samples_at_a_time + 3
    torch.manual_seed(1)
    codes = [torch.randint(k, (count, *shape)) for shape, k in zip(shapes, sizes)]
    kept = [torch.rand(one.shape) < torch.linspace(0, 1, count).view(-1, 1, 1) for one in codes]  # none .. all
    labels, settings = (
        torch.arange(count) % 3,
        Sampling(method=method, guidance=2.0, guidance_schedule="linear", steps=5),
    )
    many = prior.sample(list(range(count)), labels, settings, Known(codes, kept))
    for m, one in enumerate(many):
        assert torch.equal(one[kept[m]], codes[m][kept[m]])
    assert len({tuple(torch.cat([a.flatten(), b.flatten()]).tolist()) for a, b in zip(*many)}) == count
    for i in (0, 9, count // 2, count - 1):
        part = slice(i, i + 1)
        hidden = [torch.where(b[part], a[part], 0) for a, b in zip(codes, kept)]  # what is not kept does not matter
        alone = prior.sample([i], labels[part], settings, Known(hidden, [b[part] for b in kept]))
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, many))


@pytest.mark.parametrize("method", MaskGIT.methods)
@torch.no_grad()
def test_guidance_of_1_is_plain_and_changes_lead_there(method: str, tiny: MaskGIT) -> None:
    seeds, labels = list(range(64)), torch.zeros(64, dtype=torch.int64)
    plain = tiny.sample(seeds, labels, Sampling(method=method))[0]
    near = tiny.sample(seeds, labels, Sampling(method=method, guidance=1 + 1e-6))[0]  # the doubled batch
    far = tiny.sample(seeds, labels, Sampling(method=method, guidance=8.0))[0]
    assert torch.equal(plain, near)
    assert not torch.equal(plain, far)


@torch.no_grad()
def test_the_most_confident_codes_come_first(tiny: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgit, "GUMBEL_SCALE", 0.0)
    first: list[Tensor] = []

    def watch(codes: list[Tensor], done: list[Tensor]) -> None:
        first.append(done[0].flatten(1).clone())

    settings = Sampling(method="confidence", temperature=0, steps=4)
    tiny.sample([0], torch.tensor([2]), settings, on_progress=watch)
    nothing = torch.zeros(1, 4, dtype=torch.int64)
    hidden = tiny.networks[0](nothing, nothing.bool(), tiny.condition(0, [], torch.tensor([2])))
    assert first[0][0].nonzero().item() == tiny.networks[0].head.logits(hidden, dim=2).softmax(2).amax(2).argmax()


# ---- the plan and the order


@pytest.mark.parametrize("steps", [1, 2, 12, 63, 64, 65])
def test_every_network_call_draws_a_code_until_all_are_drawn(steps: int) -> None:
    unknown = torch.arange(65)
    rows = torch.stack([unknown, *plan(unknown, steps, min(steps, int(unknown.max())))])  # (1 + calls, 65)
    assert len(rows) == 1 + min(steps, 64)
    assert torch.all((rows[1:] < rows[:-1]) | (rows[:-1] == 0))
    assert torch.all(rows[-1] == 0)
    for count in (1, 5, 64):
        assert [int(row) for row in rows[: 1 + min(steps, count), count]] == [
            count,
            *(int(row) for row in plan(torch.tensor([count]), steps, min(steps, count))),
        ]
    if steps == 12:  # between the third and the fourth call of twelve a cosine has most still unknown
        assert rows[4, 64] == int(64 * math.cos(math.pi / 6))


@pytest.mark.parametrize("grid", [(1,), (7,), (8, 8), (3, 5), (9, 27), (1, 6), (4, 6, 5)])
def test_the_halton_order_is_a_permutation(grid: tuple[int, ...]) -> None:
    assert sorted(halton_order(grid).tolist()) == list(range(math.prod(grid)))


@pytest.mark.parametrize("grid", [(64,), (8, 8), (16, 16), (4, 8, 8)])
def test_the_halton_order_covers_the_grid_evenly_from_the_start(grid: tuple[int, ...]) -> None:
    """Every box of a grid cut in two along each dim has its share of the first codes, within 2 codes a dim."""
    order = halton_order(grid)
    places = torch.stack(torch.unravel_index(order, grid))  # (dims, N)
    halves = places * 2 // torch.tensor(grid)[:, None]
    box = sum(half << axis for axis, half in enumerate(halves))
    cells = 2 ** len(grid)
    counts = torch.stack([(box == cell).cumsum(0) for cell in range(cells)])  # (boxes, N)
    expected = torch.arange(1, len(order) + 1) / cells
    assert (counts - expected).abs().max() <= 2 * len(grid)
    quarter = counts[:, len(order) // 4 - 1]
    assert quarter.min() > 0


def test_the_halton_order_starts_as_the_sequence_does() -> None:
    """(1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9) on 8 x 9 cells."""
    places = torch.stack(torch.unravel_index(halton_order((8, 9))[:4], (8, 9)), dim=1)
    assert places.tolist() == [[4, 3], [2, 6], [6, 1], [1, 4]]


@pytest.mark.parametrize(
    ("key", "value"), [("layers", 0), ("heads", 3), ("heads", 0), ("dropout", 1.0), ("steps", 0), ("width", 0)]
)
def test_impossible_network_sizes_are_refused(key: str, value: float) -> None:
    good = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0, "steps": 8}
    with pytest.raises(ValueError, match=f"{key} must.* got {value}"):
        MaskGIT([(2, 2)], [[4]], 0, **{**good, key: value})  # type: ignore[arg-type]
