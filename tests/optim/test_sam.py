import pytest
import torch
from torch import nn

from leyden.optim import perturbed_parameters, sam_perturbation


def test_perturbation_by_hand():
    params = [torch.tensor([2.0, -1.0]), torch.tensor([[0.5]])]
    grads = [torch.tensor([0.0, 3.0]), torch.tensor([[-4.0]])]  # of norm 5
    first, second = sam_perturbation(params, grads, rho=0.5)
    torch.testing.assert_close(first, torch.tensor([0.0, 0.3]))
    torch.testing.assert_close(second, torch.tensor([[-0.4]]))
    # |w| g is (0, 3, -2), of norm sqrt(13); w^2 g is (0, 3, -1)
    first, second = sam_perturbation(params, grads, rho=0.5, adaptive=True)
    torch.testing.assert_close(first, torch.tensor([0.0, 1.5]) / 13**0.5)
    torch.testing.assert_close(second, torch.tensor([[-0.5]]) / 13**0.5)
    assert params[0].tolist() == [2.0, -1.0]
    assert grads[1].item() == -4.0


def test_no_gradient_and_no_radius_move_nothing():
    params = [torch.ones(3)]
    for adaptive in (False, True):
        assert sam_perturbation(params, [torch.zeros(3)], adaptive=adaptive)[0].tolist() == [0.0] * 3
        assert sam_perturbation(params, [torch.ones(3)], rho=0.0, adaptive=adaptive)[0].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="rho must be at least 0, got -1"):
        sam_perturbation(params, params, rho=-1.0)


def test_moved_within_and_the_same_bits_behind():
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(50, generator=generator)) for _ in range(2)]
    step = [torch.randn(50, generator=generator) for _ in range(2)]
    before = [p.detach().clone() for p in params]
    assert any((p + s - s != p).any() for p, s in zip(before, step, strict=True))  # what subtraction would give
    with perturbed_parameters(params, step):
        assert all(torch.equal(p, b + s) for p, b, s in zip(params, before, step, strict=True))
    assert all(map(torch.equal, params, before))
    with pytest.raises(RuntimeError, match="stop"), perturbed_parameters(params, step):
        raise RuntimeError("stop")
    assert all(map(torch.equal, params, before))


def test_autocast_sees_the_moved_weights():
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with perturbed_parameters([layer.weight], [torch.ones(4, 4)]):
            within = layer(x)
        behind = layer(x)
    torch.testing.assert_close(within.float(), before.float() + 4.0, rtol=0.0, atol=0.1)
    assert torch.equal(behind, before)
