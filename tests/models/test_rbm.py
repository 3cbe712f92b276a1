"""The RbM student: stacking, pre-training switch, parameter counts, saving."""

import pytest
import torch
from torch import nn

from gmoe_ext import models
from gmoe_ext.errors import ConfigError


def rbm(**options):
    torch.manual_seed(0)
    shape = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2, "num_experts": 4, "k": 2}
    return models.build("rbm", **{**shape, **options})


def test_it_stacks_layers_with_relu_between_and_sums_their_losses():
    student = rbm().train()
    x = torch.randn(10, 6)
    memories = [layer.router.memory.clone() for layer in student.layers]
    logits, aux = student(x)
    for layer, memory in zip(student.layers, memories, strict=True):
        layer.router.set_memory(memory)
    hidden, first = student.layers[0](x)
    out, second = student.layers[1](hidden.relu())
    torch.testing.assert_close(logits, out)
    torch.testing.assert_close(aux, first + second)


def test_dropout_skips_the_first_layer_unless_asked():
    assert [layer.dropout for layer in rbm(dropout=0.5, num_layers=3).layers] == [0.0, 0.5, 0.5]
    assert [layer.dropout for layer in rbm(dropout=0.5, first_layer_dropout=True).layers] == [0.5, 0.5]


def test_pretraining_is_an_mlp_of_first_experts():
    student = rbm().eval()
    student.set_pretraining(True)
    x = torch.randn(10, 6)
    first = [layer.experts for layer in student.layers]
    torch.testing.assert_close(student(x).logits, first[1].first(first[0].first(x).relu()))


def test_config_and_state_rebuild_the_model_exactly():
    student = rbm(norm="batch")
    student(torch.randn(10, 6))
    again = models.build(student.name, **student.config)
    again.load_state_dict(student.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(again.eval()(x).logits, student.eval()(x).logits)


def test_parameters_are_counted_as_in_table_9():
    layer_1 = 6 * 8 + 8 + 6
    layer_2 = 8 * 3 + 3 + 8
    memories = 4 * 6 + 4 * 8
    assert rbm().num_parameters() == (2 * (layer_1 + layer_2) + 2 + memories, 4 * (layer_1 + layer_2) + 2 + memories)
    assert rbm(memory="parameter").num_parameters() == rbm().num_parameters()


def test_memory_is_where_the_optimizer_can_or_cannot_see_it():
    assert not [name for name, _ in rbm().named_parameters() if "memory" in name]
    assert isinstance(rbm(memory="parameter").layers[0].router.memory, nn.Parameter)


def test_epoch_reaches_every_router():
    student = rbm(annealing=0.5, annealing_epochs=10)
    student.set_epoch(10)
    assert [layer.router.rate() for layer in student.layers] == pytest.approx([0.95, 0.95])


def test_memories_follow_rows_as_in_a_training_forward():
    forwarded, followed = rbm(num_layers=3).train(), rbm(num_layers=3).train()
    x, copies = torch.randn(10, 6), torch.arange(10) % 3 + 1
    forwarded(x.repeat_interleave(copies, 0))
    followed.follow_(x, copies)
    for layer, other in zip(forwarded.layers, followed.layers, strict=True):
        torch.testing.assert_close(layer.router.memory, other.router.memory)


def test_memories_that_do_not_follow_stay_and_norms_are_left_alone():
    student = rbm(norm="batch").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.follow_(torch.randn(10, 6))
    after = student.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "layers.0.router.memory",
        "layers.1.router.memory",
    }
    assert student.norms.training
    student.set_following(False)
    memories = [layer.router.memory.clone() for layer in student.layers]
    student(torch.randn(10, 6))
    assert all(torch.equal(layer.router.memory, old) for layer, old in zip(student.layers, memories, strict=True))


def test_spread_moves_every_memory():
    student = rbm()
    before = [layer.router.memory.clone() for layer in student.layers]
    student.spread_memories_(1.0)
    assert all(not torch.equal(layer.router.memory, old) for layer, old in zip(student.layers, before, strict=True))


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"k": 5}, {"norm": "instance"}, {"dropout": -0.1}])
def test_wrong_options_are_config_errors(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        rbm(**options)
