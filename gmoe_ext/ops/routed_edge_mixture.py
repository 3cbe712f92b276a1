"""routed_edge_mixture: a layer of experts over typed edges in evaluation, fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import reference
from ..graph import Graph
from . import _dispatch as op
from . import _rows
from .routed_edge_aggregate import expect_routed_edges


def routed_edge_mixture(
    graph: Graph,
    x: Tensor,
    edge_table: Tensor,
    index: Tensor,
    gate: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    onto: Tensor | None = None,
    first_expert: int = 0,
) -> Tensor:
    """Sum each node's chosen experts over typed edges, normalised by running statistics and weighted by its gates.

    :func:`routed_edge_aggregate` and the steps that follow it in evaluation, without writing anything of size [N, k, D]
    (GMoE, eq. 2). With e = index_ir - first_expert, t = type_ij and b = edge_table:

        s_ir = sum_{j -> i} w_ij relu(x_ej + b_et)
        y_i  = onto_i + sum over the slots r with 0 <= e < F of gate_ir (scale_e * s_ir + shift_e)

    Hop-1 and hop-2 experts are two calls: the second gets the first one's result as onto.

    Args:
        graph: CSR by destination with edge types 0 <= type < T; without weights w = 1.
        x: [F, N, D] one row per expert and source, or [N, D] shared by all experts; float32 or bfloat16 (float64 in
            tests).
        edge_table: [F, T, D], same dtype as x.
        index: [N, k] int64, the experts of each destination.
        gate: [N, k], same dtype as x.
        scale: [F, D], same dtype as x: with shift, a norm by running statistics. None leaves the sums as they are.
        shift: [F, D], given together with scale.
        onto: [N, D], same dtype as x, or None for zeros.
        first_expert: id of the first of the F experts given here.

    Returns:
        y [N, D] in x's dtype, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit each other, the graph has no edge types, or one of scale and shift is missing.
        TypeError: dtypes differ or are not floating, or index is not int64.
        GraphIndexError: a column or an edge type of the graph is out of range.

    Gradients: none; differentiating is refused.

    Deterministic: yes, bit for bit, for any number of threads.

    Examples:
        >>> graph = Graph.from_edge_index(
        ...     torch.tensor([[0], [1]]), num_nodes=2, edge_type=torch.tensor([0]), num_edge_types=1
        ... )
        >>> table, index = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[0], [1]])
        >>> routed_edge_mixture(graph, torch.ones(2, 1), table, index, torch.tensor([[0.5], [0.5]])).tolist()
        [[0.0], [1.5]]
    """
    name = "routed_edge_mixture"
    edge_type = _rows.expect_edge_types(name, graph)
    expect_routed_edges(name, graph, x, edge_table, index)
    slots, experts, dim = list(index.shape), edge_table.shape[0], x.shape[-1]
    op.expect((scale is None) == (shift is None), name, "scale", "and 'shift' together or neither", "one of them")
    op.expect_floating(name, "x", x, gate=gate, scale=scale, shift=shift, onto=onto)
    op.expect_shape(name, "gate", gate, slots, "to match 'index'")
    op.expect_shape(name, "scale", scale, [experts, dim], "to match 'edge_table'")
    op.expect_shape(name, "shift", shift, [experts, dim], "to match 'edge_table'")
    op.expect_shape(name, "onto", onto, [slots[0], dim], "to match 'index' and 'x'")
    if not op.native():
        _rows.expect_valid(name, graph, edge_table.shape[1])
        return reference.routed_edge_mixture(graph, x, edge_table, index, gate, scale, shift, onto, first_expert)
    x, edge_table = _rows.common_dtype(x, edge_table)
    scale, shift, onto = (None if t is None else t.to(x.dtype) for t in (scale, shift, onto))
    y: Tensor = op.call(
        name, x, edge_table, index, gate.to(x.dtype), scale, shift, onto, first_expert, graph.offsets, graph.columns,
        edge_type, _rows.weight_like(graph, x),
    )  # fmt: skip
    return y


def _fake(x: Tensor, edge_table: Tensor, index: Tensor, *_: Any) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[-1])


op.register("routed_edge_mixture", _fake, autocast="rows")
