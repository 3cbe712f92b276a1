"""expert_linear against its pure-PyTorch reference and a loop over the experts (index_select, addmm, index_add).

The gemm entry is the floor: one dense product with as many rows as there are slots.
"""

import pytest
import torch

from gmoe_ext import ops, reference

SIZES = [(1, 256), (1_024, 256), (20_000, 256)]
NUM_EXPERTS, K = 8, 3


def loop(x, weight, bias, plan, gate):
    y = x.new_zeros(plan.num_rows, weight.shape[1])
    offsets, flat_gate = plan.offsets.tolist(), gate.reshape(-1, 1)
    for expert in range(weight.shape[0]):
        slots = plan.order[offsets[expert] : offsets[expert + 1]]
        rows = slots // plan.k
        part = torch.addmm(bias[expert], x.index_select(0, rows), weight[expert].T)
        y = y.index_add(0, rows, part * flat_gate[slots])
    return y


def gemm(x, weight, bias, plan, gate):
    return torch.addmm(bias[0], x, weight[0].T)


def operands(num_rows, dim, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(num_rows, NUM_EXPERTS, generator=generator).argsort(1)[:, :K]
    tensors = [
        torch.randn(num_rows, dim, generator=generator),
        torch.randn(NUM_EXPERTS, dim, dim, generator=generator) / dim**0.5,
        torch.randn(NUM_EXPERTS, dim, generator=generator),
        torch.rand(num_rows, K, generator=generator),
    ]
    x, weight, bias, gate = (t.requires_grad_(requires_grad) for t in tensors)
    return x, weight, bias, ops.expert_plan(index, NUM_EXPERTS), gate


@pytest.mark.parametrize(
    "implementation",
    [ops.expert_linear, reference.expert_linear, loop, gemm],
    ids=["native", "reference", "loop", "gemm"],
)
@pytest.mark.parametrize("num_rows,dim", SIZES)
def test_forward(benchmark, implementation, num_rows, dim):
    arguments = operands(num_rows, dim)
    if implementation is gemm:
        arguments = (arguments[0].repeat_interleave(K, 0), *arguments[1:])
    benchmark.group = f"expert_linear {num_rows}x{dim}, E={NUM_EXPERTS}, k={K}"
    benchmark(implementation, *arguments)


@pytest.mark.parametrize(
    "implementation", [ops.expert_linear, reference.expert_linear, loop], ids=["native", "reference", "loop"]
)
@pytest.mark.parametrize("num_rows,dim", SIZES)
def test_forward_and_backward(benchmark, implementation, num_rows, dim):
    arguments = operands(num_rows, dim, requires_grad=True)
    grad_y = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(1))
    benchmark.group = f"expert_linear + backward {num_rows}x{dim}, E={NUM_EXPERTS}, k={K}"
    benchmark(lambda: implementation(*arguments).backward(grad_y))
