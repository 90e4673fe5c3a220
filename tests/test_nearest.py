"""Laws of the nearest code: chunked, compiled, fused and sampled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quantizer_cases import needs_compiler
from torch import Tensor

from vqvae.networks import linear
from vqvae.quantizers import nearest
from vqvae.quantizers.nearest import CPU_CHUNK_ELEMENTS, nearest_code, nearest_code_sampled, nearest_codes

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"euclidean": 2.0, "l1": 1.0, "linf": float("inf")}
SHAPES = [(1, 1, 1), (1, 2, 1), (37, 5, 3), (CPU_CHUNK_ELEMENTS // 4096 + 3, 4096, 8), (50, 150_000, 2)]


def excess(z: Tensor, codes: Tensor, chosen: Tensor, norm: float) -> float:
    """The distance to the chosen codes less the distance to the nearest ones, in float64."""
    worst = 0.0
    for rows in torch.arange(len(z)).split(20):
        distance = torch.cdist(z[rows].double(), codes.double(), p=norm)
        worst = max(worst, float((distance.gather(1, chosen[rows, None])[:, 0] - distance.amin(1)).max()))
    return worst


def in_new_process(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "k", "d"), SHAPES)
def test_nearest_code_agrees_with_brute_force_in_float64(n: int, k: int, d: int, metric: str) -> None:
    torch.manual_seed(n)
    z, codes = torch.randn(n, d), torch.randn(k, d)
    assert excess(z, codes, nearest_code(z, codes, metric), METRICS[metric]) <= 1e-5


@pytest.mark.parametrize("metric", METRICS)
def test_the_lowest_index_of_equal_codes_wins(metric: str) -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert nearest_code(torch.tensor([[0.0, 2.0]]), codes, metric).tolist() == [1]
    torch.manual_seed(0)
    few = torch.randn(30, 4)
    assert nearest_code(torch.randn(500, 4), few.repeat(40, 1), metric).max() < 30


@pytest.mark.parametrize("metric", METRICS)
def test_no_vectors_have_no_codes(metric: str) -> None:
    z, codes = torch.empty(0, 2), torch.randn(3, 2)
    assert nearest_code(z, codes, metric).shape == (0,)
    assert nearest_code_sampled(z, codes, 1.0).shape == (0,)
    assert [tuple(t.shape) for t in nearest_codes(z, codes, 2)] == [(0, 2), (0, 2)]


@pytest.mark.parametrize("metric", METRICS)
def test_nearest_code_is_exact_far_from_the_origin(metric: str) -> None:
    codes = torch.tensor([[1000.0, 1000.0], [1000.25, 1000.0]])
    assert nearest_code(codes, codes, metric).tolist() == [0, 1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_gets_a_valid_index_and_disturbs_no_other(metric: str, value: float) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(40, 3), torch.randn(37, 3)  # 37: the last group has fillers
    expected = nearest_code(z, codes, metric)
    z[7, 1] = value
    for chosen in (nearest_code(z, codes, metric), nearest_codes(z, codes, 3)[0], nearest_code_sampled(z, codes, 1.0)):
        assert int(chosen.min()) >= 0
        assert int(chosen.max()) < 37
    others = torch.arange(40) != 7
    assert torch.equal(nearest_code(z, codes, metric)[others], expected[others])


@pytest.mark.parametrize("metric", METRICS)
def test_the_layout_in_memory_changes_nothing(metric: str) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(16, 300), torch.randn(16, 70)
    contiguous = nearest_code(z.t().contiguous(), codes.t().contiguous(), metric)
    assert torch.equal(nearest_code(z.t(), codes.t(), metric), contiguous)


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown metric 'l3'; choose euclidean, l1 or linf"):
        nearest_code(torch.randn(2, 2), torch.randn(2, 2), "l3")


def test_the_operators_keep_the_contract_of_torch_library() -> None:
    z, codes = torch.randn(9, 3), torch.randn(5, 3)
    for operator, extra in [
        (nearest_code, ("euclidean",)),
        (nearest_codes, (2,)),
        (nearest.sampled_code, (torch.tensor(1.0), torch.rand(9, 2))),
    ]:
        torch.library.opcheck(operator, (z, codes, *extra), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("n", "k", "d", "wanted"), [(1, 1, 1, 1), (37, 5, 3, 5), (300, 4097, 8, 6)])
def test_the_k_nearest_are_those_of_brute_force_in_order(n: int, k: int, d: int, wanted: int) -> None:
    torch.manual_seed(n)
    z, codes = torch.randn(n, d), torch.randn(k, d)
    indices, scores = nearest_codes(z, codes, wanted)
    distance = torch.cdist(z.double(), codes.double()).square()
    expected = distance.sort(dim=1)
    assert torch.equal(indices, expected.indices[:, :wanted])
    torch.testing.assert_close(scores.double(), -expected.values[:, :wanted], rtol=1e-4, atol=1e-6)


def test_of_equal_codes_among_the_k_nearest_the_lowest_index_comes_first() -> None:
    codes = torch.tensor([[5.0], [1.0], [1.0], [0.0], [1.0]])
    assert nearest_codes(torch.tensor([[0.9]]), codes, 4)[0].tolist() == [[1, 2, 4, 3]]


def test_sampled_codes_follow_the_softmax_of_negative_squared_distances() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(1, 3).expand(40_000, 3), torch.randn(21, 3)
    drawn = nearest_code_sampled(z, codes, torch.tensor(1.5))
    expected = torch.softmax(-torch.cdist(z[:1], codes).square() / 1.5, 1)[0] * 40_000
    observed = torch.bincount(drawn, minlength=21)
    likely = expected > 5
    chi_square = ((observed - expected).square() / expected)[likely].sum()
    degrees = int(likely.sum())
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_sampling_at_a_low_temperature_takes_the_nearest_code() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(500, 3), torch.randn(100, 3)
    assert torch.equal(nearest_code_sampled(z, codes, 1e-7), nearest_code(z, codes))


def test_samples_follow_the_seed_and_not_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codes = torch.randn(300, 3), torch.randn(50, 3)
    torch.manual_seed(3)
    first = nearest_code_sampled(z, codes, 1.0)
    monkeypatch.setattr(nearest, "CPU_CHUNK_ELEMENTS", 32 * 50)
    torch.manual_seed(3)
    assert torch.equal(nearest_code_sampled(z, codes, 1.0), first)


def test_without_a_compiler_the_other_metrics_still_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(metric: str) -> object:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(nearest, "broken", set())
    monkeypatch.setattr(nearest, "COMPILE_FROM", 0)
    monkeypatch.setattr(nearest, "compiled", lambda metric: no_compiler)
    z, codes = torch.randn(30, 4), torch.randn(20, 4)
    with pytest.warns(UserWarning, match="slower way"):
        chosen = nearest_code(z, codes, "l1")
    assert excess(z, codes, chosen, 1.0) <= 1e-5


def test_without_onednn_the_codes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(500, 16), torch.randn(100, 16)
    expected = nearest_code(z, codes)
    monkeypatch.setattr(linear, "has_onednn", lambda: False)
    assert torch.equal(nearest_code(z, codes), expected)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("metric", ["l1", "linf"])
def test_the_compiled_kernel_agrees_with_brute_force(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(nearest, "broken", set())
    monkeypatch.setattr(nearest, "COMPILE_FROM", 0)
    for n, k, d in [(1, 2, 1), (37, 5, 3), (300, 4097, 8), (1000, 512, 64)]:
        z, codes = torch.randn(n, d), torch.randn(k, d)
        assert excess(z, codes, nearest_code(z, codes, metric), METRICS[metric]) <= 1e-5
    assert not nearest.broken  # it was the kernel that answered


# ---- memory, in a process of its own


PEAK = """
import resource, torch
torch.set_num_threads(1)
from vqvae.quantizers.nearest import nearest_code, nearest_code_sampled, nearest_codes
lookup = {lookup}
z, codes = torch.randn(65_536, 32), torch.randn(16_384, 32)
lookup(z[:2048], codes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lookup(z[:{count}], codes)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak_mb(lookup: str, count: int) -> int:
    """MB by which a lookup of `count` vectors raises the memory peak over that of 2048 vectors; one chunk is 64."""
    return int(in_new_process(PEAK.format(lookup=lookup, count=count)))


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
def test_65536_vectors_against_16384_codes_take_less_than_200_mb() -> None:
    assert peak_mb("nearest_code", 65_536) < 200


TRAINING_STEP = """
import resource, torch
torch.set_num_threads(1)
from scripts.benchmarks.quantizers import our_quantizer
quantizer = our_quantizer(torch.randn(16_384, 32), [])
def step(z):
    quantizer.begin_step(0, 1)
    out = quantizer(z)
    (out.z_q.sum() + out.losses["commitment"].value).backward()
    quantizer.after_step(torch.tensor(True))
z = torch.randn(1, 32, 65_536, requires_grad=True)
step(z[:, :, :2048])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(z)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
def test_a_whole_training_step_of_an_ema_codebook_takes_less_than_200_mb() -> None:
    assert int(in_new_process(TRAINING_STEP)) < 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
@pytest.mark.parametrize(
    "lookup",
    [
        "lambda z, e: nearest_code(z, e, 'l1')",
        "lambda z, e: nearest_code(z, e, 'linf')",
        "lambda z, e: nearest_codes(z, e, 5)",
        "lambda z, e: nearest_code_sampled(z, e, 1.0)",
    ],
)
def test_no_lookup_fills_n_times_k(lookup: str) -> None:
    assert peak_mb(lookup, 65_536) < 200


# ---- the Triton kernel, interpreted on the CPU


TRITON = """
import torch
from vqvae.quantizers.nearest import nearest_code
from vqvae.quantizers.nearest_triton import nearest_code_triton
torch.manual_seed(0)
for n, k, d in [(1, 1, 1), (130, 70, 3), (33, 40, 128), (33, 150, 200)]:
    z, codes = torch.randn(n, d), torch.randn(k, d) + 3
    expected = nearest_code(z, codes)
    assert torch.equal(nearest_code_triton(z, codes), expected), (n, k, d)
    assert torch.equal(nearest_code_triton(z.t().contiguous().t(), codes.t().contiguous().t()), expected), (n, k, d)
whole = torch.randint(-9, 9, (40, 4)).float()  # whole numbers around 0: exact sums, whatever their order
codes = torch.cat([whole, -whole]).repeat(3, 1)
assert nearest_code_triton(torch.randint(-9, 9, (50, 4)).float(), codes).max() < 80
assert nearest_code_triton(torch.empty(0, 4), torch.randn(3, 4)).shape == (0,)
print("equal")
"""


@pytest.mark.skipif(not nearest.has_triton(), reason="triton is not installed")
def test_the_triton_kernel_chooses_the_codes_of_the_chunked_path() -> None:
    assert in_new_process(TRITON, TRITON_INTERPRET="1") == "equal"
