"""What is special about random_walk; the contract every operator keeps is tested in test_contract_*.py."""

from __future__ import annotations

import pytest
import torch

from gmoe_ext import ops
from gmoe_ext.graph import Graph

from .samples import Random

pytestmark = pytest.mark.usefixtures("made_on_device")

_MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 2**64 + 5, -(2**70)])
def test_every_step_is_splitmix64_of_seed_walk_and_step(seed: int) -> None:
    graph = Random("walk").graph("isolated", 40)
    starts = Random("starts").integers(40, 70)
    walks = ops.random_walk(graph, starts, 9, seed).tolist()
    for position, start in enumerate(starts.tolist()):
        node, key = start, splitmix64((splitmix64(seed & _MASK) + position) & _MASK)
        expected = [node]
        for step in range(1, 9):
            begin, end = graph.offsets[node : node + 2].tolist()
            if end > begin:
                node = int(graph.columns[begin + (splitmix64((key + step) & _MASK) >> 1) % (end - begin)])
            expected.append(node)
        assert walks[position] == expected


def test_a_shorter_walk_and_fewer_walks_are_prefixes() -> None:
    graph = Random("walk").graph("random", 100)
    starts = Random("starts").integers(100, 1000)
    walks = ops.random_walk(graph, starts, 10, 3)
    assert torch.equal(ops.random_walk(graph, starts[:77], 4, 3), walks[:77, :4])


def test_every_step_follows_an_edge_or_stays_at_a_dead_end() -> None:
    graph = Graph.from_edge_index(torch.tensor([[1, 2], [0, 1]]), 4)
    walks = ops.random_walk(graph, torch.arange(4), 5, 0)
    assert walks.tolist() == [[0, 1, 2, 2, 2], [1, 2, 2, 2, 2], [2, 2, 2, 2, 2], [3, 3, 3, 3, 3]]


def test_neighbours_are_drawn_evenly() -> None:
    star = Graph.from_edge_index(torch.stack([torch.arange(1, 11), torch.zeros(10, dtype=torch.int64)]), 11)
    drawn = ops.random_walk(star, torch.zeros(100_000, dtype=torch.int64), 2, 11)[:, 1]
    counts = torch.bincount(drawn, minlength=11)[1:].double()
    # Chi-square of 9 degrees of freedom exceeds 27.9 once in a thousand.
    assert ((counts - 10_000).square() / 10_000).sum() < 27.9


def test_another_seed_walks_elsewhere() -> None:
    graph = Random("walk").graph("random", 100)
    starts = torch.arange(100)
    one, two = (ops.random_walk(graph, starts, 10, seed) for seed in (1, 2))
    assert (one != two).double().mean() > 0.8
