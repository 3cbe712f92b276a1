"""Distillation losses: a node-linear form against the sum over pairs, in float64."""

import pytest
import torch

from gmoe_ext import Graph
from gmoe_ext.nn.losses import kd, krd, neighbour_targets, own_targets


def softened(logits, temperature, normalized):
    if normalized:
        return torch.log_softmax(logits / temperature, dim=-1)
    return torch.log_softmax(logits, dim=-1) / temperature


def divergence(teacher_row, student_row, temperature, normalized):
    t, s = softened(teacher_row, temperature, normalized), softened(student_row, temperature, normalized)
    return (t.exp() * (t - s)).sum()


@pytest.fixture
def logits():
    torch.manual_seed(1)
    student = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    return student, 2 * torch.randn(6, 3, dtype=torch.float64)


VARIANTS = [(1.0, True), (0.6, True), (0.6, False), (1.3, False)]


@pytest.mark.parametrize(("temperature", "normalized"), VARIANTS)
def test_kd_is_the_mean_divergence_with_its_gradient(logits, temperature, normalized):
    student, teacher = logits
    written = sum(divergence(teacher[v], student[v], temperature, normalized) for v in range(6)) / 6
    ours = kd(student, teacher, temperature, normalized)
    torch.testing.assert_close(ours, written)
    torch.testing.assert_close(torch.autograd.grad(ours, student), torch.autograd.grad(written, student))


@pytest.mark.parametrize(("temperature", "normalized"), VARIANTS)
def test_krd_in_node_linear_form_equals_the_sum_over_pairs(logits, temperature, normalized):
    student, teacher = logits
    edges = torch.tensor([[0, 1, 2, 5, 3, 0, 4], [1, 0, 0, 0, 2, 5, 5]])
    weight = torch.tensor([1.0, 0.5, 0.25, 0.0, 2.0, 1.0, 0.125])
    pairs = Graph.from_edge_index(edges, num_nodes=6, edge_weight=weight)
    written = (
        sum(
            w.double() * divergence(teacher[u], student[v], temperature, normalized)
            for u, v, w in zip(edges[0], edges[1], weight, strict=True)
        )
        / 6
    )
    ours = krd(student, neighbour_targets(teacher, pairs, temperature, normalized), temperature, normalized)
    torch.testing.assert_close(ours, written)
    torch.testing.assert_close(torch.autograd.grad(ours, student), torch.autograd.grad(written, student))


def test_a_proper_divergence_is_never_negative_and_zero_at_the_teacher(logits):
    student, teacher = logits
    assert kd(student, teacher, 0.5) > 0
    torch.testing.assert_close(kd(teacher, teacher, 0.5), torch.zeros((), dtype=torch.float64))


def test_the_teacher_gets_no_gradient(logits):
    student, teacher = logits
    teacher.requires_grad_()
    kd(student, teacher).backward()
    assert teacher.grad is None


def test_a_mini_batch_takes_its_rows_of_the_targets(logits):
    student, teacher = logits
    batch = torch.tensor([4, 1])
    ours = krd(student[batch], own_targets(teacher).rows(batch))
    torch.testing.assert_close(ours, kd(student[batch], teacher[batch]))


def test_a_saturated_teacher_stays_finite():
    teacher = torch.tensor([[1000.0, 0.0, -1000.0]])
    assert torch.isfinite(kd(torch.zeros(1, 3), teacher))


def test_wrong_arguments_are_named(logits):
    student, teacher = logits
    with pytest.raises(ValueError, match=r"kd: expected 'student_logits' of shape \[6, 3\]"):
        kd(student[:2], teacher)
    with pytest.raises(ValueError, match=r"take targets\.rows"):
        krd(student[:2], own_targets(teacher))
    with pytest.raises(ValueError, match="expected 'temperature' > 0, got 0"):
        kd(student, teacher, temperature=0.0)
