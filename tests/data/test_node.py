"""Promises of NodeData: arrays of one's own, the inductive view, moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmoe_ext.data import NodeData, splits
from gmoe_ext.errors import DataError
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


def test_arrays_of_ones_own_are_kept():
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
        ({"y": np.zeros(3, dtype=int)}, r"'y' of shape \[40\] or \[40, 1\], got \[3\]"),
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


def test_the_inductive_draw_follows_the_seed():
    mine = given_arrays()
    assert torch.equal(mine.inductive(0).heldout, mine.inductive(0).heldout)
    assert any(not torch.equal(mine.inductive(0).heldout, mine.inductive(seed).heldout) for seed in (1, 2, 3))
    assert len(mine.inductive(0).heldout) == 2 and len(mine.inductive(0, rate=1.0).heldout) == 12
    with pytest.raises(ValueError, match="0 < rate <= 1, got 0"):
        mine.inductive(0, rate=0.0)


def test_data_moves_and_changes_its_split():
    mine = given_arrays().to("cpu")
    other = mine.with_split(splits.random(40, seed=1))
    assert other.split == "random" and other.graph is mine.graph


def test_per_class_draws_as_announced():
    y = torch.arange(300) % 3
    split = splits.per_class(y, 20, 30, seed=0)
    assert torch.bincount(y[split.train_idx]).tolist() == [20] * 3
    assert torch.bincount(y[split.val_idx]).tolist() == [30] * 3 and len(split.test_idx) == 150
    generator = np.random.default_rng(0)
    first = generator.choice(np.arange(0, 300, 3), 20, replace=False)
    assert set(first) == set(split.train_idx[y[split.train_idx] == 0].tolist())


def test_a_split_of_arrays_is_sorted():
    parts = split_arrays(12)
    split = splits.check_split(parts["train_idx"][::-1], parts["valid_idx"], parts["test_idx"], size=12, rule="r")
    assert split.train_idx.tolist() == list(range(8)) and split.rule == "r"
