"""GMoEConv: a graph convolution whose nodes each choose k of n experts of hop 1 or hop 2 (GMoE, section 3.1)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import ArgumentError, ArgumentTypeError, expect
from ...feature_rows import FeatureRows, Features
from ...graph import Graph, expect_graph
from ..layer import configured
from ..linear_experts import LinearExperts
from .expert_norm import ExpertBatchNorm
from .experts import BondConvs, Epilogue, GMoEConfig, Hops, IsomorphismConvs, LinearConvs
from .noisy_gate import NoisyTopKGate, Routing, Slots


class GMoEConv(nn.Module):
    """A mixture of graph convolutions.

    GMoE, eq. 2:

        y_i = sum_{o <= m} G(h_i)_o E_o(neighbours of i) + sum_{o > m} G(h_i)_o E_o(nodes two hops from i)

    Only chosen experts are computed, except in training with ``norm="all_nodes"``. One expert is the plain
    convolution: no gate, no balance loss.

    Args:
        in_dim: D, features of a node.
        out_dim: F.
        settings: a ``GMoEConfig``, or its ``num_experts``, ``num_hop1`` and ``k``.
        options: fields of ``GMoEConfig`` by keyword.

    Raises:
        ValueError: an option is out of its range.

    Determinism: the gate's noise comes from torch's generator; all else is bitwise repeatable.

    Examples:
        >>> conv = GMoEConv(16, 32, num_experts=4, num_hop1=2, k=1)
        >>> y, aux = conv(torch.randn(graph.num_nodes, 16), graph)
    """

    def __init__(self, in_dim: int, out_dim: int, *settings: Any, **options: Any) -> None:
        super().__init__()
        config = configured(GMoEConfig, ("num_experts", "num_hop1", "k"), settings, options)
        expect(min(in_dim, out_dim) >= 1, "GMoEConv", "in_dim, out_dim", "of at least 1", (in_dim, out_dim))
        self.in_dim, self.out_dim, self.config = in_dim, out_dim, config
        self.num_experts, self.num_hop1, self.k = config.num_experts, config.hop1, config.chosen
        self.gate = NoisyTopKGate(in_dim, self.num_experts, self.k) if self.num_experts > 1 else None
        self.experts: nn.Module
        if config.base == "gin":
            self.experts = IsomorphismConvs(in_dim, out_dim, config)
        elif config.bond_dims is None:
            self.experts = LinearConvs(in_dim, out_dim, config)
        else:
            self.experts = BondConvs(in_dim, out_dim, config)
        self.norm = None if config.norm == "none" else ExpertBatchNorm(self.num_experts, out_dim)
        self._chosen: Tensor | None = None

    @property
    def needs_two_hop(self) -> bool:
        """Whether some experts see two hops."""
        return self.num_hop1 < self.num_experts

    def forward(
        self, x: Features, graph: Graph, two_hop: Graph | None = None, pair_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: [N, D]; on plain graphs also FeatureRows.
            graph: N nodes; with ``bond_dims`` its edge types are bond types.
            two_hop: graph of the nodes two hops away (``gmoe_ext.ops.two_hop_graph``), needed by hop-2 experts
                on molecules; None on plain graphs means A(Ax) over ``graph``.
            pair_types: int64 [P, 2], the two bond types of each edge type of ``two_hop``.

        Returns:
            y [N, F], and the sum of importance and load loss (eq. 9 without lambda), a scalar.
        """
        expect_graph("GMoEConv", graph)
        if two_hop is not None:
            expect_graph("GMoEConv", two_hop, "two_hop")
        if x.dim() != 2 or x.shape[1] != self.in_dim or x.shape[0] != graph.num_nodes:
            raise ArgumentError(
                f"GMoEConv: expected 'x' of shape [{graph.num_nodes}, {self.in_dim}] (nodes of 'graph', in_dim), "
                f"got {list(x.shape)}"
            )
        if isinstance(x, FeatureRows) and self.config.bond_dims is not None:
            raise ArgumentTypeError("GMoEConv: expected 'x' to be a tensor with bond_dims, got FeatureRows")
        hops = Hops(graph, two_hop, pair_types)
        if self.gate is None:
            slots = Slots.all(x.shape[0], 1, x.device)
            return self._run(x, hops, slots, None).squeeze(1), x.new_zeros(())
        routing = self.gate(x)
        self._chosen = routing.index
        y = self._routed(x, hops, routing)
        if self.config.combine == "mean":
            y = y / self.num_experts
        return y, routing.importance_loss + routing.load_loss

    def _routed(self, x: Features, hops: Hops, routing: Routing) -> Tensor:
        if self.training and self.config.norm == "all_nodes":
            none_NE = routing.gate.new_zeros(x.shape[0], self.num_experts)
            gate_NE = none_NE.scatter(1, routing.index, routing.gate)
            return self._run(x, hops, Slots.all(x.shape[0], self.num_experts, x.device), gate_NE)
        return self._run(x, hops, Slots.chosen(routing.index, self.num_experts), routing.gate)

    def _run(self, x: Features, hops: Hops, slots: Slots, gate: Tensor | None) -> Tensor:
        y: Tensor
        if self.norm is None:
            y = self.experts(x, hops, slots, Epilogue(gate=gate))
        elif self.training:
            y = self.norm(self.experts(x, hops, slots, Epilogue()), slots, gate)
        else:
            y = self.experts(x, hops, slots, Epilogue(*self.norm.scale_and_shift(), gate))
        return y

    def input_weights(self) -> list[Tensor]:
        """List the matrices [*, D] by which the layer reads its input."""
        gate = [] if self.gate is None else [self.gate.weight_gate, self.gate.weight_noise]
        first = self.experts.first if isinstance(self.experts, IsomorphismConvs) else self.experts.linear
        return [*gate, cast(LinearExperts, first).weight]

    def expert_load(self) -> Tensor:
        """Return the share of the last forward's slots that went to each expert, [E], summing to 1."""
        if self._chosen is None:
            device = next(self.parameters()).device
            return torch.full((self.num_experts,), 1.0 / self.num_experts, device=device)
        counts = torch.bincount(self._chosen.flatten(), minlength=self.num_experts)
        return counts / max(self._chosen.numel(), 1)

    def inactive_parameters(self) -> int:
        """Count the parameters of the n - k experts that do not serve a given node."""
        stacked = [self.experts] if self.norm is None else [self.experts, self.norm]
        total = sum(p.numel() for module in stacked for p in module.parameters() if p.requires_grad)
        return total * (self.num_experts - self.k) // self.num_experts

    def extra_repr(self) -> str:
        config = self.config
        return (
            f"in_dim={self.in_dim}, out_dim={self.out_dim}, num_experts={self.num_experts}, num_hop1={self.num_hop1}, "
            f"k={self.k}, base={config.base}, norm={config.norm}, combine={config.combine}"
        )
