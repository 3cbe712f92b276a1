"""Which neighbours' soft targets a node has to match, and how much each counts (KRD; RbM, eqs. 10-12).

N nodes, M edges, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.batching import without_waiting
from ..graph import Graph
from ..nn.losses.distill import PairTargets, neighbour_targets, own_targets
from . import extras

PairWeight = Literal["degree", "kept", "equal"]

# A power outside these bounds gives keep probabilities of 0 or 1 for every neighbour that matters.
POWER_BOUNDS = (1e-2, 1e2)


def entropy(logits_NC: Tensor) -> Tensor:
    """Entropy [N] of softmax(logits), in nats."""
    log_NC = torch.log_softmax(logits_NC, dim=1)
    return -(log_NC.exp() * log_NC).sum(dim=1)


@torch.no_grad()
def reliability(
    predict: Callable[[Tensor], Tensor],
    x_ND: Tensor,
    seed: int,
    draws: int = 10,
    std: float = 1.0,
    squared: bool = True,
) -> Tensor:
    """How much each node's teacher entropy moves when noise meets the features; 0 is most reliable.

    rho_j = 1/std^2 mean over draws (H(y_j) - H(y~_j))^2, divided by its maximum   (RbM, eqs. 10 and 11)

    Args:
        predict: teacher logits [N, C] of features [N, D], in evaluation mode.
        x_ND: the teacher's features.
        seed: of the noise.
        draws: draws that stand for the expectation.
        std: standard deviation of the noise.
        squared: False takes |dH| instead of its square (released code).

    Returns:
        rho / max rho [N] in [0, 1]; zeros where no prediction moves.

    Raises:
        ValueError: draws < 1 or std <= 0.

    Example:
        >>> rho = reliability(lambda x: soft_targets(teacher, x, graph), data.x, seed=0)
    """
    if draws < 1 or not std > 0:
        raise ValueError(f"reliability: expected 'draws' >= 1 and 'std' > 0, got {draws} and {std}")
    generator = torch.Generator().manual_seed(seed)
    calm_N = entropy(predict(x_ND))
    rho_N = torch.zeros_like(calm_N)
    for _ in range(draws):
        noise_ND = torch.randn(x_ND.shape, generator=generator, dtype=x_ND.dtype).to(x_ND.device).mul_(std)
        moved_N = (entropy(predict(x_ND + noise_ND)) - calm_N).abs()
        rho_N += (moved_N.square() if squared else moved_N) / (draws * std**2)
    largest = rho_N.max() if rho_N.numel() else rho_N.new_ones(())
    return rho_N / largest.clamp_min(torch.finfo(rho_N.dtype).tiny)


class EpochTargets(NamedTuple):
    """What a student has to match in one epoch.

    Attributes:
        pairs: own and kept neighbours' targets, summed per node.
        kept_N: int64, how many of a node's neighbours are kept.
    """

    pairs: PairTargets
    kept_N: Tensor

    @property
    def num_pairs(self) -> int:
        """How many (node, target) pairs the sums stand for."""
        return self.kept_N.numel() + int(self.kept_N.sum())

    def batches(self, train_idx: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows that code which forwards each pair by itself passes in an epoch.

        Batches of consecutive rows: the training nodes, then the nodes of all (node, kept neighbour) pairs, and of all
        (node, itself), in the order of the nodes. A batch of one pair is left out.

        Args:
            train_idx: int64, the training nodes.
            size: rows per batch.

        Yields:
            The different rows of a batch, and how often each stands in it.
        """
        nodes = torch.arange(self.kept_N.numel(), device=self.kept_N.device)
        of_pairs = torch.split(torch.cat([nodes.repeat_interleave(self.kept_N), nodes]), size)
        for rows in (*torch.split(train_idx, size), *(rows for rows in of_pairs if rows.numel() > 1)):
            yield torch.unique_consecutive(rows, return_counts=True)


class StudentTargets:
    """A teacher's soft targets for every node and, with a sampler, for its reliable neighbours.

    KD (eq. 9) and KRD (eq. 12) add up: mean over v of KL(t_v || s_v) + sum_u w_vu KL(t_u || s_v). With equal pairs
    (released code) it is the mean over all pairs, own ones included.

    Args:
        teacher_logits_NC: of the graph that training sees.
        sampler: of the neighbours; None leaves each node its own target alone.
        temperature: tau.
        normalized: see :func:`gmoe_ext.nn.losses.soften`.

    Example:
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
        kept_N = _per_node(kept, kept.weight != 0)
        share = nodes / (nodes + int(kept_N.sum())) if self.sampler.pair_weight == "equal" else 1.0
        pairs = PairTargets((self.own.mass + mass_NC) * share, (self.own.offset + offset_N) * share)
        return EpochTargets(pairs, kept_N)

    def observe(self, student_logits_NC: Tensor) -> None:
        """Tell the sampler where the student, in evaluation mode, agrees with the teacher."""
        if self.sampler is not None:
            self.sampler.update(student_logits_NC.argmax(dim=1) == self._best_N)


class ReliableSampler:
    """Keep each edge (v, u) with probability 1 - rho_u^a and weigh it; a follows the student (RbM, eqs. 11 and 12).

    Args:
        graph: rows v, columns u; the observed graph in the inductive setting.
        reliability_N: rho in [0, 1], 0 most reliable.
        pair_weight: "degree" weighs a kept edge of v by 1/|N(v)| (eq. 12); "kept" by 1/(its kept edges); "equal" by 1.
        power: a at the start.
        momentum: share of the old a kept at an update.
        bins: histogram bins over rho.
        warmup: calls of :meth:`update` before a begins to move.
        bin_offset: where in a bin the curve is read, from its left edge; None: its centre (released code: 0.05).

    Raises:
        ValueError: rho has not one value per node, or lies outside [0, 1].

    Example:
        >>> sampler = ReliableSampler(data.graph, rho)
        >>> targets = neighbour_targets(teacher_logits, sampler.sample(torch.Generator().manual_seed(0)))
    """

    def __init__(
        self,
        graph: Graph,
        reliability_N: Tensor,
        pair_weight: PairWeight = "degree",
        power: float = 1.0,
        momentum: float = 0.99,
        bins: int = 50,
        warmup: int = 50,
        bin_offset: float | None = None,
    ) -> None:
        if reliability_N.shape != (graph.num_nodes,):
            raise ValueError(
                f"ReliableSampler: expected 'reliability' of shape [{graph.num_nodes}], got {list(reliability_N.shape)}"
            )
        if reliability_N.numel() and not (reliability_N.min() >= 0 and reliability_N.max() <= 1):
            raise ValueError("ReliableSampler: expected 'reliability' in [0, 1]; divide it by its maximum")
        if pair_weight not in ("degree", "kept", "equal"):
            raise ValueError(
                f"ReliableSampler: expected 'pair_weight' to be 'degree', 'kept' or 'equal', got {pair_weight!r}"
            )
        self.graph, self.rho_N, self.pair_weight = graph, reliability_N.float(), pair_weight
        self.power, self.momentum, self.bins, self.warmup = power, momentum, bins, warmup
        self.bin_offset = 0.5 / bins if bin_offset is None else bin_offset
        self.updates = 0

    def keep_probability(self) -> Tensor:
        """1 - rho_u^a [N], the chance of an edge from u to be kept."""
        return 1.0 - self.rho_N.pow(self.power)

    def sample(self, generator: torch.Generator) -> Graph:
        """Draw the kept edges of one epoch: the graph with weights, 0 for a dropped edge.

        Args:
            generator: CPU generator; the same state gives the same edges on any device.
        """
        graph = self.graph
        chance_M = self.keep_probability()[graph.columns.long()]
        drawn_M = without_waiting(torch.rand(graph.num_edges, generator=generator), chance_M.device)
        kept_M = (drawn_M < chance_M).float()
        return Graph(graph.num_nodes, graph.offsets, graph.columns, kept_M * self._edge_weight(kept_M))

    def _edge_weight(self, kept_M: Tensor) -> Tensor:
        if self.pair_weight == "equal":
            return torch.ones_like(kept_M)
        if self.pair_weight == "degree":
            count_N = self.graph.degree().float()
        else:
            count_N = _per_node(self.graph, kept_M != 0).float()
        return (1.0 / count_N.clamp_min(1.0))[self.graph.rows.long()]

    def update(self, agree_N: Tensor) -> None:
        """Refit a to where student and teacher agree: 1 - x^a against the agreement rate at reliability x.

        Args:
            agree_N: bool [N], the student's class is the teacher's.

        Raises:
            MissingExtraError: scipy is not installed.
        """
        self.updates += 1
        if self.updates <= self.warmup:
            return
        fitted = self._fit(agree_N)
        if fitted is not None:
            self.power = self.momentum * self.power + (1.0 - self.momentum) * fitted

    def _fit(self, agree_N: Tensor) -> float | None:
        minimize = extras.load("scipy.optimize").minimize_scalar
        rho, agree = self.rho_N.cpu().double().numpy(), agree_N.cpu().numpy().astype(bool)
        edges = np.linspace(0.0, 1.0, self.bins + 1)
        same, other = np.histogram(rho[agree], edges)[0], np.histogram(rho[~agree], edges)[0]
        rate = same / (same + other + 1e-6)
        if rate.max() == rate.min():
            return None  # the student agrees everywhere or nowhere: no curve to fit
        rate = (rate - rate.min()) / (rate.max() - rate.min())
        places = edges[:-1] + self.bin_offset

        # Over log a the search has one bounded dimension and always ends; a free fit can run away on a flat curve.
        def misfit(log_a: float) -> float:
            return float(np.square(1.0 - places ** np.exp(log_a) - rate).sum())

        return float(np.exp(minimize(misfit, bounds=np.log(POWER_BOUNDS), method="bounded").x))

    def state(self) -> dict[str, float | int]:
        """What an update has changed."""
        return {"power": self.power, "updates": self.updates}

    def load_state(self, state: dict[str, float | int]) -> None:
        """Put :meth:`state` back."""
        self.power, self.updates = float(state["power"]), int(state["updates"])


def _per_node(graph: Graph, marked_M: Tensor) -> Tensor:
    """How many edges of each row are marked, int64 [N]."""
    # Differences of a running sum need no atomic additions.
    running = torch.cat([graph.offsets.new_zeros(1), marked_M.long().cumsum(0)])
    return running[graph.offsets].diff()
