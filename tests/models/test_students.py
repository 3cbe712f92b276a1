"""The students: stacking, pre-training, parameter counts, saving."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gmoe_ext import models
from gmoe_ext.errors import ConfigError


def build(name, **options):
    torch.manual_seed(0)
    shape = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2}
    experts = {"num_experts": 4, "k": 2} if name in ("rbm", "moe") else {}
    return models.build(name, **{**shape, **experts, **options})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"dropout": 0.5}),
        ("ensemble", {"dropout": 0.5}),
        ("rbm", {"norm": "batch"}),
        ("moe", {"norm": "batch", "variant": "released_code"}),
    ],
)
def test_config_and_state_rebuild_the_model_exactly(name, options):
    student = build(name, **options)
    student(torch.randn(10, 6))
    if name == "rbm":
        student.after_step(0.1)
    again = models.build(student.name, **student.config)
    again.load_state_dict(student.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(again.eval()(x).logits, student.eval()(x).logits)


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"norm": "instance"}])
@pytest.mark.parametrize("name", ["mlp", "ensemble", "rbm", "moe"])
def test_wrong_options_are_config_errors(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build(name, **options)


@pytest.mark.parametrize(("name", "options"), [("ensemble", {"num_members": 0}), ("rbm", {"k": 5}), ("moe", {"k": 5})])
def test_wrong_options_of_one_student_are_config_errors(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        build(name, **options)


def test_an_mlp_is_linear_norm_relu_dropout_per_hidden_layer():
    student, x = build("mlp", num_layers=3, dropout=0.5, norm="layer").eval(), torch.randn(4, 6)
    h = x
    for layer, norm in zip(student.layers, student.norms, strict=False):
        h = torch.relu(norm(layer(h)))
    logits, aux = student(x)
    torch.testing.assert_close(logits, student.layers[2](h))
    assert aux == 0


def test_an_mlp_of_one_layer_is_a_linear_map():
    assert build("mlp", num_layers=1).num_parameters() == (21, 21)


def test_an_ensembles_probabilities_are_the_mean_of_its_members():
    student, x = build("ensemble", norm="batch").eval(), 5 * torch.randn(10, 6)
    mean = torch.stack([member(x).logits.softmax(1) for member in student.members]).mean(0)
    logits, aux = student(x)
    torch.testing.assert_close(logits.softmax(1), mean)
    torch.testing.assert_close(logits, mean.log())
    assert aux == 0


def test_members_far_apart_give_finite_logits():
    student = build("ensemble", num_layers=1)
    for sign, member in zip((1.0, 1.0, -1.0), student.members, strict=True):
        torch.nn.init.zeros_(member.layers[0].weight)
        member.layers[0].bias.data = sign * torch.tensor([300.0, 0.0, -300.0])
    logits = student(torch.zeros(1, 6)).logits[0]
    torch.testing.assert_close(logits, torch.tensor([2 / 3, 1.0, 1 / 3]).log() + torch.tensor([0.0, -300.0, 0.0]))


def test_an_ensemble_of_one_predicts_as_its_mlp():
    student, x = build("ensemble", num_members=1), torch.randn(10, 6)
    torch.testing.assert_close(student(x).logits, F.log_softmax(student.members[0](x).logits, 1))


def test_members_start_from_different_weights():
    first, second, third = (member.layers[0].weight for member in build("ensemble").members)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_every_model_but_an_ensemble_learns_as_a_whole():
    student, mlp = build("ensemble"), build("mlp")
    assert student.learners() == list(student.members)
    assert mlp.learners() == [mlp]


def test_all_parameters_of_an_ensemble_are_active_and_counted_per_member():
    assert build("ensemble").num_parameters() == (3 * (6 * 8 + 8 + 8 * 3 + 3),) * 2


@pytest.mark.parametrize("name", ["rbm", "moe"])
def test_expert_layers_are_stacked_with_relu_between_and_their_losses_summed(name):
    student, x = build(name).train(), torch.randn(10, 6)
    logits, aux = student(x)
    hidden, first = student.layers[0](x)
    out, second = student.layers[1](hidden.relu())
    torch.testing.assert_close(logits, out)
    torch.testing.assert_close(aux, first + second)


def test_dropout_skips_the_first_layer_unless_asked():
    assert [layer.dropout for layer in build("rbm", dropout=0.5, num_layers=3).layers] == [0.0, 0.5, 0.5]
    assert [layer.dropout for layer in build("rbm", dropout=0.5, first_layer_dropout=True).layers] == [0.5, 0.5]


def test_options_reach_every_layer():
    layers = build("moe", dropout=0.5, variant="released_code", load_balance=0.2).layers
    assert [layer.dropout for layer in layers] == [0.0, 0.5]
    assert all(layer.router.over_all and layer.load_balance == 0.2 for layer in layers)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", ["rbm", "moe"])
def test_pretraining_is_an_mlp_of_first_experts(name, norm):
    student, x = build(name, norm=norm).eval(), torch.randn(10, 6)
    student.set_pretraining(True)
    first, second = (layer.experts for layer in student.layers)
    torch.testing.assert_close(student(x).logits, second.first(student.norms[0](first.first(x)).relu()))
    assert student.expert_load() is None


def test_routing_of_an_moe_starts_with_clones_of_the_pretrained_mlp():
    student = build("moe").eval()
    student.set_pretraining(True)
    student.start_routing()
    student(torch.randn(10, 6))
    assert all(torch.equal(layer.experts.weight[3], layer.experts.weight[0]) for layer in student.layers)
    torch.testing.assert_close(student.expert_load().sum(), torch.tensor(1.0))


def test_routers_of_an_moe_compare_in_the_hidden_width():
    assert [layer.router.proj_dim for layer in build("moe", num_layers=3).layers] == [8, 8, 8]


def test_active_parameters_of_an_moe_are_those_of_k_experts_and_the_router():
    experts = [6 * 8 + 8, 8 * 3 + 3]
    routers = (6 * 8 + 4 * 8) + (8 * 8 + 4 * 8) + 2  # projections, embeddings, output scales
    assert build("moe").num_parameters() == (2 * sum(experts) + routers, 4 * sum(experts) + routers)


def test_parameters_of_an_rbm_are_counted_as_in_table_9():
    layer_1 = 6 * 8 + 8 + 6
    layer_2 = 8 * 3 + 3 + 8
    memories = 4 * 6 + 4 * 8
    active, total = build("rbm").num_parameters()
    assert (active, total) == (2 * (layer_1 + layer_2) + 2 + memories, 4 * (layer_1 + layer_2) + 2 + memories)
    assert build("rbm", memory="parameter").num_parameters() == (active, total)


def test_memory_is_a_parameter_only_if_asked():
    assert not [name for name, _ in build("rbm").named_parameters() if "memory" in name]
    assert isinstance(build("rbm", memory="parameter").layers[0].router.memory, nn.Parameter)


def test_epoch_reaches_every_router():
    student = build("rbm", annealing=0.5, annealing_epochs=10)
    student.set_epoch(10)
    assert [layer.router.rate() for layer in student.layers] == pytest.approx([0.95, 0.95])


def test_memories_follow_rows_as_in_a_training_forward():
    forwarded, followed = build("rbm", num_layers=3).train(), build("rbm", num_layers=3).train()
    x, copies = torch.randn(10, 6), torch.arange(10) % 3 + 1
    forwarded(x.repeat_interleave(copies, 0))
    forwarded.after_step(0.0)
    followed.follow_(x, copies)
    for layer, other in zip(forwarded.layers, followed.layers, strict=True):
        torch.testing.assert_close(layer.router.memory, other.router.memory)


def test_following_changes_the_memories_alone():
    student = build("rbm", norm="batch").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.follow_(torch.randn(10, 6))
    after = student.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "layers.0.router.memory",
        "layers.1.router.memory",
    }
    assert student.norms.training


def test_memories_that_do_not_follow_stay():
    student = build("rbm").train()
    student.set_following(False)
    memories = [layer.router.memory.clone() for layer in student.layers]
    student(torch.randn(10, 6))
    student.after_step(0.0)
    assert all(torch.equal(layer.router.memory, old) for layer, old in zip(student.layers, memories, strict=True))


def test_a_step_spreads_every_memory():
    student = build("rbm")
    before = [layer.router.memory.clone() for layer in student.layers]
    student.after_step(1.0)
    assert all(not torch.equal(layer.router.memory, old) for layer, old in zip(student.layers, before, strict=True))
