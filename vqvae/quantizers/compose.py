"""Quantizers made of quantizers: by stages, by parts of the vector."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.quantizers.base import FlatQuantized, Loss, NumCodes, Quantized, Quantizer, with_value
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
        for part in self.parts:
            if part.outermost_because:
                raise UserError(f"{type(part).__name__} can only be outermost, because {part.outermost_because}")

    def factors(self) -> list[list[int]]:
        return [factors for part in self.uses for factors in part.factors()]

    def codebooks(self) -> list[Tensor | None]:
        return [codes for part in self.uses for codes in part.codebooks()]

    def orders(self) -> list[float]:
        return [order for part in self.uses for order in part.orders()]

    def redraw(self) -> None:
        for part in self.parts:
            part.redraw()

    @property
    def needs_steps(self) -> bool:
        return any(part.needs_steps for part in self.parts)

    def begin_step(self, step: int, steps: int) -> Hashable:
        super().begin_step(step, steps)
        return tuple([part.begin_step(step, steps) for part in self.parts])

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

    `dropout`: share of the images of a training batch of which only the first n stages reach the decoder, n uniform in
    1 .. depth (per sample, as in DAC, arXiv 2306.06546). All stages still see all vectors.

    >>> from vqvae import FSQ
    >>> quantizer = Residual(8, FSQ(8, [8, 5, 5]), depth=2, shared=False, sizes=None, dropout=0.0)
    >>> len(quantizer(torch.randn(2, 8, 4, 4)).codes)
    2
    """

    rows_per_image = 1  # vectors one after another that dropout treats alike

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
        if dropout > 0:
            self.outermost_because = "its dropout leaves out stages of whole images: set its dropout=0"
        self.init_vectors = max(part.init_vectors for part in self.parts)

    def forward(self, z_e: Tensor) -> Quantized:
        self.rows_per_image = math.prod(z_e.shape[2:])
        return super().forward(z_e)

    def project(self, z: Tensor) -> Tensor:
        return z

    def quantize(self, z: Tensor) -> FlatQuantized:
        """Quantizes stage by stage; q is the output already, as each stage's output decides on the path of the next gradient.

        A stage's losses send their gradient to z through `rest`, and its output along `path`: z less the outputs so far, which
        keep their gradients.
        """
        kept = self.draw_kept(z) if self.training and self.dropout > 0 else None  # (N, 1) or None
        path, total, sum_q = z, torch.zeros_like(z), torch.zeros_like(z)
        flats = []
        for index, stage in enumerate(self.uses):
            rest = z - sum_q if index else z  # (N, D)
            inside = stage.project(rest)
            flat = stage.quantize(inside)
            along_path = stage.project(with_value(rest, path)) if index and self.training else inside
            q = stage.output(along_path, flat)  # (N, D)
            path = path - q
            # In training the output may lie beside the codes' vectors (DiVeQ); what is left over is that of the codes.
            sum_q = sum_q + (stage.decode_flat(flat.codes).detach() if self.training else q)
            total = total + (q if kept is None else q * (kept > index))
            flats.append(flat)
        return merge(total, flats, z)

    def output(self, z: Tensor, flat: FlatQuantized) -> Tensor:
        """The q of `quantize`; made anew with the gradient of z where another residual quantizer has brought its own path."""
        if z is flat.inside or not self.training:
            return flat.q
        path, total, sum_q = z, torch.zeros_like(z), torch.zeros_like(z)
        for stage, part in zip(self.uses, flat.parts):
            q = stage.output(stage.project(with_value(z - sum_q, path)), part)
            sum_q = sum_q + stage.decode_flat(part.codes).detach()
            path, total = path - q, total + q
        return total

    def draw_kept(self, z: Tensor) -> Tensor:
        """The number of stages that each vector keeps, the same for all of an image -> (N, 1)."""
        images = len(z) // self.rows_per_image
        uniform = distributed.draw_of_rank(lambda rows: torch.rand(rows, 2, device=z.device), images)  # (B, 2)
        stages = (uniform[:, 1] * len(self.uses)).long() + 1  # (B,)
        kept = torch.where(uniform[:, 0] < self.dropout, stages, len(self.uses))
        return kept.repeat_interleave(self.rows_per_image)[:, None]

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
            rest = rest - stage.encode_flat(rest).q


@checked
class Product(Composition):
    """The vector is cut into `splits` pieces of D / splits, each quantized by itself; K^splits outputs (Jegou et al. 2011).

    `inner` works on the pieces, so its dim is D / splits. `shared`: one codebook for all pieces, as each comes from the
    same; `sizes`: K of each, or null. Losses of one name are averaged over pieces.

    >>> from vqvae import FSQ
    >>> quantizer = Product(8, FSQ(4, [8, 5, 5]), splits=2, shared=False, sizes=None)
    >>> quantizer.codebook_sizes
    [200, 200]
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

    def pieces(self, z: Tensor) -> tuple[Tensor, ...]:
        """z (N, D) -> what each part works on: (N, D / splits) each, or (N splits, D / splits) for a shared one."""
        width = self.dim // self.splits
        return (z.reshape(-1, width),) if self.shared else z.split(width, dim=1)

    def project(self, z: Tensor) -> list[Any]:
        return [part.project(piece) for part, piece in zip(self.parts, self.pieces(z))]

    def quantize(self, insides: list[Any]) -> FlatQuantized:
        return self.join([part.quantize(inside) for part, inside in zip(self.parts, insides)])

    def output(self, insides: list[Any], flat: FlatQuantized) -> Tensor:
        outputs = [part.output(inside, own) for part, inside, own in zip(self.parts, insides, flat.parts)]
        return outputs[0].view(-1, self.dim) if self.shared else torch.cat(outputs, dim=1)  # (N, D)

    def encode_flat(self, z: Tensor) -> FlatQuantized:
        """Part by part, so that each makes all its random draws before the next."""
        return self.join([part.encode_flat(piece) for part, piece in zip(self.parts, self.pieces(z))])

    def join(self, flats: list[FlatQuantized]) -> FlatQuantized:
        """One result of those of the parts."""
        if not self.shared:
            return merge(torch.cat([flat.q for flat in flats], dim=1), flats)
        (flat,) = flats
        codes = flat.codes.reshape(-1, len(self.codebook_sizes))  # (N, M)
        passed = None if flat.passed is None else flat.passed.reshape(codes.shape)
        q = flat.q.reshape(len(codes), -1)  # (N, D)
        return FlatQuantized(q, codes, flat.losses, flat.stats, flat.histograms, passed, flats)

    def decode_flat(self, codes: Tensor) -> Tensor:
        decoded = [part.decode_flat(maps) for part, maps in zip(self.uses, self.split_codes(codes))]
        return torch.cat(decoded, dim=1)  # (N, D)

    def begin_run(self, z_e: Tensor) -> None:
        for part, piece in zip(self.parts, self.pieces(self.flatten(z_e))):
            part.begin_run(piece)


def refuse_other_width(inner: Quantizer, dim: int) -> None:
    if inner.dim != dim:
        raise UserError(
            f"the inner quantizer works on vectors of width {inner.dim}, not {dim}: set quantizer.inner.dim={dim}"
        )


def merge(q: Tensor, flats: list[FlatQuantized], inside: Any = None) -> FlatQuantized:
    """One result of those of the parts, their code maps side by side."""
    codes = torch.cat([flat.codes for flat in flats], dim=1)  # (N, M)
    masks = [flat.passed for flat in flats if flat.passed is not None]  # of parts of one kind: of all or of none
    passed = torch.cat(masks, dim=1) if masks else None  # (N, M)
    return FlatQuantized(q, codes, *averages(flats), passed, flats, inside)


def averages(
    flats: list[FlatQuantized],
) -> tuple[dict[str, Loss], dict[str, Tensor], dict[str, Tensor]]:
    """Losses and stats of one name averaged over parts, histograms summed."""
    losses = {
        name: Loss(torch.stack([flat.losses[name].value for flat in flats]).mean(), loss.weight)
        for name, loss in flats[0].losses.items()
    }
    stats = {name: torch.stack([flat.stats[name] for flat in flats]).mean() for name in flats[0].stats}
    histograms = {name: torch.stack([flat.histograms[name] for flat in flats]).sum(0) for name in flats[0].histograms}
    return losses, stats, histograms
