import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import SigmaReparam, apply_sigma_reparam

WEIGHT = torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.75, -0.5]], dtype=torch.float64)
BIAS = torch.tensor([0.1, -0.2], dtype=torch.float64)
X = torch.tensor([[1.0, 2.0, -1.0], [0.5, -0.25, 3.0], [0.0, 1.5, 1.0], [-2.0, 0.0, 0.5]], dtype=torch.float64)
Y = torch.tensor([[1.0, -1.0], [0.0, 2.0], [0.5, 0.5], [-1.0, 1.0]], dtype=torch.float64)


def linear(*, converted=True):
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(WEIGHT)
        layer.bias.copy_(BIAS)
    if converted:
        apply_sigma_reparam(nn.Sequential(layer))
    return layer


def test_five_steps_equal_the_authors_code():
    """Numbers that SNLinear of apple/ml-sigma-reparam (commit fea4e35, vision/layers.py) gave, in float64 with SGD."""
    layer = linear()
    original, gamma = layer.parametrizations.weight.original, layer.parametrizations.weight[0].gamma
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        loss = (layer(X) - Y).square().mean()
        loss.backward()
        if step == 0:
            expected = [
                [-0.8020793219119587, -2.0974503041681425, 1.3382842173573026],
                [-1.9261435197773147, 0.6087624795815221, -2.7294669646339913],
            ]
            torch.testing.assert_close(original.grad, torch.tensor(expected).double())
            assert gamma.grad.item() == pytest.approx(5.979181809571552)
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(
        [9.087988281249999, 2.326202112206231, 1.4355238520437534, 1.1259790094557136, 0.996774987627969]
    )
    expected = [
        [0.8098944929568349, -0.4632516944829497, -0.09412887630468268],
        [2.376086819215918, 0.4940134057599225, 0.3920530590092094],
    ]
    torch.testing.assert_close(original.detach(), torch.tensor(expected).double())
    assert layer.bias.tolist() == pytest.approx([0.23170966018048816, 0.32455058565820505])
    assert gamma.item() == pytest.approx(0.11703500299447828)
    u = layer.parametrizations.weight[0].u
    assert (u * u[0].sign()).tolist() == pytest.approx([0.9820021934900393, 0.13959892628440576, 0.12721568991674137])
    out = layer.eval()(X).flatten().tolist()
    assert out[:4] == pytest.approx(
        [0.23068011911389308, 0.46066516434801286, 0.24262670354019314, 0.42717024128387965], rel=1e-6
    )


def test_convolution_equals_the_authors_code():
    """Numbers of SNConv2d of the same code, gamma 0.7."""
    conv = nn.Conv2d(2, 3, 2, bias=False).double()
    scale = torch.tensor([1.0, 2.0, -1.5], dtype=torch.float64).view(3, 1, 1, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.linspace(-1, 1, 24, dtype=torch.float64).sin().view(3, 2, 2, 2) * scale)
    apply_sigma_reparam(nn.Sequential(conv))
    conv.parametrizations.weight[0].gamma.data.fill_(0.7)
    out = conv(torch.arange(18.0, dtype=torch.float64).cos().view(1, 2, 3, 3)).flatten().tolist()
    expected = [0.03632647266353656, 0.04375347100283382, -0.03191681997706849, -0.04544319274077208]
    assert out[:4] == pytest.approx(expected, rel=1e-5)
    assert out[-2:] == pytest.approx([-0.039800677670415306, 0.02635342131732896], rel=1e-5)


def test_starts_as_the_plain_layer():
    plain, layer = linear(converted=False), linear()
    torch.testing.assert_close(layer(X), plain(X), rtol=0, atol=1e-14)
    assert layer.bias is layer._parameters["bias"]
    assert layer.parametrizations.weight[0].gamma.shape == (1,)  # sharding takes no scalars


def test_gradient_in_closed_form():
    """dW = (gamma / s)(G - <G, W> / s v u^T), dgamma = <G, W> / s; W and dW are orthogonal."""
    weight = nn.Parameter(WEIGHT.clone())
    reparam = SigmaReparam(weight)
    reparam.gamma.data.fill_(0.3)
    gradient = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], dtype=torch.float64)
    reparam(weight).backward(gradient)
    left, sigma, right = torch.linalg.svd(WEIGHT, full_matrices=False)
    inner = (gradient * WEIGHT).sum()
    expected = 0.3 / sigma[0] * (gradient - inner / sigma[0] * torch.outer(left[:, 0], right[0]))
    torch.testing.assert_close(weight.grad, expected)
    torch.testing.assert_close(reparam.gamma.grad, (inner / sigma[0]).view(1))
    assert (weight.grad * WEIGHT).sum().item() == pytest.approx(0.0, abs=1e-13)


def test_spectral_norm_is_gamma_once_the_iteration_has_converged():
    torch.manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64)
    reparam = SigmaReparam(weight)
    reparam.gamma.data.fill_(0.25)
    other = torch.randn(5, 7, dtype=torch.float64)
    for _ in range(300):
        out = reparam(other)
    assert torch.linalg.matrix_norm(out, 2).item() == pytest.approx(0.25)
    torch.testing.assert_close(reparam(-30.0 * other), -out)  # the scale of the weight does not matter, nor its sign...
    torch.testing.assert_close(reparam(30.0 * other), out)


def test_iteration_moves_in_training_only_and_once_per_cached_step():
    reparam = SigmaReparam(WEIGHT)
    other = WEIGHT.flip(0) + 1.0
    before = reparam.u.clone()
    reparam.eval()
    first = reparam(other)
    assert torch.equal(reparam.u, before)
    assert torch.equal(reparam.train()(other), first)  # evaluation uses the next iterate, too
    assert not torch.equal(reparam.u, before)
    layer = linear()
    layer.parametrizations.weight.original.data.copy_(other)
    with parametrize.cached():
        layer(X)
        once = layer.parametrizations.weight[0].u.clone()
        layer(X)
    assert torch.equal(layer.parametrizations.weight[0].u, once)


def test_state_round_trip_and_copy():
    layer = linear()
    layer.parametrizations.weight.original.data.add_(1.0)
    layer(X)
    twin = linear()
    twin.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(twin(X), layer(X))
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))


def test_whole_networks():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8)))
    network.append(nn.Linear(8, 8))
    network[3].weight = network[2][0].weight = nn.Parameter(torch.randn(8, 8))
    network[2][0].in_features = 8
    names = apply_sigma_reparam(network, skip=("2",))
    assert names == ["0", "3"]
    assert network[3].parametrizations.weight.original is network[2][0].weight  # still shared
    gamma = network[0].parametrizations.weight[0].gamma
    assert apply_sigma_reparam(network, skip=("2",)) == names
    assert network[0].parametrizations.weight[0].gamma is gamma
    assert len(network[0].parametrizations.weight) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_iteration_is_in_float32(dtype):
    layer = linear().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer.weight
    assert weight.dtype == dtype
    assert layer.parametrizations.weight[0].u.norm().item() == pytest.approx(1.0, abs=1e-2)
    if dtype == torch.float32:
        torch.testing.assert_close(weight, WEIGHT.float())


def test_bad_input():
    with pytest.raises(ValueError, match=r"weight must have 2 or more dimensions, got shape \(3,\)"):
        SigmaReparam(torch.ones(3))
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    with pytest.raises(ValueError, match="head: weight must be finite and not all 0.*add it to skip"):
        apply_sigma_reparam(nn.ModuleDict({"head": zero}))
    with pytest.raises(ValueError, match=r"skip: there is no module 'haed' in ModuleDict; near it: head"):
        apply_sigma_reparam(nn.ModuleDict({"head": zero}), skip=["haed"])
    with pytest.raises(ValueError, match="ReLU has no Linear and no Conv2d"):
        apply_sigma_reparam(nn.ReLU())
