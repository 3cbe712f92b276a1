"""aggregate: the sparse sum over neighbours, one hop or two."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..graph import Graph


def aggregate(graph: Graph, x: Tensor, hops: int = 1) -> Tensor:
    """Sum over each node what its neighbours hold, with the graph's weights.

    y_i = sum_{j -> i} w_ij x_j, that is y = A x; two hops are A (A x), never A^2 x   (GMoE, eqs. 2 and 11)

    Args:
        graph: CSR by destination, N nodes; a graph without weights sums with w = 1.
            gcn_norm() gives the GCN's weights, mean_norm() the mean.
        x: [N, D] float32 or bfloat16 (float64 in tests). Weights are used in the type sums are kept in:
            float32, for float64 rows float64.
        hops: 1 or 2.

    Returns:
        y [N, D] in x's dtype, each hop accumulated in float32 (float64 for float64).
        A node without incoming edges gets zeros.

    Gradients: x (the same sum over graph.transpose()) and graph.weight; both differentiable again.

    Raises:
        ValueError: x does not have one row per node, or hops is neither 1 nor 2.
        TypeError: x is not of a floating dtype.
        GraphIndexError: a column of the graph is out of range.

    Deterministic: yes, forward and backward, bit for bit, for any number of threads.

    Example:
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 1], [2, 2]]), num_nodes=3)
        >>> aggregate(graph, torch.tensor([[1.0], [2.0], [4.0]])).tolist()
        [[0.0], [0.0], [3.0]]
    """
    if x.dim() != 2 or x.shape[0] != graph.num_nodes:
        raise ValueError(f"gmoe::aggregate: expected 'x' of shape [{graph.num_nodes}, D], got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"gmoe::aggregate: expected 'x' of a floating dtype, got {x.dtype}; mend: x.float()")
    if hops not in (1, 2):
        raise ValueError(f"gmoe::aggregate: expected 'hops' of 1 or 2, got {hops}")
    return reference.aggregate(graph, x, hops)
