import pytest
import torch

from leyden.models import PatchNet


def test_features_by_hand():
    network = PatchNet(2, 3, width=2)
    network.filters.weight.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    x = torch.tensor([[[1.0, 1.0], [3.0, 0.0]], [[0.0, 0.0], [-1.0, 1.0]]])
    assert network.features(x).tolist() == [[3.0**2 + 3.0**2, 1.0], [1.0, 1.0]]
    assert torch.equal(network(x), network.head(network.features(x)))


def test_the_order_of_the_patches_does_not_count():
    network = PatchNet(5, 2)
    x = torch.randn(3, 7, 5)
    torch.testing.assert_close(network(x.flip(1)), network(x))


def test_filters_begin_small():
    torch.manual_seed(0)
    assert PatchNet(400, 2, width=50, std=0.02).filters.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_bad_arguments():
    with pytest.raises(ValueError, match="patch_dim must be 1 or more, got 0"):
        PatchNet(0, 2)
