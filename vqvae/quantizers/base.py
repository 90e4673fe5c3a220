"""The contract of every quantizer, and the path from grids to flat vectors and back that all of them share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.quantizers.given_codes import are_at_hand, check_maps, check_range
from vqvae.ranges import Ge, Le, PositiveInt, checked

MAX_CODEBOOK_SIZE = 2**18
NumCodes = Annotated[int, Ge(1), Le(MAX_CODEBOOK_SIZE)]


class Loss(NamedTuple):
    """A scalar before its weight, and the weight; both the plain and the weighted value are logged."""

    value: Tensor
    weight: float


@dataclass
class Quantized:
    """The result of a quantizer's `forward`.

    z_q (B, D, *s) float32; codes: M maps (B, *s_m) int64; losses and stats by name. stats are means over vectors, 0-d.
    histograms are counts of vectors (bins,) int64, filled in eval only. passed: M masks (B, *s_m) of the vectors that the
    lookup passed on unquantized (there z_q is z_e, and no code was used), or nothing where no lookup does so.
    """

    z_q: Tensor
    codes: list[Tensor]
    losses: dict[str, Loss] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    passed: list[Tensor] = field(default_factory=list)


@dataclass
class FlatQuantized:
    """The same on flat vectors: q (N, d), codes and passed (N, M); a composition adds its parts' results, and its `inside`."""

    q: Tensor
    codes: Tensor
    losses: dict[str, Loss] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    passed: Tensor | None = None
    parts: list[FlatQuantized] = field(default_factory=list)
    inside: Any = None


@checked
class Quantizer(nn.Module):
    """Maps latents (B, D, *s) to codes and back.

    Flat vectors pass three steps: `project` to the width d inside, `quantize`, and `output` back to the width D. A variant
    writes `quantize` and `lookup`, and `estimate` where its gradient is not straight through. A composition writes the three
    steps and `decode_flat`, all in terms of its parts'.

    Args:
        dim: latent width D at the interface.
        code_dim: width d inside; where it differs from D, linear layers project in and out (factorized codes).
        codebook_sizes: K of each code map, coarse to fine.

    `forward` never moves a codebook: it adds to accumulators, and `after_step` applies them. In eval, `z_q` equals
    `decode(codes)` bit for bit. `init_vectors` is how many latent vectors `begin_run` wants to see (0: none).
    Raises UserError for sizes below 1 or above 2^18 (split larger vocabularies into several maps).
    """

    stays_whole: bool = True  # where networks are shared out among ranks: read by distributed.shard
    init_vectors: int = 0
    outermost_because: str | None = None  # why it cannot be part of another quantizer
    trains_encoder: bool = True  # whether the output passes a gradient on; random projection does not
    stepped: bool = False  # True once `begin_step` was called
    forwards_without_steps: int = 0

    def __init__(self, dim: PositiveInt, code_dim: PositiveInt, codebook_sizes: list[int]) -> None:
        super().__init__()
        for size in codebook_sizes:
            if not 1 <= size <= MAX_CODEBOOK_SIZE:
                raise UserError(
                    f"a codebook has 1 to {MAX_CODEBOOK_SIZE} codes, got {size}; split it into several maps"
                )
        self.dim, self.code_dim, self.codebook_sizes = dim, code_dim, list(codebook_sizes)
        same = dim == code_dim
        self.project_in: nn.Module = nn.Identity() if same else nn.Linear(dim, code_dim)
        self.project_out: nn.Module = nn.Identity() if same else nn.Linear(code_dim, dim)

    def project(self, z: Tensor) -> Any:
        """z (N, D) -> what `quantize` works on: (N, d), or a composition's parts' own."""
        return self.project_in(z)

    def quantize(self, inside: Any) -> FlatQuantized:
        """inside (N, d) float32 -> codes (N, M), losses, stats, and the codes' vectors q (N, d), with their gradients."""
        raise NotImplementedError

    def estimate(self, inside: Tensor, q: Tensor) -> Tensor:
        """inside (N, d), q (N, d) of `quantize` -> the output in training (N, d); here straight-through."""
        return with_value(q, inside)

    def output(self, inside: Any, flat: FlatQuantized) -> Tensor:
        """The output (N, D) for the result of `quantize`; its gradient goes to `inside`."""
        return self.project_out(self.estimate(inside, flat.q) if self.training else flat.q)

    def encode_flat(self, z: Tensor) -> FlatQuantized:
        """z (N, D) float32 -> as `quantize`, but q (N, D) is the output."""
        inside = self.project(z)
        flat = self.quantize(inside)
        flat.q = self.output(inside, flat)
        return flat

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (N, M) -> q (N, d), the same values as `quantize` gives in eval."""
        raise NotImplementedError

    def decode_flat(self, codes: Tensor) -> Tensor:
        """codes (N, M) -> (N, D)."""
        return self.project_out(self.lookup(codes))

    def forward(self, z_e: Tensor) -> Quantized:
        """z_e (B, D, *s), any float dtype -> Quantized, computed in float32 whatever the autocast.

        z_q is float32 within autocast, else of the dtype of z_e.
        """
        self.remind()
        batch, grid = z_e.shape[0], z_e.shape[2:]
        with torch.autocast(z_e.device.type, enabled=False):
            flat = self.encode_flat(self.flatten(z_e))
            z_q = self.unflatten(flat.q, batch, grid)
        maps = [m.view(batch, *grid) for m in flat.codes.unbind(1)]  # M x (B, *s)
        passed = [] if flat.passed is None else [m.view(batch, *grid) for m in flat.passed.unbind(1)]  # M x (B, *s)
        return Quantized(of_kind(z_q, z_e), maps, flat.losses, flat.stats, flat.histograms, passed)

    def decode(self, codes: list[Tensor]) -> Tensor:
        """codes: M maps (B, *s) -> z_q (B, D, *s). Raises UserError for others, on a GPU not for values out of range."""
        self.check_codes(codes)
        batch, grid = codes[0].shape[0], codes[0].shape[1:]
        flat = torch.stack([m.reshape(-1).long() for m in codes], dim=1)  # (N, M)
        with torch.autocast(codes[0].device.type, enabled=False):
            return self.unflatten(self.decode_flat(flat), batch, grid)

    def check_codes(self, codes: list[Tensor]) -> None:
        """Raise UserError for other maps than this quantizer has. Their values are looked at where nothing waits for that."""
        check_maps(codes, len(self.codebook_sizes), "this quantizer")
        wanted = self.code_shapes(tuple(codes[-1].shape[1:]))
        if [tuple(m.shape) for m in codes] != [(len(codes[-1]), *shape) for shape in wanted]:
            shapes = ", ".join(str(tuple(m.shape)) for m in codes)
            raise UserError(f"code maps of this quantizer must be (B, *s) with s of {wanted}, got {shapes}")
        if are_at_hand(codes):
            check_range(codes, self.codebook_sizes)

    def flatten(self, z_e: Tensor) -> Tensor:
        """(B, D, *s) -> (N, D) float32; no copy where it is channels_last already. Raises UserError for other channels."""
        self.check_latents(z_e)
        return z_e.float().movedim(1, -1).reshape(-1, self.dim)  # (N, D)

    def check_latents(self, z_e: Tensor) -> None:
        """Raise UserError for what is no (B, D, *s) of a float type."""
        if z_e.ndim < 2 or z_e.shape[1] != self.dim:
            raise UserError(
                f"this quantizer takes (B, {self.dim}, *s), channels in the second place, got {tuple(z_e.shape)}"
            )
        if not z_e.is_floating_point():
            raise UserError(f"this quantizer takes latents of a float type, got {z_e.dtype}")

    def unflatten(self, q: Tensor, batch: int, grid: torch.Size) -> Tensor:
        """(N, D) -> (B, D, *s), channels_last in memory."""
        return q.view(batch, *grid, self.dim).movedim(-1, 1)  # (B, D, *s)

    def code_shapes(self, grid: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Latent dims *s -> the dims of each code map."""
        return [tuple(grid) for _ in self.codebook_sizes]

    def factors(self) -> list[list[int]]:
        """Numbers whose product is K, of which the index of each map's codes is made, the fastest first; or [K]."""
        return [[size] for size in self.codebook_sizes]

    def codebooks(self) -> list[Tensor | None]:
        """The vectors (K, d) behind each code map, for monitors; None where codes are not rows of a matrix."""
        return [None for _ in self.codebook_sizes]

    def orders(self) -> list[float]:
        """Order of the norm by which each map's codes are looked up: 1, 2 or infinity."""
        return [2 for _ in self.codebook_sizes]

    def with_size(self, size: int | None) -> Quantizer:
        """A new quantizer of the same kind with K = size (None: the same); codes that are drawn at random are drawn anew."""
        if size is not None and [size] != self.codebook_sizes:
            raise UserError(
                f"the number of codes of {type(self).__name__} cannot be set by sizes: leave sizes=null, "
                "and set it in the inner quantizer"
            )
        other = copy.deepcopy(self)
        other.redraw()
        return other

    def redraw(self) -> None:
        """Draws anew what was drawn at random when this was built."""

    @property
    def needs_steps(self) -> bool:
        """True if something moves in `begin_step` or `after_step`: codes, a temperature."""
        return False

    @property
    def is_straight_through(self) -> bool:
        """True if the output's gradient is simply copied to z, so that a composition may do that itself."""
        return False

    def begin_run(self, z_e: Tensor) -> None:
        """Starts codes from latents (B, D, *s) of the training data, gathered over ranks; once, before step 0."""

    def begin_step(self, step: int, steps: int) -> Hashable:
        """Sets schedules for step `step` of `steps` and empties the accumulators.

        Returns the kind of step, which differs where the host decides otherwise (a revival is due, say): steps of one kind run
        the same operations on the same tensors, so that a GPU can replay them. Numbers that change are kept in tensors.
        """
        self.stepped = True
        return None

    def after_step(self, applied: Tensor) -> dict[nn.Parameter, Tensor]:
        """Applies what the step's forwards accumulated. `applied`: 0-d bool, False leaves all as it was.

        Returns {parameter: (K,) bool mask of rows that were replaced}; the trainer resets their optimizer state.
        """
        return {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As nn.Module's, but weights stay float32 in models that are cast: `.half()`, `.double()`, `.to(dtype)`."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)

    def remind(self) -> None:
        """Warn at the second training forward of a loop that never lets the codes move."""
        if self.stepped or not self.training or not torch.is_grad_enabled() or not self.needs_steps:
            return
        self.forwards_without_steps += 1
        if self.forwards_without_steps == 2:
            warnings.warn(
                f"the codes of {type(self).__name__} do not move, because begin_step and after_step were not called: "
                "call vqvae.auto_update(quantizer, optimizer, steps) once, before the loop",
                stacklevel=5,  # the line that called the layer
            )


def of_kind(z_q: Tensor, z_e: Tensor) -> Tensor:
    """z_q float32 within autocast, else of the dtype of z_e."""
    return z_q if torch.is_autocast_enabled(z_e.device.type) else z_q.to(z_e.dtype)


def is_repeated() -> bool:
    """True where the backward pass computes a forward again (gradient checkpointing), which must not be counted twice."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def with_value(value: Tensor, path: Tensor) -> Tensor:
    """The value of `value` with the gradient of `path` (Bengio et al. 2013, arXiv 1308.3432).

    Written q + (z - z) instead of the usual z + (q - z), which rounds: the value is kept bit for bit.
    """
    return value.detach() + (path - path.detach())


def unit(x: Tensor) -> Tensor:
    """(N, d) -> (N, d) of norm 1."""
    return F.normalize(x, dim=1, eps=1e-6)  # eps: a zero vector has no direction, and stays zero
