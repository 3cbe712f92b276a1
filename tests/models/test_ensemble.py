"""The ensemble of MLPs: what its vote is, and that its members learn apart."""

import pytest
import torch
from torch.nn import functional as F

from gmoe_ext import models
from gmoe_ext.errors import ConfigError


def ensemble(**options):
    torch.manual_seed(0)
    shape = {"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2, "num_members": 3}
    return models.build("ensemble", **{**shape, **options})


def test_its_probabilities_are_the_mean_of_its_members():
    student, x = ensemble(norm="batch").eval(), 5 * torch.randn(10, 6)
    mean = torch.stack([member(x).logits.softmax(1) for member in student.members]).mean(0)
    logits, aux = student(x)
    torch.testing.assert_close(logits.softmax(1), mean)
    torch.testing.assert_close(logits, mean.log())
    assert aux == 0


def test_answers_far_apart_stay_finite():
    student = ensemble(num_layers=1)
    for sign, member in zip((1.0, 1.0, -1.0), student.members, strict=True):
        torch.nn.init.zeros_(member.layers[0].weight)
        member.layers[0].bias.data = sign * torch.tensor([300.0, 0.0, -300.0])
    logits = student(torch.zeros(1, 6)).logits[0]
    torch.testing.assert_close(logits, torch.tensor([2 / 3, 1.0, 1 / 3]).log() + torch.tensor([0.0, -300.0, 0.0]))


def test_one_member_names_the_classes_of_an_mlp():
    student, x = ensemble(num_members=1), torch.randn(10, 6)
    torch.testing.assert_close(student(x).logits, F.log_softmax(student.members[0](x).logits, 1))


def test_members_start_from_different_weights():
    first, second, third = (member.layers[0].weight for member in ensemble().members)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_every_model_but_an_ensemble_learns_as_a_whole():
    student = ensemble()
    assert student.learners() == list(student.members)
    mlp = models.build("mlp", in_dim=6, hidden_dim=8, out_dim=3)
    assert mlp.learners() == [mlp]


def test_all_parameters_are_active_and_counted_per_member():
    assert ensemble().num_parameters() == (3 * (6 * 8 + 8 + 8 * 3 + 3),) * 2


def test_config_and_state_rebuild_the_model_exactly():
    student, x = ensemble(dropout=0.5), torch.randn(5, 6)
    again = models.build(student.name, **student.config)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.eval()(x).logits, student.eval()(x).logits)


@pytest.mark.parametrize("options", [{"num_members": 0}, {"num_layers": 0}, {"dropout": 1.0}])
def test_wrong_options_are_config_errors(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ensemble(**options)
