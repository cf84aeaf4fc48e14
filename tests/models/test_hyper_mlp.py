import pytest
import torch

from leyden.data import NoisyDigits
from leyden.models import HyperMLP


def test_the_knob_is_the_last_number():
    torch.manual_seed(0)
    network = HyperMLP(5, 3, hidden=(4,))
    x = torch.rand(6, 5)
    weights = network.body.hypernetwork(x[:, -1:])
    hidden = (weights["0.weight"] @ x[:, :4, None]).squeeze(-1) + weights["0.bias"]
    torch.testing.assert_close(network.features(x), hidden.relu())
    assert network(x).shape == (6, 3)


@pytest.mark.parametrize("arguments", [{"hidden": ()}, {"in_features": 1}])
def test_bad_sizes(arguments):
    with pytest.raises(ValueError, match="hidden must not be empty and in_features above num_knobs"):
        HyperMLP(**{"in_features": 5, "num_outputs": 2} | arguments)


def test_noisy_digits():
    data = NoisyDigits(max_noise=0.5)
    for split, dataset in data.datasets().items():
        samples = [dataset[i] for i in range(len(dataset))]
        x = torch.stack([sample["input"] for sample in samples])
        clean = torch.stack([data_sample["input"].flatten() for data_sample in clean_samples(split)])
        levels = x[:, -1]
        assert x.shape[1] == 65
        assert 0.0 <= levels.min() < 0.05 < 0.95 < levels.max() < 1.0
        scaled = (x[:, :-1] - clean) / (0.5 * levels[:, None])
        assert scaled.std().item() == pytest.approx(1.0, abs=0.02)
        assert abs(scaled.mean().item()) < 0.02
    with pytest.raises(ValueError, match="max_noise must be at least 0, got -1"):
        NoisyDigits(max_noise=-1)


def clean_samples(split):
    from leyden.data import Digits

    dataset = Digits().datasets()[split]
    return [dataset[i] for i in range(len(dataset))]
