"""Distillation losses: a node's own soft target (kd) and those of its reliable neighbours (krd).

N nodes, C classes. Both losses are linear in the student's log-probabilities, so a node's targets are summed before
they are compared with the student: one student forward per node serves any number of edges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...graph import Graph
from ...ops import aggregate


class PairTargets(NamedTuple):
    """Teacher targets, summed over the nodes that each row has to match.

    Attributes:
        mass: [N, C] sum_u w_vu t_u, t the teacher's softened probabilities.
        offset: [N] sum_u w_vu <t_u, log t_u>; turns the loss into a divergence and carries no gradient.
    """

    mass: Tensor
    offset: Tensor

    def rows(self, index: Tensor) -> PairTargets:
        """Select the targets of the rows ``index`` [B], a mini-batch."""
        return PairTargets(self.mass[index], self.offset[index])


def soften(logits_NC: Tensor, temperature: float = 1.0, normalized: bool = True) -> Tensor:
    """Turn logits into log-probabilities at a temperature.

    log softmax(z / tau), or with ``normalized=False`` log softmax(z) / tau, which is not a distribution for tau != 1
    but is what the released RbM code uses.

    Args:
        logits_NC: floating [N, C].
        temperature: tau > 0.
        normalized: divide before the softmax.

    Returns:
        [N, C] in the logits' dtype.

    Raises:
        ValueError: the temperature is not positive.

    Examples:
        >>> soften(torch.zeros(1, 2)).exp()
        tensor([[0.5000, 0.5000]])
    """
    if not temperature > 0:
        raise ArgumentError(f"soften: expected 'temperature' > 0, got {temperature}")
    if normalized:
        return torch.log_softmax(logits_NC / temperature, dim=1)
    return torch.log_softmax(logits_NC, dim=1) / temperature


def own_targets(teacher_logits_NC: Tensor, temperature: float = 1.0, normalized: bool = True) -> PairTargets:
    """Make every node's own soft target (the second term of RbM, eq. 9).

    Args:
        teacher_logits_NC: the teacher's logits; get no gradient.
        temperature, normalized: see ``soften``.

    Returns:
        PairTargets of N rows.

    Examples:
        >>> loss = krd(student_logits, own_targets(teacher_logits))   # equals kd(student_logits, teacher_logits)
    """
    log_NC = soften(teacher_logits_NC.detach(), temperature, normalized)
    mass_NC = log_NC.exp()
    # p log p -> 0 where a saturated teacher gives p = 0 and log p = -inf.
    terms_NC = torch.where(mass_NC > 0, mass_NC * log_NC, torch.zeros_like(mass_NC))
    return PairTargets(mass_NC, terms_NC.sum(dim=1))


def neighbour_targets(
    teacher_logits_NC: Tensor, pairs: Graph, temperature: float = 1.0, normalized: bool = True
) -> PairTargets:
    """Sum the neighbours' soft targets with one sparse product (RbM, eq. 12).

    Args:
        teacher_logits_NC: the teacher's logits; get no gradient.
        pairs: row v holds the neighbours u that v has to match; the edge weights are w_vu (1 where None, 0 = dropped).
        temperature, normalized: see ``soften``.

    Returns:
        PairTargets of N rows.

    Examples:
        >>> loss = krd(student_logits, neighbour_targets(teacher_logits, graph.mean_norm()))
    """
    mass_NC, offset_N = own_targets(teacher_logits_NC, temperature, normalized)
    summed = aggregate(pairs, torch.cat([mass_NC, offset_N[:, None]], dim=1))
    return PairTargets(summed[:, :-1], summed[:, -1])


def krd(student_logits_NC: Tensor, targets: PairTargets, temperature: float = 1.0, normalized: bool = True) -> Tensor:
    """Match the summed targets of each node's pairs.

        1/N sum_v sum_u w_vu KL(t_u || s_v) = 1/N sum_v (offset_v - <mass_v, log s_v>)   (RbM, eq. 12)

    Args:
        student_logits_NC: the student's logits, one forward per node.
        targets: from ``own_targets`` or ``neighbour_targets`` at the same temperature.
        temperature, normalized: see ``soften``.

    Returns:
        Scalar; 0 for no rows.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    Examples:
        >>> krd(student_logits, neighbour_targets(teacher_logits, graph.mean_norm())).backward()
    """
    if student_logits_NC.shape != targets.mass.shape:
        raise ArgumentError(
            f"krd: expected 'student_logits' of shape {list(targets.mass.shape)} to match the targets, "
            f"got {list(student_logits_NC.shape)}; take targets.rows(batch) for a mini-batch"
        )
    log_NC = soften(student_logits_NC, temperature, normalized)
    return (targets.offset.sum() - (targets.mass * log_NC).sum()) / max(student_logits_NC.shape[0], 1)


def kd(
    student_logits_NC: Tensor, teacher_logits_NC: Tensor, temperature: float = 1.0, normalized: bool = True
) -> Tensor:
    """Match the teacher's class distribution node by node.

        1/N sum_v KL(softmax(t_v / tau) || softmax(s_v / tau))   (RbM, eq. 9, second term without its weight)

    Args:
        student_logits_NC: the student's logits.
        teacher_logits_NC: the teacher's logits; get no gradient.
        temperature: tau > 0; no tau^2 factor is applied.
        normalized: see ``soften``.

    Returns:
        Scalar; 0 for no rows.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    Examples:
        >>> kd(student_logits, teacher_logits, temperature=1.2).backward()
    """
    if student_logits_NC.shape != teacher_logits_NC.shape:
        raise ArgumentError(
            f"kd: expected 'student_logits' of shape {list(teacher_logits_NC.shape)} to match 'teacher_logits', "
            f"got {list(student_logits_NC.shape)}"
        )
    return krd(student_logits_NC, own_targets(teacher_logits_NC, temperature, normalized), temperature, normalized)
