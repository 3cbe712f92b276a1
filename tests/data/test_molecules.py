"""Promises of molecule data, real and synthetic, and of its batches, against a plain loop over molecules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gmoe_ext import data, ops
from gmoe_ext.data import synthetic
from gmoe_ext.data.molecules import MoleculeData
from gmoe_ext.data.splits import NONE, random
from gmoe_ext.errors import DataError, GraphIndexError
from gmoe_ext.graph import Graph
from tests.data.make import molecule_arrays


def molecules(num_graphs: int = 30, num_tasks: int = 1, **changed) -> MoleculeData:
    arrays = molecule_arrays(num_graphs, num_tasks) | changed
    return MoleculeData.from_arrays("tiny", split=random(num_graphs), **arrays)


DATA = molecules()


def loop_over_molecules(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """node_feat, edge_index and edge_type of a batch, built as a data loader would: one molecule at a time."""
    arrays = molecule_arrays()
    first_atom = np.concatenate([[0], np.cumsum(arrays["num_nodes"])])
    first_bond = np.concatenate([[0], np.cumsum(arrays["num_bonds"])])
    features, edges, kinds, start = [], [], [], 0
    for molecule in ids:
        features.append(arrays["node_feat"][first_atom[molecule] : first_atom[molecule + 1]])
        for bond in range(first_bond[molecule], first_bond[molecule + 1]):
            u, v = (int(atom) + start for atom in arrays["bond_index"][:, bond])
            a, b, c = (int(category) for category in arrays["bond_feat"][bond])
            edges += [(u, v), (v, u)]
            kinds += [a * 12 + b * 2 + c] * 2
        start += int(arrays["num_nodes"][molecule])
    stacked = np.concatenate(features) if features else np.zeros((0, 9))
    return (
        torch.from_numpy(stacked).long(),
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T,
        torch.tensor(kinds).long(),
    )


def assert_same_graph(got: Graph, expected: Graph) -> None:
    for name in ("offsets", "columns", "edge_type"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert got.num_edge_types == expected.num_edge_types
    assert (got.weight is None) == (expected.weight is None)
    if got.weight is not None:
        torch.testing.assert_close(got.weight, expected.weight)


@given(st.lists(st.integers(0, 29), max_size=8))
def test_a_batch_is_the_union_of_its_molecules(ids):
    batch = DATA.batch(ids)
    features, edges, kinds = loop_over_molecules(ids)
    expected = Graph.from_edge_index(edges, len(features), None, kinds, 60)
    assert torch.equal(batch.node_feat, features)
    assert_same_graph(batch.graph, expected)
    assert torch.equal(batch.sizes, DATA.node_offsets.diff()[ids]) and batch.num_graphs == len(ids)
    assert batch.ids.tolist() == ids
    torch.testing.assert_close(batch.y, DATA.y[ids], equal_nan=True, rtol=0, atol=0)


@given(st.lists(st.integers(0, 29), max_size=8), st.booleans())
def test_what_a_batch_has_ready_is_what_it_would_compute(ids, two_hop):
    batch = DATA.batch(ids, two_hop=two_hop)
    graph = batch.two_hop if two_hop else batch.graph
    fresh = Graph(graph.num_nodes, graph.offsets, graph.columns, None, graph.edge_type, graph.num_edge_types)
    derived = [(graph, fresh), (graph.gcn_norm(), fresh.gcn_norm()), (graph.mean_norm(), fresh.mean_norm())]
    for got, expected in (*derived, (graph.mean_norm(add_self_loops=True), fresh.mean_norm(add_self_loops=True))):
        assert_same_graph(got, expected)
        assert_same_graph(got.transpose(), expected.transpose())
        assert torch.equal(got.transpose_order, expected.transpose_order)
        assert torch.equal(got.transpose().transpose_order, expected.transpose().transpose_order)
        assert torch.equal(got.rows, expected.rows)
        assert got.transpose().transpose() is got


def test_a_batch_neither_sorts_nor_normalises(monkeypatch):
    DATA.batch([0], two_hop=True)

    def refuse(*_):
        raise AssertionError("computed again")

    batch = DATA.batch([3, 1, 4], two_hop=True)
    monkeypatch.setattr(torch, "sort", refuse)
    monkeypatch.setattr(Graph, "_make_norm", refuse)
    for graph in (batch.graph, batch.two_hop):
        for derived in (graph, graph.gcn_norm(), graph.mean_norm(), graph.mean_norm(add_self_loops=True)):
            derived.transpose()


@given(st.lists(st.integers(0, 29), min_size=1, max_size=6))
def test_two_hop_types_name_the_pair_of_bonds(ids):
    batch = DATA.batch(ids, two_hop=True)
    expected = ops.two_hop_graph(batch.graph)
    assert torch.equal(batch.two_hop.columns, expected.columns) and torch.equal(batch.two_hop.offsets, expected.offsets)
    first, second = batch.pair_types[batch.two_hop.edge_type.long()].unbind(1)
    assert torch.equal(first * 60 + second, expected.edge_type.long())


def test_all_batches_share_the_pair_types_of_the_data_set():
    assert torch.equal(DATA.batch([0], two_hop=True).pair_types, DATA.batch([5, 6], two_hop=True).pair_types)
    assert DATA.batch([0]).two_hop is None and DATA.batch([0]).pair_types is None


def test_ids_may_be_a_tensor_array_or_list_and_are_checked():
    for ids in (torch.tensor([2, 1]), np.array([2, 1]), [2, 1]):
        assert DATA.batch(ids).ids.tolist() == [2, 1]
    for bad in (30, -1):
        with pytest.raises(GraphIndexError, match=f"'ids' at position 1 is {bad}, expected 0 <= index < 30"):
            DATA.batch([0, bad])


def test_a_batch_moves_as_a_whole():
    batch = DATA.batch([1, 2], two_hop=True).to("cpu")
    assert batch.graph.num_nodes == len(batch.node_feat)
    assert DATA.to("cpu").batch([1, 2]).graph.num_edges == batch.graph.num_edges


def test_summary_and_outputs():
    assert repr(DATA).startswith("MoleculeData(tiny: 30 molecules, ")
    assert "1 task (rocauc), 24/3/3 (random))" in repr(DATA)
    assert (DATA.num_tasks, DATA.num_outputs, DATA.num_graphs) == (1, 1, 30)
    classes = molecules(y=np.arange(30.0) % 4, metric="accuracy")
    assert (classes.metric, classes.num_outputs) == ("accuracy", 4)
    assert molecules(y=np.linspace(0, 1, 30)).metric == "rmse"
    other = DATA.with_split(NONE)
    assert other.split == "none" and other.batch([0]).graph.num_edges == DATA.batch([0]).graph.num_edges


def broken(name: str, index, value) -> dict:
    array = molecule_arrays()[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (broken("bond_index", (0, 0), 9), "index out of range: bond 0 of molecule"),
        (broken("bond_index", (1, 3), -1), "index out of range: bond 3"),
        (broken("node_feat", (5, 1), 5), r"'node_feat'\[5, 1\] is 5, expected 0 <= category < 5"),
        (broken("bond_feat", (2, 2), 2), r"'bond_feat'\[2, 2\] is 2"),
        (broken("num_nodes", 0, 0), "expected 'num_nodes' >= 1, got 0 at 0"),
        (broken("num_nodes", 0, 99), "'num_nodes' adds up to"),
        (broken("num_bonds", 0, -1), "'num_bonds' >= 0"),
        (broken("y", (0, 0), np.inf), "got infinity"),
        ({"y": np.zeros((29, 1))}, r"'y' of shape \[30\] or \[30, any\], got \[29, 1\]"),
        ({"num_bonds": np.zeros(30)}, "'num_bonds' of integer values"),
        (
            {"node_feat": np.zeros((len(molecule_arrays()["node_feat"]), 8), dtype=int)},
            r"'node_feat' of shape \[any, 9\]",
        ),
        ({"bond_index": np.zeros((2, 3), dtype=int)}, r"'bond_index' of shape \[2, "),
        ({"metric": "accuracy"}, "NaN in row"),
    ],
)
def test_bad_arrays_are_refused(changed, text):
    with pytest.raises(DataError, match=text):
        molecules(**changed)


class CountOperators(TorchDispatchMode):
    """Counts every operator that is run."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_large_batch_takes_as_many_operators_as_a_small_one():
    DATA.batch([0], two_hop=True)  # what all batches share is made by the first
    counts = []
    for ids in ([1, 2], list(range(30))):
        with CountOperators() as counter:
            DATA.batch(ids, two_hop=True)
        counts.append(counter.count)
    assert counts[0] == counts[1] < 200


def test_synthetic_molecules_have_either_kind_of_label():
    classes, real = synthetic.molecules(num_tasks=3), synthetic.molecules(regression=True)
    assert (classes.metric, real.metric, classes.num_tasks) == ("rocauc", "rmse", 3)
    assert classes.y.isnan().any() and not real.y.isnan().any()
    batch = classes.batch(range(60), two_hop=True)
    assert batch.two_hop.num_edges > 0 and torch.equal(batch.node_feat, classes.node_feat)
    assert data.load("molecules").num_graphs == 60


def test_each_synthetic_molecule_is_connected_without_parallel_bonds():
    made = synthetic.molecules(200)
    edges = made.graph.edge_index()
    keys = edges[0] * made.graph.num_nodes + edges[1]
    assert len(keys.unique()) == len(keys) and not bool((edges[0] == edges[1]).any())
    component = torch.arange(made.graph.num_nodes)
    for _ in range(15):
        component = component.scatter_reduce(0, edges[1], component[edges[0]], "amin")
    owner = torch.repeat_interleave(torch.arange(200), made.node_offsets.diff())
    assert torch.equal(component, made.node_offsets[:-1][owner])


ONCE = [(0, 1), (1, 2), (2, 3)]
BONDS = np.array([[1, 0, 0], [2, 0, 0], [3, 0, 0]])


def chain(ends: list[tuple[int, int]], kinds: np.ndarray) -> MoleculeData:
    atoms = {"node_feat": np.zeros((8, 9), int), "num_nodes": [4, 4], "num_bonds": [len(ends)] * 2, "y": [0.0, 1.0]}
    bonds = {"bond_index": np.tile(np.array(ends).T, (1, 2)), "bond_feat": np.tile(kinds, (2, 1))}
    return MoleculeData.from_arrays("chain", **atoms, **bonds, split=NONE)


@pytest.mark.parametrize(
    ("ends", "kinds"),
    [
        ([(v, u) for u, v in ONCE], BONDS),
        (ONCE + [(v, u) for u, v in ONCE], np.concatenate([BONDS, BONDS])),
        ([pair for u, v in ONCE for pair in ((v, u), (u, v))], np.repeat(BONDS, 2, 0)),
        ([*ONCE, ONCE[0]], np.concatenate([BONDS, BONDS[:1]])),
        ([(3, 3), *ONCE, (0, 0)], np.concatenate([BONDS[:1], BONDS, BONDS[1:2]])),
    ],
)
def test_bonds_are_the_same_graph_whatever_way_they_are_given(ends, kinds):
    got, expected = chain(ends, kinds).graph, chain(ONCE, BONDS).graph
    assert_same_graph(got, expected)


def test_a_bond_of_two_types_is_refused():
    with pytest.raises(DataError, match="bonds 0 and 3 join the same atoms, but have different rows in 'bond_feat'"):
        chain([*ONCE, (1, 0)], np.concatenate([BONDS, BONDS[1:2]]))
