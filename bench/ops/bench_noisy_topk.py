"""noisy_topk against its pure-PyTorch reference."""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(800, 8, 4), (26_000, 8, 4), (170_000, 16, 2)]


@pytest.mark.parametrize("implementation", [ops.noisy_topk, reference.noisy_topk], ids=["native", "reference"])
@pytest.mark.parametrize("num_rows,experts,k", SIZES)
def test_noisy_topk(benchmark, implementation, num_rows, experts, k):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(num_rows, experts, generator=generator) for _ in range(2))
    sigma = torch.rand(num_rows, experts, generator=generator) + 0.01
    benchmark.group = f"noisy_topk {num_rows}x{experts}, k={k}"
    benchmark(implementation, clean, sigma, noise, k)
