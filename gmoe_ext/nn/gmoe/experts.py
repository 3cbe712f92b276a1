"""The experts of a GMoE layer: E graph convolutions of one kind, computed only where a node chose them.

Each class holds E experts in stacked weights; the first `num_hop1` of them see neighbours, the others see nodes two
hops away. The classes differ in how work can be shared:

- `LinearConvs` (GCN, SAGE on plain graphs): the message is linear, so each hop is aggregated once for all experts.
- `BondConvs` (GCN, SAGE on molecules): relu(W_e x_j + bond_e) is not linear, so only routed destinations are
  aggregated, and with many experts per slot only the sources that these read are transformed.
- `IsomorphismConvs` (GIN): the message has no matrix; the MLP after it runs on the routed slots.

Shapes: N nodes, E experts, K slots of a node, D in, F out, T edge types, P pairs of bond types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ...errors import ArgumentError, expect, expect_choice
from ...feature_rows import FeatureRows, Features
from ...graph import Graph
from ...plan import ExpertPlan
from ..linear_experts import LinearExperts, linear
from .encoders import BondEncoder
from .expert_norm import ExpertBatchNorm, combine, scale_slots
from .noisy_gate import Slots

Base = Literal["gcn", "gin", "sage"]
ExpertNorm = Literal["routed", "all_nodes", "none"]
Combine = Literal["sum", "mean"]

# Experts per slot of a node from which on only the sources that are read get transformed. With fewer, neighbours need
# so many of the E products that one dense product wins: transforming only the needed ones was 17% faster at E = 4,
# K = 1, F = 300 and 15% slower at E = 8, K = 4, F = 150. Without gradients no zeros are written for the others, and the
# needed rows win at E = 8, K = 4, too, even where 88% of all rows are needed.
NEEDED_FROM = 4
NEEDED_FROM_WITHOUT_GRADIENTS = 2

# Elements of transformed rows kept at once in evaluation: as many as the last-level cache holds. Fewer means more
# calls, each with a result of its own; more gains nothing.
ROWS_AT_ONCE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class GMoEConfig:
    """Settings of a GMoE layer.

    Attributes:
        num_experts: n.
        num_hop1: m, how many experts see neighbours; the others see two hops. None means all.
        k: experts per node; taken as 1 if there is one expert.
        base: "gcn", "gin" or "sage", the convolution of each expert.
        bond_dims: number of values of each bond feature, for OGB's molecule messages; None for plain graphs.
        norm: BatchNorm of each expert's result before the gate. "routed": over the nodes routed to the expert.
            "all_nodes": over all nodes, which runs every expert on every node in training (the released code);
            evaluation is sparse and equals the dense result. "none": no norm.
        combine: "sum" (eq. 2) or "mean", the sum divided by n (the released code).
        mlp_dim: inner width of GIN's MLP; None means 2 * in_dim (OGB).

    Raises:
        ValueError: an option is out of its range.
    """

    num_experts: int = 8
    num_hop1: int | None = None
    k: int = 4
    base: Base = "gcn"
    bond_dims: Sequence[int] | None = None
    norm: ExpertNorm = "routed"
    combine: Combine = "sum"
    mlp_dim: int | None = None

    def __post_init__(self) -> None:
        experts, where = self.num_experts, "GMoEConv"
        expect(experts >= 1, where, "num_experts", "of at least 1", experts)
        expect(0 <= self.hop1 <= experts, where, "num_hop1", f"in [0, {experts}] (num_experts)", self.hop1)
        expect(1 <= self.chosen <= experts, where, "k", f"in [1, {experts}] (num_experts)", self.k)
        expect_choice(self.base, get_args(Base), where, "base")
        expect_choice(self.norm, get_args(ExpertNorm), where, "norm")
        expect_choice(self.combine, get_args(Combine), where, "combine")

    @property
    def hop1(self) -> int:
        """m, or n if it was left open."""
        return self.num_experts if self.num_hop1 is None else self.num_hop1

    @property
    def chosen(self) -> int:
        """Experts that serve a node."""
        return 1 if self.num_experts == 1 else self.k


class Hops(NamedTuple):
    """The graphs a layer runs on.

    Attributes:
        graph: edges from neighbours.
        two_hop: edges from nodes two hops away; None on plain graphs means A(Ax) over `graph`.
        pair_types: [P, 2] int64, the two bond types of each edge type of `two_hop`.
    """

    graph: Graph
    two_hop: Graph | None = None
    pair_types: Tensor | None = None


class Epilogue(NamedTuple):
    """Work to fuse into the product that computes the experts' results.

    Attributes:
        scale: [E, F], with `shift` the norm in evaluation; None leaves the results as they are.
        shift: [E, F].
        gate: [N, K], weights for the sum of a node's results; None returns them separately as [N, K, F].
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    gate: Tensor | None = None


def normalised(base: str, graph: Graph) -> Graph:
    """Weigh the edges as a base network does: symmetric with self loops (gcn), mean including the node (sage)."""
    if base == "gcn":
        return graph.gcn_norm()
    if base == "sage":
        return graph.mean_norm(add_self_loops=True)
    return graph


def folded(linear: LinearExperts, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fold scale * (W x + b) + shift into one weight and bias."""
    if scale is None or shift is None:
        return linear.weight, linear.bias
    return linear.weight * scale.unsqueeze(2), torch.addcmul(shift, linear.bias, scale)


def apply_linear(
    linear: LinearExperts, x: Tensor, slots: Slots, epilogue: Epilogue, source: Tensor | None = None
) -> Tensor:
    """Apply each slot's linear expert, with the epilogue fused into the product."""
    weight, bias = folded(linear, epilogue.scale, epilogue.shift)
    return ops.expert_linear(x, weight, bias, slots.plan, epilogue.gate, source)


def plain_sums(base: str, x: Tensor, hops: Hops, slots: Slots, num_hop1: int) -> tuple[Tensor, Tensor | None]:
    """Aggregate each hop that has experts once.

    Returns:
        The sums [N, D], or [2N, D] with hop 1 above hop 2, and the row that each slot reads, [N, K] (None: node i
        reads row i).
    """
    near = normalised(base, hops.graph)
    one = ops.aggregate(near, x) if num_hop1 > 0 else None
    if num_hop1 == slots.num_experts:
        assert one is not None
        return one, None
    if hops.two_hop is not None:
        two = ops.aggregate(normalised(base, hops.two_hop), x)
    else:
        two = ops.aggregate(near, x, hops=2) if one is None else ops.aggregate(near, one)
    if one is None:
        return two, None
    rows_N1 = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return torch.cat([one, two]), rows_N1 + (slots.index >= num_hop1) * x.shape[0]


def sums_of_results(base: str, rows_NEF: Tensor, hops: Hops, num_hop1: int) -> Tensor:
    """Aggregate what each expert made of the nodes over the expert's hop, [N, E, F]."""
    num_nodes, num_experts, width = rows_NEF.shape
    near, parts = normalised(base, hops.graph), []
    if num_hop1 > 0:
        parts.append(ops.aggregate(near, rows_NEF[:, :num_hop1].flatten(1)))
    if num_hop1 < num_experts:
        far_NH = rows_NEF[:, num_hop1:].flatten(1)
        two_hop = None if hops.two_hop is None else normalised(base, hops.two_hop)
        parts.append(ops.aggregate(near, far_NH, hops=2) if two_hop is None else ops.aggregate(two_hop, far_NH))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).view(num_nodes, num_experts, width)


def of_slots(results_NEF: Tensor, slots: Slots) -> Tensor:
    """Take each slot's result of those of all experts, [N, K, F]."""
    if slots.every:
        return results_NEF
    return results_NEF.gather(1, slots.index.unsqueeze(2).expand(-1, -1, results_NEF.shape[2]))


class LinearConvs(nn.Module):
    """GCN or SAGE experts on a plain graph: y_ir = W_e (A_e x)_i + b_e with A_e of hop 1 or hop 2."""

    def __init__(self, in_dim: int, out_dim: int, config: GMoEConfig) -> None:
        super().__init__()
        self.base, self.num_hop1 = config.base, config.hop1
        self.linear = LinearExperts(in_dim, out_dim, config.num_experts)

    def forward(self, x: Features, hops: Hops, slots: Slots, epilogue: Epilogue) -> Tensor:
        experts = self.linear
        narrows = experts.num_experts == 1 and experts.out_dim < experts.in_dim and self.num_hop1 == 1
        if not isinstance(x, FeatureRows) and not narrows:
            sums, source = plain_sums(self.base, x, hops, slots, self.num_hop1)
            return apply_linear(experts, sums, slots, epilogue, source)
        # Matrices commute with the sum, and the narrow or dense side moves fewer numbers along the edges.
        weight, bias = folded(experts, epilogue.scale, epilogue.shift)
        rows_NEF = linear(x, weight.flatten(0, 1)).view(x.shape[0], *bias.shape)
        y_NKF = of_slots(sums_of_results(self.base, rows_NEF, hops, self.num_hop1) + bias, slots)
        return y_NKF if epilogue.gate is None else combine(y_NKF, epilogue.gate)


class BondMessages(nn.Module):
    """Sum for each slot the messages relu(x_j + bond_e) of its expert, over neighbours or over two hops."""

    def __init__(self, dim: int, config: GMoEConfig, bond_dims: Sequence[int]) -> None:
        super().__init__()
        self.base, self.num_experts, self.num_hop1 = config.base, config.num_experts, config.hop1
        num_hop2 = self.num_experts - self.num_hop1
        self.bonds = BondEncoder(self.num_hop1, dim, bond_dims) if self.num_hop1 else None
        self.pairs = BondEncoder(num_hop2, dim, bond_dims, hops=2) if num_hop2 else None
        # The root term of GCN is the message of a self loop, which has an edge type of its own.
        self.root = None if self.base == "gin" else nn.Parameter(torch.randn(self.num_experts, 1, dim))

    def forward(self, x: Tensor, hops: Hops, slots: Slots) -> Tensor:
        """``x`` is [E, N, D], or [N, D] shared by all experts; returns [N, K, D]."""
        by_hop = self.by_hop(hops)
        # Not x[experts]: the gradient of a split is one concatenation, that of two slices is two padded copies.
        sizes = [experts.stop - experts.start for _, _, experts in by_hop]
        rows_by_hop = torch.split(x, sizes) if x.dim() == 3 else [x] * len(by_hop)
        total: Tensor | None = None
        for (graph, table, experts), rows in zip(by_hop, rows_by_hop, strict=True):
            if self.num_experts == 1:
                return ops.edge_aggregate(graph, rows if rows.dim() == 2 else rows[0], table[0]).unsqueeze(1)
            part = ops.routed_edge_aggregate(graph, rows, table, slots.index, experts.start)
            total = part if total is None else total + part
        assert total is not None
        return total

    def needed(self, hops: Hops, slots: Slots) -> Tensor:
        """Mark the rows [E, N] that the sums read: those with an edge to a node that chose the expert."""
        chosen_NE = torch.zeros(slots.index.shape[0], self.num_experts, dtype=torch.float32, device=slots.index.device)
        chosen_NE.scatter_(1, slots.index, 1.0)
        # Without weights, because weights of opposite signs could cancel.
        counts = [
            ops.aggregate(graph.transpose().with_weight(None), chosen_NE[:, experts].contiguous())
            for graph, _, experts in self._graphs(hops)
        ]
        return torch.cat(counts, dim=1).T > 0

    def by_hop(self, hops: Hops) -> list[tuple[Graph, Tensor, slice]]:
        """List for each hop that has experts its weighted graph, its edge table [experts, T, D] and the experts."""
        found = []
        for graph, encoder, experts in self._graphs(hops):
            table = encoder(None if encoder is self.bonds else hops.pair_types)
            if self.root is not None:
                table = torch.cat([table, self.root[experts]], dim=1)
            found.append((graph, table, experts))
        return found

    def _graphs(self, hops: Hops) -> list[tuple[Graph, BondEncoder, slice]]:
        """List for each hop that has experts its weighted graph, its bond embeddings and the experts."""
        found = []
        if self.bonds is not None:
            _expect_types(hops.graph, self.bonds.num_types, "graph")
            found.append((normalised(self.base, hops.graph), self.bonds, slice(0, self.num_hop1)))
        if self.pairs is not None:
            if hops.two_hop is None or hops.pair_types is None:
                raise ArgumentError("GMoEConv: hop-2 experts need 'two_hop' and 'pair_types'; batch with two_hop=True")
            _expect_types(hops.two_hop, hops.pair_types.shape[0], "two_hop")
            found.append((normalised(self.base, hops.two_hop), self.pairs, slice(self.num_hop1, self.num_experts)))
        return found


def _expect_types(graph: Graph, types: int, argument: str) -> None:
    expect(graph.num_edge_types == types, "GMoEConv", argument, f"with {types} edge types", graph.num_edge_types)


class BondConvs(nn.Module):
    """GCN or SAGE experts on molecules: y_ir = sum_j w_ij relu(W_e x_j + b_e + bond_e,ij), the root as a self loop.

    GCN is OGB's GCNConv. SAGE is its analogue with the mean over the neighbours and the node itself.
    """

    def __init__(self, in_dim: int, out_dim: int, config: GMoEConfig) -> None:
        super().__init__()
        assert config.bond_dims is not None
        self.linear = LinearExperts(in_dim, out_dim, config.num_experts)
        self.messages = BondMessages(out_dim, config, config.bond_dims)

    def forward(self, x: Tensor, hops: Hops, slots: Slots, epilogue: Epilogue) -> Tensor:
        num_experts = self.linear.num_experts
        plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
        if plain and num_experts > 1 and epilogue.gate is not None:
            return self._without_gradients(x, hops, slots, epilogue, epilogue.gate)
        if _transforms_needed(x, slots, NEEDED_FROM):
            x_ENF = self._transform_needed(x, self.messages.needed(hops, slots))
        else:
            rows_END = x.expand(num_experts, *x.shape)
            x_ENF = torch.baddbmm(self.linear.bias.unsqueeze(1), rows_END, self.linear.weight.transpose(1, 2))
        y_NKF: Tensor = self.messages(x_ENF, hops, slots)
        if epilogue.scale is not None and epilogue.shift is not None:
            y_NKF = scale_slots(y_NKF, slots, epilogue.scale, epilogue.shift)
        return y_NKF if epilogue.gate is None else combine(y_NKF, epilogue.gate)

    def _without_gradients(self, x: Tensor, hops: Hops, slots: Slots, epilogue: Epilogue, gate: Tensor) -> Tensor:
        """Compute the gated sums with the rows of a few experts at a time in one buffer, and no row per slot."""
        linear, y = self.linear, None
        per_expert = max(1, x.shape[0] * linear.out_dim)
        at_once = min(linear.num_experts, max(1, ROWS_AT_ONCE // per_expert))
        buffer_END = x.new_empty(at_once, x.shape[0], linear.out_dim)
        sparse = _transforms_needed(x, slots, NEEDED_FROM_WITHOUT_GRADIENTS)
        needed_EN = self.messages.needed(hops, slots) if sparse else None
        for graph, table_ETF, experts in self.messages.by_hop(hops):
            # Adding the bias to the table is cheaper than adding it to the rows.
            table_ETF = table_ETF + linear.bias[experts].unsqueeze(1)
            for first in range(experts.start, experts.stop, at_once):
                some = slice(first, min(first + at_once, experts.stop))
                rows_ENF, weight = buffer_END[: some.stop - first], linear.weight[some]
                if needed_EN is None:
                    torch.bmm(x.expand(len(weight), *x.shape), weight.transpose(1, 2), out=rows_ENF)
                else:
                    place_P, y_PF = _needed_rows(x, weight, None, needed_EN[some])
                    rows_ENF.flatten(0, 1).index_copy_(0, place_P, y_PF)
                table = table_ETF[first - experts.start : some.stop - experts.start]
                scale, shift = (None if part is None else part[some] for part in (epilogue.scale, epilogue.shift))
                y = ops.routed_edge_mixture(graph, rows_ENF, table, slots.index, gate, scale, shift, y, first)
        assert y is not None
        return y

    def _transform_needed(self, x: Tensor, needed_EN: Tensor) -> Tensor:
        """Compute W_e x_j + b_e where some node needs it, [E, N, F]; the rest is 0 and never read."""
        place_P, y_PF = _needed_rows(x, self.linear.weight, self.linear.bias, needed_EN)
        out = x.new_zeros(needed_EN.numel(), self.linear.out_dim)
        return out.index_copy(0, place_P, y_PF).view(*needed_EN.shape, out.shape[1])


def _transforms_needed(x: Tensor, slots: Slots, least: int) -> bool:
    # On a device, the number of needed rows would have to be waited for.
    return x.device.type == "cpu" and slots.num_experts >= least * slots.index.shape[1]


def _needed_rows(x: Tensor, weight: Tensor, bias: Tensor | None, needed_EN: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the needed rows W_e x_j + b_e, [P, F], and the place e * N + j of each."""
    expert_P, node_P = needed_EN.nonzero(as_tuple=True)
    offsets = F.pad(needed_EN.sum(1).cumsum(0), (1, 0))
    plan = ExpertPlan(offsets, torch.arange(len(node_P), device=x.device), len(node_P), 1)
    y_P1F = ops.expert_linear(x, weight, bias, plan, None, node_P.unsqueeze(1))
    return expert_P * x.shape[0] + node_P, y_P1F.squeeze(1)


class IsomorphismConvs(nn.Module):
    """GIN experts: y_ir = MLP_e((1 + eps_e) x_i + sum_j m_ij), m_ij = x_j, on molecules relu(x_j + bond_e,ij).

    MLP_e is Linear, BatchNorm over the expert's slots, ReLU, Linear (OGB's GINConv).
    """

    def __init__(self, in_dim: int, out_dim: int, config: GMoEConfig) -> None:
        super().__init__()
        mlp_dim = config.mlp_dim or 2 * in_dim
        self.num_hop1 = config.hop1
        self.messages = None if config.bond_dims is None else BondMessages(in_dim, config, config.bond_dims)
        self.eps = nn.Parameter(torch.zeros(config.num_experts))
        self.first = LinearExperts(in_dim, mlp_dim, config.num_experts)
        self.norm = ExpertBatchNorm(config.num_experts, mlp_dim)
        self.second = LinearExperts(mlp_dim, out_dim, config.num_experts)

    def forward(self, x: Features, hops: Hops, slots: Slots, epilogue: Epilogue) -> Tensor:
        own_NK = torch.arange(slots.index.numel(), device=x.device).view_as(slots.index)
        norm = Epilogue() if self.training else Epilogue(*self.norm.scale_and_shift())
        if isinstance(x, FeatureRows):
            # The first matrix commutes with the sum.
            weight, bias = folded(self.first, norm.scale, norm.shift)
            rows_NEM = linear(x, weight.flatten(0, 1)).view(x.shape[0], *bias.shape)
            sums_NEM = sums_of_results("gin", rows_NEM, hops, self.num_hop1)
            hidden = of_slots(torch.addcmul(sums_NEM, (1.0 + self.eps)[:, None], rows_NEM) + bias, slots)
        else:
            rows_SD = self._messages(x, hops, slots).flatten(0, 1)
            hidden = apply_linear(self.first, rows_SD, slots, norm, own_NK)
        if self.training:
            hidden = self.norm(hidden, slots)
        return apply_linear(self.second, F.relu(hidden).flatten(0, 1), slots, epilogue, own_NK)

    def _messages(self, x: Tensor, hops: Hops, slots: Slots) -> Tensor:
        """Compute (1 + eps_e) x_i + sum_j m_ij for each slot, [N, K, D]."""
        if self.messages is not None:
            sums_NKD = self.messages(x, hops, slots)
        else:
            sums, source = plain_sums("gin", x, hops, slots, self.num_hop1)
            sums_NKD = sums.unsqueeze(1) if source is None else sums[source]
        keep_NK1 = (1.0 + self.eps)[slots.index].unsqueeze(2)
        return torch.addcmul(sums_NKD, keep_NK1, x.unsqueeze(1))
