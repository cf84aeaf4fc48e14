import io

import pytest
import torch

import leyden.models as models

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(0))
CASES = {
    "mlp": (lambda: models.MLP(3 * 16 * 16, 5, (8, 6), dropout=0.1), IMAGES, 6, (3, 5)),
    "linear": (lambda: models.MLP(3 * 16 * 16, 5, ()), IMAGES, 768, (3, 5)),
    "convnet": (lambda: models.ConvNet(3, 5, width=4, dropout=0.1), IMAGES, 16, (3, 5)),
    "resnet18": (lambda: models.ResNet(18, 5, width=4), IMAGES, 32, (3, 5)),
    "resnet50": (lambda: models.ResNet(50, 5, width=4), IMAGES, 128, (3, 5)),
    "vit": (lambda: models.ViT(16, 4, 5, dim=12, depth=2, dropout=0.1), IMAGES, 12, (3, 5)),
    "gpt": (lambda: models.GPT(11, 8, dim=12, depth=2, num_heads=2, dropout=0.1), TOKENS, 12, (3, 7, 11)),
    "gpt_untied": (lambda: models.GPT(11, 8, dim=12, num_heads=2, tie_weights=False), TOKENS, 12, (3, 7, 11)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, inputs, feature_dim, shape = CASES[request.param]
    torch.manual_seed(0)
    return make, make(), inputs, feature_dim, shape


def test_forward_is_head_of_features(case):
    _, network, inputs, feature_dim, shape = case
    network.eval()
    features = network.features(inputs)
    assert features.shape == (*shape[:-1], feature_dim)
    assert network.feature_dim == feature_dim
    assert network(inputs).shape == shape
    torch.testing.assert_close(network(inputs), network.head(features), rtol=0, atol=0)


def test_state_dict_round_trip(case):
    make, network, inputs, _, _ = case
    network(inputs)  # moves the running means of batch norm
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = make()
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.eval()(inputs), network.eval()(inputs), rtol=0, atol=0)


def test_every_parameter_gets_a_gradient(case):
    _, network, inputs, _, _ = case
    network(inputs).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
