"""Data sets: :func:`load` for node, molecule and link data; conversion from PyG, splits, metrics, synthetic graphs."""

from __future__ import annotations

from . import metrics, splits, synthetic
from .load import load
from .molecules import MoleculeBatch, MoleculeData
from .node import InductiveView, LinkData, NodeData
from .pyg import from_pyg

__all__ = [
    "InductiveView",
    "LinkData",
    "MoleculeBatch",
    "MoleculeData",
    "NodeData",
    "from_pyg",
    "load",
    "metrics",
    "splits",
    "synthetic",
]
