"""Promises of Graph, each against a dense matrix or a plain loop."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmoe_ext.errors import GraphIndexError
from gmoe_ext.graph import Graph
from gmoe_ext.indices import gather_ranges
from tests.graphs import edge_lists, graphs, random_graph


def dense(graph: Graph) -> torch.Tensor:
    matrix = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    weight = torch.ones(graph.num_edges) if graph.weight is None else graph.weight
    return matrix.index_put((graph.rows.long(), graph.columns.long()), weight.double(), accumulate=True)


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


def test_transpose_outlives_its_graph_and_gives_the_same_edges():
    graph = random_graph(20, 60, weighted=True)
    columns, weight, reverse = graph.columns, graph.weight, graph.transpose()
    del graph
    gc.collect()
    again = reverse.transpose()
    assert torch.equal(again.columns, columns) and torch.equal(again.weight, weight)


def test_a_released_graph_needs_no_garbage_collector():
    import weakref

    graph = random_graph(20, 60)
    graph.gcn_norm().transpose()
    graph.transpose()
    gc.disable()
    try:
        gone = weakref.ref(graph)
        del graph
        assert gone() is None
    finally:
        gc.enable()


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


def test_derived_graphs_are_computed_once_and_share_structure():
    graph = random_graph(30, 90)
    assert graph.gcn_norm() is graph.gcn_norm()
    assert graph.transpose() is graph.transpose()
    assert graph.gcn_norm(False).columns is graph.columns
    assert graph.gcn_norm(False).rows is graph.rows
    assert graph.gcn_norm().transpose().columns is graph.mean_norm(True).transpose().columns


def test_learned_weights_get_gradients_every_time():
    edge_index = random_graph(6, 20).edge_index()
    weight = torch.rand(20, dtype=torch.float64).add(0.1).requires_grad_()

    def normalised(w):
        graph = Graph.from_edge_index(edge_index, 6, w)
        return graph.gcn_norm().weight, graph.mean_norm().weight, graph.transpose().weight

    assert torch.autograd.gradcheck(normalised, (weight,))
    graph = Graph.from_edge_index(edge_index, 6).with_weight(weight)
    for _ in range(2):
        graph.gcn_norm().weight.sum().backward()


def test_prefilled_graphs_are_used():
    graph, norm, reverse = random_graph(5, 9), random_graph(5, 9, seed=1), random_graph(5, 9, seed=2)
    graph.prefill(gcn_norm=norm, transpose=reverse)
    assert graph.gcn_norm() is norm and graph.transpose() is reverse and reverse.transpose() is graph
    with pytest.raises(TypeError, match="'norm'"):
        graph.prefill(norm=norm)


def test_fields_cannot_be_set():
    with pytest.raises(AttributeError):
        random_graph(3, 4).num_nodes = 7


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies_and_pickles_hold_the_same_edges(clone):
    graph = random_graph(9, 20, weighted=True, num_edge_types=2)
    graph.transpose()
    graph.gcn_norm()
    again = clone(graph)
    assert torch.equal(again.columns, graph.columns) and torch.equal(again.weight, graph.weight)
    assert again.num_edge_types == 2 and again.transpose().transpose() is again


def test_repr_says_what_it_is():
    assert repr(random_graph(1200, 5000)) == "Graph(1,200 nodes, 5,000 edges, int32)"
    typed = random_graph(3, 4, weighted=True, num_edge_types=60)
    assert repr(typed) == "Graph(3 nodes, 4 edges, weight float32, 60 edge types, int32)"


def test_the_first_bad_index_is_named():
    with pytest.raises(GraphIndexError) as caught:
        Graph.from_edge_index(torch.tensor([[0, 1, 2], [1, 5, -1]]), 3)
    error = caught.value
    assert (error.argument, error.position, error.value, error.bound) == ("edge_index", 4, 5, 3)
    with pytest.raises(GraphIndexError, match="'edge_type' at position 1 is 2"):
        Graph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2, edge_type=torch.tensor([0, 2]), num_edge_types=2)
    with pytest.raises(GraphIndexError):
        Graph.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), 0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_column_that_is_no_node_is_named_when_transposing(dtype):
    for value in (-1, 3, torch.iinfo(dtype).max, torch.iinfo(dtype).min):
        for position in range(3):
            columns = torch.arange(3, dtype=dtype)
            columns[position] = value
            with pytest.raises(GraphIndexError) as caught:
                Graph(3, torch.arange(4), columns).transpose()
            error = caught.value
            found = (error.op, error.argument, error.position, error.value, error.bound)
            assert found == ("Graph.transpose", "columns", position, value, 3)


EDGES = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((EDGES.float(), 2), TypeError, "integer dtype, got torch.float32"),
        (([[0], [1]], 2), TypeError, "got list"),
        ((EDGES.T.reshape(1, 4), 2), ValueError, r"shape \[2, M\], got \[1, 4\]"),
        ((EDGES[0], 2), ValueError, r"got \[2\]"),
        ((EDGES, -1), ValueError, "got -1"),
        ((EDGES, 2, torch.ones(3)), ValueError, r"shape \[2\] to match 'edge_index', got \[3\]"),
        ((EDGES, 2, torch.ones(2, dtype=torch.int64)), TypeError, "floating dtype"),
        ((EDGES, 2, torch.tensor([1.0, float("nan")])), ValueError, "nan at position 1"),
        ((EDGES, 2, None, torch.ones(2)), TypeError, "'edge_type' of an integer dtype"),
        ((EDGES, 2, None, None, 4), ValueError, "num_edge_types=4, got None"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        Graph.from_edge_index(*arguments)


def test_subgraph_refuses_repeated_and_foreign_nodes():
    graph = random_graph(4, 6)
    with pytest.raises(ValueError, match="got 2 more than once"):
        graph.subgraph(torch.tensor([2, 2]))
    with pytest.raises(GraphIndexError):
        graph.subgraph(torch.tensor([4]))
    with pytest.raises(TypeError, match=r"\[S\]"):
        graph.subgraph(torch.tensor([True, False, True, False]))


def test_wrong_use_of_weights_and_types_is_refused():
    graph = random_graph(4, 6)
    with pytest.raises(ValueError, match=r"shape \[6\], got \[5\]"):
        graph.with_weight(torch.ones(5))
    with pytest.raises(ValueError, match="pass edge_type"):
        graph.edges_by_type()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=12))
def test_gather_ranges_is_concatenated_ranges(ranges):
    starts = torch.tensor([start for start, _ in ranges], dtype=torch.int64)
    counts = torch.tensor([count for _, count in ranges], dtype=torch.int64)
    expected = [value for start, count in ranges for value in range(start, start + count)]
    assert gather_ranges(starts, counts).tolist() == expected
    assert gather_ranges(starts, counts, total=len(expected)).tolist() == expected
