"""What a trained teacher says about every node."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from ..models import Model


@torch.no_grad()
def soft_targets(teacher: Model, x_ND: Tensor, graph: Graph) -> Tensor:
    """The teacher's logits in evaluation mode; training mode is put back.

    Args:
        teacher: a model with forward(x, graph) -> Output.
        x_ND: node features.
        graph: the graph that the teacher may see: the observed one while the student trains.

    Returns:
        Logits [N, C] without gradient.

    Example:
        >>> logits = soft_targets(build("sage", in_dim=64, hidden_dim=128, out_dim=8), data.x, data.graph)
    """
    training = teacher.training
    teacher.eval()
    try:
        logits: Tensor = teacher(x_ND, graph).logits
    finally:
        teacher.train(training)
    return logits
