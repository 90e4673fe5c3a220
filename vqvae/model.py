"""The VQ-VAE: encoders, quantizers, decoders -> reconstruction, codes, losses."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.errors import UserError
from vqvae.networks.blocks import Decoder, Encoder, recompute
from vqvae.quantizers.base import Loss, Quantized, Quantizer
from vqvae.quantizers.given_codes import check_maps
from vqvae.ranges import checked


@dataclass
class Output:
    """decoded (B, decoder channels, *S), codes coarse to fine; losses, stats and histograms named `level<l>/<name>`.

    passed: for each code map a mask of the vectors that were passed on unquantized, or None where its lookup does not do so.
    """

    decoded: Tensor
    codes: list[Tensor]
    losses: dict[str, Loss]
    stats: dict[str, Tensor]
    histograms: dict[str, Tensor]
    passed: list[Tensor | None]


@checked
class VQVAE(nn.Module):
    """L levels, finest first in the lists, codes reported coarse to fine; L = 1 is the plain VQ-VAE.

        up:                     h_l = encoder_l(h_(l-1)),  h_(-1) = x
        down, coarsest first:   z_q_l = quantizer_l(merge_l(h_l, context)),  context = decoder_l(z_q_l, context)

    The last context is the output. Below the coarsest level, merge_l is a 1x1 convolution of [h_l, context], and the decoder
    receives [z_q_l, context] (VQ-VAE-2, arXiv 1906.00446), so its `dim` is twice the quantizer's.

    gradient_checkpointing: compute what blocks of the networks need for their gradients a second time, instead of keeping it.

    Raises UserError for lists of different length.

    >>> from vqvae import FSQ
    >>> from vqvae.networks.conv import Decoder, Encoder
    >>> sizes = {"widths": [16, 32], "residual_width": 8, "residual_blocks": 1}
    >>> model = VQVAE([Encoder(2, 3, 8, **sizes)], [FSQ(8, [8, 5, 5])], [Decoder(2, 3, 8, **sizes)])
    >>> out = model(torch.zeros(2, 3, 32, 32))
    >>> out.decoded.shape, out.codes[0].shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 8, 8]))
    """

    encoders: list[Encoder]
    quantizers: list[Quantizer]
    decoders: list[Decoder]
    merges: list[nn.Linear]
    codes_are_frozen = False

    def __init__(
        self,
        encoders: list[Encoder],
        quantizers: list[Quantizer],
        decoders: list[Decoder],
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not len(encoders) == len(quantizers) == len(decoders) > 0:
            raise UserError(
                "encoders, quantizers and decoders need one entry a level, got "
                f"{len(encoders)}, {len(quantizers)} and {len(decoders)}"
            )
        self.encoders = nn.ModuleList(encoders)  # type: ignore[assignment]
        self.quantizers = nn.ModuleList(quantizers)  # type: ignore[assignment]
        self.decoders = nn.ModuleList(decoders)  # type: ignore[assignment]
        self.merges = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(q.dim + below.channels, q.dim) for q, below in zip(quantizers, decoders[1:])
        )

        recompute(self, gradient_checkpointing)

    def freeze_codes(self) -> None:
        """Train the finest decoder alone from here on. Codes, and all that they depend on, stay bit for bit."""
        self.codes_are_frozen = True
        self.requires_grad_(False)
        self.decoders[0].requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> VQVAE:
        """Switch to training or evaluation; parts that are frozen stay in evaluation."""
        super().train(mode)
        if self.codes_are_frozen:
            for part in (self.encoders, self.quantizers, self.merges, *self.decoders[1:]):
                part.eval()  # type: ignore[attr-defined]
        return self

    def strides(self, ndim: int) -> tuple[int, ...]:
        """Data positions per position of the coarsest latents, along each of `ndim` dims."""
        return tuple(math.prod(own) for own in zip(*[encoder.strides(ndim) for encoder in self.encoders]))

    @property
    def stride(self) -> int:
        """The same along every dim. Raises UserError where dims have strides of their own."""
        if others := [encoder.stride for encoder in self.encoders if not isinstance(encoder.stride, int)]:
            raise UserError(f"this needs one stride for all dims, and those of this model are {others[0]}")
        return self.strides(1)[0]

    @property
    def codebook_sizes(self) -> list[int]:
        """K of each code map, coarse to fine."""
        return [size for q in reversed(self.quantizers) for size in q.codebook_sizes]

    @property
    def has_unused_parameters(self) -> bool:
        """True if some parameters get no gradient, because a quantizer passes none to its encoder. Read by distributed.wrap."""
        return not all(q.trains_encoder for q in self.quantizers)

    def factors(self) -> list[list[int]]:
        """Of each code map, the numbers that K is the product of: see Quantizer.factors."""
        return [factors for q in reversed(self.quantizers) for factors in q.factors()]

    def codebooks(self) -> list[Tensor | None]:
        """The vectors (K, d) behind each code map, in the order of `codebook_sizes`; None where there are none."""
        return [codes for q in reversed(self.quantizers) for codes in q.codebooks()]

    def orders(self) -> list[float]:
        """Order of the norm by which the codes of each map are looked up, 1, 2 or infinity."""
        return [order for q in reversed(self.quantizers) for order in q.orders()]

    def code_shapes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Data dims *S -> the dims of each code map, coarse to fine. Raises UserError where *S does not divide."""
        for length, stride in zip(size, self.strides(len(size))):
            if length % stride:
                below = max(stride, length - length % stride)
                raise UserError(
                    f"a size of {length} does not divide by the encoder's stride {stride}; the nearest that does is {below}"
                )
        shapes: list[list[tuple[int, ...]]] = []
        for encoder, quantizer in zip(self.encoders, self.quantizers):
            size = encoder.latent_size(size)
            shapes.append(quantizer.code_shapes(size))
        return [shape for level in reversed(shapes) for shape in level]

    @torch.no_grad()
    def code_vectors(self, size: tuple[int, ...], positions: int = 2**16) -> list[Tensor]:
        """The latent that each code stands for, M x (K_m, D), coarse to fine: the mean over a grid filled with that code.

        size: data dims *S. If a quantizer has several maps, the codes of the others are 0. positions: decoded at a time. If all
        maps have the dims of the latents, one cell is enough.
        """
        levels: list[list[Tensor]] = []
        for encoder, quantizer in zip(self.encoders, self.quantizers):
            size = encoder.latent_size(size)
            shapes, device = quantizer.code_shapes(size), next(self.parameters()).device
            if all(shape == size for shape in shapes):
                shapes = [(1,) * len(size)] * len(shapes)
            chunk = max(1, positions // max(map(math.prod, shapes)))
            levels.append([])
            for m, codebook_size in enumerate(quantizer.codebook_sizes):
                vectors = []
                for codes in torch.arange(codebook_size, device=device).split(chunk):
                    maps = [codes.new_zeros(len(codes), *shape) for shape in shapes]
                    maps[m] += codes.view(-1, *[1] * len(shapes[m]))
                    vectors.append(quantizer.decode(maps).flatten(2).mean(2))  # (chunk, D)
                levels[-1].append(torch.cat(vectors))
        return [vectors for level in reversed(levels) for vectors in level]

    def forward(self, x: Tensor) -> Output:
        """x (B, C, *S) -> Output."""
        return self._decoded(*self.quantize(self.features(x)))

    def features(self, x: Tensor) -> list[Tensor]:
        """x (B, C, *S) -> each level's encoder output, L x (B, D, *s_l), finest first: not quantized yet.

        Raises UserError for other channels.
        """
        features: list[Tensor] = []
        for encoder in self.encoders:
            h = features[-1] if features else x
            if isinstance(encoder, Encoder):
                encoder.check(h)
            features.append(encoder(h))  # (B, D, *s_l)
        return features

    def from_features(self, features: list[Tensor]) -> Output:
        """The rest of `forward`: L features, or what lies between those of two x -> Output."""
        return self._decoded(*self.quantize(features))

    def quantize(self, features: list[Tensor]) -> tuple[Tensor, list[Quantized]]:
        """L features, finest first -> input of the finest decoder, and the results of all quantizers, coarsest first."""
        levels = [self.quantizers[-1](features[-1])]
        z_q = levels[0].z_q
        for level in reversed(range(len(self.quantizers) - 1)):
            context = self.decoders[level + 1](z_q)
            levels.append(self.quantizers[level](self._merge(level, features[level], context)))
            z_q = torch.cat([levels[-1].z_q, context], dim=1)  # (B, D + context channels, *s)
        return z_q, levels

    def encode(self, x: Tensor) -> list[Tensor]:
        """x (B, C, *S) -> codes, coarse to fine; the finest decoder is not run."""
        return [codes for quantized in self.quantize(self.features(x))[1] for codes in quantized.codes]

    def decode(self, codes: list[Tensor]) -> Tensor:
        """Codes, coarse to fine -> decoder output (B, decoder channels, *S)."""
        return self.decode_latents(self.latents(codes))

    def latents(self, codes: list[Tensor]) -> list[Tensor]:
        """Codes, coarse to fine -> the latents that each level's stand for, L x (B, D, *s_l), coarse to fine too."""
        check_maps(codes, len(self.codebook_sizes), "this model")
        maps = iter(codes)
        return [q.decode([next(maps) for _ in q.codebook_sizes]) for q in reversed(self.quantizers)]

    def decode_latents(self, latents: list[Tensor]) -> Tensor:
        """Latents of all levels, coarse to fine -> decoder output (B, decoder channels, *S)."""
        dtype = next(self.decoders.parameters()).dtype  # type: ignore[attr-defined]
        latents = [z_q.to(dtype) for z_q in latents]  # float32, whatever the model was cast to
        output = self.decoders[-1](latents[0])
        for z_q, level in zip(latents[1:], reversed(range(len(self.decoders) - 1))):
            output = self.decoders[level](torch.cat([z_q, output], dim=1))
        return output

    @torch.no_grad()
    def begin_run(self, batches: Iterable[Tensor]) -> None:
        """Lets quantizers start their codes from data: x (B, C, *S) of this rank, as many batches as they ask for."""
        iterator = iter(batches)
        for level in reversed(range(len(self.quantizers))):
            quantizer = self.quantizers[level]
            latents: list[Tensor] = []
            hook = quantizer.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0].float()))  # noqa: B023
            while sum(z_e[:, 0].numel() for z_e in latents) * distributed.world_size() < quantizer.init_vectors:
                self(next(iterator))
            hook.remove()
            if latents:
                quantizer.begin_run(torch.cat([distributed.gather_rows(z_e) for z_e in latents]))

    def begin_step(self, step: int, steps: int) -> Hashable:
        """Let quantizers set their schedules. Returns the kind of step: see Quantizer.begin_step."""
        quantizers = [] if self.codes_are_frozen else self.quantizers
        return tuple([quantizer.begin_step(step, steps) for quantizer in quantizers])

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """Let quantizers update their codebooks. Returns {parameter: (K,) bool mask of replaced rows}."""
        replaced: dict[nn.Parameter, Tensor] = {}
        for quantizer in [] if self.codes_are_frozen else self.quantizers:
            replaced.update(quantizer.after_step(applied))
        return replaced

    def _decoded(self, z_q: Tensor, levels: list[Quantized]) -> Output:
        """Input of the finest decoder, and the results of all quantizers, coarsest first -> Output."""

        def named(field: str) -> dict[str, Any]:
            return {
                f"level{level}/{name}": value
                for level, quantized in zip(reversed(range(len(levels))), levels)
                for name, value in getattr(quantized, field).items()
            }

        codes = [m for quantized in levels for m in quantized.codes]
        passed: list[Tensor | None] = []
        for quantized in levels:
            passed += quantized.passed or [None] * len(quantized.codes)
        return Output(self.decoders[0](z_q), codes, named("losses"), named("stats"), named("histograms"), passed)

    def _merge(self, level: int, h: Tensor, context: Tensor) -> Tensor:
        both = torch.cat([h, context], dim=1).movedim(1, -1)  # (B, *s, D + context channels)
        return self.merges[level](both).movedim(-1, 1)  # (B, D, *s)
