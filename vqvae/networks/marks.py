"""Marks of parameters that optimizers read, kept where copy.deepcopy finds them."""

from __future__ import annotations

from torch import nn


def mark(module: nn.Module, name: str, what: str) -> None:
    """Mark the parameter `name` of a module: as no_weight_decay, is_factor or hidden_matrix (see training/optimizers.py).

    The module keeps the mark, too, because a copy of a parameter has no attributes.
    """
    module.marks = {**getattr(module, "marks", {}), name: what}  # type: ignore[assignment]
    setattr(module.get_parameter(name), what, True)


def mark_matrices(network: nn.Module) -> None:
    """Mark the matrices inside of a network as hidden ones."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 2:
                mark(module, name, "hidden_matrix")
