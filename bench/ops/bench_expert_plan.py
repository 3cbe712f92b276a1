"""expert_plan against its pure-PyTorch reference (a stable argsort)."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(1, 8), (1_000, 8), (170_000, 8), (170_000, 64)]


@pytest.mark.parametrize("implementation", [ops.expert_plan, reference.expert_plan], ids=["native", "reference"])
@pytest.mark.parametrize("num_rows,num_experts", SIZES)
def test_expert_plan(benchmark, implementation, num_rows, num_experts):
    index = torch.randint(0, num_experts, (num_rows, 3), generator=torch.Generator().manual_seed(0))
    benchmark.group = f"expert_plan {num_rows}x3, E={num_experts}"
    benchmark(implementation, index, num_experts)
