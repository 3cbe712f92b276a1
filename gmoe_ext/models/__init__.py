"""Models by name: ``build("gcn", ...)``, ``build("gmoe-gcn", ...)``, ``build("rbm", ...)``."""

from __future__ import annotations

from . import gmoe
from .ensemble import Ensemble
from .gnn import NodeGNN
from .mlp import MLP
from .moe import MoE
from .molecule import MoleculeGNN
from .output import Output
from .rbm import RbM
from .registry import Model, build, graph_free, names, option_names, register

__all__ = [
    "MLP",
    "Ensemble",
    "MoE",
    "Model",
    "MoleculeGNN",
    "NodeGNN",
    "Output",
    "RbM",
    "build",
    "gmoe",
    "graph_free",
    "names",
    "option_names",
    "register",
]
