"""Node classification with a GNN: full batch, cross entropy (BCE over 0/1 tasks), plus the routing's losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ... import models
from ...data import NodeData, metrics
from ...feature_rows import FeatureRows, Features
from ...models.gnn import ExpertGNN
from ...models.registry import Model
from ...nn.linear_experts import lay_side_by_side
from ..config import Config, NetworkConfig, TrainConfig
from ..fit_state import Task
from ..loop import fit
from ..report import Outcome, Trained
from ..run import Run
from .scene import Scene, check_scored


class GNNTask(Task):
    """Train a GNN on labels: what nodes and molecules have in common.

    Args:
        phase: name of the fit.
        model: returns an Output.
        metric: of the labels.
        train: learning rate and weight decay of Adam.
    """

    def __init__(self, phase: str, model: Model, metric: str, train: TrainConfig) -> None:
        self.phase, self.metric = phase, metric
        self.model: Model = model
        self.optimizer = adam(model, train)

    def label_losses(self, logits: Tensor, y: Tensor, aux: Tensor) -> dict[str, Tensor]:
        """Loss of the known labels and of the routing."""
        task = label_loss(self.metric, logits, y)
        return {"loss": task + aux, "task": task, "aux": aux}

    def expert_load(self) -> list[float] | None:
        """Share of the last forward's slots that each expert served; None for a model of one expert."""
        if not isinstance(self.model, ExpertGNN):
            return None
        shares: list[float] = self.model.expert_load().tolist()
        return shares if len(shares) > 1 else None


class NodeTask(GNNTask):
    """Train a GNN on the nodes of one graph; held-out nodes join it for the test.

    Args:
        phase, train: see `GNNTask`.
        model: forward(x [N, F], graph) -> Output.
        scene: data of the setting.
    """

    def __init__(self, phase: str, model: Model, scene: Scene, train: TrainConfig) -> None:
        prepare_for(model, scene.data.x)
        super().__init__(phase, model, scene.data.metric, train)
        self.scene, self.data = scene, scene.observed

    def batches(self, epoch: int) -> list[None]:
        """One full batch."""
        return [None]

    def losses(self, batch: None) -> dict[str, Tensor]:
        """Loss of the training nodes and of the routing."""
        logits, aux = self.model(self.data.x, self.data.graph)
        nodes = self.data.train_idx
        return self.label_losses(logits[nodes], self.data.y[nodes], aux)

    def evaluate(self) -> dict[str, float]:
        """Scores of validation and test nodes."""
        logits, arrived = self.model(self.data.x, self.data.graph).logits, None
        whole, heldout = self.scene.data, self.scene.heldout
        if heldout is not None:
            arrived = self.model(whole.x, whole.graph).logits[heldout], whole.y[heldout]
        return node_scores(self.data, logits, arrived)


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


def prepare_for(model: Model, x: Features) -> None:
    """Lay out a model's weights for the features that it will read; before its optimizer is made."""
    if isinstance(x, FeatureRows):
        lay_side_by_side(model, x.shape[1])


def adam(model: Model, train: TrainConfig) -> torch.optim.Adam:
    """Return a new optimizer of all parameters."""
    return torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)


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


def build_gnn(name: str, network: NetworkConfig, data: NodeData) -> Model:
    """Build a GNN for node data, on the CPU."""
    return models.build(name, in_dim=data.num_features, out_dim=data.num_classes, **network.build_args())


def fit_gnn(phase: str, name: str, network: NetworkConfig, scene: Scene, train: TrainConfig, run: Run) -> Trained:
    """Seed the phase, build a GNN on the data's device and fit it."""
    run.begin(phase)
    model = build_gnn(name, network, scene.data).to(scene.data.x.device)
    return Trained(model, fit(NodeTask(phase, model, scene, train), train, run))


def train(config: Config, run: Run, device: torch.device, data: NodeData) -> Outcome:
    """Train `model` on a node data set."""
    assert config.model.name is not None
    check_scored(data)
    run.progress.line("graph", f"{data.name}: {data.summary()}")
    scene, name = Scene.of(config, data.to(device)), config.model.name
    build_gnn(name, config.model, data)  # to see that it can be built
    run.ready(data)
    return Outcome(fit_gnn(name, name, config.model, scene, config.train, run), scene.data)
