"""BatchNorm per expert against torch's BatchNorm on each expert's rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gmoe_ext.nn import ExpertBatchNorm
from gmoe_ext.nn.gmoe.noisy_gate import Slots

DIM = 4


def random_slots(num_nodes=30, num_experts=5, k=2):
    return Slots.chosen(torch.rand(num_nodes, num_experts).topk(k).indices, num_experts)


def test_routed_norm_is_a_batch_norm_per_expert():
    slots, norm = random_slots(), ExpertBatchNorm(5, DIM).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    y = (3 + torch.randn(30, 2, DIM, dtype=torch.float64)).requires_grad_()
    direction = torch.randn_like(y)
    out = norm(y, slots)
    (out * direction).sum().backward()
    grads = y.grad.clone(), norm.weight.grad.clone(), norm.bias.grad.clone()
    for expert in range(5):
        plain, rows = nn.BatchNorm1d(DIM).double(), slots.index == expert
        plain.weight.data, plain.bias.data = norm.weight[expert].detach(), norm.bias[expert].detach()
        mine = y.detach()[rows].requires_grad_()
        expected = plain(mine)
        (expected * direction[rows]).sum().backward()
        torch.testing.assert_close(out[rows], expected)
        torch.testing.assert_close(grads[0][rows], mine.grad)
        torch.testing.assert_close(grads[1][expert], plain.weight.grad)
        torch.testing.assert_close(grads[2][expert], plain.bias.grad)
        torch.testing.assert_close(norm.running_mean[expert], plain.running_mean)
        torch.testing.assert_close(norm.running_var[expert], plain.running_var)


def test_routed_norm_passes_gradcheck():
    slots, norm = random_slots(8, 3, 2), ExpertBatchNorm(3, 2).double()
    y = torch.randn(8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: norm(t, slots), (y,))


def test_second_derivatives_are_refused():
    slots, norm = random_slots(8, 3, 2), ExpertBatchNorm(3, 2)
    y = torch.randn(8, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(norm(y, slots).square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("num_rows", [0, 1])
def test_too_few_rows_leave_an_experts_statistics_alone(num_rows):
    norm = ExpertBatchNorm(2, DIM)
    norm.running_mean.normal_(), norm.running_var.uniform_(1, 2)
    before = norm.running_mean.clone(), norm.running_var.clone()
    index = torch.zeros(6, 1, dtype=torch.int64)
    index[:num_rows] = 1
    y = torch.randn(6, 1, DIM)
    out = norm(y, Slots.chosen(index, 2))
    assert torch.equal(norm.running_mean[1], before[0][1]) and torch.equal(norm.running_var[1], before[1][1])
    assert not torch.equal(norm.running_mean[0], before[0][0])
    expected = (y[:num_rows, 0] - before[0][1]) / (before[1][1] + norm.eps).sqrt()
    torch.testing.assert_close(out[:num_rows, 0], expected)


@pytest.mark.parametrize("training", [True, False])
def test_gates_sum_the_slots_of_a_node(training):
    slots, norm, gate = random_slots(), ExpertBatchNorm(5, DIM).train(training), torch.rand(30, 2)
    y = torch.randn(30, 2, DIM)
    expected = (gate.unsqueeze(2) * norm(y, slots)).sum(1)
    torch.testing.assert_close(norm(y, slots, gate), expected)


def test_all_slots_normalise_over_all_nodes():
    norm, y = ExpertBatchNorm(3, DIM), torch.randn(20, 3, DIM)
    out = norm(y, Slots.all(20, 3, y.device))
    for expert in range(3):
        torch.testing.assert_close(out[:, expert], nn.BatchNorm1d(DIM)(y[:, expert]))


def test_evaluation_uses_running_statistics_and_equals_affine():
    slots, norm = random_slots(), ExpertBatchNorm(5, DIM)
    norm(torch.randn(30, 2, DIM), slots)
    norm.eval()
    y = torch.randn(30, 2, DIM)
    scale, shift = norm.scale_and_shift()
    torch.testing.assert_close(norm(y, slots), y * scale[slots.index] + shift[slots.index])


def test_bfloat16_rows_are_normalised_in_float32():
    slots, norm = random_slots(), ExpertBatchNorm(5, DIM)
    y = torch.randn(30, 2, DIM).bfloat16()
    out = norm(y, slots)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, ExpertBatchNorm(5, DIM)(y.float(), slots).bfloat16())


def test_large_means_do_not_cancel():
    slots, norm = random_slots(), ExpertBatchNorm(5, DIM)
    y = torch.randn(30, 2, DIM)
    torch.testing.assert_close(norm(y + 1000.0, slots), norm(y, slots), rtol=1e-3, atol=1e-3)
