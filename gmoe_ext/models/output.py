"""What every model returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """Prediction of a model and what its routing adds to the loss.

    Attributes:
        logits: [N, C] for nodes, [G, tasks] for molecules.
        aux: scalar to add to the task loss, already scaled; exact 0 for a model without routing.
    """

    logits: Tensor
    aux: Tensor
