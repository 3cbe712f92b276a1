"""Data sets: one :func:`load` for node, molecule and link data; readers, splits, metrics and synthetic graphs."""

from __future__ import annotations

from . import metrics, splits, synthetic
from .link import LinkData
from .load import load
from .molecules import MoleculeBatch, MoleculeData
from .node import InductiveView, NodeData
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
