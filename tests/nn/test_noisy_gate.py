"""The noisy top-k gate (GMoE, eqs. 3 and 4)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gmoe_ext import ops, reference
from gmoe_ext.nn import NoisyTopKGate
from gmoe_ext.nn.gmoe.noisy_gate import Slots
from gmoe_ext.nn.losses import squared_cv, sums


def with_preferences(dim=6, num_experts=5, k=2):
    gate = NoisyTopKGate(dim, num_experts, k).double()
    with torch.no_grad():
        gate.weight_gate.normal_()
        gate.weight_noise.normal_()
    return gate


def test_training_routes_by_noisy_logits():
    gate, x = with_preferences(), torch.randn(7, 6, dtype=torch.float64)
    torch.manual_seed(3)
    routing = gate(x)
    torch.manual_seed(3)
    clean = x @ gate.weight_gate.T
    sigma = F.softplus(x @ gate.weight_noise.T) + 0.01
    noisy = clean + torch.randn(7, 5, dtype=torch.float64) * sigma
    top, index = noisy.topk(2)
    assert torch.equal(routing.index, index)
    torch.testing.assert_close(routing.gate, torch.softmax(top, 1))
    torch.testing.assert_close(routing.importance_loss, squared_cv(sums(routing.gate, index, 5)[0]))
    *_, load = reference.noisy_topk(clean, sigma, (noisy - clean) / sigma, 2)
    torch.testing.assert_close(routing.load_loss, squared_cv(load))


def test_evaluation_routes_by_clean_logits_and_draws_nothing():
    gate, x = with_preferences().eval(), torch.randn(7, 6, dtype=torch.float64)
    state = torch.get_rng_state()
    routing = gate(x)
    assert torch.equal(torch.get_rng_state(), state)
    top, index = (x @ gate.weight_gate.T).topk(2)
    assert torch.equal(routing.index, index)
    torch.testing.assert_close(routing.gate, torch.softmax(top, 1))
    importance, rows = sums(routing.gate, index, 5)
    torch.testing.assert_close(routing.importance_loss, squared_cv(importance))
    torch.testing.assert_close(routing.load_loss, squared_cv(rows))


def test_a_fresh_gate_prefers_no_expert():
    gate = NoisyTopKGate(6, 4, 1)
    counts = torch.bincount(gate(torch.randn(4000, 6)).index.flatten(), minlength=4)
    assert (counts - 1000).abs().max() < 120
    # Without noise all logits tie, and ties go to the lower expert.
    assert gate.eval()(torch.randn(3, 6)).index.tolist() == [[0], [0], [0]]


def test_gradients_reach_both_weights():
    gate = NoisyTopKGate(6, 4, 2)
    routing = gate(torch.randn(20, 6))
    (routing.gate.square().sum() + routing.load_loss + routing.importance_loss).backward()
    assert gate.weight_gate.grad.abs().sum() > 0 and gate.weight_noise.grad.abs().sum() > 0


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_named(k):
    with pytest.raises(ValueError, match=rf"expected 'k' in \[1, 4\].*got {k}"):
        NoisyTopKGate(6, 4, k)


@pytest.mark.parametrize("num_nodes", [0, 1, 7])
def test_every_slot_is_the_plan_of_all_experts(num_nodes, device):
    slots = Slots.all(num_nodes, 3, device)
    plan = ops.expert_plan(slots.index.contiguous(), 3)
    assert torch.equal(slots.plan.offsets, plan.offsets) and torch.equal(slots.plan.order, plan.order)
    assert (slots.plan.num_rows, slots.plan.k) == (num_nodes, 3)
