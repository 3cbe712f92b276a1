"""Importance and load losses against their definitions (GMoE, eqs. 5-8)."""

from __future__ import annotations

import math

import pytest
import torch

from gmoe_ext import ops
from gmoe_ext.nn.losses import squared_cv, sums


def kth_excluding(values, k, o):
    """The k-th largest of a row without its element o."""
    return sorted(values[:o] + values[o + 1 :], reverse=True)[k - 1]


def test_squared_cv_uses_the_unbiased_variance():
    torch.testing.assert_close(squared_cv(torch.tensor([1.0, 3.0])), torch.tensor(2.0 / 4.0))


def test_squared_cv_of_one_value_or_of_nothing_is_zero():
    assert squared_cv(torch.tensor([5.0])).item() == 0.0
    assert squared_cv(torch.zeros(4)).item() == 0.0


def test_sums_are_of_gates_and_of_rows():
    gate = torch.tensor([[0.75, 0.25], [0.6, 0.4], [0.5, 0.5]])
    index = torch.tensor([[0, 1], [0, 2], [2, 0]])
    importance, load = sums(gate, index, num_experts=4)
    torch.testing.assert_close(importance, torch.tensor([0.75 + 0.6 + 0.5, 0.25, 0.4 + 0.5, 0.0]))
    assert load.tolist() == [3.0, 1.0, 2.0, 0.0]


def test_balanced_importance_is_zero():
    importance, load = sums(torch.ones(4, 1), torch.arange(4).view(4, 1), num_experts=4)
    assert squared_cv(importance).item() == 0.0 and squared_cv(load).item() == 0.0


@pytest.mark.parametrize(("num_experts", "k"), [(2, 1), (4, 1), (4, 2), (4, 3), (8, 4)])
def test_load_is_the_chance_of_being_chosen(num_experts, k):
    clean, noise = torch.randn(2, 10, num_experts, dtype=torch.float64)
    sigma = torch.rand(10, num_experts, dtype=torch.float64) + 0.1
    noisy = clean + noise * sigma
    chances = torch.zeros(num_experts, dtype=torch.float64)
    for i in range(10):
        for o in range(num_experts):
            z = (clean[i, o].item() - kth_excluding(noisy[i].tolist(), k, o)) / sigma[i, o].item()
            chances[o] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    torch.testing.assert_close(ops.noisy_topk(clean, sigma, noise, k)[3], chances)


def test_load_loss_passes_gradcheck():
    clean, noise = torch.randn(2, 6, 4, dtype=torch.float64)
    sigma = torch.rand(6, 4, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(
        lambda c, s: squared_cv(ops.noisy_topk(c, s, noise, 2)[3]), (clean.requires_grad_(), sigma.requires_grad_())
    )


def test_load_is_even_when_every_expert_is_chosen():
    logits = torch.randn(5, 3)
    *_, load = ops.noisy_topk(logits, torch.ones(5, 3), torch.randn(5, 3), k=3)
    assert load.tolist() == [5.0, 5.0, 5.0] and squared_cv(load).item() == 0.0
    _, load = sums(torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int64), num_experts=1)
    assert squared_cv(load).item() == 0.0


def test_no_rows_give_no_loss():
    none = torch.zeros(0, 4)
    *_, importance, load = ops.noisy_topk(none, none, none, k=2)
    assert squared_cv(importance).item() == 0.0 and squared_cv(load).item() == 0.0
    importance, load = sums(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64), num_experts=4)
    assert squared_cv(importance).item() == 0.0 and squared_cv(load).item() == 0.0
