import math

import pytest
import torch
from torch.nn import Parameter

from leyden.optim import SPAM

SHAPES = [(4, 3), (7,), ()]


def start():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [20.0 * grad for grad in grads] if step % 6 == 5 else grads


def reference(p, grads, *, lr, betas=(0.9, 0.999), eps=1e-6, wd=0.0, threshold=5000.0, reset=500, warmup=150, wait=20):
    """Algorithm 1 of the paper with the schedule of the authors' code, in double precision."""
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    j = None  # steps since the last reset was announced
    clipped = 0
    for n, g in enumerate(grads, 1):
        g = g.clone()
        c = 1.0 if j is None or j >= warmup else 1 - 0.99 * (1 + math.cos(math.pi * j / (warmup + 1))) / 2
        j = None if j is None else j + 1
        if reset and n % reset == 0:
            m, v = torch.zeros_like(p), torch.zeros_like(p)
        if threshold and n >= wait and (not reset or n % reset >= wait):
            spiked = g**2 > threshold * v
            clipped += spiked.sum().item()
            g[spiked] = g[spiked].sign() * (threshold * v[spiked]).sqrt()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * c * math.sqrt(1 - betas[1] ** n) / (1 - betas[0] ** n) * m / (v.sqrt() + eps)
        p = p - lr * wd * p
        if reset and (n + 1) % reset == 0:
            j = 0
    return p, clipped


CASES = [
    ({"threshold": 30.0, "accumulate_steps": 4}, {"threshold": 30.0, "wait": 4}),
    (
        {"threshold": 30.0, "reset_interval": 8, "warmup_steps": 5, "accumulate_steps": 2, "weight_decay": 0.2},
        {"threshold": 30.0, "reset": 8, "warmup": 5, "wait": 2, "wd": 0.2},
    ),
    (
        {"threshold": 9.0, "reset_interval": 0, "accumulate_steps": 0, "eps": 0.1, "betas": (0.5, 0.7)},
        {"threshold": 9.0, "reset": 0, "wait": 0, "eps": 0.1, "betas": (0.5, 0.7)},
    ),
    (
        {"threshold": 30.0, "reset_interval": 5, "warmup_steps": 9, "accumulate_steps": 2},
        {"threshold": 30.0, "reset": 5, "warmup": 9, "wait": 2},
    ),
]


@pytest.mark.parametrize(("arguments", "settings"), CASES)
def test_equations(form, arguments, settings):
    params = [Parameter(p) for p in start()]
    optimizer = SPAM(params, lr=0.03, **arguments)
    for step in range(1, 27):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = grad
        optimizer.step()
    for number, p in enumerate(params):
        grads = [gradients(step)[number] for step in range(1, 27)]
        expected, clipped = reference(start()[number], grads, lr=0.03, **settings)
        assert clipped > 0
        torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=1e-11)


def test_numbers_of_the_authors_code(form):
    # AdamW of TianjinYellow/SPAM-Optimizer at e8185fb on float64: lr=0.01, weight_decay=0.1, warmup_steps=4,
    # threshold=3, DeltaT=9, grad_accu_steps=3; the gradients below.
    k = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)
    p = Parameter(torch.tensor([[0.5, -1.0, 0.25], [2.0, -0.125, 1.5]], dtype=torch.float64))
    optimizer = SPAM(
        [p], lr=0.01, weight_decay=0.1, threshold=3.0, reset_interval=9, warmup_steps=4, accumulate_steps=3
    )
    for t in range(1, 25):
        p.grad = torch.sin(1.7 * t * k) + 0.1 * k
        if t in (7, 13):
            p.grad[0, 1] *= 50.0
            p.grad[1, 2] *= 80.0
        optimizer.step()
    expected = [
        [0.45266884336075625, -0.9968519858714404, 0.24870304318374545],
        [1.9231722341936448, -0.1865544913250315, 1.4079546150544904],
    ]
    torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_without_threshold_and_resets_it_is_adam(form):
    params, others = [Parameter(p) for p in start()], [Parameter(p) for p in start()]
    spam = SPAM(params, lr=0.03, eps=1e-14, threshold=0.0, reset_interval=0)
    adam = torch.optim.Adam(others, lr=0.03, eps=1e-14)
    for step in range(30):
        for p, other, grad in zip(params, others, gradients(step), strict=True):
            p.grad, other.grad = grad, grad
        spam.step()
        adam.step()
    torch.testing.assert_close(params, others, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["threshold", "reset_interval", "warmup_steps", "accumulate_steps", "eps"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        SPAM([Parameter(torch.zeros(1))], **{name: -1})
