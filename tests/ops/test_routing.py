"""What is special about topk_softmax, expert_plan, memory_update; test_contract_*.py hold what all operators keep."""

import math

import pytest
import torch

from gmoe_ext import _native, ops, reference
from gmoe_ext.errors import ArgumentError, GraphIndexError

from .samples import Random, assert_close

pytestmark = pytest.mark.usefixtures("made_on_device")


# ---- topk_softmax


def test_ties_go_to_the_lower_expert():
    gate, index = ops.topk_softmax(torch.ones(1, 5), k=3)
    assert index.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(gate, torch.full((1, 3), 1 / 3))


def test_negative_zero_ties_with_zero():
    _, index = ops.topk_softmax(torch.tensor([[-0.0, 0.0, -0.0]]), k=3)
    assert index.tolist() == [[0, 1, 2]]


def test_nan_ranks_highest_and_stays_in_its_row():
    logits = torch.tensor([[1.0, math.nan, 2.0], [1.0, 3.0, 2.0]])
    gate, index = ops.topk_softmax(logits, k=2)
    assert index.tolist() == [[1, 2], [1, 2]]
    assert gate[0].isnan().all()
    torch.testing.assert_close(gate[1], torch.softmax(torch.tensor([3.0, 2.0]), 0))


def test_large_logits_do_not_overflow():
    gate, _ = ops.topk_softmax(torch.tensor([[1e30, -1e30]]), k=2)
    assert gate.tolist() == [[1.0, 0.0]]


def test_k_equal_to_all_experts_is_a_sorted_softmax():
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    gate, index = ops.topk_softmax(logits, k=6)
    torch.testing.assert_close(gate, torch.softmax(logits, 1).gather(1, index))


def test_unchosen_experts_get_an_exact_zero_gradient():
    logits = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    gate, _ = ops.topk_softmax(logits, k=2)
    gate[0, 0].backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    torch.testing.assert_close(logits.grad[0, 0], -logits.grad[0, 2])


# ---- expert_plan


@pytest.mark.parametrize("num_rows,num_experts", [(1, 1), (7, 3), (40_000, 5), (300, 1_024), (300, 20_000)])
def test_order_is_the_stable_sort(num_rows, num_experts):
    index = torch.randint(0, num_experts, (num_rows, 3), generator=torch.Generator().manual_seed(0))
    if index.is_cuda and num_experts > 1_024:
        with pytest.raises((ValueError, RuntimeError), match="at most 1024 experts on CUDA, got 20000"):
            ops.expert_plan(index, num_experts)
        return
    plan = ops.expert_plan(index, num_experts)
    assert torch.equal(plan.order, torch.argsort(index.flatten(), stable=True))
    assert torch.equal(plan.offsets.diff(), torch.bincount(index.flatten(), minlength=num_experts))
    assert plan.offsets[0] == 0


def test_experts_nobody_chose_are_empty():
    plan = ops.expert_plan(torch.full((3, 2), 2), num_experts=4)
    assert plan.offsets.tolist() == [0, 0, 0, 6, 6]
    assert plan.order.tolist() == list(range(6))


def test_a_plan_of_no_rows():
    plan = ops.expert_plan(torch.empty(0, 2, dtype=torch.int64), num_experts=2)
    assert plan.offsets.tolist() == [0, 0, 0]
    assert plan.order.numel() == 0
    assert (plan.num_rows, plan.k, plan.num_experts) == (0, 2, 2)


# ---- memory_update


def routed(num_rows=200, dim=12, num_experts=4, k=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    memory = torch.randn(num_experts, dim, generator=generator, dtype=torch.float64)
    gate, index = ops.cosine_topk(x, memory, k)
    return memory, x, gate, index


def test_an_expert_without_rows_keeps_its_direction():
    memory = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    gate, index = torch.ones(2, 1), torch.ones(2, 1, dtype=torch.int64)
    updated = ops.memory_update(memory, torch.ones(2, 2), gate, index, rate=0.5)
    torch.testing.assert_close(updated[0], torch.tensor([0.3, 0.4]))


def test_any_finite_gate_is_safe():
    memory, x, gate, index = routed()
    shifted = ops.memory_update(memory, x, gate + 1e4, index)
    torch.testing.assert_close(shifted, ops.memory_update(memory, x, gate, index))


def test_one_row_moves_its_expert_all_the_way_at_rate_zero():
    memory, x = torch.eye(2), torch.tensor([[0.0, 5.0]])
    updated = ops.memory_update(memory, x, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), rate=0.0)
    assert updated.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_unnormalised_rows_follow_the_printed_equation():
    memory, x, gate, index = routed()
    updated = ops.memory_update(memory, x, gate, index, normalize=False)
    torch.testing.assert_close(updated, reference.memory_update(memory, x, gate, index, normalize=False))


def test_a_large_eps_only_clamps_norms():
    memory, x, gate, index = routed()
    for normalize in (True, False):
        updated = ops.memory_update(memory, x, gate, index, normalize=normalize, eps=5.0)
        expected = reference.memory_update(memory, x, gate, index, normalize=normalize, eps=5.0)
        torch.testing.assert_close(updated, expected)


def test_nan_stays_with_its_expert():
    memory, x, gate, index = routed(k=1)
    x[5, 0] = math.nan
    updated = ops.memory_update(memory, x, gate, index)
    touched = updated.isnan().any(1)
    assert touched.tolist() == [e == index[5, 0] for e in range(4)]


def test_many_chunks_add_up():
    memory, x, gate, index = routed(num_rows=5_000)
    updated = ops.memory_update(memory, x, gate, index)
    torch.testing.assert_close(updated, reference.memory_update(memory, x, gate, index))


def test_no_gradient_flows():
    memory, x, gate, index = routed()
    assert not ops.memory_update(memory, x.requires_grad_(), gate.requires_grad_(), index).requires_grad


# ---- sparse rows


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_sparse_rows_route_and_move_the_memory_as_dense_ones(native, binary, normalize, monkeypatch):
    if not native:
        monkeypatch.setattr(_native, "available", False)
    random = Random("sparse routing")
    rows = random.feature_rows(200, 31, 0.3, binary)
    rows = rows.with_values(None if rows.values is None else rows.values.double(), None)
    rows, memory = rows.cat(random.normal(200, 3)), random.normal(5, 34)
    x = rows.to_dense().double()
    for ours, theirs in zip(
        ops.cosine_topk_update(rows, memory, 3, 0.7, normalize),
        reference.cosine_topk_update(x, memory, 3, 0.7, normalize),
        strict=True,
    ):
        assert_close(ours, theirs, "cosine_topk_update", 1e-6 if binary else 1e-12)
    gate, index = ops.cosine_topk(rows, memory, 2)
    some = index == 4  # an expert without rows keeps its direction
    index = torch.where(some, 0, index)
    for options in ({}, {"rate": 0.0}, {"rate": 1.0}):
        ours = ops.memory_update(memory, rows, gate, index, normalize=normalize, **options)
        theirs = reference.memory_update(memory, x, gate, index, normalize=normalize, **options)
        assert_close(ours, theirs, "memory_update", 1e-6 if binary else 1e-12)
    with pytest.raises(GraphIndexError, match="'index'"):
        ops.memory_update(memory, rows, gate, index + 4)
    with pytest.raises(ArgumentError, match="'memory'"):
        ops.cosine_topk(rows, memory[:, 1:], 2)
