"""Counter-based uniform walks in int64 arithmetic, bit for bit equal to the kernel's uint64."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph

_INCREMENT = 0x9E3779B97F4A7C15  # splitmix64: golden ratio increment and the two multipliers of its finaliser
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def random_walk(graph: Graph, starts: Tensor, length: int, seed: int) -> Tensor:
    """Walk uniformly from each start; see :func:`gmoe_ext.ops.random_walk`."""
    node_S = starts.long()
    key_S = _splitmix64(_splitmix64(torch.full_like(node_S, _signed(seed))) + torch.arange(node_S.numel()).to(node_S))
    walk = [node_S]
    for step in range(1, length):
        begin_S = graph.offsets[node_S]
        degree_S = graph.offsets[node_S + 1] - begin_S
        # 63 random bits modulo the degree: the bias is below degree / 2^63.
        choice_S = _shift_right(_splitmix64(key_S + step), 1) % degree_S.clamp_min(1)
        moves_S = degree_S > 0
        edge_S = torch.where(moves_S, begin_S + choice_S, 0)
        if graph.columns.numel():
            node_S = torch.where(moves_S, graph.columns[edge_S].long(), node_S)
        walk.append(node_S)
    return torch.stack(walk, dim=1)


def _splitmix64(state: Tensor) -> Tensor:
    """Return splitmix64 of a state, on int64 whose products and sums wrap like uint64."""
    z = state + _signed(_INCREMENT)
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIER_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIER_2)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right logically: int64 >> keeps the sign, so the copies of the sign bit are masked off."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
