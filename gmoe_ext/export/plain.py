"""A student in plain PyTorch, of operators that every exporter knows: what ``save_onnx`` and ``save_pt2`` write.

N rows, E experts, K chosen, D in, F out, H columns that rows are compared with memories in, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .fold import FoldedLayer, FoldedRouter, FoldedStudent, finite

_EPS = 1e-12  # least divisor of a row, as in the runtime


class PlainRouter(nn.Module):
    """Gates [N, E] of rows [N, D], zero for the experts that are not chosen."""

    memory: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, router: FoldedRouter, k: int, name: str) -> None:
        super().__init__()
        self.k, self.over_all, self.projected = k, router.over_all, router.projection is not None
        self.register_buffer("memory", finite(router.memory_EH.mT.float(), f"{name}.memory"))
        if router.projection is not None:
            weight_1DH, bias_1H = router.projection
            self.register_buffer("weight", finite(weight_1DH[0].float(), f"{name}.router.weight"))
            self.register_buffer("bias", finite(bias_1H[0].float(), f"{name}.router.bias"))

    def forward(self, x_ND: Tensor) -> Tensor:
        x_NH = torch.addmm(self.bias, x_ND, self.weight) if self.projected else x_ND
        unit_NH = x_NH / x_NH.norm(dim=1, keepdim=True).clamp_min(_EPS)
        score_NE = unit_NH @ self.memory
        top_NK, index_NK = score_NE.topk(self.k, dim=1)
        gate_NK = score_NE.softmax(1).gather(1, index_NK) if self.over_all else top_NK.softmax(1)
        return torch.zeros_like(score_NE).scatter(1, index_NK, gate_NK)


class PlainLayer(nn.Module):
    """y = act(sum_e gate_e (x W_e + b_e)); experts that are not chosen are computed, too, and have gate 0.

    One product with all experts' matrices side by side: a batch needs no sorting by expert, at E / k times the work.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: FoldedLayer, name: str) -> None:
        super().__init__()
        self.experts, width_in, self.width_out = layer.weight_EDF.shape
        self.relu = layer.relu
        self.router = None if layer.router is None else PlainRouter(layer.router, layer.k, name)
        side_by_side = layer.weight_EDF.permute(1, 0, 2).reshape(width_in, -1)
        self.register_buffer("weight", finite(side_by_side.float(), f"{name}.weight"))
        self.register_buffer("bias", finite(layer.bias_EF.flatten().float(), f"{name}.bias"))

    def forward(self, x_ND: Tensor) -> Tensor:
        y_NF = torch.addmm(self.bias, x_ND, self.weight)
        if self.router is not None:
            y_NEF = y_NF.reshape(-1, self.experts, self.width_out)
            y_NF = torch.matmul(self.router(x_ND).unsqueeze(1), y_NEF).squeeze(1)
        return y_NF.relu() if self.relu else y_NF


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
        layers = [PlainLayer(layer, f"layers.{i}") for i, layer in enumerate(student.layers)]
        depth = len(student.members[0])
        self.members = nn.ModuleList(nn.Sequential(*layers[i : i + depth]) for i in range(0, len(layers), depth))

    @property
    def has_table(self) -> bool:
        """Whether ``nodes`` is an input."""
        return self.table_rows > 0

    def forward(self, x: Tensor, nodes: Tensor | None = None) -> Tensor:
        x = self._prepared(x)
        if nodes is not None:
            row_N = torch.where(nodes < 0, self.table_rows, nodes)
            x = torch.cat([x, self.positions[row_N]], 1)
        if len(self.members) == 1:
            logits: Tensor = self.members[0](x)
            return logits
        votes_MNC = torch.stack([member(x).log_softmax(1) for member in self.members])
        return votes_MNC.logsumexp(0) - math.log(len(self.members))

    def _prepared(self, x: Tensor) -> Tensor:
        if self.normalize == "none" or self.features == 0:
            return x
        features, rest = x[:, : self.features], x[:, self.features :]
        order = 1 if self.normalize == "row_l1" else 2
        features = features / features.norm(p=order, dim=1, keepdim=True).clamp_min(_EPS)
        return features if self.has_table or self.features == self.num_inputs else torch.cat([features, rest], 1)
