"""The vanilla mixture of experts, RbM's rival in its section 5.3: the same layers under a learnt router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..nn.moe_layer import MoELayer
from .mixture import MixtureStudent
from .registry import register


@register("moe", passes_to=MoELayer, graph_free=True)
class MoE(MixtureStudent):
    """MoE layers with norm and ReLU between them; no dropout but inside the layers.

    Training: :meth:`set_pretraining` (True) trains the experts without routers, :meth:`start_routing` ends that. A
    model that was never pre-trained routes from its first batch on.

    Options: those of :class:`MixtureStudent`, and of :class:`gmoe_ext.nn.MoELayer` load_balance, shared_dropout and
    variant, the same for every layer. Rows are compared with experts in hidden_dim dimensions.

    Example:
        >>> student = build("moe", in_dim=16, hidden_dim=32, out_dim=4, num_layers=2, num_experts=8, k=3)
        >>> student(torch.randn(5, 16)).logits.shape
        torch.Size([5, 4])
    """

    def build_layer(self, in_dim: int, out_dim: int, **options: Any) -> MoELayer:
        return MoELayer(in_dim, out_dim, proj_dim=self.hidden_dim, **options)

    def moe_layers(self) -> Iterator[MoELayer]:
        """The layers, typed, from the input up."""
        for layer in self.layers:
            assert isinstance(layer, MoELayer)
            yield layer

    def start_routing(self) -> None:
        """End of pre-training."""
        for layer in self.moe_layers():
            layer.start_routing()
