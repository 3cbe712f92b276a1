"""topk_softmax against its pure-PyTorch reference."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(1, 8), (1_000, 8), (170_000, 8), (20_000, 64)]


@pytest.mark.parametrize("implementation", [ops.topk_softmax, reference.topk_softmax], ids=["native", "reference"])
@pytest.mark.parametrize("num_rows,num_experts", SIZES)
def test_topk_softmax(benchmark, implementation, num_rows, num_experts):
    logits = torch.randn(num_rows, num_experts, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"topk_softmax {num_rows}x{num_experts}, k=4"
    benchmark(implementation, logits, 4)
