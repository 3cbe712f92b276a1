"""The Routing-by-Memory student (RbM, section 4): layers of experts that stand where their inputs are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..nn.rbm_layer import RbMLayer
from .mlp import Norm, build_norm
from .output import Output
from .registry import Model, register


@register("rbm", passes_to=RbMLayer, graph_free=True)
class RbM(Model):
    """RbM layers with norm and ReLU between them; no dropout but inside the layers.

    Training: :meth:`set_pretraining` (True) routes all rows to expert 0; ``gmoe_ext.distill.kmeans_start`` clones it
    and places the memories. A model that was never pre-trained routes by random memories from its first batch on.

    Args:
        in_dim: features (and positions) of a node.
        hidden_dim: width of the hidden layers.
        out_dim: classes.
        num_layers: RbM layers, >= 1.
        num_experts: experts of each layer.
        k: experts per row.
        dropout: drop probability of expert inputs.
        norm: "none", "batch" or "layer", before each ReLU.
        first_layer_dropout: also drop inputs of the first layer's experts (published program).
        layer: the other options of :class:`gmoe_ext.nn.RbMLayer`, the same for every layer: input_attention,
            commitment, self_similarity, load_balance, gate_gradient, ..., memory.

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux scalar).

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> student = build("rbm", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2, num_experts=4, k=2)
        >>> student(torch.randn(5, 16)).logits.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int = 2,
        num_experts: int = 4,
        k: int = 3,
        dropout: float = 0.0,
        norm: Norm = "none",
        first_layer_dropout: bool = False,
        **layer: Any,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"expected 'num_layers' of at least 1, got {num_layers}")
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        drops = [dropout if first_layer_dropout else 0.0] + [dropout] * (num_layers - 1)
        self.layers = nn.ModuleList(
            RbMLayer(d, f, num_experts, k, dropout=drop, **layer)
            for (d, f), drop in zip(pairwise(dims), drops, strict=True)
        )
        self.norms = nn.ModuleList(build_norm(norm, d) for d in dims[1:-1])

    def rbm_layers(self) -> Iterator[RbMLayer]:
        """The layers, typed, from the input up."""
        for layer in self.layers:
            assert isinstance(layer, RbMLayer)
            yield layer

    def between(self, position: int, h_NF: Tensor) -> Tensor:
        """What layer ``position``'s output goes through before the next layer; the identity after the last."""
        if position == len(self.norms):
            return h_NF
        return functional.relu(self.norms[position](h_NF))

    def set_pretraining(self, on: bool) -> None:
        """Send all rows to expert 0 (on) or route them."""
        for layer in self.rbm_layers():
            layer.pretraining = on

    def set_epoch(self, epoch: int) -> None:
        """Tell the memories the epoch t of the annealing schedule (eq. 14)."""
        for layer in self.rbm_layers():
            layer.router.epoch = epoch

    def set_following(self, on: bool) -> None:
        """Let every training forward move the memories (on, the default), or :meth:`follow_` alone."""
        for layer in self.rbm_layers():
            layer.router.following = on

    @torch.no_grad()
    def follow_(self, x_ND: Tensor, copies_N: Tensor | None = None) -> None:
        """Let the memories follow rows as in a training forward, row j counting copies_N[j] times.

        Norms take their running statistics, and leave them.
        """
        training = self.norms.training
        self.norms.eval()
        h = x_ND
        for position, layer in enumerate(self.rbm_layers()):
            h = self.between(position, layer.follow_(h, copies_N))
        self.norms.train(training)

    def spread_memories_(self, learning_rate: float) -> None:
        """One step along the memories' own loss, eq. 7; call it beside the optimizer's step."""
        for layer in self.rbm_layers():
            layer.spread_(learning_rate)

    def expert_load(self) -> Tensor | None:
        """Share of the last forward's slots that each expert served, [E], averaged over layers; None before routing."""
        served = [layer.served_E for layer in self.rbm_layers() if layer.served_E is not None]
        if not served:
            return None
        return torch.stack([slots / slots.sum().clamp_min(1) for slots in served]).mean(0)

    def num_parameters(self) -> tuple[int, int]:
        """Count (active, total) as RbM's table 9 does: the memories are routed by, so they count in both."""
        active, total = super().num_parameters()
        memories = [layer.router.memory for layer in self.rbm_layers()]
        extra = sum(m.numel() for m in memories if not isinstance(m, nn.Parameter))
        return active + extra, total + extra

    def forward(self, x_ND: Tensor) -> Output:
        h, aux = x_ND, x_ND.new_zeros(())
        for position, layer in enumerate(self.layers):
            y, layer_aux = layer(h)
            h, aux = self.between(position, y), aux + layer_aux
        return Output(h, aux)
