"""Reliable neighbours: how certain a teacher is of a node, and which edges to sample for it (KRD; RbM, eqs. 10-12).

N nodes, M edges, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .. import extras
from ..data.batching import without_waiting
from ..errors import ArgumentError, expect, expect_choice
from ..feature_rows import FeatureRows, Features
from ..graph import Graph, expect_graph

PairWeight = Literal["degree", "kept", "equal"]

# A power outside these bounds gives keep probabilities of 0 or 1 for every neighbour that matters.
POWER_BOUNDS = (1e-2, 1e2)


def entropy(logits_NC: Tensor) -> Tensor:
    """Compute the entropy [N] of softmax(logits), in nats."""
    log_NC = torch.log_softmax(logits_NC, dim=1)
    return -(log_NC.exp() * log_NC).sum(dim=1)


@torch.no_grad()
def reliability(
    predict: Callable[[Any], Tensor],
    x_ND: Features,
    seed: int,
    draws: int = 10,
    std: float = 1.0,
    squared: bool = True,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """Measure how much the teacher's entropy changes when noise is added to the features; 0 is most reliable.

        rho_j = 1/std^2 mean over draws (H(y_j) - H(y~_j))^2, divided by its maximum   (RbM, eqs. 10 and 11)

    Args:
        predict: teacher logits [N, C] of features [N, D], in evaluation mode.
        x_ND: the teacher's features.
        seed: seeds the noise.
        draws: noise samples that estimate the expectation.
        std: standard deviation of the noise.
        squared: False takes |dH| instead of its square (released code).
        weights: matrices [*, D] by which ``predict`` reads x. With them, noise on FeatureRows is drawn in the space
            that they span, which has the same distribution there and costs no dense matrix.

    Returns:
        rho / max rho [N] in [0, 1]; all zeros if no prediction changes.

    Raises:
        ValueError: draws < 1 or std <= 0.

    Examples:
        >>> rho = reliability(lambda x: soft_targets(teacher, x, graph), data.x, seed=0)
    """
    expect(draws >= 1, "reliability", "draws", "of at least 1", draws)
    expect(std > 0, "reliability", "std", "above 0", std)
    generator = torch.Generator().manual_seed(seed)
    calm_N = entropy(predict(x_ND))
    rho_N = torch.zeros_like(calm_N)
    for noisy_ND in _with_noise(x_ND, generator, draws, std, weights):
        moved_N = (entropy(predict(noisy_ND)) - calm_N).abs()
        rho_N += (moved_N.square() if squared else moved_N) / (draws * std**2)
    largest = rho_N.max() if rho_N.numel() else rho_N.new_ones(())
    return rho_N / largest.clamp_min(torch.finfo(rho_N.dtype).tiny)


def _with_noise(
    x_ND: Features, generator: torch.Generator, draws: int, std: float, weights: Sequence[Tensor] | None
) -> Iterator[Features]:
    """Yield the features with noise N(0, std^2) on each, so many times."""
    basis_DR = None
    if isinstance(x_ND, FeatureRows):
        if weights is not None and sum(w.numel() for w in weights) < x_ND.shape[1] ** 2:
            # Of N(0, 1) on D features, a layer sees the part in the span of its weights: N(0, 1) in any basis of it.
            basis_DR = torch.linalg.qr(torch.cat([w.reshape(-1, w.shape[-1]) for w in weights]).T).Q
        else:
            x_ND = x_ND.to_dense()
    for _ in range(draws):
        width = x_ND.shape[1] if basis_DR is None else basis_DR.shape[1]
        noise = torch.randn(len(x_ND), width, generator=generator, dtype=x_ND.dtype).to(x_ND.device).mul_(std)
        if isinstance(x_ND, FeatureRows):
            assert basis_DR is not None
            yield x_ND.plus(noise, basis_DR)
        else:
            yield x_ND + noise


class ReliableSampler:
    """Keep each edge (v, u) with probability 1 - rho_u^a and weigh it; a adapts to the student (RbM, eqs. 11 and 12).

    Args:
        graph: rows v, columns u; the observed graph in the inductive setting.
        reliability_N: rho in [0, 1], 0 most reliable.
        pair_weight: "degree" weighs a kept edge of v by 1/|N(v)| (eq. 12); "kept" by 1/(its kept edges); "equal" by 1.
        power: initial a.
        momentum: share of the old a kept at an update.
        bins: histogram bins over rho.
        warmup: number of calls of ``update`` before a changes.
        bin_offset: distance from a bin's left edge at which the curve is evaluated; None means the centre (released
            code: 0.05).

    Raises:
        ValueError: rho does not have one value per node, or is outside [0, 1].

    Examples:
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
        expect_graph("ReliableSampler", graph)
        where, shape, got = "ReliableSampler", [graph.num_nodes], list(reliability_N.shape)
        expect(got == shape, where, "reliability", f"of shape {shape}", got)
        if reliability_N.numel() and not (reliability_N.min() >= 0 and reliability_N.max() <= 1):
            raise ArgumentError(f"{where}: expected 'reliability' in [0, 1]; divide it by its maximum")
        expect_choice(pair_weight, get_args(PairWeight), where, "pair_weight")
        self.graph, self.rho_N, self.pair_weight = graph, reliability_N.float(), pair_weight
        self.power, self.momentum, self.bins, self.warmup = power, momentum, bins, warmup
        self.bin_offset = 0.5 / bins if bin_offset is None else bin_offset
        self.updates = 0

    def sample(self, generator: torch.Generator) -> Graph:
        """Draw the kept edges of one epoch: the graph with edge weights, 0 for a dropped edge.

        Args:
            generator: CPU generator; the same state gives the same edges on any device.
        """
        graph = self.graph
        chance_M = (1.0 - self.rho_N.pow(self.power))[graph.columns.long()]  # to keep an edge from u
        drawn_M = without_waiting(
            torch.rand(graph.num_edges, generator=generator, dtype=torch.float32), chance_M.device
        )
        kept_M = (drawn_M < chance_M).float()
        return Graph(graph.num_nodes, graph.offsets, graph.columns, kept_M * self._edge_weight(kept_M))

    def _edge_weight(self, kept_M: Tensor) -> Tensor:
        if self.pair_weight == "equal":
            return torch.ones_like(kept_M)
        if self.pair_weight == "degree":
            count_N = self.graph.degree().float()
        else:
            count_N = count_per_node(self.graph, kept_M != 0).float()
        return (1.0 / count_N.clamp_min(1.0))[self.graph.rows.long()]

    def update(self, agree_N: Tensor) -> None:
        """Refit a to where student and teacher agree: 1 - x^a against the agreement rate at reliability x.

        Args:
            agree_N: bool [N], whether student and teacher predict the same class.

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
            return None  # agreement everywhere or nowhere: there is no curve to fit
        rate = (rate - rate.min()) / (rate.max() - rate.min())
        places = edges[:-1] + self.bin_offset

        # A bounded search over log a always ends; an unbounded fit can diverge on a flat curve.
        def misfit(log_a: float) -> float:
            return float(np.square(1.0 - places ** np.exp(log_a) - rate).sum())

        return float(np.exp(minimize(misfit, bounds=np.log(POWER_BOUNDS), method="bounded").x))

    def state(self) -> dict[str, float | int]:
        """Return what ``update`` changes, for a checkpoint."""
        return {"power": self.power, "updates": self.updates}

    def load_state(self, state: dict[str, float | int]) -> None:
        """Restore ``state``."""
        self.power, self.updates = float(state["power"]), int(state["updates"])


def count_per_node(graph: Graph, marked_M: Tensor) -> Tensor:
    """Count the marked edges of each row, int64 [N]."""
    # Differences of a running sum need no atomic additions.
    running = torch.cat([graph.offsets.new_zeros(1), marked_M.long().cumsum(0)])
    return running[graph.offsets].diff()
