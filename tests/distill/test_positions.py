"""DeepWalk positions: deterministic, structural, and blind to what is held out."""

import os
import subprocess
import sys

import pytest
import torch

from gmoe_ext import Graph, models
from gmoe_ext.distill import ReliableSampler, deepwalk, extend_positions, student_inputs
from gmoe_ext.models.gnn import NodeServer

pytest.importorskip("gensim")


def two_cliques(size=8):
    """Two cliques joined by one edge, both directions stored."""
    clique = [(i, j) for i in range(size) for j in range(size) if i != j]
    edges = clique + [(i + size, j + size) for i, j in clique] + [(0, size), (size, 0)]
    return Graph.from_edge_index(torch.tensor(edges).T, num_nodes=2 * size)


SETTINGS = {"dim": 8, "walk_length": 10, "num_walks": 20, "window": 2, "epochs": 5}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    graph = two_cliques()
    first = deepwalk(graph, seed=3, **SETTINGS)
    assert first.shape == (16, 8) and first.dtype == torch.float32
    assert torch.equal(first, deepwalk(graph, seed=3, **SETTINGS))
    assert not torch.equal(first, deepwalk(graph, seed=4, **SETTINGS))


def test_positions_do_not_depend_on_the_process():
    program = (
        "import torch\nfrom gmoe_ext import Graph\nfrom gmoe_ext.distill import deepwalk\n"
        "ring = torch.arange(9)\nedges = torch.stack([ring, (ring + 1) % 9])\n"
        "graph = Graph.from_edge_index(torch.cat([edges, edges.flip(0)], 1), num_nodes=9)\n"
        "print(deepwalk(graph, dim=4, walk_length=6, num_walks=2, seed=1).double().sum().item().hex())"
    )
    outs = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outs.add(done.stdout)
    assert len(outs) == 1


def test_nodes_of_one_community_lie_together():
    positions = torch.nn.functional.normalize(deepwalk(two_cliques(), seed=0, **SETTINGS))
    cosine = positions @ positions.T
    assert cosine[1:8, 1:8].mean() > cosine[1:8, 9:].mean()


def test_held_out_nodes_get_the_mean_of_their_observed_neighbours():
    # 0 - 1, 0 - 2, 3 - 4 and 5 alone; 0, 3 and 5 are held out.
    edges = torch.tensor([[0, 1, 0, 2, 3, 0, 3, 5], [1, 0, 2, 0, 0, 3, 5, 3]])
    graph = Graph.from_edge_index(edges, num_nodes=6)
    observed = torch.tensor([4, 1, 2])
    positions = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    everywhere = extend_positions(positions, graph, observed)
    assert torch.equal(everywhere[observed], positions)
    assert everywhere[0].tolist() == [0.5, 0.5]  # its held-out neighbour 3 does not count
    assert everywhere[3].tolist() == [0.0, 0.0]
    assert everywhere[5].tolist() == [0.0, 0.0]


def test_observed_nodes_can_be_placed_as_held_out_ones_are():
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])  # a path 0 - 1 - 2 - 3 and 4 alone; 3 is held out
    graph = Graph.from_edge_index(edges, num_nodes=5)
    positions = torch.tensor([[1.0], [2.0], [6.0], [9.0]])
    everywhere = extend_positions(positions, graph, torch.tensor([0, 1, 2, 4]), own=False)
    assert everywhere.flatten().tolist() == [2.0, 3.5, 2.0, 6.0, 9.0]


def test_edge_weights_do_not_weigh_positions():
    edges = torch.tensor([[1, 2], [0, 0]])
    graph = Graph.from_edge_index(edges, num_nodes=3, edge_weight=torch.tensor([5.0, 1.0]))
    everywhere = extend_positions(torch.tensor([[1.0], [3.0]]), graph, torch.tensor([1, 2]))
    assert everywhere[0].item() == 2.0


def test_scaling_gives_positions_the_features_mean_norm():
    torch.manual_seed(0)
    x, positions = torch.rand(10, 5), 30 * torch.randn(10, 3)
    plain = student_inputs(x, positions)
    assert torch.equal(plain, torch.cat([x, positions], 1))
    scaled = student_inputs(x, positions, scale="features")
    assert torch.equal(scaled[:, :5], x)
    torch.testing.assert_close(scaled[:, 5:].norm(dim=1).mean(), x.norm(dim=1).mean())
    observed = torch.tensor([0, 1, 2])
    scaled = student_inputs(x, positions, scale="features", observed=observed)
    torch.testing.assert_close(scaled[:3, 5:].norm(dim=1).mean(), x[:3].norm(dim=1).mean())
    assert student_inputs(x, None) is x


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'num_walks' of at least 1, got 0"):
        deepwalk(two_cliques(), num_walks=0)
    with pytest.raises(ValueError, match=r"\(2\), got 3"):
        extend_positions(torch.ones(3, 2), two_cliques(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"a row per row of 'x' \(4\), got 3"):
        student_inputs(torch.ones(4, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="'none' or 'features', got 'unit'"):
        student_inputs(torch.ones(4, 2), torch.ones(4, 2), scale="unit")


def test_edges_in_place_of_a_graph_are_refused_with_the_fix():
    edges = torch.tensor([[0, 1], [1, 0]])
    teacher = models.build("gcn", in_dim=2, hidden_dim=2, out_dim=2, num_layers=1)
    for call in (
        lambda: deepwalk(edges),
        lambda: extend_positions(torch.ones(2, 2), edges, torch.tensor([0, 1])),
        lambda: ReliableSampler(edges, torch.zeros(2)),
        lambda: NodeServer(teacher, torch.ones(2, 2), edges),
    ):
        with pytest.raises(TypeError, match=r"'graph' to be a gmoe_ext.Graph, got Tensor; fix:"):
            call()
