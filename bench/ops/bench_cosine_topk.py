"""cosine_topk against its pure-PyTorch reference."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(1, 256), (1_000, 256), (20_000, 256)]


@pytest.mark.parametrize("implementation", [ops.cosine_topk, reference.cosine_topk], ids=["native", "reference"])
@pytest.mark.parametrize("num_rows,dim", SIZES)
def test_cosine_topk(benchmark, implementation, num_rows, dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, dim, generator=generator)
    memory = torch.randn(8, dim, generator=generator)
    benchmark.group = f"cosine_topk {num_rows}x{dim}, E=8, k=3"
    benchmark(implementation, x, memory, 3)
