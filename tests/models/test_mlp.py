"""The MLP student."""

import pytest
import torch

from gmoe_ext import models
from gmoe_ext.errors import ConfigError


def test_it_is_linear_norm_relu_dropout_per_hidden_layer():
    torch.manual_seed(0)
    student = models.build("mlp", in_dim=6, hidden_dim=8, out_dim=3, num_layers=3, dropout=0.5, norm="layer").eval()
    x = torch.randn(4, 6)
    h = x
    for layer, norm in zip(student.layers, student.norms, strict=False):
        h = torch.relu(norm(layer(h)))
    logits, aux = student(x)
    torch.testing.assert_close(logits, student.layers[2](h))
    assert aux == 0


def test_one_layer_is_a_linear_map():
    student = models.build("mlp", in_dim=6, hidden_dim=8, out_dim=3, num_layers=1)
    assert student.num_parameters() == (21, 21)


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"dropout": 1.0}, {"norm": "instance"}])
def test_wrong_options_are_config_errors(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        models.build("mlp", **{"in_dim": 6, "hidden_dim": 8, "out_dim": 3, "num_layers": 2, **options})
