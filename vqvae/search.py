"""Analysis by synthesis: codes chosen for what the decoder makes of them together, each an improvement that was tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vqvae.model import VQVAE

REACH = 3  # places tried at once are so far apart, and each is judged by the 3 x 3 cells around it
DISTANCES_AT_A_TIME = 2**24


@torch.no_grad()
def search(
    model: VQVAE, to_image: Callable[[Tensor], Tensor], x: Tensor, codes: list[Tensor], sweeps: int
) -> list[Tensor]:
    """x (B, C, *S) in [-1, 1] and its codes, M maps (B, *s_m) -> maps of no larger squared error, picture by picture.

    An encoder chooses each code for itself, as the nearest to its output; the decoder makes a picture of all of them. A sweep
    comes once to every code. Its proposal is the other code nearest to where a step down the gradient of the squared error
    leads, the step as long as the way to the next code (root mean squares over a picture); it is kept if the picture is then
    nearer to x. Every third place along each dim is tried at once. (Latents improved by the decoder's gradient:
    Yang et al. 2020, arXiv 2006.04240.) `to_image`: decoder output -> (B, C, *S).

    Costs 4 x 3^dims x M decodings a sweep. Raises ValueError for maps that do not have the dims of the latents.
    """
    check_searchable(model, tuple(x.shape[2:]))

    def errors(latents: list[Tensor]) -> Tensor:
        return (to_image(model.decode_latents(latents)) - x).square().sum(1)  # (B, *S)

    vectors = model.code_vectors(tuple(x.shape[2:]))  # M x (K_m, D)
    found, before = list(codes), errors(model.latents(codes))
    for m, level, places in moves(model, codes, sweeps):
        latents = model.latents(found)
        with torch.enable_grad():
            latents[level].requires_grad_()
            now = errors(latents)
            (gradient,) = torch.autograd.grad(now.sum(), latents[level])  # (B, D, *s)
        proposed = found[m].clone()
        proposed[places] = propose(vectors[m], found[m][places], gradient.movedim(1, -1)[places])
        change = errors(model.latents([*found[:m], proposed, *found[m + 1 :]])) - now
        found[m] = torch.where(around(cells(change, found[m].shape[1:])) < 0, proposed, found[m])
    worse = (errors(model.latents(found)) - before).flatten(1).sum(1) > 0  # (B,)
    return [torch.where(worse.view(-1, *[1] * (new.ndim - 1)), old, new) for old, new in zip(codes, found)]


def check_searchable(model: VQVAE, size: tuple[int, ...]) -> None:
    """Raises ValueError where codes have no place of their own among the latents."""
    for level, (encoder, quantizer) in enumerate(zip(model.encoders, model.quantizers)):
        size = tuple(length // encoder.stride for length in size)
        shapes = quantizer.code_shapes(size)
        if not shapes or any(shape != size for shape in shapes):
            raise ValueError(
                f"search needs code maps with the dims {size} of the latents, and {type(quantizer).__name__} of level {level} "
                f"has {shapes or 'none'}"
            )


def moves(model: VQVAE, codes: list[Tensor], sweeps: int) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """-> (map, its level counted from the coarsest, the places (B, *s) that are tried at once), one after another."""
    levels = [level for level, q in enumerate(reversed(model.quantizers)) for _ in q.codebook_sizes]
    for _ in range(sweeps):
        for m, level in enumerate(levels):
            starts = [range(min(REACH, length)) for length in codes[m].shape[1:]]
            for offset in itertools.product(*starts):
                yield m, level, (slice(None), *(slice(start, None, REACH) for start in offset))


def propose(vectors: Tensor, codes: Tensor, gradient: Tensor) -> Tensor:
    """vectors (K, D), codes (B, *n), gradient of the error by their latents (B, *n, D) -> other codes (B, *n)."""
    rows = max(1, DISTANCES_AT_A_TIME // (codes[0].numel() * len(vectors)))
    if len(codes) > rows:
        return torch.cat([propose(vectors, *part) for part in zip(codes.split(rows), gradient.split(rows))])
    flat, slope = codes.flatten(1), gradient.flatten(1, -2)  # (B, N), (B, N, D)
    here = vectors[flat]  # (B, N, D)
    squares = vectors.square().sum(1)  # (K,)
    distances = squares - 2 * here @ vectors.t() + squares[flat][:, :, None]  # (B, N, K), squared
    distances.scatter_(2, flat[:, :, None], torch.inf)
    spacing = distances.amin(2).clamp_min(0).mean(1)  # (B,)
    steepness = slope.square().sum(2).mean(1)  # (B,)
    step = (spacing / steepness.clamp_min(torch.finfo(slope.dtype).tiny)).sqrt()  # (B,)
    # |here - step slope - code|^2 less what is the same for all codes
    return (distances + 2 * step[:, None, None] * (slope @ vectors.t())).argmin(2).view_as(codes)


def cells(errors: Tensor, grid: torch.Size) -> Tensor:
    """Errors (B, *S) -> their sums over the data positions of each latent, (B, *s)."""
    for dim, length in enumerate(grid, start=1):
        errors = errors.unflatten(dim, (length, -1)).sum(dim + 1)
    return errors


def around(errors: Tensor) -> Tensor:
    """(B, *s) -> sums over each place and those beside it along every dim, (B, *s)."""
    for dim in range(1, errors.ndim):
        padded = torch.nn.functional.pad(errors.movedim(dim, -1), (1, 1))
        errors = padded.unfold(-1, 3, 1).sum(-1).movedim(-1, dim)
    return errors
