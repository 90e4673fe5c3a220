"""Collectives. The only file that imports torch.distributed; without a process group there is one rank."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from vqvae.errors import UserError

_chosen = "auto"


def choose_device(name: str) -> None:
    """Use a kind of device from here on: cuda, cpu, or auto, which takes cuda where it is there.

    Raises UserError for one that is not there, and for mps.
    """
    global _chosen
    if name not in ("auto", "cuda", "cpu", "mps"):
        raise UserError(f"device must be one of auto, cuda, cpu, got {name!r}")
    if name == "mps":
        raise UserError(
            "device=mps does not work yet: figures and draws need float64, which it does not have; use device=cpu"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch finds no GPU here; device=auto then takes the CPU")
    _chosen = name


def init() -> None:
    """Join the process group that torchrun describes in the environment; do nothing without torchrun."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:  # a Slurm job of several tasks
        from submitit.helpers import TorchDistributedEnvironment

        environment = TorchDistributedEnvironment()
        if environment.world_size > 1:
            environment.export(set_cuda_visible_devices=False)
    if "RANK" in os.environ and not dist.is_initialized():
        cuda = uses_cuda()
        if cuda:
            own = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()  # a task may see only its own GPU
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if cuda else "gloo")


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined() -> Iterator[None]:
    """Context in the process group that torchrun describes, if there is one."""
    init()
    try:
        yield
    finally:
        shutdown()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def bar_hidden() -> bool | None:
    """Value of tqdm's `disable`: rank 0 shows a bar if it has a terminal, other ranks never do."""
    return None if is_main() else True


def uses_cuda() -> bool:
    return _chosen == "cuda" or (_chosen == "auto" and torch.cuda.is_available())


def device() -> torch.device:
    """Device of this process: see `choose_device`."""
    return torch.device("cuda", torch.cuda.current_device()) if uses_cuda() else torch.device("cpu")


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Value of rank 0, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum tensors of one dtype over ranks by one collective. Shapes stay."""
    if world_size() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors)]


def gather_rows(rows: Tensor) -> Tensor:
    """Gather rows (n, d), n equal on all ranks -> (ranks x n, d) in rank order, the same on every rank."""
    if world_size() == 1:
        return rows
    out = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather(list(out.chunk(world_size())), rows.contiguous())
    return out


def rows_of_rank(global_size: int, parts: int = 1) -> Tensor:
    """Rows of a global batch that belong to this rank, ordered by its `parts` micro-batches.

    Micro-batch i of all ranks together is micro-batch i of a single process. Batch sizes that do not divide are refused
    earlier.
    """
    return torch.arange(global_size).view(parts, world_size(), -1)[:, rank()].flatten()  # (global_size / ranks,)


def wrap(network: nn.Module) -> nn.Module:
    """Wrap a network for training: DistributedDataParallel under torchrun, else, or if it is sharded, the network itself.

    DDP does not synchronize buffers, because ours are computed from all-reduced values and are equal already.
    """
    alone = world_size() == 1 or isinstance(network, FSDPModule)
    if alone or not any(p.requires_grad for p in network.parameters()):
        return network
    unused = getattr(network, "has_unused_parameters", False)
    with warnings.catch_warnings():  # torch 2.15 has another name for it, which older ones do not know
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=unused)


# ---- networks whose weights are shared out (FSDP2). Their parameters, gradients and moments are DTensors.


def shard(network: nn.Module) -> None:
    """Share a network out among the ranks, in place: each keeps a part of every weight, its gradient and its moments.

    Blocks (networks/blocks.py) are gathered one at a time while they compute. What `stays_whole` (quantizers) is on every rank
    as it was: see `average_gradients`.
    """
    whole = {p for m in network.modules() if getattr(m, "stays_whole", False) for p in m.parameters()}
    before = dict(network.named_parameters())
    for parameter in before.values():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no others
    mesh = init_device_mesh(device().type, (world_size(),))
    units = [m for m in network.modules() if getattr(m, "is_unit", False) and not whole.intersection(m.parameters())]
    for unit in [*reversed(units), network]:  # inner ones first
        fully_shard(unit, mesh=mesh, ignored_params=whole)
    for name, parameter in network.named_parameters():
        vars(parameter).update(vars(before[name]))  # what optimizers read of it
    if hasattr(network, "sample"):  # it may be the first that is called
        register_fsdp_forward_method(network, "sample")


def gather_weights(network: nn.Module) -> None:
    """Let every rank have all weights of a sharded network until `release_weights`: ranks may evaluate different batches."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def release_weights(network: nn.Module) -> None:
    """Go back to parts of weights."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(module is not network, recurse=False)
            module.reshard()


def average_gradients(network: nn.Module) -> None:
    """Average over ranks the gradients of what stays whole in a sharded network; the others are averaged already."""
    if isinstance(network, FSDPModule):
        own = [p.grad for p in network.parameters() if p.grad is not None and not isinstance(p, DTensor)]
        for gradient, total in zip(own, all_reduce_sum(own)):
            gradient.copy_(total / world_size())


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank keeps, in the same memory; another tensor as it is."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor  # type: ignore[attr-defined]


def gathered(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank; another tensor as it is."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor  # type: ignore[attr-defined]


def part_of(whole: Any, like: Tensor) -> Any:
    """What this rank keeps of a whole tensor, if `like` is sharded. What is no tensor of its shape stays as it is.

    In the layout in memory of `like`, because fused optimizers trust that moments have that of their weights.
    """
    if not isinstance(whole, Tensor) or isinstance(whole, DTensor) or whole.shape != like.shape:
        return whole
    if isinstance(like, DTensor):
        placed = whole.to(like.device).contiguous()
        return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)
    same = whole.stride() == like.stride()
    return whole if same else torch.empty_like(like, dtype=whole.dtype, device=whole.device).copy_(whole)


def whole_state(state: Any) -> Any:
    """A tree in which rank 0 has the whole of each sharded tensor, on the CPU, and other ranks have no values of it."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        full = gathered(leaf)
        return full.cpu() if is_main() else full.to("meta")

    return tree_map(whole, state) if any(isinstance(leaf, DTensor) for leaf in tree_leaves(state)) else state


@contextmanager
def no_gradient_sync(networks: Iterable[nn.Module], active: bool) -> Iterator[None]:
    """Context that skips the gradient all-reduce, for all but the last micro-batch."""
    with ExitStack() as stack:
        for network in networks:
            if active and isinstance(network, DistributedDataParallel):
                stack.enter_context(network.no_sync())
        yield


def any_row(rows: Iterable[int], count: int) -> list[int]:
    """Sorted union over ranks of `rows`, numbers below `count`."""
    named = torch.zeros(count, dtype=torch.int64, device=device())
    named[list(rows)] = 1
    return torch.nonzero(all_reduce_sum([named])[0])[:, 0].tolist()


def any_rank(condition: bool) -> bool:
    """True on all ranks if the condition holds on at least one."""
    if world_size() == 1:
        return condition
    flag = torch.tensor(float(condition), device=device())
    return bool(all_reduce_sum([flag])[0] > 0)


def draw_of_rank(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Draw rows for the global batch from torch's common seed, and return this rank's `rows` of them. draw(n): n rows."""
    return draw(rows * world_size())[rows * rank() : rows * (rank() + 1)]


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum([x])[0] / world_size()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_reduce_sum([grads[0]])[0] / world_size()


def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of x over ranks, with its gradient, for losses that are not a mean over vectors."""
    return x if world_size() == 1 else _MeanOverRanks.apply(x)
