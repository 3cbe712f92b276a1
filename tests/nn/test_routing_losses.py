"""Losses on routing against their definitions: GMoE's balance (eqs. 5-8) and RbM's losses (eqs. 6-8), in float64."""

from __future__ import annotations

import math

import pytest
import torch

from gmoe_ext import ops
from gmoe_ext.nn.losses import commitment, load_balance, self_similarity, squared_cv, sums


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


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


@pytest.fixture
def batch():
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    gate, index = ops.cosine_topk(x, memory, 3)
    return x, memory, gate, index


def test_commitment_is_equation_6_with_its_gradient(batch):
    x, memory, gate, index = batch
    written = -sum(gate[i, r] * cosine(x[i], memory[index[i, r]].detach()) for i in range(7) for r in range(3)) / 7
    ours = commitment(x, memory, gate, index)
    torch.testing.assert_close(ours, written)
    want = torch.autograd.grad(written, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours, x, retain_graph=True), want)


def test_commitment_stops_the_gradient_at_the_memory(batch):
    x, memory, gate, index = batch
    commitment(x, memory, gate, index).backward()
    assert memory.grad is None


def test_self_similarity_is_equation_7_with_gradient_through_one_factor(batch):
    memory = batch[1]
    fixed = memory.detach().clone()
    written = sum(cosine(memory[i], fixed[j]) for i in range(4) for j in range(4)) / 16
    ours = self_similarity(memory)
    torch.testing.assert_close(ours, written)
    torch.testing.assert_close(torch.autograd.grad(ours, memory), torch.autograd.grad(written, memory))


def test_load_balance_is_equation_8_with_its_gradient(batch):
    x, _, gate, index = batch
    load = [sum(gate[i, r] for i in range(7) for r in range(3) if index[i, r] == e) for e in range(4)]
    load = torch.stack([torch.as_tensor(part) + 0 * x.sum() for part in load])
    mean = load.sum() / 4
    written = ((load - mean) ** 2).sum() / 3 / mean**2
    ours = load_balance(gate, index, 4)
    torch.testing.assert_close(ours, written)
    want = torch.autograd.grad(written, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours, x), want)


def test_an_unused_expert_counts_as_zero_load():
    gate, index = torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int64)
    torch.testing.assert_close(load_balance(gate, index, 2), torch.tensor(2.0))  # load (4, 0): var 8, mean 2


def test_losses_of_no_rows_are_zero_and_differentiable():
    x = torch.zeros(0, 5, requires_grad=True)
    gate, index = torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.int64)
    loss = commitment(x, torch.eye(5), gate, index) + load_balance(gate, index, 5)
    loss.backward()
    assert loss == 0


def test_wrong_shapes_are_named():
    gate, index = torch.ones(4, 2), torch.zeros(4, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected 'gate' and 'index' of the same shape \[N, k\]"):
        load_balance(gate, index, 2)
    with pytest.raises(ValueError, match=r"commitment: expected 'memory' of shape \[E, 3\]"):
        commitment(torch.ones(4, 3), torch.ones(2, 5), gate, gate.long())
    with pytest.raises(ValueError, match="at least 2, got 1"):
        load_balance(gate, gate.long(), 1)
    with pytest.raises(ValueError, match=r"self_similarity: expected 'memory' of shape \[E, D\]"):
        self_similarity(torch.ones(3))
