"""A small packed student and the model it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmoe_ext import models
from gmoe_ext.export import pack
from gmoe_ext.models.registry import Model


@pytest.fixture
def model() -> Model:
    """RbM 24 -> 40 -> 40 -> 7, four experts, two chosen, with batch norms that have seen data."""
    student = models.build("rbm", in_dim=24, hidden_dim=40, out_dim=7, num_layers=3, num_experts=4, k=2, norm="batch")
    for norm in student.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return student.eval()


@pytest.fixture
def student_file(model: Model, tmp_path: Path) -> Path:
    return pack(model, tmp_path / "student.safetensors", class_names=list("abcdefg"))


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(300, 24)
