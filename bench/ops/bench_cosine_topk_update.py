"""cosine_topk_update against its pure-PyTorch reference."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(1, 256), (1_000, 256), (20_000, 256), (170_000, 256)]


@pytest.mark.parametrize(
    "implementation", [ops.cosine_topk_update, reference.cosine_topk_update], ids=["native", "reference"]
)
@pytest.mark.parametrize("num_rows,dim", SIZES)
def test_cosine_topk_update(benchmark, implementation, num_rows, dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, dim, generator=generator)
    memory = torch.randn(8, dim, generator=generator)
    benchmark.group = f"cosine_topk_update {num_rows}x{dim}, E=8, k=3"
    benchmark(implementation, x, memory, 3)
