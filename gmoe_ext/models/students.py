"""The students in the registry: models of rows alone, without a graph (mlp, ensemble, rbm, moe)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from ..errors import expect, expect_choice
from ..feature_rows import Features
from ..nn import MoEConfig, MoELayer, RbMConfig, RbMLayer
from ..nn.dropout import dropout
from ..nn.linear_experts import linear
from ..nn.rbm.moe_layer import ExpertConfig, ExpertLayer
from .registry import Model, Output, register

Layer = TypeVar("Layer", bound=ExpertLayer)
Settings = TypeVar("Settings", bound=ExpertConfig)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of a student.

    Attributes:
        in_dim: features (and positions) of a node.
        hidden_dim: width of the hidden layers.
        out_dim: classes.
        num_layers: layers, >= 1.
        norm: "none", "batch" or "layer", before each ReLU.

    Raises:
        ValueError: an option is out of its range.
    """

    in_dim: int
    hidden_dim: int
    out_dim: int
    num_layers: int = 2
    norm: Literal["none", "batch", "layer"] = "none"

    def __post_init__(self) -> None:
        expect(self.num_layers >= 1, "student", "num_layers", "of at least 1", self.num_layers)
        expect_choice(self.norm, ("none", "batch", "layer"), "student", "norm")

    def widths(self) -> list[tuple[int, int]]:
        """List each layer's input and output width."""
        return list(pairwise([self.in_dim] + [self.hidden_dim] * (self.num_layers - 1) + [self.out_dim]))

    def norms(self) -> nn.ModuleList:
        """Make the norms between the layers."""
        kind = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[self.norm]
        return nn.ModuleList(kind(self.hidden_dim) for _ in range(self.num_layers - 1))


@register("mlp", graph_free=True)
class MLP(Model):
    """Linear layers with norm, ReLU and dropout between them; GLNN and KRD train it on different targets.

    Args:
        network: shape of the student.
        dropout: drop probability after each hidden layer.

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux = 0).

    Raises:
        ValueError: an option is out of its range.

    Examples:
        >>> student = build("mlp", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2)
        >>> student(torch.randn(5, 16)).logits.shape
        torch.Size([5, 4])
    """

    def __init__(self, network: StudentConfig, dropout: float = 0.0) -> None:
        super().__init__()
        expect(0.0 <= dropout < 1.0, "MLP", "dropout", "in [0, 1)", dropout)
        self.layers = nn.ModuleList(nn.Linear(d, f) for d, f in network.widths())
        self.norms = network.norms()
        self.dropout = dropout

    def forward(self, x_ND: Features) -> Output:
        layers: list[Any] = list(self.layers)
        h = linear(x_ND, layers[0].weight, layers[0].bias)
        for layer, norm in zip(layers[1:], self.norms, strict=True):
            h = layer(dropout(functional.relu(norm(h)), self.dropout, self.training))
        return Output(h, h.new_zeros(()))


@register("ensemble", graph_free=True)
class Ensemble(Model):
    """MLPs of one shape and different initial weights, whose probabilities are averaged (RbM, section 5.3).

        logits = log(1/n sum_m softmax(z_m))

    Hence softmax(logits) is the mean of the members' probabilities.

    Each member learns separately, from the whole loss (``learners``). With a loss on the averaged answer, members
    could rely on each other's errors.

    Args:
        network: shape of each member.
        dropout: drop probability after each hidden layer.
        num_members: n.

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux = 0).

    Raises:
        ValueError: an option is out of its range.

    Examples:
        >>> student = build("ensemble", in_dim=16, hidden_dim=32, out_dim=4, num_members=3)
    """

    def __init__(self, network: StudentConfig, dropout: float = 0.0, num_members: int = 3) -> None:
        super().__init__()
        expect(num_members >= 1, "Ensemble", "num_members", "of at least 1", num_members)
        self.members = nn.ModuleList(MLP(network, dropout) for _ in range(num_members))

    def learners(self) -> list[Model]:
        """List the members."""
        return [cast(MLP, member) for member in self.members]

    def forward(self, x_ND: Features) -> Output:
        votes = torch.stack([member(x_ND).logits.log_softmax(dim=1) for member in self.members])
        return Output(votes.logsumexp(dim=0) - math.log(len(self.members)), votes.new_zeros(()))


class ExpertStudent(Model, Generic[Layer]):
    """Layers of routed experts with norm and ReLU between them; dropout acts inside the layers only.

    Args:
        network: shape of the student.
        experts: settings of every layer.
        make_layer: makes a layer of (in_dim, out_dim, settings).
        first_layer_dropout: also drop inputs of the first layer's experts (released code).

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux scalar).

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        network: StudentConfig,
        experts: Settings,
        make_layer: Callable[[int, int, Settings], Layer],
        first_layer_dropout: bool,
    ) -> None:
        super().__init__()
        first = experts if first_layer_dropout else replace(experts, dropout=0.0)
        self.layers = nn.ModuleList(
            make_layer(d, f, experts if position else first) for position, (d, f) in enumerate(network.widths())
        )
        self.norms = network.norms()

    def expert_layers(self) -> list[Layer]:
        """List the layers, typed, from the input up."""
        return [cast(Layer, layer) for layer in self.layers]

    def between(self, position: int, h_NF: Tensor) -> Tensor:
        """Pass the output of layer ``position`` on to the next layer: norm and ReLU, nothing after the last."""
        if position == len(self.norms):
            return h_NF
        return functional.relu(self.norms[position](h_NF))

    def set_pretraining(self, on: bool) -> None:
        """Train the experts without their routers (on), or route."""
        for layer in self.expert_layers():
            layer.pretraining = on

    def expert_load(self) -> Tensor | None:
        """Return each expert's share of the last forward's slots, [E], averaged over layers; None before routing."""
        served = [layer.served_E for layer in self.expert_layers() if layer.served_E is not None]
        if not served:
            return None
        return torch.stack([slots / slots.sum().clamp_min(1) for slots in served]).mean(0)

    def forward(self, x_ND: Features) -> Output:
        h: Any = x_ND
        aux = x_ND.new_zeros(())
        for position, layer in enumerate(self.layers):
            y, layer_aux = layer(h)
            h, aux = self.between(position, y), aux + layer_aux
        return Output(h, aux)


@register("rbm", graph_free=True)
class RbM(ExpertStudent[RbMLayer]):
    """The Routing-by-Memory student (RbM, section 4): experts that are chosen by the memory of what they served.

    Training: ``set_pretraining`` (True) routes all rows to expert 0; ``gmoe_ext.distill.kmeans_start`` clones it
    and places the memories. A model that was never pre-trained routes by random memories from its first batch on. The
    memories move in ``after_step``, which the training loop calls after each step of the optimizer.

    Arguments and errors are those of ``ExpertStudent``.

    Examples:
        >>> student = build("rbm", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2, num_experts=4, k=2)
    """

    def __init__(self, network: StudentConfig, experts: RbMConfig, first_layer_dropout: bool = False) -> None:
        super().__init__(network, experts, RbMLayer, first_layer_dropout)

    def set_epoch(self, epoch: int) -> None:
        """Tell the memories the epoch t of the annealing schedule (eq. 14)."""
        for layer in self.expert_layers():
            layer.router.epoch = epoch

    def set_following(self, on: bool) -> None:
        """Let the rows of training forwards move the memories (on, the default), or only those of ``follow_``."""
        for layer in self.expert_layers():
            layer.router.following = on

    @torch.no_grad()
    def follow_(self, x_ND: Features, copies_N: Tensor | None = None) -> None:
        """Move the memories at once, row j counting copies_N[j] times.

        Norms use their running statistics and do not update them.
        """
        training = self.norms.training
        self.norms.eval()
        h: Any = x_ND
        for position, layer in enumerate(self.expert_layers()):
            h = self.between(position, layer.follow_(h, copies_N))
        self.norms.train(training)

    def after_step(self, learning_rate: float, group: dist.ProcessGroup | None = None) -> None:
        """Move the memories, once per step of the optimizer; see ``gmoe_ext.nn.RbMLayer.after_step``."""
        for layer in self.expert_layers():
            layer.after_step(learning_rate, group)

    def num_parameters(self) -> tuple[int, int]:
        """Count (active, total) as in RbM's table 9: every row is compared with all memories, so both include them."""
        active, total = super().num_parameters()
        memories = [layer.router.memory for layer in self.expert_layers()]
        extra = sum(m.numel() for m in memories if not isinstance(m, nn.Parameter))
        return active + extra, total + extra


@register("moe", graph_free=True)
class MoE(ExpertStudent[MoELayer]):
    """The vanilla mixture of experts that the RbM paper compares with (section 5.3): the same layers, learned routers.

    Training: ``set_pretraining`` (True) trains the experts without routers, ``start_routing`` ends that. A
    model that was never pre-trained routes from its first batch on. Rows are compared with experts in hidden_dim
    dimensions.

    Arguments and errors are those of ``ExpertStudent``.

    Examples:
        >>> student = build("moe", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2, num_experts=8, k=3)
    """

    def __init__(self, network: StudentConfig, experts: MoEConfig, first_layer_dropout: bool = False) -> None:
        def layer(in_dim: int, out_dim: int, settings: MoEConfig) -> MoELayer:
            return MoELayer(in_dim, out_dim, network.hidden_dim, settings)

        super().__init__(network, experts, layer, first_layer_dropout)

    def start_routing(self) -> None:
        """End pre-training."""
        for layer in self.expert_layers():
            layer.start_routing()
