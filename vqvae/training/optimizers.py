"""Parameter groups, guarded steps, moment resets, and Muon."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vqvae import distributed
from vqvae.devices.graphs import captures_on
from vqvae.metrics.registry import figure
from vqvae.ranges import LessThanOne, NonNegativeFloat, checked
from vqvae.training.hardware import choose_precision

NORM = "gradient norm"  # the panel
EXEMPT = ("no_weight_decay", "is_factor")  # from weight decay
figure("{stage}/grad_norm", "norm of the whole gradient before it is clipped", panel=NORM, report=False, dashboard=True)
figure("{stage}/grad_norm_{network}", "the same, of a stage with several networks", panel=NORM, report=False)


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Weights of matrices and filters decay; biases, norms, codebooks (`no_weight_decay`) and factors (`is_factor`) do not.

    Checkpoints number parameters in the order of the groups, and factors once were among the matrices: they keep that place,
    and so do parameters of copied modules, which have their marks from the module alone (networks/marks.py).
    """
    marks = marks_of_modules(network)
    for parameter, what in marks.items():
        if what == "hidden_matrix":
            parameter.hidden_matrix = True  # type: ignore[attr-defined]  # Muon sees no modules
    trained = [p for p in network.parameters() if p.requires_grad]
    small = [p.ndim <= 1 or getattr(p, "no_weight_decay", False) for p in trained]
    ordered = [p for p, last in zip(trained, small) if not last] + [p for p, last in zip(trained, small) if last]
    kept = {p for p, what in marks.items() if what in EXEMPT} | {p for p in trained if getattr(p, "is_factor", False)}
    decays = {id(p): not last and p not in kept for p, last in zip(trained, small)}
    runs = itertools.groupby(ordered, key=lambda p: (decays[id(p)], distributed.is_sharded(p)))  # no mixed groups
    return [{"params": list(run)} if decay else {"params": list(run), "weight_decay": 0.0} for (decay, _), run in runs]


def marks_of_modules(network: nn.Module) -> dict[nn.Parameter, str]:
    """What the modules of a network say of their parameters, also those that were copied."""
    return {
        module.get_parameter(name): what
        for module in network.modules()
        for name, what in getattr(module, "marks", {}).items()
        if isinstance(getattr(module, name, None), nn.Parameter)
    }


def reset_rows(optimizers: Iterable[torch.optim.Optimizer], replaced: dict[nn.Parameter, Tensor]) -> None:
    """Zero the moments of replaced rows, because they belong to the old rows. replaced: {parameter: (rows,) bool}."""
    for parameter, rows in replaced.items():
        for optimizer in optimizers:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(rows.view(-1, *[1] * (value.ndim - 1)), 0)


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up the moments of a checkpoint. Rates and other settings stay, because those of the config count."""
    if isinstance(optimizer, Muon):
        for name, part in optimizer.parts.items():
            load_moments(part, state[name])
    else:
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            index: {name: distributed.part_of(value, own[index]) for name, value in of_one.items()}
            for index, of_one in state["state"].items()
        }
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


class LearningRate:
    """The learning rate of an optimizer: a number, or where steps can be captured a tensor, which graphs read."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.value = optimizer, float(optimizer.param_groups[0]["lr"])
        fused = captures_on(device) and optimizer.defaults.get("fused")
        self.tensor = torch.tensor(self.value, device=device) if fused else None

    def set(self, value: float) -> None:
        self.value = value
        if self.tensor is not None:
            self.tensor.fill_(value)
        for group in self.optimizer.param_groups:
            group["lr"] = value if self.tensor is None else self.tensor
            if "capturable" in group and self.tensor is not None:
                group["capturable"] = True


def gradient_norm(network: nn.Module, clip_norm: float | None) -> Tensor:
    """Norm (0-d) of the whole gradient of a network, which is then clipped to `clip_norm`."""
    moved = [p for p in network.parameters() if p.grad is not None]
    kinds = [kind for sharded in (False, True) if (kind := [p for p in moved if distributed.is_sharded(p) is sharded])]
    gradients = [[p.grad for p in kind if p.grad is not None] for kind in kinds] or [[]]
    norms = [distributed.gathered(nn.utils.get_total_norm(kind)) for kind in gradients]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if clip_norm is not None:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, clip_norm, norm)
    return norm


def guarded_step(optimizer: torch.optim.Optimizer, applied: Tensor) -> None:
    """One step of an optimizer, a no-op on the device unless `applied` (0-d bool). Gradients are gone then."""
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale = None  # type: ignore[attr-defined]  # what torch's GradScaler sets
        optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(applied):  # an optimizer that is not fused cannot skip on the device: this waits for it
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def orthogonal(matrix: Tensor, settings: dict[str, Any]) -> Tensor:
    """U V^T of a matrix U S V^T, roughly, by Newton-Schulz steps. settings: a parameter group of torch's Muon.

    In bfloat16, as published, where the hardware is fast at it; a CPU that is not would spend most of a small step here.
    """
    a, b, c = settings["ns_coefficients"]
    x = matrix.bfloat16() if choose_precision("auto", matrix.device) == "bf16" else matrix.float()
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@checked
class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon) on the matrices inside a network, AdamW on the rest.

    A network says which those are: parameters with `hidden_matrix = True`; without any, this is AdamW. A matrix moves along
    its momentum, orthogonalised, as far as AdamW would move it (RMS: Liu et al. 2025, arXiv 2502.16982, section 2.2), so that
    one learning rate serves both. Where `found_inf` (0-d) is 1, `step` changes nothing, and the host does not wait to know.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: NonNegativeFloat,
        betas: tuple[LessThanOne, LessThanOne],
        momentum: LessThanOne,
        weight_decay: NonNegativeFloat,
    ) -> None:
        hidden: list[nn.Parameter] = []
        rest: list[dict[str, Any]] = []
        for group in params:
            hidden += [p for p in group["params"] if getattr(p, "hidden_matrix", False)]
            others = [p for p in group["params"] if not getattr(p, "hidden_matrix", False)]
            rest += [{**group, "params": others}] if others else []
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if hidden:
            self.parts["muon"] = torch.optim.Muon(hidden, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
        if rest:
            self.parts["adamw"] = torch.optim.AdamW(
                rest, lr, (betas[0], betas[1]), weight_decay=weight_decay, fused=True
            )
        self.defaults: dict[str, Any] = {"fused": True}  # as torch's optimizers say that they look at `found_inf`

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> Any:  # type: ignore[override]
        return {parameter: moments for part in self.parts.values() for parameter, moments in part.state.items()}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if "adamw" in self.parts:
            self.parts["adamw"].grad_scale, self.parts["adamw"].found_inf = None, self.found_inf  # type: ignore[attr-defined]
            self.parts["adamw"].step()
        if "muon" in self.parts:
            self._step_muon(self.parts["muon"])

    @torch.no_grad()
    def _step_muon(self, muon: torch.optim.Optimizer) -> None:
        """The step of torch's, which knows no `found_inf` and reads a learning rate that is a tensor on the host."""
        for group in muon.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                skipped = torch.zeros((), device=weight.device) if self.found_inf is None else self.found_inf
                buffer = muon.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                average = buffer.lerp(weight.grad, 1 - momentum)
                whole = distributed.gathered(weight.grad.lerp(average, momentum))
                move = distributed.part_of(orthogonal(whole, group).float(), weight)
                speed = -lr * (0.2 * math.sqrt(max(weight.shape)))  # as far as AdamW would move it
                new = weight * (1 - lr * group["weight_decay"])
                new = new.addcmul_(move, speed) if isinstance(lr, Tensor) else new.add_(move, alpha=speed)
                buffer.copy_(torch.where(skipped > 0, buffer, average))
                weight.copy_(torch.where(skipped > 0, weight, new))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
