"""Dropout: rate, scale, gradient, generator."""

import pytest
import torch

from gmoe_ext.nn.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_elements_drop_at_the_rate_and_the_mean_stays(rate):
    y = dropout(torch.ones(500, 400), rate)
    assert abs((y == 0).float().mean() - rate) < 0.005  # 200,000 draws: standard error at most 0.0011
    assert abs(y.mean() - 1) < 0.02
    assert y.unique().numel() == 2


def test_the_gradient_is_the_mask(rate=0.3):
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    y = dropout(x, rate)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope * x, y)


def test_neighbouring_elements_and_rows_drop_independently():
    kept = (dropout(torch.ones(400, 256), 0.5) > 0).float() - 0.5
    for other in (kept.roll(1, 0), kept.roll(1, 1), kept.roll(4, 1)):
        assert abs((kept * other).mean() * 4) < 0.015  # standard error 0.003


def test_it_draws_from_the_global_generator():
    x = torch.ones(33)
    torch.manual_seed(1)
    first = dropout(x, 0.5)
    assert not torch.equal(first, dropout(x, 0.5))
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x, 0.5))


def test_evaluation_and_rate_zero_return_the_input():
    x = torch.ones(3)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


def test_a_wrong_rate_is_named():
    with pytest.raises(ValueError, match=r"'rate' in \[0, 1\), got 1"):
        dropout(torch.ones(3), 1.0)
