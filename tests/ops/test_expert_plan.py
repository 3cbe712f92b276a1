"""What is special about expert_plan; the contract every operator keeps is tested in test_contract_*.py."""

import pytest
import torch

from gmoe_ext import ops

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("num_rows,num_experts", [(1, 1), (7, 3), (40_000, 5), (300, 1_024), (300, 20_000)])
def test_order_is_the_stable_sort(num_rows, num_experts):
    index = torch.randint(0, num_experts, (num_rows, 3), generator=torch.Generator().manual_seed(0))
    if index.is_cuda and num_experts > 1_024:
        with pytest.raises((ValueError, RuntimeError), match="at most 1024 experts on CUDA, got 20000"):
            ops.expert_plan(index, num_experts)
        return
    plan = ops.expert_plan(index, num_experts)
    assert torch.equal(plan.order, torch.argsort(index.flatten(), stable=True))
    assert torch.equal(plan.offsets.diff(), torch.bincount(index.flatten(), minlength=num_experts))
    assert plan.offsets[0] == 0


def test_experts_nobody_chose_are_empty():
    plan = ops.expert_plan(torch.full((3, 2), 2), num_experts=4)
    assert plan.offsets.tolist() == [0, 0, 0, 6, 6]
    assert plan.order.tolist() == list(range(6))


def test_no_rows():
    plan = ops.expert_plan(torch.empty(0, 2, dtype=torch.int64), num_experts=2)
    assert plan.offsets.tolist() == [0, 0, 0]
    assert plan.order.numel() == 0
    assert (plan.num_rows, plan.k, plan.num_experts) == (0, 2, 2)
