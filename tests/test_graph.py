"""Promises of Graph, each against a dense matrix or a plain loop."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch

from gmoe_ext.errors import GraphIndexError
from gmoe_ext.graph import Graph
from tests.graphs import random_graph


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
    with pytest.raises(TypeError, match="'row'"):
        graph.prefill(row=graph.rows)


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
        ((EDGES, 2, torch.ones(3)), ValueError, r"shape \[2\], one for each edge, got \[3\]"),
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
    with pytest.raises(ValueError, match=r"shape \[6\], one for each edge, got \[5\]"):
        graph.with_weight(torch.ones(5))
    with pytest.raises(ValueError, match="pass edge_type"):
        graph.edges_by_type()
