"""Graph: every derived graph against a dense matrix, and edges in any order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gmoe_ext.graph import Graph
from gmoe_ext.indices import gather_ranges
from tests.graphs import dense, edge_lists, graphs


@given(edge_lists())
def test_rows_keep_the_order_of_the_input(drawn):
    edge_index, num_nodes = drawn
    graph = Graph.from_edge_index(edge_index, num_nodes)
    for node in range(num_nodes):
        row = graph.columns[graph.offsets[node] : graph.offsets[node + 1]]
        assert row.tolist() == edge_index[0, edge_index[1] == node].tolist()


@given(graphs(num_edge_types=3))
def test_edge_id_leads_back_to_the_input(graph):
    again = Graph.from_edge_index(graph.edge_index(), graph.num_nodes, graph.weight, graph.edge_type, 3)
    assert again.edge_id.tolist() == list(range(graph.num_edges))
    assert torch.equal(again.columns, graph.columns)


@given(graphs())
def test_rows_and_degrees_follow_the_offsets(graph):
    expected = torch.repeat_interleave(torch.arange(graph.num_nodes), graph.degree())
    assert torch.equal(graph.rows.long(), expected)
    plain = Graph(graph.num_nodes, graph.offsets, graph.columns, graph.weight)
    assert torch.equal(plain.rows, graph.rows) and plain.rows.dtype == graph.columns.dtype


@given(graphs(num_edge_types=4))
def test_transpose_reverses_every_edge_and_back(graph):
    reverse = graph.transpose()
    torch.testing.assert_close(dense(reverse), dense(graph).T)
    order = graph.transpose_order
    assert torch.equal(reverse.edge_index().flip(0), graph.edge_index()[:, order])
    assert torch.equal(reverse.edge_type, graph.edge_type[order])
    assert reverse.transpose() is graph
    assert torch.equal(reverse.transpose_order[order], torch.arange(graph.num_edges))


@given(graphs(weighted=False), st.booleans())
def test_gcn_norm_is_the_symmetric_normalisation(graph, add_self_loops):
    matrix = dense(graph)
    if add_self_loops:
        matrix += torch.diag((matrix.diagonal() == 0).double())
    degree = matrix.sum(1)
    scale = torch.where(degree > 0, degree.clamp_min(1e-9) ** -0.5, 0.0)
    expected = scale[:, None] * matrix * scale[None, :]
    torch.testing.assert_close(dense(graph.gcn_norm(add_self_loops)), expected, atol=1e-6, rtol=1e-6)


@given(graphs(weighted=True, dtype=torch.float64))
def test_gcn_norm_uses_the_weights(graph):
    matrix = dense(graph)
    matrix += torch.diag((matrix.diagonal() == 0).double())
    scale = matrix.sum(1) ** -0.5
    norm = graph.gcn_norm()
    assert norm.weight.dtype == torch.float64
    torch.testing.assert_close(dense(norm), scale[:, None] * matrix * scale[None, :])


@given(graphs())
def test_mean_norm_rows_sum_to_one(graph):
    sums = dense(graph.mean_norm()).sum(1)
    torch.testing.assert_close(sums, (graph.degree() > 0).double(), atol=1e-6, rtol=0)


@given(graphs(num_edge_types=3))
def test_added_self_loops_come_last_and_have_their_own_type(graph):
    looped = graph.with_self_loops()
    assert looped.num_edge_types == 4
    has_loop = torch.zeros(graph.num_nodes, dtype=torch.bool)
    has_loop[graph.columns[graph.rows == graph.columns].long()] = True
    assert looped.num_edges == graph.num_edges + int((~has_loop).sum())
    added = looped.edge_type == 3
    assert torch.equal(looped.columns[~added], graph.columns)
    assert torch.equal(looped.edge_type[~added], graph.edge_type)
    last = (looped.offsets[1:] - 1)[~has_loop]
    assert torch.equal(added.nonzero().squeeze(1), last)
    assert torch.equal(looped.columns[last].long(), (~has_loop).nonzero().squeeze(1))
    assert torch.equal(looped.rows, Graph(looped.num_nodes, looped.offsets, looped.columns).rows)
    assert looped.with_self_loops().num_edges == looped.num_edges


@given(graphs(num_edge_types=5))
def test_edges_by_type_is_a_stable_grouping(graph):
    offsets, order = graph.edges_by_type()
    expected = [e for kind in range(5) for e in range(graph.num_edges) if graph.edge_type[e] == kind]
    assert order.tolist() == expected
    assert offsets.tolist() == [sum(int(t) < kind for t in graph.edge_type) for kind in range(6)]


@given(graphs(num_edge_types=2), st.randoms())
def test_subgraph_is_the_induced_submatrix(graph, random):
    nodes = torch.tensor(random.sample(range(graph.num_nodes), random.randint(0, graph.num_nodes)), dtype=torch.int64)
    part = graph.subgraph(nodes)
    torch.testing.assert_close(dense(part), dense(graph)[nodes][:, nodes])
    assert torch.equal(part.rows, Graph(part.num_nodes, part.offsets, part.columns).rows)
    position = {int(edge): p for p, edge in enumerate(graph.edge_id)}
    kept = torch.tensor([position[int(edge)] for edge in part.edge_id], dtype=torch.int64)
    assert torch.equal(part.edge_type, graph.edge_type[kept])
    assert torch.equal(nodes[part.columns.long()], graph.columns[kept].long())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=12))
def test_gather_ranges_is_concatenated_ranges(ranges):
    starts = torch.tensor([start for start, _ in ranges], dtype=torch.int64)
    counts = torch.tensor([count for _, count in ranges], dtype=torch.int64)
    expected = [value for start, count in ranges for value in range(start, start + count)]
    assert gather_ranges(starts, counts).tolist() == expected
    assert gather_ranges(starts, counts, total=len(expected)).tolist() == expected
