import math

import pytest
import torch
from torch.nn import Parameter

from leyden.optim import Lamb

SHAPES = [(4, 3), (7,), ()]


def start():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def train(params, steps, **arguments):
    params = [Parameter(p) for p in params]
    optimizer = Lamb(params, **arguments)
    for step in range(1, steps + 1):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = grad
        optimizer.step()
    return [p.detach() for p in params]


def reference(p, grads, *, lr, wd, betas=(0.9, 0.999), eps=1e-6, corrected=True, clamp=math.inf, adapt=True):
    """Algorithm 2 of the paper, in double precision."""
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        mh, vh = (m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)) if corrected else (m, v)
        u = mh / (vh.sqrt() + eps) + wd * p
        ratio = min((p**2).sum().sqrt() / (u**2).sum().sqrt(), clamp) if adapt and p.any() and u.any() else 1.0
        p = p - lr * ratio * u
    return p


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {}),
        ({"bias_correction": False}, {"corrected": False}),
        ({"clamp": 0.6}, {"clamp": 0.6}),
        ({"betas": (0.5, 0.7), "eps": 0.3}, {"betas": (0.5, 0.7), "eps": 0.3}),
    ],
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_equations(form, arguments, settings, weight_decay):
    params = train(start(), 25, lr=0.03, weight_decay=weight_decay, **arguments)
    for number, p in enumerate(params):
        grads = [gradients(step)[number] for step in range(1, 26)]
        expected = reference(start()[number], grads, lr=0.03, wd=weight_decay, **settings)
        torch.testing.assert_close(p, expected, rtol=1e-11, atol=1e-11)


def test_groups(form):
    first, second, _ = (Parameter(p) for p in start())
    groups = [{"params": [first]}, {"params": [second], "adapt": False, "lr": 0.1, "weight_decay": 0.5}]
    optimizer = Lamb(groups, lr=0.01, weight_decay=0.1)
    for step in range(1, 21):
        first.grad, second.grad, _ = gradients(step)
        optimizer.step()
    grads = list(zip(*map(gradients, range(1, 21)), strict=True))
    torch.testing.assert_close(first.detach(), reference(start()[0], grads[0], lr=0.01, wd=0.1))
    torch.testing.assert_close(second.detach(), reference(start()[1], grads[1], lr=0.1, wd=0.5, adapt=False))


def test_numbers_of_the_authors_code(form):
    # tensorflow_addons 0.23.0 (TensorFlow 2.14.1): optimizers.LAMB(0.01, weight_decay_rate=0.1) on a float64 variable.
    # It keeps its settings in float32.
    lr, beta1, beta2, weight_decay = torch.tensor([0.01, 0.9, 0.999, 0.1], dtype=torch.float32).tolist()
    p = Parameter(torch.tensor([[0.5, -1.0, 0.25], [2.0, -0.125, 1.5]], dtype=torch.float64))
    k = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)
    optimizer = Lamb([p], lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)
    for step in range(1, 25):
        p.grad = torch.sin(1.7 * step * k) + 0.1 * k
        optimizer.step()
    expected = [
        [0.39271009411734387, -1.0623943655416186, 0.12253500561678342],
        [1.659368205632514, -0.37739481412795073, 1.1693280322770427],
    ]
    torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("weight_decay", [0.0, 3.0])
def test_length_of_a_step(form, weight_decay):
    before = start()
    after = train(start(), 1, lr=0.1, weight_decay=weight_decay)
    for p, old in zip(after, before, strict=True):
        assert (p - old).norm().item() == pytest.approx(0.1 * old.norm().item(), rel=1e-12)


def test_scale_of_the_loss_does_not_matter(form):
    params = [Parameter(p) for p in start()]
    scaled = [Parameter(p) for p in start()]
    optimizers = Lamb(params, eps=1e-30, weight_decay=0.1), Lamb(scaled, eps=1e-30, weight_decay=0.1)
    for step in range(20):
        for p, other, grad in zip(params, scaled, gradients(step), strict=True):
            p.grad, other.grad = grad, 1000.0 * grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(params, scaled, rtol=1e-12, atol=1e-12)


def test_zeros_make_a_step_of_adam(form):
    p = Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    Lamb([p], lr=0.1, eps=1e-12).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1, 0.0], dtype=torch.float64))


def test_without_adaptation_it_is_adam(form):
    params, others = [Parameter(p) for p in start()], [Parameter(p) for p in start()]
    lamb = Lamb([{"params": params, "adapt": False}], lr=0.03, eps=1e-3)
    adam = torch.optim.Adam(others, lr=0.03, eps=1e-3)
    for step in range(20):
        for p, other, grad in zip(params, others, gradients(step), strict=True):
            p.grad, other.grad = grad, grad
        lamb.step()
        adam.step()
    torch.testing.assert_close(params, others, rtol=1e-12, atol=1e-12)


def test_norms_of_half_precision_do_not_overflow(form):
    p = Parameter(torch.full((3000,), 200.0, dtype=torch.float16))  # its norm is 10954, the sum of squares 1.2e8
    p.grad = torch.ones_like(p)
    Lamb([p], lr=0.1).step()
    torch.testing.assert_close(p.detach().float(), torch.full((3000,), 180.0), rtol=2e-3, atol=0.0)


def test_bad_clamp():
    with pytest.raises(ValueError, match="clamp must be above 0, or None for no limit, got 0.0"):
        Lamb([Parameter(torch.zeros(1))], clamp=0.0)
