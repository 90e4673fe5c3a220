"""Laws of the WaveNet prior: receptive field, the cache's exactness and its constant cost."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_priors import logits_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqvae.config.build import build
from vqvae.config.compose import compose, resolve
from vqvae.priors.sampling import Sampling
from vqvae.priors.wavenet import WaveNet, WaveNetMap

MAPS = {
    "longer than the receptive field": ([(45,)], [5]),
    "not square": ([(4, 7)], [6]),
    "three dims": ([(2, 3, 4)], [6]),
    "coarse and fine": ([(5,), (20,)], [4, 6]),
    "one code": ([(1,)], [4]),
}


def network_of(shapes: list[tuple[int, ...]], sizes: list[int], layers: int = 6, cycle: int = 3) -> WaveNet:
    """Dilations 1, 2, 4, 1, 2, 4: a code sees the 15 before it."""
    torch.manual_seed(0)
    prior = WaveNet(shapes, [[size] for size in sizes], num_classes=3, width=6, layers=layers, cycle=cycle, dropout=0.0)
    for parameter in prior.parameters():  # larger than usual, so that every path shows in the logits
        torch.nn.init.normal_(parameter, std=0.4)
    return prior.double().eval()


def random_codes(shapes: list[tuple[int, ...]], sizes: list[int], batch: int = 1) -> list[Tensor]:
    return [torch.randint(size, (batch, *shape)) for shape, size in zip(shapes, sizes)]


def seen_from(prior: WaveNet, shape: tuple[int, ...], size: int, position: int) -> list[int]:
    """Flat positions whose code has an influence on the logits at `position`."""
    codes, labels = random_codes([shape], [size]), torch.tensor([1])
    before = logits_of(prior, codes, labels)[0].flatten(2)[..., position]
    seen = []
    for index in range(codes[0].numel()):
        changed = codes[0].clone()
        changed.view(-1)[index] = (changed.view(-1)[index] + 1) % size
        if not torch.equal(logits_of(prior, [changed], labels)[0].flatten(2)[..., position], before):
            seen.append(index)
    return seen


@pytest.mark.parametrize("shape", [(45,), (5, 9), (3, 3, 5)])
@pytest.mark.parametrize("position", [0, 1, 9, 20, 44])
def test_logits_see_the_codes_of_the_receptive_field_in_raster_order_and_no_other(
    shape: tuple[int, ...], position: int
) -> None:
    prior = network_of([shape], [5])
    field = prior.networks[0].receptive_field
    assert field == 15
    assert seen_from(prior, shape, 5, position) == list(range(max(0, position - field), position))


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (8,), (9,), (10,), (4, 4)])
def test_no_dilation_reaches_beyond_the_sequence_and_a_cycle_still_covers_it(shape: tuple[int, ...]) -> None:
    network = network_of([shape], [4], layers=10, cycle=10).networks[0]
    count = torch.Size(shape).numel()
    assert all(layer.dilation <= max(1, count - 2) for layer in network.layers)  # further back is no code
    assert network.receptive_field >= count - 1


def test_the_receptive_field_of_the_default_covers_1024_codes() -> None:
    node = resolve(compose("train", ["prior=wavenet"])).prior.network
    prior = build(node, "prior.network", code_shapes=[(4096,)], digits=[[8]], num_classes=0)
    assert prior.networks[0].receptive_field >= 1024


@pytest.mark.parametrize(("maps", "guidance"), itertools.product(MAPS, [1.0, 2.5]))
def test_cached_and_uncached_sampling_give_equal_codes(maps: str, guidance: float) -> None:
    shapes, sizes = MAPS[maps]
    prior = network_of(shapes, sizes)
    seeds, labels = [3, 4, 5], torch.tensor([0, 2, -1])
    drawn = {
        method: prior.sample(seeds, labels, Sampling(method=method, guidance=guidance)) for method in prior.methods
    }
    for codes in drawn.values():
        assert all(torch.equal(a, b) for a, b in zip(codes, drawn["uncached"]))


@torch.no_grad()
@pytest.mark.parametrize(("maps", "dtype"), itertools.product(MAPS, [torch.float64, torch.float32]))
def test_cached_logits_are_those_of_the_whole_network(maps: str, dtype: torch.dtype) -> None:
    shapes, sizes = MAPS[maps]
    prior, labels = network_of(shapes, sizes).to(dtype), torch.tensor([0, 1, 2, -1])
    codes = random_codes(shapes, sizes, batch=4)
    for m, (network, wanted) in enumerate(zip(prior.networks, logits_of(prior, codes, labels))):
        assert isinstance(network, WaveNetMap)
        flat, cache = codes[m].flatten(1), network.begin(prior.condition(m, codes, labels))
        logits = [network.head.logits(network.next_hidden(cache, flat, position)) for position in range(flat.shape[1])]
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(torch.stack(logits, 2), wanted.flatten(2), atol=tolerance, rtol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("maps", ["longer than the receptive field", "coarse and fine"])
def test_a_code_costs_the_same_work_at_every_position(maps: str) -> None:
    shapes, sizes = MAPS[maps]
    prior, labels = network_of(shapes, sizes), torch.tensor([0, 1])
    codes = random_codes(shapes, sizes, batch=2)
    m = len(shapes) - 1
    network, flat = prior.networks[m], codes[m].flatten(1)
    cache, work = network.begin(prior.condition(m, codes, labels)), []
    for position in range(flat.shape[1]):
        with FlopCounterMode(display=False) as counter:
            network.next_hidden(cache, flat, position)
        work.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        network(codes[m], prior.condition(m, codes, labels))
    assert set(work[1:]) == {work[-1]}  # the first is cheaper where begin() has made its condition
    assert 0 < sum(work) <= counter.get_total_flops()  # and all together no more than the whole network once


@pytest.mark.parametrize(("key", "value"), [("layers", 0), ("cycle", 0), ("dropout", 1.0), ("width", 0)])
def test_impossible_network_sizes_are_refused(key: str, value: float) -> None:
    sizes = {"width": 8, "layers": 2, "cycle": 2, "dropout": 0.0, key: value}
    with pytest.raises(ValueError, match=key):
        WaveNet([(4,)], [[4]], 0, **sizes)  # type: ignore[arg-type]
