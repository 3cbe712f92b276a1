"""What is special about memory_update; the contract every operator keeps is tested in test_contract_*.py."""

import math

import pytest
import torch

from gmoe_ext import ops, reference

pytestmark = pytest.mark.usefixtures("made_on_device")


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
