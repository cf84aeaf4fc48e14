import math

import pytest
import torch
from torch.nn import Parameter

from leyden.optim import StableSPAM

SHAPES = [(4, 3), (7,), ()]


def start():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def gradients(step):
    """Now and then with a spike: two entries of the first tensor, in different sizes."""
    generator = torch.Generator().manual_seed(100 + step)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    if step % 6 == 5:
        grads[0][0, 1] *= 40.0
        grads[0][3, 2] *= 90.0
    return grads


def train(steps, scale=1.0, **arguments):
    params = [Parameter(p) for p in start()]
    optimizer = StableSPAM(params, **arguments)
    for step in range(1, steps + 1):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = scale * grad
        optimizer.step()
    return [p.detach() for p in params]


def reference(p, grads, *, lr, betas=(0.9, 0.999), eps=1e-8, wd=0.0, gammas=(0.7, 0.9, 0.999), reset=1000, total=None):
    """Algorithm 1 of the paper, in double precision, entry by entry where it speaks of entries."""
    c1, c2, theta = gammas
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    largest = mean = mean_sq = 0.0
    k = clipped = 0
    for n, g in enumerate(grads, 1):
        s = 1.0 if total is None else 0.5 + 0.5 * (1 + math.cos(math.pi * min(n, total + 1) / (total + 1))) / 2
        p, g = p * (1 - lr * wd), g.clone()
        top = g.abs().max().item()
        largest = theta * largest + (1 - theta) * top
        limit = largest / (1 - theta**n)
        flat = g.view(-1)
        for i in range(flat.numel()):
            if abs(flat[i].item()) > limit * (1 + 1e-12):
                flat[i] = flat[i] / top * limit
                clipped += 1
        q = g.norm().item()
        mean = s * c1 * mean + (1 - s * c1) * q
        mean_sq = c2 * mean_sq + (1 - c2) * q**2
        g = g / q * (mean / (1 - (s * c1) ** n)) / (math.sqrt(mean_sq / (1 - c2**n)) + eps)
        k += 1
        if reset and n % reset == 0:
            m, v, k = torch.zeros_like(p), torch.zeros_like(p), 1
        b1, b2 = s * betas[0], betas[1]
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (1 - b1**k)) / ((v / (1 - b2**k)).sqrt() + eps)
    return p, clipped


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {}),
        ({"weight_decay": 0.2, "gammas": (0.6, 0.8, 0.9)}, {"wd": 0.2, "gammas": (0.6, 0.8, 0.9)}),
        ({"reset_interval": 7}, {"reset": 7}),
        ({"reset_interval": 1}, {"reset": 1}),
        ({"reset_interval": 0, "total_steps": 20}, {"reset": 0, "total": 20}),
        ({"betas": (0.5, 0.7), "eps": 0.1, "total_steps": 40}, {"betas": (0.5, 0.7), "eps": 0.1, "total": 40}),
    ],
)
def test_equations(form, arguments, settings):
    params = train(26, lr=0.03, **arguments)
    for number, p in enumerate(params):
        grads = [gradients(step)[number] for step in range(1, 27)]
        expected, clipped = reference(start()[number], grads, lr=0.03, **settings)
        assert clipped >= 4
        torch.testing.assert_close(p, expected, rtol=1e-10, atol=1e-10)


def test_groups(form):
    first, second, _ = (Parameter(p) for p in start())
    groups = [{"params": [first]}, {"params": [second], "lr": 0.1, "weight_decay": 0.5, "reset_interval": 5}]
    optimizer = StableSPAM(groups, lr=0.01, weight_decay=0.1)
    for step in range(1, 21):
        first.grad, second.grad, _ = gradients(step)
        optimizer.step()
    grads = list(zip(*map(gradients, range(1, 21)), strict=True))
    torch.testing.assert_close(first.detach(), reference(start()[0], grads[0], lr=0.01, wd=0.1)[0])
    torch.testing.assert_close(second.detach(), reference(start()[1], grads[1], lr=0.1, wd=0.5, reset=5)[0])


@pytest.mark.parametrize(
    ("total_steps", "expected"),
    [
        (
            30,
            [
                [0.45193437391811064, -1.0183330991431347, 0.20772738939889507],
                [1.8597492233657216, -0.20545449490408804, 1.379954586584554],
            ],
        ),
        (
            None,
            [
                [0.44031176776917186, -1.028150719355498, 0.1957391661925351],
                [1.822612864338494, -0.22690300669318741, 1.3551523955240585],
            ],
        ),
    ],
)
def test_numbers_of_the_authors_code(form, total_steps, expected):
    # TianjinYellow/StableSPAM at 6a66da1 on float64, without resets, which it makes differently: lr=0.01,
    # weight_decay=0.1, gamma3=0.9, update_proj_gap=0, total_T as here; the gradients below.
    k = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)
    p = Parameter(torch.tensor([[0.5, -1.0, 0.25], [2.0, -0.125, 1.5]], dtype=torch.float64))
    gammas = (0.7, 0.9, 0.9)
    optimizer = StableSPAM([p], lr=0.01, weight_decay=0.1, gammas=gammas, total_steps=total_steps, reset_interval=0)
    for t in range(1, 25):
        p.grad = torch.sin(1.7 * t * k) + 0.1 * k
        if t in (7, 13):
            p.grad[0, 1] *= 50.0
            p.grad[1, 2] *= 80.0
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_scale_of_the_gradients_does_not_matter(form):
    arguments = {"lr": 0.03, "eps": 1e-30, "reset_interval": 6}
    torch.testing.assert_close(train(20, 1e5, **arguments), train(20, **arguments), rtol=1e-10, atol=1e-10)


def test_first_step(form):
    params = [Parameter(p) for p in start()]
    optimizer = StableSPAM(params, lr=0.03, eps=1e-30)
    for p, grad in zip(params, gradients(5), strict=True):
        p.grad = 50.0 * grad
    optimizer.step()
    for p, old in zip(params, start(), strict=True):
        assert optimizer.state[p]["exp_avg"].norm().item() / (1 - 0.9) == pytest.approx(1.0)  # of the gradient used
        torch.testing.assert_close(p.detach(), old - 0.03 * p.grad.sign())


def test_without_averages_it_is_adam_on_unit_gradients(form):
    params, others = [Parameter(p) for p in start()], [Parameter(p) for p in start()]
    optimizer = StableSPAM(params, lr=0.03, eps=1e-12, gammas=(0.0, 0.0, 0.0), reset_interval=0)
    adam = torch.optim.Adam(others, lr=0.03, eps=1e-12)
    for step in range(20):
        for p, other, grad in zip(params, others, gradients(step), strict=True):
            p.grad, other.grad = grad, grad / grad.norm()
        optimizer.step()
        adam.step()
    torch.testing.assert_close(params, others, rtol=1e-8, atol=1e-8)


def test_zero_gradients(form):
    p = Parameter(torch.ones(3))
    optimizer = StableSPAM([p], lr=0.1)
    for grad in (torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3)):
        p.grad = grad
        optimizer.step()
    assert p[0] < 0.9
    assert p[1:].tolist() == [1.0, 1.0]


def test_statistics_of_half_precision_move(form):
    p = Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = StableSPAM([p])
    for step in range(200):  # in bfloat16 the mean would stop near 1 / 256 of the way, at 0.999 per step
        p.grad = torch.full((3,), 1.0 if step < 100 else 2.0, dtype=torch.bfloat16)
        optimizer.step()
    by_hand = (1 - 0.999**100) * 0.999**100 + 2 * (1 - 0.999**100)
    assert optimizer.state[p]["grad_stats"][2].item() == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gammas": (0.7, 0.9)}, r"gammas must be 3 numbers in \[0, 1\)"),
        ({"reset_interval": -1}, "reset_interval must be at least 0"),
        ({"total_steps": 0}, "total_steps must be at least 1, or None for constant betas, got 0"),
        ({"eta_min": 1.5}, r"eta_min must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        StableSPAM([Parameter(torch.zeros(1))], **arguments)
