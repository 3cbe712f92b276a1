"""The MLP student (GLNN and KRD train it on different targets)."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from ..nn.dropout import dropout
from .output import Output
from .registry import Model, register

Norm = Literal["none", "batch", "layer"]


def build_norm(norm: str, dim: int) -> nn.Module:
    """The normalisation between two layers of a student."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm1d(dim)
    if norm == "layer":
        return nn.LayerNorm(dim)
    raise ValueError(f"expected 'norm' to be 'none', 'batch' or 'layer', got {norm!r}")


@register("mlp", graph_free=True)
class MLP(Model):
    """Linear layers with norm, ReLU and dropout between them.

    Args:
        in_dim: features (and positions) of a node.
        hidden_dim: width of the hidden layers.
        out_dim: classes.
        num_layers: linear layers, >= 1.
        dropout: drop probability after each hidden layer.
        norm: "none", "batch" or "layer", before each ReLU.

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux = 0).

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> student = build("mlp", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2)
        >>> student(torch.randn(5, 16)).logits.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"expected 'num_layers' of at least 1, got {num_layers}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"expected 'dropout' in [0, 1), got {dropout}")
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(d, f) for d, f in itertools.pairwise(dims))
        self.norms = nn.ModuleList(build_norm(norm, d) for d in dims[1:-1])
        self.dropout = dropout

    def forward(self, x_ND: Tensor) -> Output:
        h = x_ND
        for layer, norm in zip(self.layers, self.norms, strict=False):
            h = dropout(functional.relu(norm(layer(h))), self.dropout, self.training)
        return Output(self.layers[-1](h), x_ND.new_zeros(()))
