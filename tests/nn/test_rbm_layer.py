"""The memory router (RbM, eqs. 3, 4, 14) and one RbM layer (eq. 5) against the equations written out in float64."""

import pytest
import torch
from torch.nn import functional as F

from gmoe_ext.nn import CosineMemoryRouter, MemoryRouterConfig, RbMConfig, RbMLayer
from gmoe_ext.nn.losses import commitment, load_balance, self_similarity


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
    assert torch.equal(used, old) and torch.equal(router.memory, old)
    router.after_step()
    for expert in range(4):
        rows, choice = torch.nonzero(index == expert, as_tuple=True)
        mean = (gate[rows, choice].softmax(0)[:, None] * F.normalize(x[rows])).sum(0)
        torch.testing.assert_close(router.memory[expert], 0.9 * old[expert] / old[expert].norm() + 0.1 * mean)


def test_a_row_with_copies_counts_as_that_many_rows(router):
    x, copies = torch.randn(9, 5, dtype=torch.float64), torch.arange(1, 10)
    old = router.memory.clone()
    router.train()(x.repeat_interleave(copies, 0))
    router.after_step()
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
def test_wrong_router_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        CosineMemoryRouter(**{"dim": 8, "num_experts": 4, "k": 2, **options})


def test_set_memory_checks_its_shape(router):
    with pytest.raises(ValueError, match=r"expected 'memory' of shape \[4, 5\], got \[3, 5\]"):
        router.set_memory(torch.ones(3, 5))


def layer_of(**options):
    torch.manual_seed(0)
    return RbMLayer(**{"in_dim": 5, "out_dim": 3, "num_experts": 4, "k": 2, **options}).double()


def rows(n=9):
    torch.manual_seed(1)
    return torch.randn(n, 5, dtype=torch.float64, requires_grad=True)


def written_out(layer, x, gate, index):
    out = []
    for i in range(x.shape[0]):
        y = 0
        for r in range(layer.k):
            e = index[i, r]
            inputs = layer.log_attention[e].exp() * x[i]
            y = y + gate[i, r] * (layer.experts.weight[e] @ inputs + layer.experts.bias[e])
        out.append(layer.log_scale.exp() * y)
    return torch.stack(out)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gate_gradient", [False, True])
def test_forward_and_gradients_are_equation_5(gate_gradient, training):
    layer, x = layer_of(gate_gradient=gate_gradient).train(training), rows()
    gate, index, _ = layer.router.route(x)
    written = written_out(layer, x, gate.detach() if training and not gate_gradient else gate, index)
    ours, aux = layer(x)
    assert (aux == 0) == (not training)
    torch.testing.assert_close(ours, written)
    wanted = [x, layer.experts.weight, layer.experts.bias, layer.log_attention, layer.log_scale]
    slope = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, wanted, slope), torch.autograd.grad(written, wanted, slope))


def test_scales_start_at_two_and_one_point_one_and_never_exceed_a_hundred():
    layer = layer_of()
    torch.testing.assert_close(layer.output_scale().item(), 2.0, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.input_scale().mean().item(), 1.1, rtol=1e-6, atol=0)
    with torch.no_grad():
        layer.log_scale.fill_(50.0)
        layer.log_attention.fill_(50.0)
    assert layer.output_scale().item() == pytest.approx(100.0)
    assert layer.input_scale().max().item() == pytest.approx(100.0)


def test_aux_is_the_weighted_sum_of_its_losses():
    layer, x = layer_of(commitment=0.3, self_similarity=0.7, load_balance=0.2), rows()
    gate, index, memory = layer.eval().router(x)
    want = 0.3 * commitment(x, memory, gate, index) + 0.2 * load_balance(gate, index, 4)
    torch.testing.assert_close(layer.train()(x)[1], want)

    layer = layer_of(commitment=0.3, self_similarity=0.7, load_balance=0.2, memory="parameter")
    aux = layer.train()(x)[1]
    torch.testing.assert_close(aux, want + 0.7 * self_similarity(layer.router.memory))


def test_pretraining_sends_every_row_through_expert_zero_alone():
    layer, x = layer_of(), rows()
    layer.pretraining = True
    memory = layer.router.memory.clone()
    y, aux = layer(x)
    torch.testing.assert_close(y, x @ layer.experts.weight[0].T + layer.experts.bias[0])
    assert aux == 0 and torch.equal(layer.router.memory, memory)
    y.sum().backward()
    assert layer.experts.weight.grad[1:].abs().max() == 0


def test_start_routing_clones_expert_zero_and_takes_the_centres():
    layer = layer_of()
    layer.pretraining = True
    layer.start_routing(2 * torch.eye(5, dtype=torch.float64)[:4])
    assert not layer.pretraining
    assert torch.equal(layer.experts.weight, layer.experts.weight[:1].expand(4, -1, -1))
    assert torch.equal(layer.experts.bias, layer.experts.bias[:1].expand(4, -1))
    torch.testing.assert_close(layer.router.memory, torch.eye(5, dtype=torch.float64)[:4])


def test_clones_give_the_scaled_output_of_expert_zero():
    layer, x = layer_of(input_attention=False), rows()
    layer.start_routing(torch.eye(5, dtype=torch.float64)[:4])
    torch.testing.assert_close(layer.eval()(x)[0], layer.output_scale() * layer.experts.first(x))


@pytest.mark.parametrize("shared", [False, True])
def test_dropout_reaches_experts_but_not_the_router(shared):
    layer, x = layer_of(dropout=0.5, shared_dropout=shared), rows()
    seen = {}
    layer.router.register_forward_hook(lambda module, given, out: seen.update(x=given[0]))
    first, second = layer(x)[0], layer(x)[0]
    assert torch.equal(seen["x"], x)
    assert not torch.equal(first, second)
    layer.after_step(0.1)
    layer.eval()
    torch.testing.assert_close(layer(x)[0], layer(x)[0])


def test_shared_dropout_gives_one_mask_to_all_experts_of_a_row():
    x, seen = torch.ones(6, 5, dtype=torch.float64), []
    torch.manual_seed(3)
    for shared in (False, True):
        layer = layer_of(dropout=0.5, shared_dropout=shared)
        layer.experts.register_forward_pre_hook(lambda module, given: seen.append(given))
        layer(x)
    (kept, _, _, _, source), (shared_kept, _, _, _, none) = seen
    assert kept.shape == (12, 5) and source.tolist() == [[2 * i, 2 * i + 1] for i in range(6)]
    assert not torch.equal(kept[source[:, 0]], kept[source[:, 1]])
    assert shared_kept.shape == (6, 5) and none is None


def test_a_step_spreads_a_buffer_memory_only_after_pretraining():
    layer = layer_of(self_similarity=0.5)
    old = layer.router.memory.clone()
    layer.pretraining = True
    layer.after_step(0.1)
    assert torch.equal(layer.router.memory, old)
    layer.pretraining = False
    layer.after_step(0.1)
    assert not torch.equal(layer.router.memory, old)


def test_a_step_leaves_eq_7_of_a_parameter_memory_to_the_optimizer():
    layer = layer_of(self_similarity=0.5, memory="parameter")
    old = layer.router.memory.clone()
    layer.after_step(0.1)
    assert torch.equal(layer.router.memory, old)


def test_settings_may_stand_by_position_or_as_a_configuration():
    assert (RbMLayer(5, 3, 6, 2).num_experts, RbMLayer(5, 3, 6, 2).k) == (6, 2)
    assert CosineMemoryRouter(5, MemoryRouterConfig(num_experts=6)).num_experts == 6
    for given in [(6, 2, 1), (RbMConfig(), 2)]:
        with pytest.raises(TypeError, match="expected a RbMConfig"):
            RbMLayer(5, 3, *given)
    with pytest.raises(TypeError, match="num_experts"):
        RbMLayer(5, 3, 6, num_experts=4)


def test_wrong_layer_options_are_named():
    with pytest.raises(ValueError, match=r"'dropout' in \[0, 1\), got 1"):
        layer_of(dropout=1.0)
    with pytest.raises(ValueError, match="balance needs two"):
        layer_of(num_experts=1, k=1)


def test_keywords_replace_fields_of_the_configuration():
    layer = RbMLayer(5, 3, RbMConfig(num_experts=8, k=2, ema_rate=0.5, dropout=0.3), dropout=0.0)
    assert (layer.num_experts, layer.k, layer.dropout, layer.router.rate()) == (8, 2, 0.0, 0.5)
    with pytest.raises(TypeError, match="num_expert"):
        RbMLayer(5, 3, num_expert=8)
