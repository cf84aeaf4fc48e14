import pytest
import torch

from leyden.models import StackedAutoencoder


def test_layers_mirror_each_other():
    network = StackedAutoencoder(12, 3, (8, 5))
    x = torch.randn(4, 1, 3, 4)
    layers = network.encode(x)
    assert [layer.shape[1] for layer in layers] == [12, 8, 5]
    assert torch.equal(layers[0], x.flatten(1))
    assert [layer.shape[1] for layer in network.decode(layers[-1])] == [12, 8]
    assert torch.equal(network.features(x), layers[-1])
    assert network(x).shape == (4, 3)


def test_noise_in_training_alone_and_never_on_the_code():
    torch.manual_seed(0)
    network = StackedAutoencoder(20, 3, (6,), dropout=0.9)
    x = torch.randn(50, 20)
    clean, noisy = network.encode(x), network.encode(x, noise=True)
    assert not torch.equal(noisy[-1], clean[-1])
    assert (noisy[-1] != 0.0).all()
    torch.testing.assert_close(noisy[0], x)  # what is to be reconstructed stays whole
    network.eval()
    assert torch.equal(network.encode(x, noise=True)[-1], clean[-1])


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"hidden must hold one or more sizes of 1 or more, got \(\)"):
        StackedAutoencoder(4, 2, ())
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        StackedAutoencoder(4, 2, dropout=1.0)
    with pytest.raises(ValueError, match="num_outputs must be 1 or more, got 0"):
        StackedAutoencoder(4, 0)
