import pytest
import torch
from torch import nn

from leyden.nn import LearnedProximalNetwork

X = torch.tensor([[0.3, -0.8], [1.5, 0.2], [-0.4, -1.1]], dtype=torch.float64)


def known_network():
    """Weights as the sine of 1.7 k, k counted through the tensors in the order of the authors' code."""
    network = LearnedProximalNetwork(2, (3, 3, 3)).double()
    affine, convex = network.affine, network.convex
    weights = [affine[0].weight, *(layer.weight for layer in convex)]
    weights += [tensor for layer in affine[1:] for tensor in (layer.weight, layer.bias)]
    start = 0
    with torch.no_grad():
        affine[0].bias.zero_()
        for weight in weights:
            numbers = torch.arange(start, start + weight.numel(), dtype=torch.float64)
            weight.copy_((1.7 * numbers).sin().view_as(weight))
            start += weight.numel()
    network.clamp_weights_()
    return network


def random_network(**knobs):
    torch.manual_seed(0)
    network = LearnedProximalNetwork(5, (7, 6), **knobs).double()
    for layer in network.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return network


def test_the_authors_numbers():
    # printed by `LPN` of ZhenghanFang/learned-proximal-networks, commit cbc3cfa, exps/laplacian/network.py, with a
    # beta of 10, two inner layers of 3, the same weights (clipped) and a last affine map of 0
    network = known_network()
    psi = [0.028204774609685263, 0.0013718618361181043, 0.08148004366611689]
    f = [
        *(-0.05775198854097222, 0.011860429890373277),
        *(-0.008643603051212381, 0.0054100089344589425),
        *(-0.10087526789228958, -0.007125682005901084),
    ]
    assert network.potential(X).tolist() == pytest.approx(psi, rel=1e-12)
    assert network(X).flatten().tolist() == pytest.approx(f, rel=1e-11)


@pytest.mark.parametrize("strong_convexity", [0.0, 0.3])
def test_it_is_the_gradient_of_the_potential(strong_convexity):
    network = random_network(beta=3.0, strong_convexity=strong_convexity)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(network.potential(x).sum(), x)
    torch.testing.assert_close(network(x), gradient)
    assert torch.autograd.gradcheck(network, x)  # it can be differentiated itself


def test_the_jacobian_is_symmetric_and_positive_semidefinite():
    network = random_network()
    for x in torch.randn(6, 5, dtype=torch.float64):
        jacobian = torch.func.jacrev(lambda x: network(x.unsqueeze(0)).squeeze(0))(x)
        assert jacobian.abs().max() > 1e-3
        torch.testing.assert_close(jacobian, jacobian.T, rtol=0.0, atol=1e-12)
        assert torch.linalg.eigvalsh(jacobian).min() > -1e-10


def test_strong_convexity_bounds_the_eigenvalues():
    network = random_network(strong_convexity=0.25)
    jacobian = torch.func.jacrev(lambda x: network(x.unsqueeze(0)).squeeze(0))(torch.randn(5, dtype=torch.float64))
    assert torch.linalg.eigvalsh(jacobian).min() > 0.5 - 1e-10


def test_it_is_monotone():
    network = random_network()
    x, y = torch.randn(2, 100, 5, dtype=torch.float64)
    assert ((network(x) - network(y)) * (x - y)).sum(-1).min() >= 0.0


def test_clamping_makes_it_convex_again():
    network = random_network()
    for layer in network.convex:
        nn.init.normal_(layer.weight)
    before = {name: p.clone() for name, p in network.named_parameters()}
    network.clamp_weights_()
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name].clamp(min=0.0) if name.startswith("convex") else before[name])
    x, y = torch.randn(2, 100, 5, dtype=torch.float64)
    middle = network.potential(0.5 * (x + y))
    assert (middle <= 0.5 * (network.potential(x) + network.potential(y)) + 1e-12).all()


def test_weights_start_positive_and_as_large_as_a_mean():
    torch.manual_seed(0)
    network = LearnedProximalNetwork(4, (200, 200))
    for layer in network.convex:
        assert layer.weight.min() > 0.0
        assert layer.weight.log().mean().item() == pytest.approx(torch.tensor(1 / 200.0).log().item(), abs=0.03)


def test_in_inference_mode_and_under_autocast():
    torch.manual_seed(0)
    network = LearnedProximalNetwork(4, (8,))
    x = torch.randn(3, 1, 2, 2)
    expected = network(x)
    assert expected.shape == (3, 4)
    assert expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(network(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(x), expected)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dim": 0}, "dim must be 1 or more, got 0"),
        ({"hidden": ()}, r"hidden must hold at least one size, each 1 or more, got \(\)"),
        ({"hidden": (4, 0)}, r"each 1 or more, got \(4, 0\)"),
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"strong_convexity": -1.0}, "strong_convexity must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        LearnedProximalNetwork(**({"dim": 4} | arguments))
