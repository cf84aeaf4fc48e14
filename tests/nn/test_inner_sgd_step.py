import pytest
import torch

from leyden.nn import inner_sgd_step


def test_by_hand():
    w = torch.tensor(2.0, requires_grad=True)
    unused = torch.tensor(5.0, requires_grad=True)
    params = {"w": w, "unused": unused}
    stepped = inner_sgd_step(params, w**3, lr=0.1)
    assert stepped["w"].item() == pytest.approx(2.0 - 0.1 * 12.0)
    assert stepped["unused"] is unused
    assert w.item() == 2.0
    (gradient,) = torch.autograd.grad(stepped["w"] ** 2, w)  # 2 w' (1 - 0.1 * 6 w)
    assert gradient.item() == pytest.approx(2.0 * 0.8 * (1.0 - 1.2))
    first_order = inner_sgd_step(params, w**3, lr=0.1, create_graph=False)["w"]
    assert torch.autograd.grad(first_order**2, w)[0].item() == pytest.approx(2.0 * 0.8)


def test_gradient_to_what_the_loss_holds():
    w, target = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.0, 5.0], requires_grad=True)
    stepped = inner_sgd_step({"w": w}, (w - target).square().sum(), lr=0.25)["w"]
    torch.testing.assert_close(stepped, torch.tensor([0.5, 3.5]))
    assert torch.autograd.grad(stepped.sum(), target)[0].tolist() == [0.5, 0.5]


def test_no_step():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(inner_sgd_step({"w": w}, w.square().sum(), lr=0.0)["w"], w)


def test_bad_arguments():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"loss must be a scalar, got the shape \(2,\)"):
        inner_sgd_step({"w": w}, w, lr=0.1)
    with pytest.raises(ValueError, match="lr must be at least 0, got -1.0"):
        inner_sgd_step({"w": w}, w.sum(), lr=-1.0)
