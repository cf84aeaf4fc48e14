import pytest
import torch
from torch.nn import Parameter

from leyden.optim import AdaGradNorm


def train(optimizer, *params, steps=3):
    for step in range(steps):
        for p in params:
            p.grad = torch.sin(torch.arange(1.0, p.numel() + 1).view(p.shape) * (step + 1))
        optimizer.step()


# timlautk/AdAdaGrad at cc126fb: `Adagradnorm([w], lr=0.5, momentum=...)`, w from -1 to 1, the gradients of `train`
@pytest.mark.parametrize(
    ("shape", "momentum", "expected"),
    [
        ((2, 3), 0.0, [-1.63577521, -0.66972303, -0.28956628, 0.34962016, 0.98013282, 1.44111013]),
        ((2, 3), 0.9, [-1.12650728, -0.63195384, -0.20882782, 0.22757244, 0.69247776, 1.06807506]),
        ((2, 1, 1, 2), 0.9, [-1.12945497, -0.36528453, 0.32071170, 1.04568505]),
    ],
)
def test_rows_are_those_of_the_original_code(shape, momentum, expected, force_foreach):
    for foreach in (False, True):
        if foreach:
            force_foreach()
        w = Parameter(torch.linspace(-1.0, 1.0, len(expected)).view(shape))
        train(AdaGradNorm([w], lr=0.5, momentum=momentum, granularity="row"), w)
        torch.testing.assert_close(w.detach().flatten(), torch.tensor(expected))


def test_one_step_by_hand():
    p, q = Parameter(torch.tensor([1.0, 2.0])), Parameter(torch.tensor([[1.0]]))
    optimizer = AdaGradNorm(
        [{"params": [p]}, {"params": [q], "lr": 5.0}], weight_decay=1.0, initial_accumulator_value=3
    )
    p.grad, q.grad = torch.tensor([1.0, 0.0]), torch.tensor([[4.0]])  # g = (2, 2) and 5, A = 3 + 4 + 4 + 25 = 36
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([1.0 - 2.0 / 6.0, 2.0 - 2.0 / 6.0]))
    torch.testing.assert_close(q.detach(), torch.tensor([[1.0 - 5.0 * 5.0 / 6.0]]))
    p.grad, q.grad = None, torch.tensor([[3.0]])
    q.data.zero_()
    optimizer.step()
    torch.testing.assert_close(q.detach(), torch.tensor([[-5.0 * 3.0 / 45**0.5]]))
    q.grad, p.grad, p.data[:] = None, torch.tensor([0.0, 6.0]), 0.0
    optimizer.step()  # A has the gradients of q
    torch.testing.assert_close(p.detach(), torch.tensor([0.0, -6.0 / 9.0]))


def test_one_row_is_the_whole():
    weights = []
    for granularity in ("global", "row"):
        p = Parameter(torch.ones(1, 5))
        train(AdaGradNorm([p], momentum=0.5, granularity=granularity), p)
        weights.append(p.detach())
    torch.testing.assert_close(*weights)


def test_a_row_of_its_own_for_each_entry_is_adagrad():
    p, q = (Parameter(torch.linspace(-1.0, 1.0, 7)) for _ in range(2))
    train(AdaGradNorm([p], lr=0.1, granularity="row"), p)
    train(torch.optim.Adagrad([q], lr=0.1, initial_accumulator_value=1e-2), q)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"initial_accumulator_value": -1.0}, "initial_accumulator_value must be at least 0, got -1.0"),
        ({"granularity": "tensor"}, "granularity must be 'global' or 'row', got 'tensor'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaGradNorm([Parameter(torch.zeros(1))], **arguments)
