"""Promises of NodeData, of splits and of the synthetic communities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmoe_ext import data
from gmoe_ext.data import NodeData, splits, synthetic
from gmoe_ext.errors import DataError
from gmoe_ext.graph import Graph
from tests.data.make import node_arrays, split_arrays


def given_arrays(**changed) -> NodeData:
    arrays = node_arrays()
    parts = {"train_idx": np.arange(20), "val_idx": np.arange(20, 28), "test_idx": np.arange(28, 40)}
    arguments = {"x": np.eye(40), "edge_index": arrays["edge_index"], "y": arrays["y"]} | parts
    return NodeData.from_arrays("mine", **(arguments | changed))


def test_edges_are_made_undirected_once_and_without_self_loops():
    edges = np.array([[0, 1, 1, 2, 5], [1, 0, 2, 2, 4]])
    graph = given_arrays(edge_index=edges).graph
    assert graph.edge_index().T.tolist() == [[1, 0], [0, 1], [2, 1], [1, 2], [5, 4], [4, 5]]
    assert graph.weight is None


def test_own_arrays_are_kept():
    mine = given_arrays(class_names=("even", "odd"))
    assert (mine.num_classes, mine.class_names, mine.num_features, mine.split) == (2, ("even", "odd"), 40, "given")
    assert mine.x.dtype == torch.float32 and mine.y.dtype == torch.int64
    assert given_arrays(y=node_arrays()["y"].astype(float)[:, None]).y.equal(mine.y)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"x": np.full((40, 2), np.nan)}, "finite values in 'x', got nan at position 0"),
        ({"x": np.array([["a"]] * 40)}, "expected 'x' of real values"),
        ({"x": np.zeros(40)}, r"expected 'x' of shape \[40, any\], got \[40\]"),
        ({"y": np.full(40, 0.5)}, "got 0.5 at node 0"),
        ({"y": np.zeros(3, dtype=int)}, r"'y' of shape \[40\] or \[40, any\], got \[3\]"),
        ({"edge_index": np.array([[0], [40]])}, "'edge_index' at position 1 is 40"),
        ({"edge_index": np.zeros((2, 3))}, "'edge_index' of integer values, got dtype float64"),
        ({"test_idx": np.array([0])}, "id 0 is in both the train and test part"),
    ],
)
def test_bad_arrays_are_refused(changed, text):
    with pytest.raises(DataError, match=text):
        given_arrays(**changed)


def test_the_inductive_view_hides_held_out_nodes_entirely():
    mine = given_arrays()
    view = mine.inductive(seed=3, rate=0.5)
    hidden = set(view.heldout.tolist())
    assert len(hidden) == 6 and hidden <= set(mine.test_idx.tolist())
    assert sorted([*hidden, *view.observed_nodes.tolist()]) == list(range(40))
    observed = view.observed
    assert torch.equal(observed.x, mine.x[view.observed_nodes]) and torch.equal(observed.y, mine.y[view.observed_nodes])
    assert torch.equal(view.observed_nodes[observed.train_idx], mine.train_idx)
    assert torch.equal(view.observed_nodes[observed.val_idx], mine.val_idx)
    rest = [node for node in mine.test_idx.tolist() if node not in hidden]
    assert view.observed_nodes[observed.test_idx].tolist() == rest
    kept = {tuple(edge) for edge in mine.graph.edge_index().T.tolist() if not hidden & set(edge)}
    assert {tuple(edge) for edge in view.observed_nodes[observed.graph.edge_index()].T.tolist()} == kept


def test_the_seed_decides_the_inductive_draw():
    mine = given_arrays()
    assert torch.equal(mine.inductive(0).heldout, mine.inductive(0).heldout)
    assert any(not torch.equal(mine.inductive(0).heldout, mine.inductive(seed).heldout) for seed in (1, 2, 3))
    assert len(mine.inductive(0).heldout) == 2 and len(mine.inductive(0, rate=1.0).heldout) == 12
    with pytest.raises(ValueError, match="0 < rate <= 1, got 0"):
        mine.inductive(0, rate=0.0)


def test_data_can_move_and_get_another_split():
    mine = given_arrays().to("cpu")
    other = mine.with_split(splits.random(40, seed=1))
    assert other.split == "random" and other.graph is mine.graph


def test_per_class_draws_the_given_numbers_of_each_class():
    y = torch.arange(300) % 3
    split = splits.per_class(y, 20, 30, seed=0)
    assert torch.bincount(y[split.train_idx]).tolist() == [20] * 3
    assert torch.bincount(y[split.val_idx]).tolist() == [30] * 3 and len(split.test_idx) == 150
    generator = np.random.default_rng(0)
    first = generator.choice(np.arange(0, 300, 3), 20, replace=False)
    assert set(first) == set(split.train_idx[y[split.train_idx] == 0].tolist())


def test_the_parts_of_a_split_are_sorted():
    parts = split_arrays(12)
    split = splits.check_split(parts["train_idx"][::-1], parts["valid_idx"], parts["test_idx"], size=12, rule="r")
    assert split.train_idx.tolist() == list(range(8)) and split.rule == "r"


def test_communities_have_the_documented_size():
    made = data.load("communities")
    assert (made.num_nodes, made.num_features, made.num_classes) == (12_000, 64, 8)
    assert 70_000 < made.graph.num_edges // 2 < 73_000
    assert [len(ids) for ids in (made.train_idx, made.val_idx, made.test_idx)] == [1200, 1200, 9600]
    assert torch.bincount(made.y).min() > 1000


def test_a_seed_gives_the_same_data_and_the_split_has_its_own():
    first, again = synthetic.communities(1000, 6000), synthetic.communities(1000, 6000)
    assert torch.equal(first.x, again.x) and torch.equal(first.graph.columns, again.graph.columns)
    assert torch.equal(first.train_idx, again.train_idx)
    other = synthetic.communities(1000, 6000, split_seed=1)
    assert torch.equal(first.x, other.x) and not torch.equal(first.train_idx, other.train_idx)
    assert not torch.equal(first.x, synthetic.communities(1000, 6000, seed=1).x)


def nearest_class(data: NodeData, evidence: torch.Tensor) -> torch.Tensor:
    """Which nodes a nearest-centroid classifier of ``evidence``, fitted on the training nodes, gets right."""
    train = data.train_idx
    onehot = torch.nn.functional.one_hot(data.y[train], data.num_classes).float()
    centroids = (onehot.T @ evidence[train]) / onehot.sum(0)[:, None]
    return torch.cdist(evidence, centroids).argmin(1) == data.y


def mean_of_neighbours(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros_like(x).index_add_(0, graph.rows.long(), x[graph.columns.long()])
    return sums / graph.degree().clamp_min(1)[:, None]


def test_some_nodes_need_one_hop_and_others_two():
    made = synthetic.communities()
    one = mean_of_neighbours(made.graph, made.x)
    two = mean_of_neighbours(made.graph, one)
    own_right, one_right, two_right = (nearest_class(made, evidence) for evidence in (made.x, one, two))
    assert own_right.float().mean() < 0.5
    assert one_right.float().mean() < 0.75 and (one_right & ~two_right).float().mean() > 0.05
    assert (two_right & ~one_right).float().mean() > 0.15
