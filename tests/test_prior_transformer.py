"""Laws of the transformer prior: its cache, its random orders of training, and grids of any number of dims."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from test_priors import logits_of
from torch import Tensor, nn

from vqvae.priors.sampling import Known, Sampling
from vqvae.priors.transformer import Transformer, TransformerMap

MAPS = {
    "one dim": ([(6,)], [5]),
    "three dims": ([(2, 3, 2)], [5]),
    "coarse and fine in three dims": ([(1, 2, 2), (2, 2, 4)], [5, 7]),
    "three maps": ([(1, 2), (2, 3), (4, 5)], [4, 6, 5]),
}


def transformer(maps: tuple[list[tuple[int, ...]], list[int]], **changes: Any) -> Transformer:
    torch.manual_seed(0)
    settings = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "random_order_until": 0.5, **changes}
    shapes, sizes = maps
    prior = Transformer(shapes, [[size] for size in sizes], num_classes=3, **settings)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        nn.init.normal_(parameter, std=0.3)
    return prior.eval()


def set_share(prior: Transformer, share: float) -> None:
    for network in prior.networks:
        network.random_share.fill_(share)


def random_codes(maps: tuple[list[tuple[int, ...]], list[int]], batch: int) -> list[Tensor]:
    return [torch.randint(size, (batch, *shape)) for shape, size in zip(*maps)]


# ---- the cache


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", MAPS)
def test_the_cache_draws_the_codes_of_the_whole_network(name: str, guidance: float) -> None:
    """In float64, with a class and without, guided and not, with coarser maps, and with codes that are known."""
    prior, labels = transformer(MAPS[name]).double(), torch.tensor([0, 2, -1])
    codes = random_codes(MAPS[name], 3)
    known = Known(codes, [torch.rand(one.shape) < 0.3 for one in codes])
    for kept in (None, known):
        cached, uncached = (
            prior.sample([4, 5, 6], labels, Sampling(method=method, guidance=guidance, temperature=2), kept)
            for method in ("cached", "uncached")
        )
        assert all(torch.equal(a, b) for a, b in zip(cached, uncached))


@pytest.mark.parametrize("name", MAPS)
@torch.no_grad()
def test_logits_from_the_cache_are_those_of_the_whole_network(name: str) -> None:
    prior, labels = transformer(MAPS[name]), torch.tensor([1, 0, -1])
    codes = random_codes(MAPS[name], 3)
    for m, (network, whole) in enumerate(zip(prior.networks, logits_of(prior, codes, labels))):
        cache, flat = network.begin(prior.condition(m, codes, labels)), codes[m].flatten(1)
        cached = torch.stack(
            [network.head.logits(network.next_hidden(cache, flat, i)) for i in range(flat.shape[1])], dim=2
        )
        assert (cached - whole.flatten(2)).abs().max() <= 1e-4 * max(1, whole.abs().max())


@torch.no_grad()
def test_the_cache_does_one_position_of_work_for_a_code() -> None:
    """Every linear layer sees one row a sample at each call, whatever the position."""
    prior = transformer(MAPS["one dim"])
    (network,), rows = prior.networks, set()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, inputs, __: rows.add(inputs[0].numel() // inputs[0].shape[-1]))
    cache, codes = (
        network.begin(prior.condition(0, [], torch.tensor([0, 1]))),
        torch.zeros(2, 6, dtype=torch.int64),
    )
    for position in range(6):
        network.next_hidden(cache, codes, position)
    assert rows == {2}


# ---- random orders


def every_code(count: int, codebook_size: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(codebook_size), repeat=count)))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
@torch.no_grad()
def test_the_likelihood_in_any_order_sums_to_one(order: list[int]) -> None:
    prior = transformer(([(2, 2)], [3]))
    codes = every_code(4, 3)  # (81, 4)
    condition = prior.condition(0, [], torch.full((len(codes),), 2))
    hidden = prior.networks[0].hidden_in_order(codes, condition, torch.tensor(order).expand(len(codes), -1))
    log_p = (
        prior.networks[0].head.logits(hidden, dim=2).double().log_softmax(2).gather(2, codes[:, :, None]).sum((1, 2))
    )
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_in_a_random_order_a_code_depends_on_all_codes_before_it_in_that_order_and_on_no_other() -> None:
    prior = transformer(MAPS["three dims"])
    (network,), condition = prior.networks, prior.condition(0, [], torch.tensor([1]))
    (codes,) = (one.flatten(1) for one in random_codes(MAPS["three dims"], 1))
    order = torch.randperm(12)[None]
    before = network.hidden_in_order(codes, condition, order)
    for rank, position in enumerate(order[0].tolist()):
        changed = codes.clone()
        changed[0, position] = (changed[0, position] + 1) % 5
        differs = (network.hidden_in_order(changed, condition, order) != before).any(2)[0]
        assert set(differs.nonzero()[:, 0].tolist()) == set(order[0, rank + 1 :].tolist())


@torch.no_grad()
def test_conditions_stay_with_their_positions_in_a_random_order() -> None:
    """The first code predicted has the condition of its own position, and of no other."""
    prior = transformer(([(2, 3)], [4]))
    (network,), codes = prior.networks, torch.zeros(1, 6, dtype=torch.int64)
    order, condition = torch.tensor([[4, 1, 0, 5, 2, 3]]), torch.randn(1, 16, 2, 3)
    before, delta = network.hidden_in_order(codes, condition, order), torch.randn(16)
    for position in range(6):
        changed = condition.clone()
        changed.view(16, 6)[:, position] += delta
        changed.view(16, 6)[:, 3 if position != 3 else 5] -= delta  # their mean modulates all; it stays
        first = network.hidden_in_order(codes, changed, order)[0, 4]
        assert torch.allclose(first, before[0, 4], rtol=1e-4, atol=1e-4) == (position != 4)


@torch.no_grad()
def test_an_explicit_raster_order_equals_no_order() -> None:
    prior = transformer(MAPS["three dims"])
    (network,), condition = prior.networks, prior.condition(0, [], torch.tensor([1, 0]))
    (codes,) = (one.flatten(1) for one in random_codes(MAPS["three dims"], 2))
    written = network.hidden_in_order(codes, condition, torch.arange(12).expand(2, -1))
    torch.testing.assert_close(written, network.hidden_in_order(codes, condition, None))


def test_the_share_of_random_orders_falls_linearly_from_one_to_zero_and_stays_there() -> None:
    prior, shares = transformer(MAPS["three maps"], random_order_until=0.8), []
    for step in range(100):
        prior.begin_step(step, 100)
        assert len({network.random_share.item() for network in prior.networks}) == 1
        shares.append(prior.networks[0].random_share.item())
    assert shares == pytest.approx([max(0, 1 - step / 80) for step in range(100)], abs=1e-6)


def test_orders_are_permutations_and_as_many_random_ones_as_asked_for() -> None:
    prior = transformer(([(2, 4)], [3]))
    (network,) = prior.networks
    torch.manual_seed(1)
    for share in (0.0, 0.25, 1.0):
        set_share(prior, share)
        order = network.draw_order(2000)
        assert torch.equal(order.sort(1).values, torch.arange(8).expand(2000, -1))
        raster = (order == torch.arange(8)).all(1).float().mean().item()
        assert abs(raster - (1 - share)) <= 4 * math.sqrt(share * (1 - share) / 2000) + 1 / 200
    firsts = torch.bincount(order[:, 0], minlength=8) / 2000
    assert (firsts - 1 / 8).abs().max() < 4 * math.sqrt(1 / 8 * 7 / 8 / 2000)


def test_only_training_follows_random_orders() -> None:
    maps = MAPS["coarse and fine in three dims"]
    prior, plain = transformer(maps), transformer(maps, random_order_until=0.0)
    codes, labels = random_codes(maps, 4), torch.tensor([0, 1, 2, -1])
    wanted = plain(codes, labels).nats
    for share in (0.0, 0.5, 1.0):
        set_share(prior, share)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(prior(codes, labels).nats, wanted))
    prior.train()
    assert not torch.equal(prior(codes, labels).nats[1], wanted[1])
    set_share(prior, 0.0)
    torch.testing.assert_close(prior(codes, labels).nats, wanted)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_parameter_has_a_gradient(share: float) -> None:
    maps = MAPS["three maps"]
    prior = transformer(maps).train()
    set_share(prior, share)
    prior(random_codes(maps, 64), torch.randint(-1, 3, (64,))).loss.backward()
    assert not [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_step_of_training_is_one_graph_whatever_the_share() -> None:
    maps = MAPS["coarse and fine in three dims"]
    prior, calls = transformer(maps).train(), []

    def count(graph: Any, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(prior, fullgraph=True, backend=count)
    codes, labels = random_codes(maps, 4), torch.zeros(4, dtype=torch.int64)
    for step in (0, 3, 9):
        prior.begin_step(step, 10)
        torch.manual_seed(step)
        loss = compiled(codes, labels).loss
        torch.manual_seed(step)
        torch.testing.assert_close(loss, prior(codes, labels).loss)
    assert len(calls) == 1


def test_random_orders_leave_no_trace_in_the_saved_state() -> None:
    maps = MAPS["one dim"]
    assert transformer(maps).state_dict().keys() == transformer(maps, random_order_until=0.0).state_dict().keys()


# ---- learning, and what is refused


@pytest.mark.parametrize("until", [0.0, 0.6])
def test_it_learns_to_copy_the_row_above(until: float) -> None:
    """The second row repeats the first: log(4) nats for each code of the first, and 0 for those of the second."""
    torch.manual_seed(0)
    prior = Transformer([(2, 4)], [[4]], 0, 32, 2, 2, 0.0, until).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    row, labels = torch.randint(4, (2048, 1, 4)), torch.full((64,), -1)
    codes = row.repeat(1, 2, 1)  # (2048, 2, 4)
    for step in range(300):
        prior.begin_step(step, 300)
        prior([codes[torch.randint(2048, (64,))]], labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (nats,) = prior.eval()([codes[:256]], labels[:1].expand(256)).nats
    assert nats[:, 0].mean().item() == pytest.approx(math.log(4), abs=0.1)
    assert nats[:, 1].mean().item() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads must divide half of width=16, got 3"),
        ({"heads": 0}, "got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be below 1, got 1.0"),
        ({"random_order_until": 1.5}, "random_order_until must be at most 1, got 1.5"),
        ({"random_order_until": -0.1}, "got -0.1"),
    ],
)
def test_impossible_network_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformer(MAPS["one dim"], **changes)


def test_logits_have_the_shape_of_the_grid() -> None:
    for shapes, sizes in MAPS.values():
        prior = transformer((shapes, sizes))
        logits = logits_of(prior, random_codes((shapes, sizes), 2), torch.tensor([0, -1]))
        assert [one.shape for one in logits] == [(2, size, *shape) for shape, size in zip(shapes, sizes)]
        assert all(isinstance(network, TransformerMap) for network in prior.networks)
