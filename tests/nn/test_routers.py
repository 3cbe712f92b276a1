"""The memory router: eq. 3 routes, eq. 4 moves the memory, eq. 14 slows it down."""

import pytest
import torch
from torch.nn import functional as F

from gmoe_ext.nn import CosineMemoryRouter


@pytest.fixture
def router():
    torch.manual_seed(0)
    return CosineMemoryRouter(dim=5, num_experts=4, k=2).double()


def test_gate_is_the_softmax_of_the_nearest_cosines(router):
    x = torch.randn(9, 5, dtype=torch.float64)
    gate, index, memory = router.eval()(x)
    cosine = F.normalize(x) @ F.normalize(memory).T
    top, order = cosine.topk(2)
    assert torch.equal(index, order)
    torch.testing.assert_close(gate, top.softmax(1))


def test_training_moves_the_memory_by_equation_4(router):
    x = torch.randn(9, 5, dtype=torch.float64)
    old = router.memory.clone()
    gate, index, used = router.train()(x)
    assert torch.equal(used, old)
    for expert in range(4):
        rows, choice = torch.nonzero(index == expert, as_tuple=True)
        mean = (gate[rows, choice].softmax(0)[:, None] * F.normalize(x[rows])).sum(0)
        torch.testing.assert_close(router.memory[expert], 0.9 * old[expert] / old[expert].norm() + 0.1 * mean)


def test_a_row_with_copies_counts_as_that_many_rows(router):
    x, copies = torch.randn(9, 5, dtype=torch.float64), torch.arange(1, 10)
    old = router.memory.clone()
    router.train()(x.repeat_interleave(copies, 0))
    expected = router.memory.clone()
    router.memory.copy_(old)
    router.follow_(x, router.route(x), copies)
    torch.testing.assert_close(router.memory, expected)


def test_evaluation_leaves_the_memory_alone(router):
    old = router.memory.clone()
    router.eval()(torch.randn(9, 5, dtype=torch.float64))
    assert torch.equal(router.memory, old)


def test_the_gate_has_a_gradient_to_the_input_and_the_memory_none(router):
    router = CosineMemoryRouter(dim=5, num_experts=4, k=2, memory="parameter").double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    router(x).gate[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert router.memory.grad is None


def test_gradient_of_the_gate_is_that_of_the_memory_before_its_move():
    torch.manual_seed(1)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    router = CosineMemoryRouter(dim=5, num_experts=4, k=2, ema_rate=0.0).double()
    old = router.memory.clone()
    moving = torch.autograd.grad(router.train()(x).gate[:, 0].sum(), x)
    router.set_memory(old)
    standing = torch.autograd.grad(router.eval()(x).gate[:, 0].sum(), x)
    torch.testing.assert_close(moving, standing)


def test_annealing_follows_equation_14_and_stops_at_one():
    router = CosineMemoryRouter(4, num_experts=2, k=1, ema_rate=0.9, annealing=0.5, annealing_epochs=200)
    rates = []
    for router.epoch in (0, 100, 200, 10**6):
        rates.append(router.rate())
    assert rates == pytest.approx([0.9, 0.925, 0.95, 1.0])
    assert CosineMemoryRouter(4, num_experts=2, k=1).rate() == 0.9


def test_spread_steps_down_the_self_similarity_loss(router):
    from gmoe_ext.nn.losses import self_similarity

    before, leaf = self_similarity(router.memory), router.memory.clone().requires_grad_()
    (slope,) = torch.autograd.grad(self_similarity(leaf), leaf)
    router.spread_(0.1)
    torch.testing.assert_close(router.memory, leaf.detach() - 0.1 * slope)
    assert self_similarity(router.memory) < before


def test_a_buffer_memory_is_no_parameter_but_is_saved():
    router = CosineMemoryRouter(4, num_experts=3, k=1)
    assert not list(router.parameters())
    assert set(router.state_dict()) == {"memory"}
    assert [name for name, _ in CosineMemoryRouter(4, num_experts=3, k=1, memory="parameter").named_parameters()] == [
        "memory"
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 5}, r"'k' in \[1, num_experts = 4\], got 5"),
        ({"ema_rate": 1.5}, "'ema_rate'"),
        ({"annealing": 1.0}, "'annealing'"),
        ({"annealing_epochs": 0}, "'annealing_epochs'"),
        ({"memory": "adam"}, "'buffer' or 'parameter'"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        CosineMemoryRouter(**{"dim": 8, "num_experts": 4, "k": 2, **options})


def test_set_memory_checks_its_shape(router):
    with pytest.raises(ValueError, match=r"expected 'memory' of shape \[4, 5\], got \[3, 5\]"):
        router.set_memory(torch.ones(3, 5))
