"""Grouped top-k dispatch without the operator: y_i = sum_r gate_ir (W_e x_i + b_e), e = index_ir.

All take the routing itself, so grouping rows by expert is inside the time, as it is in ours.
Shapes: N rows, E experts, K chosen, D in, F out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Dispatch = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def dense_gate(index_NK: Tensor, gate_NK: Tensor, num_experts: int) -> Tensor:
    """The gates as [N, E], zero where an expert was not chosen."""
    return gate_NK.new_zeros(len(gate_NK), num_experts).scatter(1, index_NK, gate_NK)


def loop(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Eager: for each expert find its rows, multiply them, add them into the result in place."""
    y = x.new_zeros(len(x), weight.shape[1])
    for expert in range(len(weight)):
        rows, choice = torch.nonzero(index == expert, as_tuple=True)
        if rows.numel():
            part = torch.addmm(bias[expert], x.index_select(0, rows), weight[expert].T)
            y.index_add_(0, rows, part * gate[rows, choice].unsqueeze(1))
    return y


def sort(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Eager: sort the slots once, gather all rows once, multiply piece by piece, add once."""
    order = torch.argsort(index.flatten(), stable=True)
    counts = torch.bincount(index.flatten(), minlength=len(weight)).tolist()
    rows = order.div(index.shape[1], rounding_mode="floor")
    pieces = torch.split(x.index_select(0, rows), counts)
    parts = [torch.addmm(bias[e], piece, weight[e].T) for e, piece in enumerate(pieces) if len(piece)]
    grouped = torch.cat(parts) * gate.flatten()[order].unsqueeze(1)
    return x.new_zeros(len(x), weight.shape[1]).index_add_(0, rows, grouped)


def where(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Eager: a mask and a summed gate per expert, rows by torch.where."""
    y = x.new_zeros(len(x), weight.shape[1])
    for expert in range(len(weight)):
        chosen = index == expert
        (rows,) = torch.where(chosen.any(1))
        if rows.numel():
            share = (gate * chosen).sum(1)[rows].unsqueeze(1)
            y.index_add_(0, rows, F.linear(x[rows], weight[expert], bias[expert]) * share)
    return y


EAGER: dict[str, Dispatch] = {"loop": loop, "sort": sort, "where": where}


def dense(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """Every expert on every row, results stacked and multiplied by gates that are mostly zero (GMoE's program)."""
    mask_NE = dense_gate(index, gate, len(weight))
    stacked_NEF = torch.stack([F.linear(x, w, b) for w, b in zip(weight, bias, strict=True)], dim=1)
    return (stacked_NEF * mask_NE.unsqueeze(2)).sum(1)


def published_parts(gates_NE: Tensor) -> tuple[Tensor, list[int]]:
    """The rows of each expert, one after the other, and how many: nonzero, two sorts, sizes to Python."""
    pairs = torch.nonzero(gates_NE)
    _, by_expert = pairs.sort(0)
    return pairs[by_expert[:, 1], 0], (gates_NE > 0).sum(0).tolist()


def published_dispatcher(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """RbM's published way: each slot takes its whole row of dense gates, and each expert adds out of place."""
    gates_NE = dense_gate(index, gate, len(weight))
    rows, sizes = published_parts(gates_NE)
    y = x.new_zeros(len(x), weight.shape[1])
    pieces = zip(x[rows].split(sizes), rows.split(sizes), gates_NE[rows].split(sizes), strict=True)
    for expert, (piece, mine, gates) in enumerate(pieces):
        if len(piece):
            part = F.linear(piece, weight[expert], bias[expert])
            y = y.index_add(0, mine, part * gates[:, expert : expert + 1])
    return y


def grouped_mm(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor, gate: Tensor) -> Tensor:
    """torch._grouped_mm over the sorted rows; it takes no bias, so that is added by another gather."""
    order = torch.argsort(index.flatten(), stable=True)
    ends = torch.bincount(index.flatten(), minlength=len(weight)).cumsum(0, dtype=torch.int32)
    rows = order.div(index.shape[1], rounding_mode="floor")
    grouped = torch._grouped_mm(x.index_select(0, rows), weight.transpose(1, 2), offs=ends)
    grouped = (grouped + bias[index.flatten()[order]]) * gate.flatten()[order].unsqueeze(1)
    return x.new_zeros(len(x), weight.shape[1]).index_add_(0, rows, grouped)


def packed_gemm(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One product of x [R, D] with weight [F, D], as fast as this installation can: the floor of every dispatch.

    oneDNN's product with weights reordered beforehand is what torch's inductor calls; private, so it may be absent.
    """
    products: dict[str, Callable[[], Tensor]] = {"mm": lambda: F.linear(x, weight)}
    if hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        products["onednn packed"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return products
