"""The vanilla MoE student: stacking, pre-training switch, parameter counts, saving."""

import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ConfigError


def moe(**options):
    torch.manual_seed(0)
    shape = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2, "num_experts": 4, "k": 2}
    return models.build("moe", **{**shape, **options})


def test_it_stacks_layers_with_relu_between_and_sums_their_losses():
    student, x = moe().train(), torch.randn(10, 6)
    logits, aux = student(x)
    hidden, first = student.layers[0](x)
    out, second = student.layers[1](hidden.relu())
    torch.testing.assert_close(logits, out)
    torch.testing.assert_close(aux, first + second)


def test_routers_compare_in_the_hidden_width():
    assert [layer.router.proj_dim for layer in moe(num_layers=3).layers] == [8, 8, 8]


def test_options_reach_every_layer_and_dropout_skips_the_first():
    layers = moe(dropout=0.5, variant="released_code", load_balance=0.2).layers
    assert [layer.dropout for layer in layers] == [0.0, 0.5]
    assert all(layer.router.over_all and layer.load_balance == 0.2 for layer in layers)


def test_routing_starts_with_clones_of_the_pretrained_mlp():
    student, x = moe(norm="batch").eval(), torch.randn(10, 6)
    student.set_pretraining(True)
    first = [layer.experts for layer in student.layers]
    torch.testing.assert_close(student(x).logits, first[1].first(student.norms[0](first[0].first(x)).relu()))
    assert student.expert_load() is None
    student.start_routing()
    student(x)
    assert torch.equal(first[1].weight[3], first[1].weight[0])
    torch.testing.assert_close(student.expert_load().sum(), torch.tensor(1.0))


def test_config_and_state_rebuild_the_model_exactly():
    student = moe(norm="batch", variant="released_code")
    student(torch.randn(10, 6))
    again = models.build(student.name, **student.config)
    again.load_state_dict(student.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(again.eval()(x).logits, student.eval()(x).logits)


def test_active_parameters_are_those_of_k_experts_and_the_router():
    experts = [6 * 8 + 8, 8 * 3 + 3]
    routers = (6 * 8 + 4 * 8) + (8 * 8 + 4 * 8) + 2  # projections, embeddings, output scales
    assert moe().num_parameters() == (2 * sum(experts) + routers, 4 * sum(experts) + routers)


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"k": 5}, {"norm": "instance"}, {"dropout": -0.1}])
def test_wrong_options_are_config_errors(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        moe(**options)
