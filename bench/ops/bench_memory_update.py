"""memory_update against its pure-PyTorch reference."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(1, 256), (1_000, 256), (20_000, 256), (170_000, 256)]


@pytest.mark.parametrize("implementation", [ops.memory_update, reference.memory_update], ids=["native", "reference"])
@pytest.mark.parametrize("num_rows,dim", SIZES)
def test_memory_update(benchmark, implementation, num_rows, dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, dim, generator=generator)
    memory = torch.randn(8, dim, generator=generator)
    gate, index = ops.cosine_topk(x, memory, 3)
    benchmark.group = f"memory_update {num_rows}x{dim}, E=8, k=3"
    benchmark(implementation, memory, x, gate, index)
