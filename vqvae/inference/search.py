"""Analysis by synthesis: codes chosen for what the decoder makes of them together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vqvae.errors import UserError
from vqvae.model import VQVAE

REACH = 3  # places tried at once are so far apart, and each is judged by the 3 x 3 cells around it
POSITIONS_AT_A_TIME = 2**17  # of data: the decoder's gradient keeps its activations
DISTANCES_AT_A_TIME = 2**24


def search(
    model: VQVAE, to_image: Callable[[Tensor], Tensor], x: Tensor, codes: list[Tensor], sweeps: int
) -> list[Tensor]:
    """x (B, C, *S) in [-1, 1] and its codes, M maps (B, *s_m) -> maps of no larger squared error, image by image.

    An encoder chooses each code for itself, as the nearest to its output; the decoder makes an image of all of them. A sweep
    comes once to every code. Its proposal is the other code nearest to where a step down the gradient of the squared error
    leads, the step as long as the way to the next code (root mean squares over an image). Every third place along each dim is
    tried at once, and a proposal kept where it lowers the error of its own cell and those beside it. That is the image's
    error where a code reaches no further; where it does, as with attention, a move may raise it: so the best codes that a
    image has had are returned. (Latents improved by the decoder's gradient: Yang et al. 2020, arXiv 2006.04240.)
    `to_image`: decoder output -> (B, C, *S).

    Costs 4 x 3^dims x M decodings a sweep. Raises UserError for maps that do not have the dims of the latents.
    """
    size = tuple(x.shape[2:])
    check_places(model, size)
    rows = max(1, POSITIONS_AT_A_TIME // math.prod(size))
    with torch.inference_mode(False), torch.no_grad():  # there are gradients below, which inference mode cannot have
        vectors = model.code_vectors(size)  # M x (K_m, D)
        chunks = zip(*(tensor.clone().split(rows) for tensor in (x, *codes)))
        parts = [improve(model, to_image, part[0], list(part[1:]), vectors, sweeps) for part in chunks]
        return [torch.cat(maps) for maps in zip(*parts)]


def improve(
    model: VQVAE,
    to_image: Callable[[Tensor], Tensor],
    x: Tensor,
    codes: list[Tensor],
    vectors: list[Tensor],
    sweeps: int,
) -> list[Tensor]:
    """`search` of a few images; vectors M x (K_m, D): what the codes stand for."""

    def errors(latents: list[Tensor]) -> Tensor:
        return (to_image(model.decode_latents(latents)) - x).square().sum(1)  # (B, *S)

    current, best, least = codes, codes, x.new_full((len(x),), torch.inf)
    for m, level, places in moves(model, codes, sweeps):
        latents = model.latents(current)
        with torch.enable_grad():
            latents[level].requires_grad_()
            now = errors(latents)
            (gradient,) = torch.autograd.grad(now.sum(), latents[level])  # (B, D, *s)
        best, least = better(current, now, best, least)
        proposed = current[m].clone()
        proposed[places] = propose(vectors[m], current[m][places], gradient.movedim(1, -1)[places])
        change = errors(model.latents([*current[:m], proposed, *current[m + 1 :]])) - now
        chosen = torch.where(around(cells(change, current[m].shape[1:])) < 0, proposed, current[m])
        current = [*current[:m], chosen, *current[m + 1 :]]
    return better(current, errors(model.latents(current)), best, least)[0]


def better(current: list[Tensor], errors: Tensor, best: list[Tensor], least: Tensor) -> tuple[list[Tensor], Tensor]:
    """Codes and their errors (B, *S), the best before and their summed error (B,) -> the better of both, and its error."""
    total = errors.detach().flatten(1).sum(1)  # (B,)
    lower = total < least
    kept = [torch.where(lower.view(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(current, best)]
    return kept, torch.minimum(total, least)


def check_places(model: VQVAE, size: tuple[int, ...]) -> None:
    """Raises UserError where codes have no place of their own among the latents."""
    for level, (encoder, quantizer) in enumerate(zip(model.encoders, model.quantizers)):
        places, size = encoder.places(size), encoder.latent_size(size)
        shapes = quantizer.code_shapes(size)
        if size != places:
            raise UserError(f"search needs codes with a place, and those of {type(encoder).__module__} have none")
        if not shapes or any(shape != size for shape in shapes):
            raise UserError(
                f"search needs code maps with the dims {size} of the latents, and {type(quantizer).__name__} of level {level} "
                f"has {shapes or 'none'}"
            )


def moves(model: VQVAE, codes: list[Tensor], sweeps: int) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """Yield (map, its level counted from the coarsest, the places (B, *s) that are tried at once)."""
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
