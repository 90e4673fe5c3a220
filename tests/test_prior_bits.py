"""Laws of the masked prior on groups of bits: of a group what the masked prior's laws are of a code."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from quantizer_cases import small_quantizer
from torch import Tensor

from vqvae.errors import UserError
from vqvae.priors import maskgit
from vqvae.priors.digits import Bits, Factors, Flat
from vqvae.priors.masked import BitEmbedding
from vqvae.priors.maskgit import MaskGIT
from vqvae.priors.sampling import Known, Sampling

ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4) of two codes in two groups
EVERY = torch.tensor(list(itertools.product(range(4), repeat=2)))  # (16, 2): all codes of a grid of two, K = 4
COARSE_AND_FINE: tuple[list[tuple[int, ...]], list[list[int]]] = ([(2, 3), (4, 5)], [[2, 2], [4, 4, 4]])
SIZES = [4, 64]


def prior_of(shapes: list[tuple[int, ...]], digits: list[list[int]]) -> MaskGIT:
    torch.manual_seed(0)
    prior = MaskGIT(shapes, digits, 3, width=8, layers=2, heads=2, dropout=0.0, steps=3)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        torch.nn.init.normal_(parameter, std=0.4)
    return prior.eval()


@pytest.fixture(scope="module")
def tiny() -> MaskGIT:
    return prior_of([(2,)], [[2, 2]])


def logits_of(prior: MaskGIT, groups: Tensor, known: Tensor, label: int = 2) -> Tensor:
    condition = prior.condition(0, [], torch.full((len(groups),), label))
    return prior.networks[0].head.logits(prior.networks[0](groups, known, condition), dim=2)  # (B, N G, K)


def nats_in_order(prior: MaskGIT, groups: Tensor, order: Tensor) -> Tensor:
    """groups (n, 4) of class 2, drawn one by one in `order` (4,) -> their nats (n,), float64."""
    known, nats = torch.zeros_like(groups, dtype=torch.bool), torch.zeros(len(groups), dtype=torch.float64)
    for place in order:
        log_p = logits_of(prior, groups, known).double().log_softmax(2)
        nats -= log_p[torch.arange(len(groups)), place, groups[:, place]]
        known[:, place] = True
    return nats


# ---- groups


def test_groups_share_the_bits_of_a_power_of_two_evenly() -> None:
    assert Bits().of(2**18, [2**18]) == [512, 512]
    assert Bits(groups=3).of(512, [8, 64]) == [8, 8, 8]
    for size in (1000, 3, 2**20 - 1):
        with pytest.raises(UserError, match=f"needs a power of 2 of codes, and a map has {size}: take prior/head=flat"):
            Bits().of(size, [size])
    with pytest.raises(UserError, match=r"prior.head.groups=2 does not divide the 9 bits .* 512 codes: 3 or 9 does"):
        Bits().of(512, [512])
    for size in (1, 2):
        with pytest.raises(UserError, match=r"prior.head.groups=2 does not divide .*: no number of groups does"):
            Bits().of(size, [size])
    with pytest.raises(UserError, match="groups must be at least 2, got 1"):
        Bits(groups=1)


def test_priors_take_the_heads_that_they_can_predict() -> None:
    Flat().check(masks=True)
    Flat().check(masks=False)
    Bits().check(masks=True)
    Factors().check(masks=False)
    with pytest.raises(UserError, match="prior/head=bits is for prior=maskgit"):
        Bits().check(masks=False)
    with pytest.raises(UserError, match="a masked prior predicts codes whole, or in groups of as many bits"):
        Factors().check(masks=True)


@pytest.mark.parametrize("digits", [[2, 4], [3, 3]])
def test_groups_that_are_not_as_many_bits_are_refused(digits: list[int]) -> None:
    with pytest.raises(UserError, match="or in groups of as many bits: take prior/head=flat or bits"):
        prior_of([(2,)], [digits])


def test_a_code_is_its_groups_with_the_lowest_bits_first() -> None:
    network = prior_of([(2,)], [[8, 8]]).networks[0]
    codes = torch.arange(64).view(32, 2)
    groups = network.split(codes)
    assert torch.equal(groups, torch.stack([codes[:, 0] % 8, codes[:, 0] // 8, codes[:, 1] % 8, codes[:, 1] // 8], 1))
    assert torch.equal(network.join(groups), codes)


@pytest.mark.parametrize("preset", ["lfq", "bsq"])
@torch.no_grad()
def test_the_embedding_is_a_projection_of_signs_which_are_the_quantizers_own_and_0_where_hidden(preset: str) -> None:
    quantizer = small_quantizer(preset).eval()
    size, maps = quantizer.codebook_sizes[0], len(quantizer.codebook_sizes)
    bits = size.bit_length() - 1
    signs = quantizer.lookup(torch.arange(size)[:, None].expand(-1, maps))[:, :bits].sign()  # of the first map's codes
    signs = signs.flip(1)  # (K, bits), the lowest bit first
    half = 2 ** (bits // 2)
    embedding = BitEmbedding([half, half], 5)
    groups = torch.stack([torch.arange(size) % half, torch.arange(size) // half], 1)  # (K, 2)
    weight, bias = embedding.project.weight, embedding.project.bias
    torch.testing.assert_close(embedding(groups)[:, 0], signs @ weight.T + bias)
    groups[:, 1] = half  # no group has this value: it is hidden
    signs[:, bits // 2 :] = 0
    torch.testing.assert_close(embedding(groups)[:, 0], signs @ weight.T + bias)


def test_no_table_grows_with_the_number_of_codes() -> None:
    prior = MaskGIT([(2, 2)], [[2**9] * 4], 0, width=8, layers=1, heads=2, dropout=0.0, steps=2)  # 2^36 codes
    assert sum(p.numel() for p in prior.parameters()) < 25_000
    codes = prior.sample([0, 1], torch.tensor([-1, -1]), Sampling())
    assert codes[0].max() > 2**30
    assert prior(codes, torch.tensor([-1, -1])).loss.isfinite()


# ---- the likelihood


@torch.no_grad()
def test_the_bound_expects_the_mean_over_orders_of_groups_and_hidden_groups_alone_cost(
    tiny: MaskGIT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exhaustively over n and which n groups are hidden, all equally likely as `draw_weights` makes them."""
    every = tiny.networks[0].split(EVERY)  # (16, 4)
    in_order = torch.stack([nats_in_order(tiny, every, order) for order in ORDERS])  # (24, 16)
    torch.testing.assert_close((-in_order).exp().sum(1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-6)
    assert in_order.std(0).max() > 0.01  # so that orders differ
    expected = torch.zeros(16, dtype=torch.float64)
    for n in range(1, 5):
        for chosen in itertools.combinations(range(4), n):
            hidden = torch.isin(torch.arange(4), torch.tensor(chosen))
            monkeypatch.setattr(
                maskgit, "draw_weights", lambda *_, hidden=hidden, n=n: hidden * torch.full((16, 4), 4 / n)
            )
            nats = tiny([EVERY], torch.full((16,), 2)).nats[0]
            assert torch.equal(nats == 0, ~hidden.view(2, 2).any(1).expand(16, 2))
            expected += nats.double().sum(1) / (4 * math.comb(4, n))
    torch.testing.assert_close(expected, in_order.mean(0), rtol=0, atol=1e-5)
    mixture = -(torch.logsumexp(-in_order, 0) - math.log(24))
    assert torch.all(mixture < expected)


def test_the_loss_moves_nothing_by_groups_that_are_known(tiny: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the first groups has no gradient where only second ones are hidden."""
    monkeypatch.setattr(maskgit, "draw_weights", lambda groups, _: torch.tensor([[0.0, 2.0] * 2]).expand(16, 4))
    first, second = tiny.networks[0].head.heads
    gradients = torch.autograd.grad(tiny([EVERY], torch.full((16,), 2)).loss, [first.weight, second.weight])
    assert gradients[0].abs().max() == 0
    assert gradients[1].abs().max() > 0


@torch.no_grad()
def test_hidden_groups_have_no_influence_and_the_known_group_of_a_code_has_on_the_other(tiny: MaskGIT) -> None:
    groups, known = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[True, False, False, True]])
    plain = logits_of(tiny, groups, known)
    assert torch.equal(logits_of(tiny, torch.tensor([[0, 0, 0, 0]]), known), plain)
    changed = logits_of(tiny, torch.tensor([[1, 1, 1, 0]]), known)
    assert (changed != plain)[0, 1:].any(1).all()


@torch.no_grad()
def test_evaluation_is_deterministic_and_its_nats_are_the_loss() -> None:
    shapes, digits = COARSE_AND_FINE
    prior = prior_of(shapes, digits)
    codes = [torch.randint(k, (5, *shape)) for shape, k in zip(shapes, SIZES)]
    one, other = (prior(codes, torch.tensor([0, 1, 2, -1, 0])) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.nats, other.nats))
    assert [nats.shape for nats in one.nats] == [(5, *shape) for shape in shapes]
    assert one.loss.item() == pytest.approx(float(torch.cat([nats.flatten() for nats in one.nats]).mean()), rel=1e-5)
    assert prior.bits_name == "bits_per_code_bound"


# ---- sampling


@torch.no_grad()
def test_one_group_a_step_in_halton_order_draws_from_the_model_in_that_order(tiny: MaskGIT) -> None:
    """All first groups, then all second ones: frequencies of all 16 pairs of codes over 6,400 seeds."""
    count = 6400
    drawn = tiny.sample(list(range(count)), torch.full((count,), 2), Sampling(method="halton", steps=4))[0]
    share = torch.bincount((drawn * torch.tensor([4, 1])).sum(1), minlength=16) / count
    first = int(torch.argsort(tiny.networks[0].halton_rank)[0]) // 2  # the position
    order = torch.tensor([2 * first, 2 - 2 * first, 2 * first + 1, 3 - 2 * first])
    p = (-nats_in_order(tiny, tiny.networks[0].split(EVERY), order)).exp()
    errors = (share - p) / (p * (1 - p) / count).sqrt()
    assert errors.abs().max() < 4


@torch.no_grad()
def test_the_most_confident_groups_come_first(tiny: MaskGIT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgit, "GUMBEL_SCALE", 0.0)
    nothing = torch.zeros(1, 4, dtype=torch.int64)
    best = int(logits_of(tiny, nothing, nothing.bool()).softmax(2).amax(2).argmax())  # of four groups
    seen: list[tuple[Tensor, Tensor]] = []
    settings = Sampling(method="confidence", temperature=0, steps=4)
    network, forward = tiny.networks[0], type(tiny.networks[0]).forward

    def watch(self: object, groups: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        seen.append((groups.clone(), known.clone()))
        return forward(network, groups, known, condition)

    monkeypatch.setattr(type(network), "forward", watch)
    tiny.sample([0], torch.tensor([2]), settings)
    assert [int(known[0].sum()) for _, known in seen] == [0, 1, 2, 3]
    assert seen[1][1][0].nonzero().item() == best


@pytest.mark.parametrize("method", MaskGIT.methods)
@pytest.mark.parametrize("steps", [1, 3, 1000, None])
@torch.no_grad()
def test_any_number_of_steps_fills_every_position_and_codes_show_once_all_their_groups_are_known(
    method: str, steps: int | None
) -> None:
    prior, seen = prior_of(*COARSE_AND_FINE), []

    def watch(codes: list[Tensor], done: list[Tensor]) -> None:
        seen.append(([m.clone() for m in codes], [m.clone() for m in done]))

    drawn = prior.sample([3, 4], torch.tensor([0, -1]), Sampling(method=method, steps=steps), on_progress=watch)
    for codes, done in seen:
        assert all(torch.equal(c[:2][d[:2]], x[d[:2]]) for c, d, x in zip(codes, done, drawn))
    assert all(bool(m.all()) for m in seen[-1][1])
    assert all(m.min() >= 0 and m.max() < k for m, k in zip(drawn, SIZES))
    if steps == 1000:
        assert len(seen) == 6 * 2 + 20 * 3  # one group a call


@pytest.mark.parametrize("method", MaskGIT.methods)
@torch.no_grad()
def test_a_sample_depends_on_its_seed_class_and_known_codes_alone_and_keeps_these(method: str) -> None:
    shapes, _ = COARSE_AND_FINE
    prior = prior_of(*COARSE_AND_FINE)
    count = prior.samples_at_a_time + 3
    codes = [torch.randint(k, (count, *shape)) for shape, k in zip(shapes, SIZES)]
    kept = [torch.rand(one.shape) < torch.linspace(0, 1, count).view(-1, 1, 1) for one in codes]  # none .. all
    labels = torch.arange(count) % 3
    settings = Sampling(method=method, guidance=2.0, guidance_schedule="linear", top_p=0.9, steps=5)
    many = prior.sample(list(range(count)), labels, settings, Known(codes, kept))
    for m, one in enumerate(many):
        assert torch.equal(one[kept[m]], codes[m][kept[m]])
    assert len({tuple(torch.cat([a.flatten(), b.flatten()]).tolist()) for a, b in zip(*many)}) == count
    for i in (0, 9, count // 2, count - 1):
        part = slice(i, i + 1)
        hidden = [torch.where(b[part], a[part], 0) for a, b in zip(codes, kept)]  # what is not kept does not matter
        alone = prior.sample([i], labels[part], settings, Known(hidden, [b[part] for b in kept]))
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, many))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.4}, {"top_k": 2}, {"top_p": 0.5}, {"guidance": 3.0}, {"temperature": 0.0}]
)
@torch.no_grad()
def test_settings_act_on_each_group(settings: dict[str, float]) -> None:
    """In one step the groups of a code are independent: p(code) is the product of what each group's p becomes by them."""
    prior, count = prior_of([(1,)], [[4, 4]]), 6400
    nothing = torch.zeros(1, 2, dtype=torch.int64)
    with_class, without = (logits_of(prior, nothing, nothing.bool(), label)[0].double() for label in (1, -1))
    logits = without + settings.get("guidance", 1.0) * (with_class - without)  # (2, 4)
    wanted = (logits / max(settings.get("temperature", 1.0), 1e-6)).softmax(1)
    ranked, order = wanted.sort(descending=True, dim=1)
    kept = ranked.cumsum(1) - ranked < settings.get("top_p", 1.0)
    kept &= torch.arange(4) < settings.get("top_k", 4)
    wanted = torch.zeros_like(wanted).scatter_(1, order, ranked * kept)
    low, high = wanted / wanted.sum(1, keepdim=True)
    drawn = prior.sample(list(range(count)), torch.full((count,), 1), Sampling(steps=1, **settings))[0].flatten()  # type: ignore[arg-type]
    share = torch.bincount(drawn, minlength=16) / count
    p = (high[:, None] * low).flatten()
    assert torch.all((share - p).abs() <= 4.5 * (p * (1 - p) / count).sqrt() + 1e-6)
