"""The kernels on NumPy arrays are the operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmoe_ext import ops, reference
from gmoe_ext.errors import GraphIndexError
from gmoe_ext.graph import Graph
from gmoe_ext.runtime import aggregate, cosine_topk, expert_linear, topk_softmax

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def normal(dtype: type, *shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@DTYPES
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_routers(dtype: type, rows: int) -> None:
    x, memory, logits = normal(dtype, rows, 33), normal(dtype, 5, 33), normal(dtype, rows, 6)
    for got, expected in (
        (cosine_topk(x, memory, k=3), reference.cosine_topk(torch.from_numpy(x), torch.from_numpy(memory), 3)),
        (topk_softmax(logits, k=3), reference.topk_softmax(torch.from_numpy(logits), 3)),
    ):
        assert got[0].dtype == dtype and got[0].shape == (rows, 3) and np.array_equal(got[1], expected[1])
        np.testing.assert_allclose(got[0], expected[0], atol=1e-6)


@DTYPES
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_expert_linear(dtype: type, with_bias: bool, rows: int) -> None:
    x, weight = normal(dtype, rows, 12), normal(dtype, 4, 9, 12)
    bias = normal(dtype, 4, 9) if with_bias else None
    gate, index = topk_softmax(normal(dtype, rows, 4), k=2)
    plan = ops.expert_plan(torch.from_numpy(index), 4)
    tensors = [None if a is None else torch.from_numpy(a) for a in (x, weight, bias)]
    expected = reference.expert_linear(*tensors, plan, torch.from_numpy(gate))
    got = expert_linear(x, weight, bias, gate, index)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, atol=1e-5)


@DTYPES
@pytest.mark.parametrize("weighted", [True, False])
def test_aggregate(dtype: type, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x, weight = normal(dtype, 20, 7), rng.random(60).astype(dtype)
    edges, values = torch.from_numpy(rng.integers(0, 20, (2, 60))), torch.from_numpy(weight) if weighted else None
    graph = Graph.from_edge_index(edges, 20, values)
    weights = None if graph.weight is None else graph.weight.numpy()
    got = aggregate(graph.offsets.numpy(), graph.columns.numpy(), x, weights)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, reference.aggregate(graph, torch.from_numpy(x)), atol=1e-5)


def test_refusals() -> None:
    x, memory = normal(np.float32, 3, 4), normal(np.float32, 5, 4)
    gate, index = cosine_topk(x, memory, k=2)
    weight = normal(np.float32, 5, 2, 4)
    with pytest.raises(ValueError, match=r"cosine_topk: expected 'k' in \[1, 5\], got 6"):
        cosine_topk(x, memory, k=6)
    with pytest.raises(ValueError, match=r"cosine_topk: expected 'memory' of shape \[E, 4\], got \[5, 3\]"):
        cosine_topk(x, memory[:, :3], k=1)
    with pytest.raises(ValueError, match="cosine_topk: expected 'eps' > 0"):
        cosine_topk(x, memory, k=1, eps=0.0)
    with pytest.raises(TypeError, match="cosine_topk: expected 'x' of floating-point numbers, got dtype int64"):
        cosine_topk(x.astype(int), memory, k=1)
    with pytest.raises(ValueError, match=r"topk_softmax: expected 'k' in \[1, 4\], got 0"):
        topk_softmax(x, k=0)
    with pytest.raises(ValueError, match=r"'logits' with 2 dimensions, got \[4\]"):
        topk_softmax(x[0], k=1)
    with pytest.raises(ValueError, match=r"'weight' of shape \[E, F, 4\], got \[5, 2, 3\]"):
        expert_linear(x, weight[..., :3], None, gate, index)
    with pytest.raises(ValueError, match=r"'bias' of shape \[5, 2\], got \[5, 4\]"):
        expert_linear(x, weight, memory, gate, index)
    with pytest.raises(ValueError, match=r"'index' of the shape of 'gate', \[3, 2\], got \[2, 2\]"):
        expert_linear(x, weight, None, gate, index[:2])
    index[2, 1] = 5
    with pytest.raises(GraphIndexError, match="expert_linear: index out of range: 'index' at position 5 is 5"):
        expert_linear(x, weight, None, gate, index)
    with pytest.raises(ValueError, match="'offsets' that rise from 0 to the 2 entries"):
        aggregate(np.array([0, 1]), np.array([0, 1]), x)
    with pytest.raises(GraphIndexError, match="'columns' at position 1 is 3"):
        aggregate(np.array([0, 2]), np.array([0, 3]), x)
    with pytest.raises(ValueError, match=r"'weight' of shape \[2\], got \[3\]"):
        aggregate(np.array([0, 2]), np.array([0, 1]), x, np.ones(3, np.float32))
