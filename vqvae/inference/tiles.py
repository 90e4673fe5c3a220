"""Reconstructions of data that is larger than what a model was trained on, tile by tile and without seams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.model import VQVAE

CELLS = (
    9,
    33,
    129,
)  # of the coarsest latents, along each dim: how far a value reaches is looked for in grids of such sizes
MOST_POSITIONS = 2**22  # of data in such a grid
SIDES_IN_TILE = 8  # without a setting, a tile is so many times as long as the border that is thrown away
Size = tuple[int, ...]


def in_tiles(
    reconstruct: Callable[[Tensor], Tensor], model: VQVAE, x: Tensor, trained: Size, tile: int | Size | None = None
) -> Tensor:
    """x (B, C, *S) of any size -> `reconstruct` of it, (B, C, *S), computed in overlapping tiles.

    Where no value of the reconstruction depends on data that is farther away than some reach, as in convolutional networks,
    each tile keeps what lies farther from its cut edges than that: the result is that of the whole x, up to rounding. Other
    networks (attention, normalization over positions) see a tile as an item of its own, and tiles go over into each other.
    Where the stride does not divide the size, the last values are repeated, and cut off in the end.

    trained: dims of the data that the model was trained on. tile: dims of a tile, or the side of all; None: chosen.
    Raises UserError for a tile that is too small, or does not divide by the stride.
    """
    reach = reach_of(model, x)
    tile = tile_size(model, trained, reach, tile)
    size = tuple(x.shape[2:])
    padded = tuple(
        max(-(-length // model.stride) * model.stride, side if has_fixed_size(model, trained) else 0)
        for length, side in zip(size, tile)
    )
    tile = tuple(map(min, tile, padded))
    x = repeat_ends(x, padded)
    # a border of the reach is thrown away; without one, tiles overlap by half of their length
    margins = tuple(side // 4 // model.stride * model.stride if reach is None else reach for side in tile)
    total, weights = torch.zeros_like(x), x.new_zeros(padded)
    for place, weight in places(padded, tile, margins, smooth=reach is None):
        weights[place] += weight.to(x.device)
        total[within(place)] += reconstruct(x[within(place)].contiguous()) * weight.to(x.device)
    return (total / weights)[within(slice(length) for length in size)]


def tile_size(model: VQVAE, trained: Size, reach: int | None, tile: int | Size | None) -> Size:
    """Dims of a tile. Raises UserError for a setting that does not suit the model."""
    stride, fixed = model.stride, has_fixed_size(model, trained)
    if tile is None:
        if reach is None:
            return trained
        return tuple(-(-max(side, SIDES_IN_TILE * reach) // stride) * stride for side in trained)
    sides = (tile,) * len(trained) if isinstance(tile, int) else tuple(tile)
    if len(sides) != len(trained) or any(side < 1 or side % stride for side in sides):
        raise UserError(
            f"tile={tile} must be {len(trained)} multiples of the encoder's stride {stride}, or one for all"
        )
    if fixed and sides != trained:
        raise UserError(f"tile={tile}: this model makes items of {trained} alone; leave tile out")
    least = 2 * stride if reach is None else 2 * reach + stride
    if min(sides) < least:
        raise UserError(f"tile={tile} is too small for this model, which needs at least {least}")
    return sides


def has_fixed_size(model: VQVAE, trained: Size) -> bool:
    """True if decoders make data of one size alone, whatever was encoded."""
    size = trained
    for encoder in model.encoders:
        places, size = encoder.places(size), encoder.latent_size(size)
        if size != places:
            return True
    return False


@torch.no_grad()
def reach_of(model: VQVAE, like: Tensor) -> int | None:
    """Data positions from a cut between latents beyond which nothing of the other side has an influence; None if all may.

    A multiple of the stride. Not a number goes wherever a value goes: one cell of it is put in the middle of the data, and then
    of the latents.
    """
    ndim, stride = like.ndim - 2, model.stride
    if not codes_have_places(model, tuple(stride * 4 for _ in range(ndim))):
        return None
    for cells in CELLS:
        size = (cells * stride,) * ndim
        if math.prod(size) > MOST_POSITIONS:
            return None
        middle = within(slice(cells // 2 * stride, (cells // 2 + 1) * stride) for _ in range(ndim))
        x = like.new_zeros(1, like.shape[1], *size)
        x[middle] = torch.nan
        outputs = model.features(x)[-1], decoded_of_one_cell(model, size)
        encoded, decoded = (spread(output, cell) for output, cell in zip(outputs, (1, stride)))
        if encoded is not None and decoded is not None:
            return stride * (
                encoded + len(model.decoders) * decoded
            )  # a finer code depends on the coarser ones decoded
        if cells > CELLS[0] and any(bool(output.isnan().all()) for output in outputs):
            return None
    return None


def codes_have_places(model: VQVAE, size: Size) -> bool:
    """True if each code stands for one place of its level's latents."""
    for encoder, quantizer in zip(model.encoders, model.quantizers):
        places, size = encoder.places(size), encoder.latent_size(size)
        if size != places or any(shape != size for shape in quantizer.code_shapes(size)):
            return False
    return True


def decoded_of_one_cell(model: VQVAE, size: Size) -> Tensor:
    """The decoders' output where the latents of all levels below the coarsest one's middle cell are not a number."""
    latents: list[Tensor] = []
    device = next(model.parameters()).device
    factor = 1
    for encoder, quantizer in zip(model.encoders, model.quantizers):
        size, factor = encoder.latent_size(size), factor * encoder.strides(1)[0]
        finer = model.stride // factor  # cells of this level in one of the coarsest
        z_q = torch.zeros(1, quantizer.dim, *size, device=device)
        z_q[within(slice(n // finer // 2 * finer, (n // finer // 2 + 1) * finer) for n in size)] = torch.nan
        latents.insert(0, z_q)
    return model.decode_latents(latents)


def within(parts: Iterable[slice]) -> Any:
    """Index of a part of the data dims, whatever comes before them."""
    return (..., *parts)


def spread(output: Tensor, cell: int) -> int | None:
    """How many cells of `cell` positions from the middle one values are not a number; None if they are at the edge."""
    wrong = output.isnan().any(1)[0]  # (*S)
    most = 0
    for dim in range(wrong.ndim):
        others = [other for other in range(wrong.ndim) if other != dim]
        line = wrong.amax(others) if others else wrong
        found = line.nonzero().flatten()
        if not len(found) or int(found[0]) == 0 or int(found[-1]) == len(line) - 1:
            return None
        middle = len(line) // cell // 2 * cell
        most = max(most, middle - int(found[0]), int(found[-1]) - (middle + cell - 1))
    return -(-most // cell)


def places(size: Size, tile: Size, margins: Size, smooth: bool) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Tiles that cover data of a size: where each lies, and the weights (*tile) of its values."""
    dims = [list(along(length, side, margin, smooth)) for length, side, margin in zip(size, tile, margins)]
    for parts in itertools.product(*dims):
        weight = torch.ones(())
        for _, line in parts:
            weight = weight[..., None] * line
        yield tuple(place for place, _ in parts), weight


def along(length: int, side: int, margin: int, smooth: bool) -> Iterator[tuple[slice, Tensor]]:
    """Tiles along one dim. Weights near a cut edge: 0 within the margin and 1 beyond it, or rising over twice the margin."""
    step = max(side - 2 * margin, 1)
    starts = [*range(0, max(length - side, 0), step), max(length - side, 0)]
    rising = (
        (torch.arange(2 * margin) + 0.5) / max(2 * margin, 1)
        if smooth
        else (torch.arange(2 * margin) >= margin).float()
    )
    for start in starts:
        line = torch.ones(side)
        if start > 0:
            line[: 2 * margin] = rising
        if start + side < length:
            line[side - 2 * margin :] = torch.minimum(line[side - 2 * margin :], rising.flip(0))
        yield slice(start, start + side), line


def repeat_ends(x: Tensor, size: Size) -> Tensor:
    """Data (B, C, *S) made longer to (B, C, *size) by its last values."""
    for dim, (length, wanted) in enumerate(zip(x.shape[2:], size), 2):
        last = x.narrow(dim, length - 1, 1)
        x = torch.cat([x, *[last] * (wanted - length)], dim)
    return x
