"""Quantizers made of quantizers: by stages, by parts of the vector, by scale, in a rotated frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.quantizers.base import FlatQuantized, Loss, NumCodes, Quantizer, with_value
from vqvae.ranges import Count, PositiveInt, Share, checked


class Composition(Quantizer):
    """Base: hands the calls of a step to the quantizers in `parts` (different modules, each once).

    `uses` lists them in order of their code maps; one that is shared comes several times.
    """

    parts: list[Quantizer]

    def __init__(self, dim: int, uses: list[Quantizer]) -> None:
        super().__init__(dim, dim, [size for part in uses for size in part.codebook_sizes])
        self.uses = tuple(uses)  # a tuple, so that shared ones are not registered twice
        self.parts = nn.ModuleList(dict.fromkeys(uses))  # type: ignore[assignment]
        self.trains_encoder = all(part.trains_encoder for part in self.parts)
        if not self.codebook_sizes:
            raise UserError("quantizer=identity has no codes, so nothing can be composed of it")
        if any(part.needs_grid for part in self.parts):
            raise UserError(
                "quantizer=multiscale works on whole grids: it can only be outermost, around other quantizers"
            )

    def codebooks(self) -> list[Tensor | None]:
        return [codes for part in self.uses for codes in part.codebooks()]

    def redraw(self) -> None:
        for part in self.parts:
            part.redraw()

    def begin_step(self, step: int, steps: int) -> None:
        for part in self.parts:
            part.begin_step(step, steps)

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        replaced: dict[nn.Parameter, Tensor] = {}
        for part in self.parts:
            replaced.update(part.after_step(applied))
        return replaced

    def split_codes(self, codes: Tensor) -> list[Tensor]:
        """(N, M) -> the maps of each use."""
        return list(codes.split([len(part.codebook_sizes) for part in self.uses], dim=1))


def copies(inner: Quantizer, count: int, shared: bool, sizes: list[int] | None) -> list[Quantizer]:
    """`count` quantizers like inner: itself if shared, else new ones, with K = sizes[i] where sizes are given."""
    if sizes is not None and len(sizes) != count:
        raise UserError(f"sizes={sizes} must have one entry for each of the {count} parts")
    if shared:
        if sizes is not None:
            raise UserError("shared=true and sizes exclude each other: a shared codebook has one size")
        return [inner] * count
    wanted: list[int | None] = [None] * count if sizes is None else [*sizes]
    return [inner.with_size(size) for size in wanted]


@checked
class Residual(Composition):
    """Each stage quantizes what those before it left over: z_q = sum_i q_i, r_(i+1) = r_i - sg q_i (arXiv 2107.03312).

    `inner` is what every stage is, `depth` their number; `shared`: one codebook for all; `sizes`: K of each stage, or null. As
    r_i = z - sg sum_(j<i) q_j, a commitment loss of stage i is |z - sg sum_(j<=i) q_j|^2, the cumulative one of RQ-VAE
    (arXiv 2203.01941), and reaches the encoder from every stage; losses of one name are averaged over stages.
    The output's gradient passes the stages one after another, which for straight-through is one copy in all.

    `dropout`: share of the pictures of a training batch of which only the first n stages reach the decoder, n uniform in
    1 .. depth (per sample, as in DAC, arXiv 2306.06546). All stages still see all vectors.
    """

    def __init__(
        self,
        dim: PositiveInt,
        inner: Quantizer,
        depth: Count,
        shared: bool,
        sizes: list[NumCodes] | None,
        dropout: Share,
    ) -> None:
        refuse_other_width(inner, dim)
        super().__init__(dim, copies(inner, depth, shared, sizes))
        self.dropout = dropout
        self.init_vectors = max(part.init_vectors for part in self.parts)

    def quantize_flat(self, z: Tensor, path: Tensor, samples: int) -> FlatQuantized:
        kept = self.draw_kept(z, samples) if self.training and self.dropout > 0 else None  # (N, 1) or None
        total, sum_q = torch.zeros_like(z), torch.zeros_like(z)
        flats = []
        for index, stage in enumerate(self.uses):
            rest = z - sum_q if index else z  # (N, D), attached to z with slope 1
            flat = stage.quantize_flat(rest, with_value(rest, path) if index else path, samples)
            path = path - flat.q
            # In training the output may lie beside the codes' vectors (DiVeQ); what is left over is that of the codes.
            sum_q = sum_q + (stage.decode_flat(flat.codes).detach() if self.training else flat.q)
            total = total + (flat.q if kept is None else flat.q * (kept > index))
            flats.append(flat)
        codes = torch.cat([flat.codes for flat in flats], dim=1)  # (N, M)
        return merge(total, codes, flats)

    def draw_kept(self, z: Tensor, samples: int) -> Tensor:
        """How many stages each vector keeps, the same for all of a picture -> (N, 1)."""
        uniform = distributed.draw_of_rank(lambda rows: torch.rand(rows, 2, device=z.device), samples)  # (B, 2)
        stages = (uniform[:, 1] * len(self.uses)).long() + 1  # (B,)
        kept = torch.where(uniform[:, 0] < self.dropout, stages, len(self.uses))
        return kept.repeat_interleave(len(z) // max(samples, 1))[:, None]

    def decode_flat(self, codes: Tensor) -> Tensor:
        total = torch.zeros(len(codes), self.dim, device=codes.device)
        for stage, maps in zip(self.uses, self.split_codes(codes)):
            total = total + stage.decode_flat(maps)
        return total

    @torch.no_grad()
    def begin_run(self, z_e: Tensor) -> None:
        rest = self.flatten(z_e)  # (n, D)
        for index, stage in enumerate(self.uses):
            if stage not in self.uses[:index]:
                stage.begin_run(rest)
            rest = rest - stage.quantize_flat(rest, rest, 1).q


@checked
class Product(Composition):
    """The vector is cut into `splits` pieces of D / splits, each quantized by itself; K^splits outputs (Jegou et al. 2011).

    `inner` works on the pieces, so its dim is D / splits. `shared`: one codebook for all pieces, as each comes from the
    same; `sizes`: K of each, or null. Losses of one name are averaged over pieces.
    """

    def __init__(
        self, dim: PositiveInt, inner: Quantizer, splits: Count, shared: bool, sizes: list[NumCodes] | None
    ) -> None:
        if dim % splits:
            raise UserError(f"splits={splits} does not divide the latent width {dim}")
        refuse_other_width(inner, dim // splits)
        super().__init__(dim, copies(inner, splits, shared, sizes))
        self.shared, self.splits = shared, splits
        self.init_vectors = max(part.init_vectors for part in self.parts)

    def quantize_flat(self, z: Tensor, path: Tensor, samples: int) -> FlatQuantized:
        if self.shared:
            pieces = z.reshape(-1, self.dim // self.splits)  # (N splits, D / splits)
            paths = pieces if path is z else path.reshape(pieces.shape)
            flat = self.parts[0].quantize_flat(pieces, paths, samples)
            flat.q, flat.codes = flat.q.view(len(z), self.dim), flat.codes.reshape(len(z), len(self.codebook_sizes))
            return flat
        flats = [
            part.quantize_flat(piece, piece if path is z else way, samples)
            for part, piece, way in zip(self.uses, self.pieces(z), self.pieces(path))
        ]
        q, codes = (torch.cat(values, dim=1) for values in zip(*((flat.q, flat.codes) for flat in flats)))
        return merge(q, codes, flats)

    def pieces(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.split(self.dim // self.splits, dim=1)

    def decode_flat(self, codes: Tensor) -> Tensor:
        decoded = [part.decode_flat(maps) for part, maps in zip(self.uses, self.split_codes(codes))]
        return torch.cat(decoded, dim=1)  # (N, D)

    def begin_run(self, z_e: Tensor) -> None:
        z = self.flatten(z_e)  # (n, D)
        if self.shared:
            self.parts[0].begin_run(z.reshape(-1, self.dim // self.splits))
        else:
            for part, piece in zip(self.uses, self.pieces(z)):
                part.begin_run(piece)


@checked
class Rotated(Composition):
    """A fixed random orthogonal matrix before `inner` and its transpose after it, so that no coordinate is special.

    From QuIP (arXiv 2307.13304). Worth it for quantizers by coordinate, such as FSQ.
    """

    rotation: Tensor

    def __init__(self, dim: PositiveInt, inner: Quantizer) -> None:
        super().__init__(dim, [inner])
        self.code_dim = inner.dim
        if dim != inner.dim:
            self.project_in, self.project_out = nn.Linear(dim, inner.dim), nn.Linear(inner.dim, dim)
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(inner.dim, inner.dim)).Q)
        self.init_vectors = inner.init_vectors

    def turn(self, z: Tensor) -> Tensor:
        return self.project_in(z) @ self.rotation

    def quantize_flat(self, z: Tensor, path: Tensor, samples: int) -> FlatQuantized:
        turned = self.turn(z)
        flat = self.parts[0].quantize_flat(turned, turned if path is z else self.turn(path), samples)
        flat.q = self.project_out(flat.q @ self.rotation.t())
        return flat

    def decode_flat(self, codes: Tensor) -> Tensor:
        return self.project_out(self.parts[0].decode_flat(codes) @ self.rotation.t())

    def begin_run(self, z_e: Tensor) -> None:
        self.parts[0].begin_run(self.turn(self.flatten(z_e)))


def refuse_other_width(inner: Quantizer, dim: int) -> None:
    if inner.dim != dim:
        raise UserError(
            f"the inner quantizer works on vectors of width {inner.dim}, not {dim}: set quantizer.inner.dim={dim}"
        )


def merge(q: Tensor, codes: Tensor, flats: list[FlatQuantized]) -> FlatQuantized:
    """Losses and stats of one name averaged over parts, histograms summed."""
    losses = {
        name: Loss(torch.stack([flat.losses[name].value for flat in flats]).mean(), loss.weight)
        for name, loss in flats[0].losses.items()
    }
    stats = {name: torch.stack([flat.stats[name] for flat in flats]).mean() for name in flats[0].stats}
    histograms = {name: torch.stack([flat.histograms[name] for flat in flats]).sum(0) for name in flats[0].histograms}
    return FlatQuantized(q, codes, losses, stats, histograms)
