"""One vanilla MoE layer against eqs. 1 and 2 written out in float64."""

import pytest
import torch
from torch.nn import functional as F

from gmoe_ext.nn import MoELayer
from gmoe_ext.nn.losses import squared_cv

VARIANTS = ["paper", "released_code"]


def layer_of(**options):
    torch.manual_seed(0)
    layer = MoELayer(**{"in_dim": 5, "out_dim": 3, "proj_dim": 6, "num_experts": 4, "k": 2, **options}).double()
    with torch.no_grad():
        layer.router.embeddings.normal_()
    return layer


def rows(n=9):
    torch.manual_seed(1)
    return torch.randn(n, 5, dtype=torch.float64, requires_grad=True)


def scores(layer, x):
    router = layer.router
    projected, embeddings = router.projection(x), router.embeddings
    cosine = (projected @ embeddings.T) / (projected.norm(dim=1)[:, None] * embeddings.norm(dim=1))
    return cosine if router.log_temperature is None else router.log_temperature.exp() * cosine


def written_out(layer, x):
    out = []
    for score, row in zip(scores(layer, x), x, strict=True):
        chosen = score.argsort(descending=True)[: layer.k]
        gate = score.softmax(0)[chosen] if layer.router.over_all else score[chosen].softmax(0)
        parts = [g * (layer.experts.weight[e] @ row + layer.experts.bias[e]) for g, e in zip(gate, chosen, strict=True)]
        out.append(layer.log_scale.exp() * sum(parts))
    return torch.stack(out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_gradients_are_the_equations(variant):
    layer, x = layer_of(variant=variant).eval(), rows()
    ours, aux = layer(x)
    written = written_out(layer, x)
    assert aux == 0
    torch.testing.assert_close(ours, written)
    wanted, slope = [x, *layer.parameters()], torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, wanted, slope), torch.autograd.grad(written, wanted, slope))


def test_the_program_has_a_bias_a_temperature_of_two_and_gates_that_leave_a_rest():
    paper, released = layer_of().eval().router, layer_of(variant="released_code").eval().router
    assert paper.temperature() is None and paper.projection.bias is None and released.projection.bias is not None
    torch.testing.assert_close(released.temperature().item(), 2.0, rtol=1e-6, atol=0)
    torch.testing.assert_close(paper(rows()).gate.sum(1), torch.ones(9, dtype=torch.float64))
    assert (released(rows()).gate.sum(1) < 0.999).all()


def test_noise_meets_the_program_s_scores_in_training_alone():
    x = rows()
    for variant in VARIANTS:
        router = layer_of(variant=variant).train().router
        assert torch.equal(router(x).gate, router(x).gate) == (variant == "paper")
        router.eval()
        assert torch.equal(router(x).gate, router(x).gate)


def test_aux_is_the_balance_of_gates_and_of_rows():
    layer, x = layer_of(load_balance=0.3).train(), rows()
    routing = layer.router(x)
    gates = torch.zeros(9, 4, dtype=torch.float64).scatter(1, routing.index, routing.gate)
    want = 0.3 * (squared_cv(gates.sum(0)) + squared_cv((gates > 0).double().sum(0)))
    torch.testing.assert_close(layer(x)[1], want)


def test_the_program_balances_the_gates_of_all_experts():
    layer, x = layer_of(variant="released_code", load_balance=1.0).train(), rows()
    layer.router.noisy = False
    share = scores(layer, x).softmax(1)
    routing = layer.router(x)
    torch.testing.assert_close(routing.importance_loss, squared_cv(share.sum(0)))


def test_pretraining_of_the_paper_is_expert_zero_cloned_afterwards():
    layer, x = layer_of(), rows()
    layer.pretraining = True
    y, aux = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.experts.weight[0], layer.experts.bias[0]))
    assert aux == 0
    embeddings = layer.router.embeddings.clone()
    layer.start_routing()
    assert not layer.pretraining and torch.equal(layer.router.embeddings, embeddings)
    assert torch.equal(layer.experts.weight, layer.experts.weight[:1].expand(4, -1, -1))
    torch.testing.assert_close(layer.eval()(x)[0], layer.output_scale() * layer.experts.first(x))


@pytest.mark.parametrize("n", [0, 3, 10])
def test_pretraining_of_the_program_gives_each_expert_a_piece(n):
    layer, x = layer_of(variant="released_code"), rows(n)
    layer.pretraining = True
    before = layer.experts.weight.clone()
    want = [F.linear(row, layer.experts.weight[e], layer.experts.bias[e]) for row, e in
            zip(x, [i * 4 // max(n, 1) for i in range(n)], strict=True)]  # fmt: skip
    torch.testing.assert_close(layer(x)[0], torch.stack(want) if want else x.new_zeros(0, 3))
    layer.start_routing()
    assert torch.equal(layer.experts.weight, before)


def test_dropout_reaches_experts_but_not_the_router():
    layer, x = layer_of(dropout=0.5).train(), rows()
    seen = {}
    layer.router.register_forward_hook(lambda module, given, out: seen.update(x=given[0]))
    assert not torch.equal(layer(x)[0], layer(x)[0]) and torch.equal(seen["x"], x)
    torch.testing.assert_close(layer.eval()(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout": 1.0}, r"MoELayer: expected 'dropout' in \[0, 1\), got 1"),
        ({"proj_dim": 0}, "expected 'proj_dim' of at least 1, got 0"),
        ({"k": 5}, r"expected 'k' in \[1, num_experts = 4\], got 5"),
        ({"variant": "mine"}, "expected 'variant' to be 'paper' or 'released_code', got 'mine'"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        layer_of(**options)
