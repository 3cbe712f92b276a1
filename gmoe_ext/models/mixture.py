"""What the RbM student and the vanilla mixture of experts share: a stack of layers of experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..nn.mixture import MixtureLayer
from .mlp import Norm, build_norm
from .output import Output
from .registry import Model


class MixtureStudent(Model, ABC):
    """Layers of experts with norm and ReLU between them; no dropout but inside the layers.

    Args:
        in_dim: features (and positions) of a node.
        hidden_dim: width of the hidden layers.
        out_dim: classes.
        num_layers: layers of experts, >= 1.
        num_experts: experts of each layer.
        k: experts per row.
        dropout: drop probability of expert inputs.
        norm: "none", "batch" or "layer", before each ReLU.
        first_layer_dropout: also drop inputs of the first layer's experts (released code).
        layer: the layer's other options, the same for every layer.

    Returns:
        forward(x [N, in_dim]) gives Output(logits [N, out_dim], aux scalar).

    Raises:
        ValueError: an option is out of its range.
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
        self.hidden_dim = hidden_dim
        self.layers = nn.ModuleList(
            self.build_layer(d, f, num_experts=num_experts, k=k, dropout=drop, **layer)
            for (d, f), drop in zip(pairwise(dims), drops, strict=True)
        )
        self.norms = nn.ModuleList(build_norm(norm, d) for d in dims[1:-1])

    @abstractmethod
    def build_layer(self, in_dim: int, out_dim: int, **options: Any) -> MixtureLayer:
        """One layer."""

    def expert_layers(self) -> Iterator[MixtureLayer]:
        """The layers, typed, from the input up."""
        for layer in self.layers:
            assert isinstance(layer, MixtureLayer)
            yield layer

    def between(self, position: int, h_NF: Tensor) -> Tensor:
        """What layer ``position``'s output goes through before the next layer; the identity after the last."""
        if position == len(self.norms):
            return h_NF
        return functional.relu(self.norms[position](h_NF))

    def set_pretraining(self, on: bool) -> None:
        """Train the experts without their routers (on), or route."""
        for layer in self.expert_layers():
            layer.pretraining = on

    def expert_load(self) -> Tensor | None:
        """Share of the last forward's slots that each expert served, [E], averaged over layers; None before routing."""
        served = [layer.served_E for layer in self.expert_layers() if layer.served_E is not None]
        if not served:
            return None
        return torch.stack([slots / slots.sum().clamp_min(1) for slots in served]).mean(0)

    def forward(self, x_ND: Tensor) -> Output:
        h, aux = x_ND, x_ND.new_zeros(())
        for position, layer in enumerate(self.layers):
            y, layer_aux = layer(h)
            h, aux = self.between(position, y), aux + layer_aux
        return Output(h, aux)
