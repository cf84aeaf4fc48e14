import math

import pytest
import torch
from torch import nn

from leyden.losses import gradient_norm

HESSIAN = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 1.0]], dtype=torch.float64)
POINT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def test_quadratic_by_hand():
    # 0.5 x'Hx has the gradient Hx = (1, -3.25, 1.5), and the gradient of its norm is H Hx / ||Hx||
    x = POINT.clone().requires_grad_()
    norm = gradient_norm(0.5 * x @ HESSIAN @ x, [x])
    size = math.sqrt(1.0 + 3.25**2 + 1.5**2)
    assert norm.item() == pytest.approx(size, rel=1e-12)
    norm.backward()
    expected = torch.tensor([-0.25, -6.25, 3.125], dtype=torch.float64) / size
    torch.testing.assert_close(x.grad, expected, rtol=1e-11, atol=0)


def test_norm_is_over_all_parameters_used_or_not():
    a, b, unused = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in ([2.0], [[1.0]], [5.0]))
    norm = gradient_norm((3.0 * a).sum() + (4.0 * b).sum(), [a, b, unused])
    assert norm.item() == pytest.approx(5.0, rel=1e-12)


def test_linear_function_has_no_gradient_of_the_norm():
    torch.manual_seed(0)
    x, layer = torch.randn(7, 3, dtype=torch.float64), nn.Linear(3, 1, dtype=torch.float64)
    norm = gradient_norm(layer(x).mean(), list(layer.parameters()))
    assert norm.item() == pytest.approx((x.mean(0).square().sum() + 1.0).sqrt().item(), rel=1e-12)
    assert not norm.requires_grad


def test_gradient_by_finite_differences_to_second_order():
    torch.manual_seed(0)
    x = torch.randn(5, 2, dtype=torch.float64)

    def norm(weight, bias):
        return gradient_norm(torch.tanh(x @ weight + bias).square().mean(), [weight, bias])

    weight, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3), (3,)))
    assert torch.autograd.gradcheck(norm, (weight, bias))
    assert torch.autograd.gradgradcheck(norm, (weight, bias))


def test_gradient_of_zero_is_zero():
    x = torch.zeros(2, requires_grad=True)
    norm = gradient_norm(x.square().sum(), [x])
    norm.backward()
    assert norm.item() == pytest.approx(1e-6)
    assert not x.grad.any()


def test_graph_is_kept_and_grad_left_alone():
    x = POINT.clone().requires_grad_()
    loss = x.pow(3).sum()
    norm = gradient_norm(loss, [x], create_graph=False)
    assert not norm.requires_grad
    assert x.grad is None
    loss.backward()
    torch.testing.assert_close(x.grad, 3.0 * POINT.square())


def test_half_precision_is_summed_in_float32():
    x = torch.full((4096,), 0.125, dtype=torch.bfloat16, requires_grad=True)  # bfloat16 sums stop at 256 summands
    assert gradient_norm((3.0 * x).sum(), [x]).item() == pytest.approx(3.0 * 64.0, rel=1e-6)
    assert gradient_norm((3.0 * x).sum(), [x]).dtype == torch.float32


def norms_by_rank(values):
    import torch.distributed as dist

    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    norm = gradient_norm((torch.tensor(values[dist.get_rank()], dtype=torch.float64) * x.pow(3)).sum(), [x])
    norm.backward()
    return norm.item(), x.grad


def test_processes_have_the_norm_of_the_mean_gradient(run_processes):
    values = [[1.0, -2.0], [4.0, 6.0]]
    mean = torch.tensor(values, dtype=torch.float64).mean(0)
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    expected = (3.0 * mean * x.square()).square().sum().sqrt()
    expected.backward()
    (one, first), (two, second) = run_processes(norms_by_rank, 2, values)
    assert one == two == pytest.approx(expected.item(), rel=1e-12)
    assert not torch.equal(first, second)
    torch.testing.assert_close((first + second) / 2, x.grad, rtol=1e-11, atol=0)


def test_bad_input():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="params must hold at least one tensor, got none"):
        gradient_norm(x.sum(), [])
    with pytest.raises(ValueError, match="scalar must depend on params, but requires no gradient"):
        gradient_norm(torch.tensor(1.0), [x])
    with pytest.raises(ValueError, match="none of them is in its graph"):
        gradient_norm(x.sum(), [torch.ones(1, requires_grad=True)])
