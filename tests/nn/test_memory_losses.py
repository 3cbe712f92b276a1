"""RbM's losses on expert embeddings, against eqs. 6-8 written out in float64."""

import pytest
import torch

from gmoe_ext import ops
from gmoe_ext.nn.losses import commitment, load_balance, self_similarity


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
