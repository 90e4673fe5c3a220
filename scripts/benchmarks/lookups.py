"""The nearest code on a GPU: its speed against other ways, how often they err, and tiles of the kernel."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.benchmarks.quantizers import PEER, has_peer, in_turns, our_quantizer, peer_quantizer, ratio, step_pair
from scripts.benchmarks.report import Report, seconds_per_call
from vqvae import distributed
from vqvae.quantizers.nearest import best, chunks, euclidean_scores, nearest_code
from vqvae.run.tables import table

ON_GPU = torch.cuda.is_available()
SIZES = [  # vectors, codes, width
    (65536, 16384, 64),
    (65536, 16384, 128),
    (65536, 16384, 256),
    (65536, 1024, 64),
    (65536, 16384, 32),
    (65536, 8192, 8),
]
STEPS = [(8192, 512, 64), (65536, 1024, 64), (65536, 16384, 32)]
GEMM = 8192
# Tiles to try beside those of nearest_triton: rows, codes, dims at a time, warps, stages.
CANDIDATES = {256: [(128, 128, 32, 8, 3), (64, 128, 32, 4, 3), (128, 64, 32, 8, 3)]}
if not ON_GPU:
    SIZES, STEPS, GEMM = [(300, 100, 16), (300, 100, 200)], [(300, 100, 16)], 64

Way = Callable[[Tensor, Tensor], Tensor]


# ---- ways to the nearest code


def chunked(z: Tensor, codes: Tensor) -> Tensor:
    scores = euclidean_scores(codes)
    return torch.cat([best(scores(rows)) for rows in chunks(z, codes)]).clamp_max_(len(codes) - 1)


def by_cdist(z: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(z, codes).argmin(1)


def in_bf16(z: Tensor, codes: Tensor) -> Tensor:
    weights, bias = codes.bfloat16(), codes.square().sum(1) * -0.5
    return torch.cat([((rows @ weights.t()).float() + bias).argmax(1) for rows in z.bfloat16().split(16384)])


def by_peer(codes: Tensor) -> Way:
    peer = peer_quantizer(codes, our_quantizer(codes.cpu(), [])).to(codes.device).eval()
    return lambda z, _: peer(z[None])[1][0]


def in_float64(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """-> the least distance (N,), and the index of the nearest code (N,)."""
    parts = [torch.cdist(rows.double(), codes.double()).min(1) for rows in z.split(4096)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def vectors(count: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, dim, device=distributed.device()), torch.randn(size, dim, device=distributed.device())


# ---- speed


@torch.no_grad()
def lookups(report: Report) -> None:
    """TFLOP/s of every way at every size, the share of vectors whose code is not that of float64, and ratios."""
    limit = gemms(report) / 3
    for count, size, dim in SIZES:
        title = f"nearest code ({count}, {size}, {dim})"
        with report.guarded(title):
            z, codes = vectors(count, size, dim)
            exact, work = in_float64(z, codes)[1], 2e-12 * count * size * dim
            ways: dict[str, Way] = {"ours": nearest_code, "chunked": chunked, "cdist": by_cdist, "bf16": in_bf16}
            if has_peer():
                ways[PEER] = by_peer(codes)
            rates = {}
            for name, way in ways.items():
                rates[name] = report.rate(
                    f"{title}: {name}, TFLOP/s",
                    work,
                    lambda way=way: seconds_per_call(lambda: way(z, codes), 0.2),  # type: ignore[misc]  # noqa: B023
                )
                with report.guarded(f"{title}: {name}, wrong"):
                    report.add(f"{title}: {name}, share of other codes", wrong(way(z, codes), exact))
            report.ratio(f"{title}: ours / three TF32 products", rates["ours"], limit)
            report.ratio(f"{title}: ours / best other in float32", rates["ours"], max(rates["chunked"], rates["cdist"]))


def wrong(chosen: Tensor, exact: Tensor) -> float:
    return float((chosen != exact).double().mean())


def gemms(report: Report) -> float:
    """TFLOP/s of bare products of large matrices; returns that in TF32."""
    a = torch.randn(GEMM, GEMM, device=distributed.device())
    half, work = a.bfloat16(), 2e-12 * GEMM**3
    report.rate("GEMM in bf16, TFLOP/s", work, lambda: seconds_per_call(lambda: half @ half, 0.2))
    report.rate("GEMM in float32, TFLOP/s", work, lambda: seconds_per_call(lambda: a @ a, 0.2))
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return report.rate("GEMM in TF32, TFLOP/s", work, lambda: seconds_per_call(lambda: a @ a, 0.2))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's default


def steps_against_peer(report: Report, overrides: list[str]) -> None:
    """Milliseconds of a training step of the quantizer, and of vector-quantize-pytorch's where it is installed."""
    for count, size, dim in STEPS:
        title = f"quantizer step ({count}, {size}, {dim})"
        with report.guarded(title):
            times = in_turns(step_pair(*vectors(count, size, dim), overrides))
            for name, seconds in times.items():
                report.add(f"{title}: {name}, ms", 1e3 * statistics.median(seconds))
            if "peer" in times:
                report.add(f"{title}: ours is faster than {PEER} by", ratio(times, "peer", "ours"))


def quantizers_on_gpu(overrides: list[str], folder: str) -> None:
    report = Report()
    lookups(report)
    steps_against_peer(report, overrides)


# ---- tiles of the kernel


def tiles_of_width(width: int) -> list[tuple[int, ...]]:
    """That which is used, those to try, and that of smaller cards."""
    from vqvae.quantizers.nearest_triton import SMALL_TILES, TILES  # imports triton

    return [TILES[width], *CANDIDATES.get(width, []), SMALL_TILES[width]]


def tiles(overrides: list[str], folder: str) -> None:
    """The speed of every tile alone."""
    tile_speeds(Report())


@torch.no_grad()
def tile_speeds(report: Report) -> None:
    """TFLOP/s of every tile."""
    from vqvae.quantizers.nearest_triton import Tile, nearest_code_triton

    count, size = (65536, 16384) if ON_GPU else (200, 70)
    for width in (256, 128, 64, 32, 16):
        z, codes = vectors(count, size, width)
        for tile in tiles_of_width(width):
            report.rate(
                f"tile of width {width} {tuple(tile)}, TFLOP/s",
                2e-12 * count * size * width,
                lambda tile=tile: seconds_per_call(  # type: ignore[misc]
                    lambda: nearest_code_triton(z, codes, tile=Tile(*tile)),  # noqa: B023
                    0.15,
                ),
            )


@torch.no_grad()
def exactness(overrides: list[str], folder: str) -> None:
    """Every tile against float64: exits with 1 if one chooses a code that is farther by more than float32's rounding."""
    from vqvae.quantizers.nearest_triton import Tile, nearest_code_triton

    rows, passed = [], True
    for width in (256, 128, 64, 32, 16):
        z, codes = vectors(*((8192, 16384) if ON_GPU else (200, 70)), width)
        least, exact = in_float64(z, codes)
        for tile in tiles_of_width(width):
            try:
                chosen = nearest_code_triton(z, codes, tile=Tile(*tile))
                own = (z.double() - codes.double()[chosen]).norm(dim=1)
                excess = float((own / least - 1).max())
                rows.append([width, tuple(tile), wrong(chosen, exact), f"{excess:.1e}"])
                passed &= excess < 3e-6
            except Exception as error:  # such as too much shared memory, which another card has
                rows.append([width, tuple(tile), type(error).__name__, str(error).splitlines()[0][:80]])
                passed &= tile != tiles_of_width(width)[0]
    print(f"\nkernel against float64, {'passed' if passed else 'FAILED'}")
    print(table(["width", "rows, codes, dims, warps, stages", "other codes", "distance in excess"], rows))
    if not passed:
        sys.exit(1)
