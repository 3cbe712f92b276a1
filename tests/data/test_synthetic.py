"""Promises of the synthetic data sets."""

from __future__ import annotations

import torch

from gmoe_ext import data
from gmoe_ext.data import synthetic
from gmoe_ext.graph import Graph


def test_communities_have_the_announced_size():
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


def nearest_class(data: data.NodeData, evidence: torch.Tensor) -> torch.Tensor:
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


def test_small_molecules_come_with_either_kind_of_label():
    classes, real = synthetic.molecules(num_tasks=3), synthetic.molecules(regression=True)
    assert (classes.metric, real.metric, classes.num_tasks) == ("rocauc", "rmse", 3)
    assert classes.y.isnan().any() and not real.y.isnan().any()
    batch = classes.batch(range(60), two_hop=True)
    assert batch.two_hop.num_edges > 0 and torch.equal(batch.node_feat, classes.node_feat)
    assert data.load("molecules").num_graphs == 60


def test_each_molecule_is_connected_without_parallel_bonds():
    made = synthetic.molecules(200)
    edges = made.graph.edge_index()
    keys = edges[0] * made.graph.num_nodes + edges[1]
    assert len(keys.unique()) == len(keys) and not bool((edges[0] == edges[1]).any())
    component = torch.arange(made.graph.num_nodes)
    for _ in range(15):
        component = component.scatter_reduce(0, edges[1], component[edges[0]], "amin")
    owner = torch.repeat_interleave(torch.arange(200), made.node_offsets.diff())
    assert torch.equal(component, made.node_offsets[:-1][owner])
