"""routed_edge_aggregate: typed message passing for the (node, expert) pairs a router chose, and no others."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..graph import Graph


def routed_edge_aggregate(graph: Graph, x: Tensor, edge_table: Tensor, index: Tensor, first_expert: int = 0) -> Tensor:
    """Sum for each chosen (node, expert) pair the messages of that expert.

    y_ir = sum_{j -> i} w_ij relu(x_ej + edge_table[e, type_ij]),  e = index_ir - first_expert   (GMoE, eq. 2)

    Slots whose expert lies outside [0, F) are exact zeros: hop-1 and hop-2 experts, which pass messages over
    different graphs, are two calls whose results add up.

    Args:
        graph: CSR by destination with edge types 0 <= type < T; without weights w = 1.
        x: [F, N, D] one row per expert and source (GCN: W_e x), or [N, D] shared by all experts (GIN);
            float32 or bfloat16 (float64 in tests).
        edge_table: [F, T, D] one table of edge embeddings per expert, same dtype as x.
        index: [N, k] int64, the experts of each destination.
        first_expert: id of the first of the F experts given here.

    Returns:
        y [N, k, D] in x's dtype, accumulated in float32 (float64 for float64).

    Gradients: x, edge_table and graph.weight. The derivative of relu at 0 is 0. Differentiating a gradient
        again is refused.

    Raises:
        ValueError: shapes do not fit each other, or the graph has no edge types.
        TypeError: x and edge_table differ in dtype or are not floating, or index is not int64.
        GraphIndexError: a column or an edge type of the graph is out of range.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Example:
        >>> graph = Graph.from_edge_index(
        ...     torch.tensor([[0], [1]]), num_nodes=2, edge_type=torch.tensor([0]), num_edge_types=1
        ... )
        >>> table = torch.tensor([[[1.0]], [[2.0]]])  # two experts
        >>> routed_edge_aggregate(graph, torch.ones(2, 1), table, torch.tensor([[0], [1]])).tolist()
        [[[0.0]], [[3.0]]]
    """
    if graph.edge_type is None:
        raise ValueError(
            "gmoe::routed_edge_aggregate: expected 'graph' with edge types, got one without; "
            "mend: Graph.from_edge_index(..., edge_type=)"
        )
    num_experts = edge_table.shape[0]
    expected = [num_experts, graph.num_nodes] if x.dim() == 3 else [graph.num_nodes]
    if x.dim() not in (2, 3) or list(x.shape[:-1]) != expected:
        raise ValueError(
            f"gmoe::routed_edge_aggregate: expected 'x' of shape [{num_experts}, {graph.num_nodes}, D] or "
            f"[{graph.num_nodes}, D], got {list(x.shape)}"
        )
    if edge_table.dim() != 3 or edge_table.shape[2] != x.shape[-1]:
        raise ValueError(
            f"gmoe::routed_edge_aggregate: expected 'edge_table' of shape [F, T, {x.shape[-1]}] to match 'x', "
            f"got {list(edge_table.shape)}"
        )
    if index.dim() != 2 or index.shape[0] != graph.num_nodes:
        raise ValueError(
            f"gmoe::routed_edge_aggregate: expected 'index' of shape [{graph.num_nodes}, k], got {list(index.shape)}"
        )
    return reference.routed_edge_aggregate(graph, x, edge_table, index, first_expert)
