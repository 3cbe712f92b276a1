"""What is special about expert_linear; test_contract_*.py hold what all operators keep."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gmoe_ext import ops, reference
from gmoe_ext.ops import _dispatch
from gmoe_ext.plan import ExpertPlan

pytestmark = pytest.mark.usefixtures("made_on_device")

# Around the edges of the kernel: one row, tiles not full, depth blocks of 256, several blocks of rows, many experts.
SIZES = [(1, 1, 1, 1, 1), (1, 3, 8, 64, 64), (63, 3, 4, 40, 70), (300, 2, 5, 300, 17), (1_500, 3, 8, 24, 40)]

GRADIENTS_WITH_PRODUCTS = ("_grad_x", "_grad_gate", "_grad_x_gate", "_grad_weight")


def operands(num_rows, k, num_experts, in_dim, out_dim, *, bias=True, gate=True, source=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_sources = num_rows // 2 + 3 if source else num_rows

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    index = torch.randint(0, num_experts, (num_rows, k), generator=generator)
    return (
        normal(num_sources, in_dim),
        normal(num_experts, out_dim, in_dim) / in_dim**0.5,
        normal(num_experts, out_dim) if bias else None,
        ops.expert_plan(index, num_experts),
        normal(num_rows, k) if gate else None,
        torch.randint(0, num_sources, (num_rows, k), generator=generator) if source else None,
    )


def with_gradients(implementation, dtype, x, weight, bias, plan, gate, source):
    leaves = [None if t is None else t.detach().to(dtype, copy=True).requires_grad_() for t in (x, weight, bias, gate)]
    y = implementation(leaves[0], leaves[1], leaves[2], plan, leaves[3], source)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y.backward(grad_y.to(dtype))
    return [y.detach(), *(t.grad for t in leaves if t is not None)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("bias,gate,source", list(itertools.product([False, True], repeat=3)))
def test_result_and_gradients_match_the_reference(sizes, bias, gate, source):
    arguments = operands(*sizes, bias=bias, gate=gate, source=source)
    expected = with_gradients(reference.expert_linear, torch.float64, *arguments)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for got, want in zip(with_gradients(ops.expert_linear, dtype, *arguments), expected, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * float(want.abs().max()))


def test_weight_gradient_of_many_rows_adds_up_its_parts():
    arguments = operands(20_000, 2, 2, 8, 20)
    for got, want in zip(
        with_gradients(ops.expert_linear, torch.float64, *arguments),
        with_gradients(reference.expert_linear, torch.float64, *arguments),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("kept", [0.5, 0.3, 0.01, 0.0])
def test_rows_that_are_mostly_zeros_match_the_reference(kept, source):
    x, *others = operands(1_500, 3, 5, 150, 140, source=source)
    arguments = (x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < kept), *others)
    expected = with_gradients(reference.expert_linear, torch.float64, *arguments)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for got, want in zip(with_gradients(ops.expert_linear, dtype, *arguments), expected, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * float(want.abs().max()))


class Calls(TorchDispatchMode):
    """Records the last argument of every call of an operator of this package."""

    def __init__(self):
        super().__init__()
        self.last = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "gmoe":
            self.last[function._schema.name.removeprefix("gmoe::expert_linear")] = args[-1]
        return function(*args, **(kwargs or {}))


@pytest.mark.native
@pytest.mark.parametrize(
    "wanted,computed",
    [("x", "x"), ("weight", "weight"), ("bias", "bias"), ("gate", "gate"), ("x gate", "x_gate")],
)
def test_only_needed_gradients_are_computed(wanted, computed):
    x, weight, bias, plan, gate, _ = operands(20, 2, 3, 4, 5)
    leaves = {"x": x, "weight": weight, "bias": bias, "gate": gate}
    for name in wanted.split():
        leaves[name].requires_grad_()
    y = ops.expert_linear(x, weight, bias, plan, gate)
    with Calls() as calls:
        y.sum().backward()
    assert set(calls.last) == {f"_grad_{computed}"}
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == wanted.split()


def test_an_expert_without_rows_gets_a_zero_gradient():
    x, weight, bias, _, gate, _ = operands(20, 2, 3, 4, 5)
    plan = ops.expert_plan(torch.tensor([[0, 2]] * 20), 3)
    ops.expert_linear(x, weight.requires_grad_(), bias.requires_grad_(), plan, gate).sum().backward()
    assert weight.grad is not None and bias.grad is not None
    assert not weight.grad[1].any() and not bias.grad[1].any()


def test_nan_stays_in_the_rows_that_read_it():
    x, weight, bias, plan, gate, source = operands(300, 2, 4, 40, 33, source=True)
    x[7] = math.nan
    y = ops.expert_linear(x.float(), weight.float(), bias.float(), plan, gate.float(), source)
    assert torch.equal(y.isnan().any(1), (source == 7).any(1))


def test_a_row_does_not_depend_on_the_rows_beside_it():
    x, weight, bias, plan, gate, _ = operands(1_500, 2, 3, 40, 33)
    index = torch.empty(3_000, dtype=torch.int64)
    index[plan.order] = torch.repeat_interleave(torch.arange(3), plan.offsets.diff())
    kept = torch.arange(0, 1_500, 3)
    few = ops.expert_plan(index.view(1_500, 2)[kept], 3)
    y = ops.expert_linear(x.float(), weight.float(), bias.float(), plan, gate.float())
    y_few = ops.expert_linear(x[kept].float(), weight.float(), bias.float(), few, gate[kept].float())
    assert torch.equal(y[kept], y_few)


@pytest.mark.parametrize(
    "offsets,order",
    [
        ([0, 2, 3], [0, 1, 2, 3]),  # does not end at the number of slots
        ([0, 5, 4], [0, 1, 2, 3]),  # descends
        ([1, 2, 4], [0, 1, 2, 3]),  # does not start at 0
        ([0, 2, 4], [1, 0, 2, 3]),  # descends within an expert
        ([0, 2, 4], [0, 1, 1, 3]),  # a slot twice
        ([0, 2, 4], [0, 1, 2, 4]),  # beyond the end
        ([0, 2, 4], [-1, 1, 2, 3]),
        ([0, 2, 4], [0, 1, 2, 2**62]),
    ],
)
def test_a_damaged_plan_is_refused(offsets, order):
    plan = ExpertPlan(torch.tensor(offsets), torch.tensor(order), 2, 2)
    arguments = (torch.ones(2, 3), torch.ones(2, 4, 3), None, plan, torch.ones(2, 2))
    with pytest.raises((RuntimeError, ValueError, IndexError), match="expert_linear"):
        ops.expert_linear(*arguments)


def test_without_input_columns_the_bias_alone_moves_the_gate():
    x, weight, *rest = operands(5, 2, 3, 1, 4)
    arguments = (x[:, :0], weight[:, :, :0], *rest)
    for got, want in zip(
        with_gradients(ops.expert_linear, torch.float64, *arguments),
        with_gradients(reference.expert_linear, torch.float64, *arguments),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.fixture
def tf32_switch():
    """torch's switch for matrix products, as it was again afterwards."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    yield switch
    switch.fp32_precision = before


def test_tf32_follows_torchs_switch_in_compiled_functions_too(tf32_switch):
    compiled = torch.compile(lambda x: x + _dispatch._tf32_switch(), backend="eager", fullgraph=True)
    for precision, allowed in (("ieee", 0), ("tf32", 1), ("ieee", 0)):
        tf32_switch.fp32_precision = precision
        assert _dispatch._tf32_switch() == allowed
        assert compiled(torch.zeros(1)) == allowed
    tf32_switch.fp32_precision = "tf32"
    assert not _dispatch.allows_tf32(torch.ones(1)), "a switch of CUDA's products alone"


@pytest.mark.native
def test_gradients_are_as_precise_as_their_forward(monkeypatch):
    monkeypatch.setattr(_dispatch, "allows_tf32", lambda x: True)
    x, weight, bias, plan, gate, _ = operands(5, 2, 3, 4, 6)
    leaves = [t.float().requires_grad_() for t in (x, weight, bias, gate)]
    with Calls() as calls:
        for rows, gates in ((leaves[0], leaves[3]), (leaves[0], leaves[3].detach()), (leaves[0].detach(), leaves[3])):
            ops.expert_linear(rows, leaves[1], leaves[2], plan, gates).sum().backward()
    products = {name: last for name, last in calls.last.items() if name != "_grad_bias"}
    assert products == dict.fromkeys(("", *GRADIENTS_WITH_PRODUCTS), True)
