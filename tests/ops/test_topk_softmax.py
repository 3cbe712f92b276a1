"""What is special about topk_softmax; the contract every operator keeps is tested in test_contract_*.py."""

import math

import pytest
import torch

from gmoe_ext import ops

pytestmark = pytest.mark.usefixtures("made_on_device")


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
