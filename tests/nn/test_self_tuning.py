import math

import pytest
import torch
from torch import nn

from leyden.nn import (
    HyperConv2d,
    HyperLinear,
    Hyperparameters,
    per_example_dropout,
    stretched_logit,
    stretched_sigmoid,
)

H = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64)
# Numbers of asteroidhouse/self-tuning-networks, commit 3c42049, cnn/hypermodels/hyperlinear.py and hyperconv2d.py, in
# float64 with parameters sin(0.7 i + shift), i the position and shift 0 to 5 in the order of `filled`.
LINEAR = [[-0.22868261591815153, -1.55893124105357], [1.7107376351665318, -0.47784847490364013]]
LINEAR_WITHOUT = [[-0.8124753850213916, -1.551118937639719], [-0.7362078493183958, 0.7150292884402448]]
CONVOLUTION = [
    [
        [[-3.0423469421764135, -1.0968649301225994], [-1.5028029155663403, -1.8141965567209557]],
        [[-1.619526454998331, -1.146027646465845], [1.3827451243816644, -1.101227394520972]],
    ],
    [
        [[-1.7165177178724447, 2.451277835661756], [-7.183808086280216, -1.7152583792837963]],
        [[-2.36645994334157, 1.4864836234397636], [-7.504382743006555, -2.3838569821198217]],
    ],
]


def filled(layer):
    names = ["weight", "response_weight", "bias", "response_bias", "response_scale", "elem_scale"]
    layer = layer.double()
    with torch.no_grad():
        for shift, name in enumerate(names):
            p = getattr(layer, name)
            p.copy_(torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64) + shift).view_as(p))
    return layer


def test_linear_layer_of_the_authors():
    layer, x = filled(HyperLinear(3, 2, 2)), torch.arange(6.0).double().cos().view(2, 3)
    torch.testing.assert_close(layer(x, H), torch.tensor(LINEAR).double())
    torch.testing.assert_close(layer(x), torch.tensor(LINEAR_WITHOUT).double())
    torch.testing.assert_close(layer(x, H[:1]), torch.cat([layer(x[:1], H[:1]), layer(x[1:], H[:1])]))


def test_convolution_of_the_authors():
    layer, x = filled(HyperConv2d(1, 2, 3, 2, stride=2, padding=1)), torch.arange(18.0).double().cos().view(2, 1, 3, 3)
    torch.testing.assert_close(layer(x, H), torch.tensor(CONVOLUTION).double())


@pytest.mark.parametrize("bias", [True, False])
def test_without_response_it_is_the_usual_layer_and_the_response_is_linear(bias):
    torch.manual_seed(0)
    layer, x, h = HyperLinear(5, 4, 3, bias=bias), torch.randn(6, 5), torch.randn(6, 3)
    usual = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), usual)
    torch.testing.assert_close(layer(x, 2.0 * h) - usual, 2.0 * (layer(x, h) - usual))
    nn.init.zeros_(layer.response_scale)
    torch.testing.assert_close(layer(x, h), usual)


def test_starting_weights():
    torch.manual_seed(0)
    layer = HyperConv2d(4, 64, 3, 8)
    for p in (layer.weight, layer.response_weight, layer.bias, layer.response_bias):
        assert 0.9 / 6 < p.abs().max() <= 1 / 6  # 1 / sqrt(4 * 3 * 3)
    assert layer.response_scale.shape == (128, 8)
    assert layer.response_scale.std().item() == pytest.approx(0.01, rel=0.1)
    assert layer.elem_scale.item() == 1.0


def test_stretched_functions():
    x = torch.tensor([0.3], dtype=torch.float64)
    assert stretched_sigmoid(x, -1.0, 2.0).item() == pytest.approx(0.723327550434977)  # the authors' s_sigmoid
    assert stretched_logit(torch.tensor(0.05).double(), 0.0, 0.9).item() == pytest.approx(-2.8332133440562157)
    torch.testing.assert_close(stretched_logit(stretched_sigmoid(x, -1.0, 2.0), -1.0, 2.0), x)


def test_hyperparameters():
    ranges = {"rate": (0.0, 0.9), "noise": (0.0, math.inf), "unused": (0.0, 1.0)}
    knobs = Hyperparameters({"rate": 0.05, "noise": 100.0}, ranges, scale=0.5)
    assert not any(p.requires_grad for p in knobs.parameters())
    assert knobs.h[0].item() == pytest.approx(-2.8332133440562157)
    assert knobs.raw_scale.tolist() == pytest.approx([-0.4327521295671885] * 2)  # the authors' inv_softplus(0.5)
    values = knobs.values(torch.stack([knobs.h, torch.tensor([-2.8332133, 0.3])]))
    assert values["rate"].tolist() == pytest.approx([0.05, 0.05])
    assert values["noise"].tolist() == pytest.approx([100.0, 0.8543552444685272])  # the authors' project

    h = knobs.perturb(torch.arange(20_000))
    torch.testing.assert_close(h.mean(0), knobs.h, atol=0.02, rtol=0.0)
    torch.testing.assert_close(h.std(0), torch.tensor([0.5, 0.5]), atol=0.02, rtol=0.0)
    assert torch.equal(h[7:9], knobs.perturb(torch.arange(7, 9)))


def test_dropout_has_a_rate_for_each_example():
    x = torch.ones(3, 2, 5000)
    y = per_example_dropout(x, torch.tensor([0.0, 0.25, 0.5]), torch.arange(3))
    assert torch.equal(y[0], x[0])
    for row, p in zip(y[1:], (0.25, 0.5), strict=True):
        assert row.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        assert (row == 0.0).float().mean().item() == pytest.approx(p, abs=0.02)
    assert not torch.equal(y, per_example_dropout(x, torch.tensor([0.0, 0.25, 0.5]), torch.arange(3), stream=1))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="one hyperparameter or more"):
        Hyperparameters({}, {})
    for value in (0.0, 0.9, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"rate must lie between 0.0 and 0.9, both excluded, got"):
            Hyperparameters({"rate": value}, {"rate": (0.0, 0.9)})
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        Hyperparameters({"rate": 0.1}, {"rate": (0.0, 0.9)}, scale=0.0)
    with pytest.raises(ValueError, match="sizes and num_hparams must be 1 or more"):
        HyperLinear(3, 2, 0)
