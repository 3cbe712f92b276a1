"""Data sets: one :func:`load` for node, molecule and link data; readers, splits, metrics and synthetic graphs."""

from __future__ import annotations

from . import metrics, splits, synthetic
from .link import LinkData
from .load import load
from .molecules import MoleculeBatch, MoleculeData
from .node import InductiveView, NodeData

__all__ = [
    "InductiveView",
    "LinkData",
    "MoleculeBatch",
    "MoleculeData",
    "NodeData",
    "load",
    "metrics",
    "splits",
    "synthetic",
]
