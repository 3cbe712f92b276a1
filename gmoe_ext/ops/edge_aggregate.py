"""edge_aggregate: message passing over typed edges, as in OGB's molecule networks."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..graph import Graph
from . import _dispatch as op
from . import _rows


def edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor) -> Tensor:
    """Sum the rectified messages of each node's typed edges, without holding the messages in memory.

    The message passing of OGB's molecule networks, with t = type_ij and b = edge_table:

        y_i = sum_{j -> i} w_ij relu(x_j + b_t)

    OGB's GCN is this with ``gcn_norm()`` weights, x = W h, and one more row in the table for the self loops; OGB's GIN
    is this without weights.

    Args:
        graph: CSR by destination with edge types 0 <= type < T; without weights w = 1.
        x: [N, D] float32 or bfloat16 (float64 in tests).
        edge_table: [T, D] one embedding per edge type, same dtype as x.

    Returns:
        y [N, D] in x's dtype, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit each other, or the graph has no edge types.
        TypeError: x and edge_table differ in dtype or are not floating.
        GraphIndexError: a column or an edge type of the graph is out of range.

    Gradients: x, edge_table and graph.weight. The derivative of relu at 0 is 0.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Examples:
        >>> graph = Graph.from_edge_index(
        ...     torch.tensor([[0, 1], [1, 0]]), num_nodes=2, edge_type=torch.tensor([0, 1]), num_edge_types=2
        ... )
        >>> edge_aggregate(graph, torch.tensor([[1.0], [2.0]]), torch.tensor([[-3.0], [5.0]])).tolist()
        [[7.0], [0.0]]
    """
    name = "edge_aggregate"
    edge_type = _rows.expect_edge_types(name, graph)
    _rows.expect_features(name, graph, x)
    op.expect_floating(name, "x", x, edge_table=edge_table)
    op.expect_shape(name, "edge_table", edge_table, ("T", x.shape[1]), "to match 'x'")
    if not op.native():
        _rows.expect_valid(name, graph, edge_table.shape[0])
        return reference.edge_aggregate(graph, x, edge_table)
    x, edge_table = _rows.common_dtype(x, edge_table)
    reverse = _rows.transpose_for(name, graph, x, edge_table)
    # The routed operator without an index: every row has one slot, for the only expert.
    y: Tensor = op.call(
        "routed_edge_aggregate", x, edge_table.unsqueeze(0), None, 0, graph.offsets, graph.columns, edge_type,
        _rows.weight_like(graph, x), reverse.offsets, reverse.columns, reverse.edge_type, reverse.weight,
    )  # fmt: skip
    return y.squeeze(1)
