"""GMoEConv: a graph convolution whose nodes each choose k of n experts of hop 1 or hop 2 (GMoE, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..graph import Graph
from .convs import BondConvs, Epilogue, Hops, IsomorphismConvs, LinearConvs
from .gates import NoisyTopKGate, Routing, Slots
from .norms import ExpertBatchNorm

Base = Literal["gcn", "gin", "sage"]
ExpertNorm = Literal["routed", "all_nodes", "none"]
Combine = Literal["sum", "mean"]


class GMoEConv(nn.Module):
    """A mixture of graph convolutions.

    y_i = sum_{o <= m} G(h_i)_o E_o(neighbours of i) + sum_{o > m} G(h_i)_o E_o(nodes two hops from i)   (GMoE, eq. 2)

    Only chosen experts are computed, except in training with ``norm="all_nodes"``. One expert is the plain
    convolution: no gate, no balance loss.

    Args:
        in_dim: D, features of a node.
        out_dim: F.
        num_experts: n.
        num_hop1: m, how many of them see neighbours; the others see two hops. None means all.
        k: experts per node; taken as 1 when there is one expert.
        base: "gcn", "gin" or "sage", the convolution of each expert.
        bond_dims: values of each bond feature for OGB's molecule messages; None for plain graphs.
        norm: BatchNorm of each expert's result before the gate. "routed": over the nodes routed to the expert.
            "all_nodes": over all nodes, which runs every expert on every node in training (the released code);
            evaluation is sparse and gives what the dense one would. "none": no norm.
        combine: "sum" (eq. 2) or "mean", the sum divided by n (the released code).
        mlp_dim: inner width of GIN's MLP; None means 2 * in_dim (OGB).

    Raises:
        ValueError: an option is out of its range.

    Determinism: the gate's noise comes from torch's generator; all else is bitwise repeatable.

    Example:
        >>> conv = GMoEConv(16, 32, num_experts=4, num_hop1=2, k=1)
        >>> y, aux = conv(torch.randn(graph.num_nodes, 16), graph)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_experts: int = 8,
        num_hop1: int | None = None,
        k: int = 4,
        base: Base = "gcn",
        bond_dims: Sequence[int] | None = None,
        norm: ExpertNorm = "routed",
        combine: Combine = "sum",
        mlp_dim: int | None = None,
    ) -> None:
        super().__init__()
        hop1 = num_experts if num_hop1 is None else num_hop1
        k = 1 if num_experts == 1 else k
        _check_options(in_dim, out_dim, num_experts, hop1, k, base, norm, combine)
        self.in_dim, self.out_dim, self.num_experts, self.num_hop1, self.k = in_dim, out_dim, num_experts, hop1, k
        self.base, self.over, self.combine = base, norm, combine
        self.gate = NoisyTopKGate(in_dim, num_experts, k) if num_experts > 1 else None
        self.experts: nn.Module
        if base == "gin":
            self.experts = IsomorphismConvs(in_dim, mlp_dim or 2 * in_dim, out_dim, num_experts, hop1, bond_dims)
        elif bond_dims is None:
            self.experts = LinearConvs(base, in_dim, out_dim, num_experts, hop1)
        else:
            self.experts = BondConvs(base, in_dim, out_dim, num_experts, hop1, bond_dims)
        self.norm = None if norm == "none" else ExpertBatchNorm(num_experts, out_dim)
        self._chosen: Tensor | None = None

    @property
    def needs_two_hop(self) -> bool:
        """Whether some experts see two hops."""
        return self.num_hop1 < self.num_experts

    def forward(
        self, x: Tensor, graph: Graph, two_hop: Graph | None = None, pair_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: [N, D].
            graph: N nodes; with ``bond_dims`` its edge types are bond types.
            two_hop: graph of the nodes two hops away (:func:`gmoe_ext.ops.two_hop_graph`), needed by hop-2 experts
                on molecules; None on plain graphs means A(Ax) over ``graph``.
            pair_types: int64 [P, 2], the two bond types of each edge type of ``two_hop``.

        Returns:
            y [N, F], and the sum of importance and load loss (eq. 9 without lambda), a scalar.
        """
        if x.dim() != 2 or x.shape[1] != self.in_dim or x.shape[0] != graph.num_nodes:
            raise ValueError(
                f"GMoEConv: expected 'x' of shape [{graph.num_nodes}, {self.in_dim}] (nodes of 'graph', in_dim), "
                f"got {list(x.shape)}"
            )
        hops = Hops(graph, two_hop, pair_types)
        if self.gate is None:
            slots = Slots.all(x.shape[0], 1, x.device)
            return self._run(x, hops, slots, None).squeeze(1), x.new_zeros(())
        routing = self.gate(x)
        self._chosen = routing.index
        y = self._mixture(x, hops, routing)
        if self.combine == "mean":
            y = y / self.num_experts
        return y, routing.importance_loss + routing.load_loss

    def _mixture(self, x: Tensor, hops: Hops, routing: Routing) -> Tensor:
        if self.training and self.over == "all_nodes":
            none_NE = routing.gate.new_zeros(x.shape[0], self.num_experts)
            gate_NE = none_NE.scatter(1, routing.index, routing.gate)
            return self._run(x, hops, Slots.all(x.shape[0], self.num_experts, x.device), gate_NE)
        return self._run(x, hops, Slots.chosen(routing.index, self.num_experts), routing.gate)

    def _run(self, x: Tensor, hops: Hops, slots: Slots, gate: Tensor | None) -> Tensor:
        if self.norm is None:
            return self._experts(x, hops, slots, Epilogue(gate=gate))
        if not self.training:
            return self._experts(x, hops, slots, Epilogue(*self.norm.affine(), gate))
        y: Tensor = self.norm(self._experts(x, hops, slots, Epilogue()), slots, gate)
        return y

    def _experts(self, x: Tensor, hops: Hops, slots: Slots, epilogue: Epilogue) -> Tensor:
        y: Tensor = self.experts(x, hops, slots, epilogue)
        return y

    def expert_load(self) -> Tensor:
        """Share of the last forward's slots that went to each expert, [E]; sums to 1. Computed when asked."""
        if self._chosen is None:
            device = next(self.parameters()).device
            return torch.full((self.num_experts,), 1.0 / self.num_experts, device=device)
        counts = torch.bincount(self._chosen.flatten(), minlength=self.num_experts)
        return counts / max(self._chosen.numel(), 1)

    def inactive_parameters(self) -> int:
        """Parameters of the n - k experts that do not serve a node."""
        stacked = [self.experts] if self.norm is None else [self.experts, self.norm]
        total = sum(p.numel() for module in stacked for p in module.parameters() if p.requires_grad)
        return total * (self.num_experts - self.k) // self.num_experts

    def extra_repr(self) -> str:
        return (
            f"in_dim={self.in_dim}, out_dim={self.out_dim}, num_experts={self.num_experts}, num_hop1={self.num_hop1}, "
            f"k={self.k}, base={self.base}, norm={self.over}, combine={self.combine}"
        )


def _check_options(
    in_dim: int, out_dim: int, num_experts: int, num_hop1: int, k: int, base: str, norm: str, combine: str
) -> None:
    if min(in_dim, out_dim, num_experts) < 1:
        raise ValueError(
            "GMoEConv: expected 'in_dim', 'out_dim' and 'num_experts' of at least 1, "
            f"got {in_dim}, {out_dim}, {num_experts}"
        )
    if not 0 <= num_hop1 <= num_experts:
        raise ValueError(f"GMoEConv: expected 'num_hop1' in [0, {num_experts}] (num_experts), got {num_hop1}")
    if not 1 <= k <= num_experts:
        raise ValueError(f"GMoEConv: expected 'k' in [1, {num_experts}] (num_experts), got {k}")
    for argument, value, known in (
        ("base", base, ("gcn", "gin", "sage")),
        ("norm", norm, ("routed", "all_nodes", "none")),
        ("combine", combine, ("sum", "mean")),
    ):
        if value not in known:
            raise ValueError(f"GMoEConv: expected '{argument}' to be one of {', '.join(known)}, got {value!r}")
