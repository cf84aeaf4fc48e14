import pytest
import torch

from leyden.nn import AdaptiveTemperature, transformed_topk_features


def test_temperature_by_hand():
    layer = AdaptiveTemperature(2, 1)
    layer.embed.weight.data, layer.embed.bias.data = torch.tensor([[1.0, -1.0]]), torch.tensor([0.5])
    layer.temperature.weight.data, layer.temperature.bias.data = torch.tensor([[2.0]]), torch.tensor([1.0])
    features = torch.tensor([[1.0, 0.5], [0.0, 3.0], [100.0, 0.0]])  # 2 * 1 + 1, 2 * 0 + 1, above 10
    logits = torch.tensor([[3.0, -6.0]] * 3)
    assert layer(logits, features).tolist() == [[1.0, -2.0], [3.0, -6.0], pytest.approx([0.3, -0.6])]
    layer.temperature.bias.data.fill_(-9.0)
    assert layer(logits, features)[1].tolist() == pytest.approx([30.0, -60.0])  # at least 0.1


def test_predictions_stay():
    torch.manual_seed(0)
    logits, features = torch.randn(50, 7), torch.rand(50, 12)
    calibrated = AdaptiveTemperature(12)(logits, features)
    assert torch.equal(calibrated.argmax(-1), logits.argmax(-1))


def test_features_are_those_of_the_versions_at_the_top_classes_of_the_original():
    original = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    one = torch.tensor([[0.1, 0.2, 0.7], [0.8, 0.15, 0.05]])
    two = torch.tensor([[0.3, 0.3, 0.4], [0.0, 0.25, 0.75]])
    features = transformed_topk_features([original, one, two], k=2)
    torch.testing.assert_close(features, torch.tensor([[0.2, 0.7, 0.3, 0.4], [0.8, 0.05, 0.0, 0.75]]))
    assert transformed_topk_features([original, one], k=4).shape == (2, 3)  # there are but 3 classes


def test_bad_input():
    with pytest.raises(ValueError, match="in_features and hidden must be at least 1, got 0 and 5"):
        AdaptiveTemperature(0)
    with pytest.raises(ValueError, match="low and high must be positive with 1 between them, got 2.0 and 10.0"):
        AdaptiveTemperature(3, low=2.0)
    with pytest.raises(ValueError, match=r"two or more tensors \[N, C\] of the same shape, got \(2, 3\)"):
        transformed_topk_features([torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        transformed_topk_features([torch.zeros(2, 3)] * 2, k=0)
