"""A student in plain PyTorch, of operators that every exporter knows: what ``save_onnx`` and ``save_pt2`` write.

N rows, E experts, K chosen, D in, F out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fold import FoldedLayer, FoldedStudent, finite

_EPS = 1e-12  # least divisor of a row, as in the runtime


class PlainLayer(nn.Module):
    """y = act(sum_e gate_e (x W_e + b_e)); experts that are not chosen are computed, too, and have gate 0.

    One product with all experts' matrices side by side: a batch needs no sorting by expert, at E / k times the work.
    """

    weight: Tensor
    bias: Tensor
    memory: Tensor

    def __init__(self, layer: FoldedLayer, name: str) -> None:
        super().__init__()
        self.experts, width_in, self.width_out = layer.weight_EDF.shape
        self.k, self.relu, self.routed = layer.k, layer.relu, layer.memory_ED is not None
        side_by_side = layer.weight_EDF.permute(1, 0, 2).reshape(width_in, -1)
        self.register_buffer("weight", finite(side_by_side.float(), f"{name}.weight"))
        self.register_buffer("bias", finite(layer.bias_EF.flatten().float(), f"{name}.bias"))
        if layer.memory_ED is not None:
            self.register_buffer("memory", finite(layer.memory_ED.mT.float(), f"{name}.memory"))

    def forward(self, x_ND: Tensor) -> Tensor:
        y_NF = torch.addmm(self.bias, x_ND, self.weight)
        if self.routed:
            y_NEF = y_NF.reshape(-1, self.experts, self.width_out)
            y_NF = torch.matmul(self._gates(x_ND).unsqueeze(1), y_NEF).squeeze(1)
        return y_NF.relu() if self.relu else y_NF

    def _gates(self, x_ND: Tensor) -> Tensor:
        unit_ND = x_ND / x_ND.norm(dim=1, keepdim=True).clamp_min(_EPS)
        cosine_NE = unit_ND @ self.memory
        top_NK, index_NK = cosine_NE.topk(self.k, dim=1)
        return torch.zeros_like(cosine_NE).scatter(1, index_NK, top_NK.softmax(1))


class PlainStudent(nn.Module):
    """Logits of rows as callers of a packed student hand them in.

    Args:
        student: folded.

    Returns:
        forward(x [N, features], nodes [N] int64) with a position table, node -1 having zeros for a position;
        forward(x [N, features and position]) without one.
    """

    positions: Tensor

    def __init__(self, student: FoldedStudent) -> None:
        super().__init__()
        self.features, self.normalize = student.num_features, student.normalize
        self.num_inputs, self.table_rows = student.num_inputs, 0
        if student.positions is not None:
            self.table_rows = len(student.positions)
            # The row behind the last is that of nodes without a position.
            table = torch.cat([student.positions, student.positions.new_zeros(1, student.position_dim)])
            self.register_buffer("positions", finite(table, "positions"))
        self.layers = nn.Sequential(*(PlainLayer(layer, f"layers.{i}") for i, layer in enumerate(student.layers)))

    @property
    def has_table(self) -> bool:
        """Whether ``nodes`` is an input."""
        return self.table_rows > 0

    def forward(self, x: Tensor, nodes: Tensor | None = None) -> Tensor:
        x = self._prepared(x)
        if nodes is not None:
            row_N = torch.where(nodes < 0, self.table_rows, nodes)
            x = torch.cat([x, self.positions[row_N]], 1)
        logits: Tensor = self.layers(x)
        return logits

    def _prepared(self, x: Tensor) -> Tensor:
        if self.normalize == "none" or self.features == 0:
            return x
        features, rest = x[:, : self.features], x[:, self.features :]
        order = 1 if self.normalize == "row_l1" else 2
        features = features / features.norm(p=order, dim=1, keepdim=True).clamp_min(_EPS)
        return features if self.has_table or self.features == self.num_inputs else torch.cat([features, rest], 1)
