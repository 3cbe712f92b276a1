"""Models by name: ``build("gcn", ...)``, ``build("gmoe-gcn", ...)``, ``build("rbm", ...)``."""

from __future__ import annotations

from .gnn import ExpertGNN, GNNConfig, MoleculeGNN, NodeGNN
from .registry import Model, Output, build, graph_free, names, option_names, register
from .students import MLP, Ensemble, ExpertStudent, MoE, RbM, StudentConfig

__all__ = [
    "MLP",
    "Ensemble",
    "ExpertGNN",
    "ExpertStudent",
    "GNNConfig",
    "MoE",
    "Model",
    "MoleculeGNN",
    "NodeGNN",
    "Output",
    "RbM",
    "StudentConfig",
    "build",
    "graph_free",
    "names",
    "option_names",
    "register",
]
