"""A teacher's soft targets, and what a student has to match in one epoch (RbM, eqs. 9 and 12).

N nodes, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..feature_rows import Features
from ..graph import Graph
from ..models import Model
from ..nn.losses import PairTargets, neighbour_targets, own_targets
from .reliability import ReliableSampler, count_per_node


@torch.no_grad()
def soft_targets(teacher: Model, x_ND: Features, graph: Graph) -> Tensor:
    """Compute the teacher's logits in evaluation mode and restore its mode.

    Args:
        teacher: a model with forward(x, graph) -> Output.
        x_ND: node features.
        graph: the graph that the teacher may see: the observed one while the student trains.

    Returns:
        Logits [N, C] without gradient.

    Examples:
        >>> logits = soft_targets(build("sage", in_dim=64, hidden_dim=128, out_dim=8), data.x, data.graph)
    """
    training = teacher.training
    teacher.eval()
    try:
        logits: Tensor = teacher(x_ND, graph).logits
    finally:
        teacher.train(training)
    return logits


class EpochTargets(NamedTuple):
    """What a student has to match in one epoch.

    Attributes:
        pairs: targets of a node itself and of its kept neighbours, summed per node.
        kept_N: int64, number of kept neighbours of each node.
    """

    pairs: PairTargets
    kept_N: Tensor

    @property
    def num_pairs(self) -> int:
        """Number of (node, target) pairs in the sums."""
        return self.kept_N.numel() + int(self.kept_N.sum())

    def batches(self, train_idx: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mini-batches of the released code, which forwards every pair separately.

        They are consecutive rows of this list: the training nodes, then the nodes of all (node, kept neighbour) pairs,
        then those of all (node, itself) pairs, in the order of the nodes. A batch of a single pair is left out.

        Args:
            train_idx: int64, the training nodes.
            size: rows per batch.

        Yields:
            The distinct rows of a batch, and how often each occurs in it.
        """
        nodes = torch.arange(self.kept_N.numel(), device=self.kept_N.device)
        of_pairs = torch.split(torch.cat([nodes.repeat_interleave(self.kept_N), nodes]), size)
        for rows in (*torch.split(train_idx, size), *(rows for rows in of_pairs if rows.numel() > 1)):
            yield torch.unique_consecutive(rows, return_counts=True)


class StudentTargets:
    """Soft targets of a teacher: each node's own and, with a sampler, those of its reliable neighbours.

    The loss is the sum of KD (eq. 9) and KRD (eq. 12): the mean over v of KL(t_v || s_v) + sum_u w_vu KL(t_u || s_v).
    With ``pair_weight="equal"`` (the released code) it is the mean over all pairs, own ones included.

    Args:
        teacher_logits_NC: the teacher's logits on the graph that training sees.
        sampler: chooses the neighbours; None gives each node only its own target.
        temperature: tau.
        normalized: see ``gmoe_ext.nn.losses.soften``.

    Examples:
        >>> targets = StudentTargets(teacher_logits, ReliableSampler(graph, rho))
        >>> loss = krd(student_logits, targets.draw(torch.Generator().manual_seed(0)).pairs)
    """

    def __init__(
        self,
        teacher_logits_NC: Tensor,
        sampler: ReliableSampler | None = None,
        temperature: float = 1.0,
        normalized: bool = True,
    ) -> None:
        self.logits_NC, self.sampler = teacher_logits_NC, sampler
        self.temperature, self.normalized = temperature, normalized
        self.own = own_targets(teacher_logits_NC, temperature, normalized)
        self._best_N = teacher_logits_NC.argmax(dim=1)

    def draw(self, generator: torch.Generator) -> EpochTargets:
        """Draw the targets of one epoch; the same generator and sampler state give the same ones."""
        nodes = self.logits_NC.shape[0]
        if self.sampler is None:
            return EpochTargets(self.own, torch.zeros(nodes, dtype=torch.int64, device=self.logits_NC.device))
        kept = self.sampler.sample(generator)
        mass_NC, offset_N = neighbour_targets(self.logits_NC, kept, self.temperature, self.normalized)
        assert kept.weight is not None
        kept_N = count_per_node(kept, kept.weight != 0)
        share = nodes / (nodes + int(kept_N.sum())) if self.sampler.pair_weight == "equal" else 1.0
        pairs = PairTargets((self.own.mass + mass_NC) * share, (self.own.offset + offset_N) * share)
        return EpochTargets(pairs, kept_N)

    def observe(self, student_logits_NC: Tensor) -> None:
        """Tell the sampler where the student, in evaluation mode, agrees with the teacher."""
        if self.sampler is not None:
            self.sampler.update(student_logits_NC.argmax(dim=1) == self._best_N)
