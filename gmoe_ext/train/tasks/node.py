"""Node classification with a GNN: full batch, cross entropy (BCE over 0/1 tasks), plus the routing's losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import models
from ...data import NodeData, metrics
from ...models.gnn import ExpertGNN
from ...models.registry import Model
from ..config import Config, NetworkConfig, TrainConfig
from ..fit_state import Task
from ..loop import fit
from ..report import Outcome, Trained
from ..run import Run


class NodeTask(Task):
    """Train a GNN on the nodes of one graph.

    Args:
        phase: name of the fit.
        model: forward(x [N, F], graph) -> Output.
        data: what training sees (the observed graph in the inductive setting).
        train: learning rate and weight decay of Adam.
        full: the whole graph, if `heldout` nodes join it for the test.
        heldout: global ids of nodes that training does not see; "test" is their score, "test_observed" the others'.
    """

    def __init__(
        self,
        phase: str,
        model: Model,
        data: NodeData,
        train: TrainConfig,
        full: NodeData | None = None,
        heldout: Tensor | None = None,
    ) -> None:
        self.phase, self.metric = phase, data.metric
        self.model: Model = model
        self.data = data
        self.full, self.heldout = full, heldout
        self.optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)

    def batches(self, epoch: int) -> list[None]:
        """One full batch."""
        return [None]

    def losses(self, batch: None) -> dict[str, Tensor]:
        """Loss of the training nodes and of the routing."""
        logits, aux = self.model(self.data.x, self.data.graph)
        nodes = self.data.train_idx
        task = label_loss(self.metric, logits[nodes], self.data.y[nodes])
        return {"loss": task + aux, "task": task, "aux": aux}

    def evaluate(self) -> dict[str, float]:
        """Scores of validation and test nodes."""
        logits, arrived = self.model(self.data.x, self.data.graph).logits, None
        if self.full is not None and self.heldout is not None:
            whole = self.model(self.full.x, self.full.graph).logits
            arrived = whole[self.heldout], self.full.y[self.heldout]
        return node_scores(self.data, logits, arrived)

    def expert_load(self) -> list[float] | None:
        """Shares of the experts at the last forward, for a model that routes."""
        return expert_load(self.model)


def node_scores(data: NodeData, logits_NC: Tensor, arrived: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    """Score the nodes that training sees, and those that arrive after it.

    Args:
        data: what training sees.
        logits_NC: logits of its nodes.
        arrived: logits and labels of held-out nodes; "test" is their score then, and "test_observed" the others'.
    """

    def score(nodes: Tensor) -> float:
        return metrics.evaluate(data.metric, logits_NC[nodes], data.y[nodes])

    if arrived is None:
        return {"val": score(data.val_idx), "test": score(data.test_idx)}
    scores = {"val": score(data.val_idx), "test": metrics.evaluate(data.metric, *arrived)}
    return scores | ({"test_observed": score(data.test_idx)} if len(data.test_idx) else {})


def label_loss(metric: str, logits: Tensor, y: Tensor) -> Tensor:
    """Mean loss over the known labels: cross entropy, BCE (rocauc) or squared error (rmse).

    Args:
        metric: "accuracy", "rocauc" or "rmse".
        logits: [B, C] or [B, tasks].
        y: class ids [B] (or [B, 1]), else [B, tasks] with NaN for a missing label.
    """
    logits = logits.float()
    if metric == "accuracy":
        return functional.cross_entropy(logits, y.reshape(-1).long())
    known = ~y.isnan()
    target = torch.where(known, y, 0.0)
    if metric == "rocauc":
        each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    else:
        each = (logits - target).square()
    return (each * known).sum() / known.sum().clamp_min(1)


def expert_load(model: nn.Module) -> list[float] | None:
    """Share of the last forward's slots that each expert of a mixture served; None for a model of one expert."""
    if not isinstance(model, ExpertGNN):
        return None
    shares: list[float] = model.expert_load().tolist()
    return shares if len(shares) > 1 else None


def node_task(
    phase: str, name: str, network: NetworkConfig, data: NodeData, config: Config, train: TrainConfig, run: Run
) -> NodeTask:
    """Seed the phase, then build a GNN on the data's device and its task in the setting of the run."""
    run.begin(phase)
    model = models.build(name, in_dim=data.num_features, out_dim=data.num_classes, **network.build_args())
    model.to(data.x.device)
    if config.data.setting == "transductive":
        return NodeTask(phase, model, data, train)
    view = data.inductive(config.split_seed, config.heldout_rate)
    return NodeTask(phase, model, view.observed, train, data, view.heldout)


def train(config: Config, run: Run, device: torch.device, data: NodeData) -> Outcome:
    """Train `model` on a node data set."""
    assert config.model.name is not None
    run.line("graph", f"{data.name}: {data.summary()}")
    data = data.to(device)
    task = node_task(config.model.name, config.model.name, config.model, data, config, config.train, run)
    result = fit(task, config.train, run)
    return Outcome(Trained(task.model, result), data)
