"""The Routing-by-Memory student (RbM, section 4): layers of experts that stand where their inputs are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.rbm_layer import RbMLayer
from .mixture import MixtureStudent
from .registry import register


@register("rbm", passes_to=RbMLayer, graph_free=True)
class RbM(MixtureStudent):
    """RbM layers with norm and ReLU between them; no dropout but inside the layers.

    Training: :meth:`set_pretraining` (True) routes all rows to expert 0; ``gmoe_ext.distill.kmeans_start`` clones it
    and places the memories. A model that was never pre-trained routes by random memories from its first batch on.

    Options: those of :class:`MixtureStudent`, and of :class:`gmoe_ext.nn.RbMLayer` input_attention, commitment,
    self_similarity, load_balance, gate_gradient, ..., memory, the same for every layer.

    Example:
        >>> student = build("rbm", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2, num_experts=4, k=2)
        >>> student(torch.randn(5, 16)).logits.shape
        torch.Size([5, 4])
    """

    def build_layer(self, in_dim: int, out_dim: int, **options: Any) -> RbMLayer:
        return RbMLayer(in_dim, out_dim, **options)

    def rbm_layers(self) -> Iterator[RbMLayer]:
        """The layers, typed, from the input up."""
        for layer in self.layers:
            assert isinstance(layer, RbMLayer)
            yield layer

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

    def num_parameters(self) -> tuple[int, int]:
        """Count (active, total) as RbM's table 9 does: the memories are routed by, so they count in both."""
        active, total = super().num_parameters()
        memories = [layer.router.memory for layer in self.rbm_layers()]
        extra = sum(m.numel() for m in memories if not isinstance(m, nn.Parameter))
        return active + extra, total + extra
