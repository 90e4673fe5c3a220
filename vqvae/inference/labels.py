"""Classes and conditions that people ask samples for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vqvae.errors import UserError
from vqvae.inference.inputs import as_labels
from vqvae.priors.base import Prior

Labels = Sequence[int | str] | Tensor | None  # class names or numbers, -1 for no class; None: no classes


def labels_for(
    prior: Prior, class_names: list[str], count: int, labels: Labels, conditions: Mapping[str, Any]
) -> Tensor:
    """Labels of `count` samples for a prior: (count,) int64 of the class alone, or (count, F) float32 of several conditions.

    conditions: name -> one value for all samples, or one each. Raises UserError for what is not known.
    """
    if prior.conditions is None:
        if conditions:
            known = "the class alone" if class_names else "no conditions"
            raise UserError(f"{next(iter(conditions))} is no condition of this prior, which was trained with {known}")
        return as_labels(labels, class_names, count)
    if isinstance(labels, Tensor) and labels.ndim == 2:  # of all conditions already
        return labels
    return prior.conditions.labels(count, conditions, as_labels(labels, class_names, count))
