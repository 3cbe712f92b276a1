"""expert_norm against its pure-PyTorch reference."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(800, 150), (26_000, 150), (170_000, 64)]


@pytest.mark.parametrize("implementation", [ops.expert_norm, reference.expert_norm], ids=["native", "reference"])
@pytest.mark.parametrize("num_rows,dim", SIZES)
def test_expert_norm(benchmark, implementation, num_rows, dim):
    generator = torch.Generator().manual_seed(0)
    gate, index = ops.topk_softmax(torch.randn(num_rows, 8, generator=generator), 4)
    y = torch.randn(num_rows, 4, dim, generator=generator)
    weight, bias, mean = (torch.randn(8, dim, generator=generator) for _ in range(3))
    benchmark.group = f"expert_norm {num_rows}x{dim}, E=8, k=4"
    benchmark(implementation, y, index, weight, bias, mean, torch.ones(8, dim), gate)
