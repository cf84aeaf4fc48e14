import pytest
import torch
from torch.nn import Parameter

from leyden.optim import Lars

SHAPES = [(4, 3), (7,), ()]


def start():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def reference(p, grads, *, lr, momentum=0.9, wd=0.0, nesterov=False, trust=1e-3, eps=1e-8, adapt=True):
    """Algorithm 1 of the paper with the momentum of torch.optim.SGD, in double precision."""
    b = None
    for g in grads:
        r = 1.0
        if adapt and p.any() and g.any():
            r = trust * (p**2).sum().sqrt() / ((g**2).sum().sqrt() + wd * (p**2).sum().sqrt() + eps)
        d = r * (g + wd * p)
        b = d if b is None else momentum * b + d
        p = p - lr * (d + momentum * b if nesterov else b)
    return p


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {}),
        ({"weight_decay": 0.2}, {"wd": 0.2}),
        ({"momentum": 0.5, "trust_coefficient": 0.02, "eps": 0.5}, {"momentum": 0.5, "trust": 0.02, "eps": 0.5}),
    ],
)
def test_equations(form, nesterov, arguments, settings):
    params = [Parameter(p) for p in start()]
    optimizer = Lars(params, lr=3.0, nesterov=nesterov, **arguments)
    for step in range(1, 26):
        for p, grad in zip(params, gradients(step), strict=True):
            p.grad = grad
        optimizer.step()
    for number, p in enumerate(params):
        grads = [gradients(step)[number] for step in range(1, 26)]
        expected = reference(start()[number], grads, lr=3.0, nesterov=nesterov, **settings)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=1e-11)


# Lars of timm 1.0.31 on float64, with the settings and gradients of the test below
OF_TIMM = {
    False: (
        [[0.1955855743400272, -1.1831129137863143, -0.035907354017074226],
         [0.8495476554814521, -0.9614495231741165, 0.4778747676918443]],
        [0.5813935140502807, -0.7788015352254081, 0.31555644284433665],
        [0.05674157425512362, -0.06876414225494162],
    ),
    True: (
        [[0.16901514298398795, -1.1768028574164044, -0.027125268806406352],
         [0.8745870343901243, -0.9917102575478081, 0.4379614092786024]],
        [0.5801202560153977, -0.7682607844699747, 0.32051626382301657],
        [0.05798782139896438, -0.06319420854197219],
    ),
}  # fmt: skip


@pytest.mark.parametrize("nesterov", [False, True])
def test_numbers_of_timm(form, nesterov):
    k = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)
    starts = [[[0.5, -1.0, 0.25], [2.0, -0.125, 1.5]], [0.5, -1.0, 0.25], [0.0, 0.0]]
    params = [Parameter(torch.tensor(values, dtype=torch.float64)) for values in starts]
    optimizer = Lars(params, lr=2.0, momentum=0.8, weight_decay=0.05, nesterov=nesterov, trust_coefficient=0.02)
    for t in range(1, 13):
        params[0].grad = torch.sin(1.7 * t * k) + 0.1 * k
        params[1].grad = torch.cos(1.3 * t * k[0])
        params[2].grad = torch.zeros(2, dtype=torch.float64) if t < 4 else 0.01 * torch.sin(t * k[0, :2])
        optimizer.step()
    for p, expected in zip(params, OF_TIMM[nesterov], strict=True):
        torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_adaptation_it_is_sgd(form, nesterov):
    params, others = [Parameter(p) for p in start()], [Parameter(p) for p in start()]
    lars = Lars([{"params": params, "adapt": False}], lr=0.03, weight_decay=0.1, nesterov=nesterov)
    sgd = torch.optim.SGD(others, lr=0.03, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    for step in range(20):
        for p, other, grad in zip(params, others, gradients(step), strict=True):
            p.grad, other.grad = grad, grad
        lars.step()
        sgd.step()
    torch.testing.assert_close(params, others, rtol=1e-12, atol=1e-12)


def test_without_momentum(form):
    p = Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = Lars([p], lr=1.0, momentum=0.0, trust_coefficient=0.1, eps=0.0)
    for _ in range(2):  # by hand: the gradient's length is 2, r = 0.1 * 5 / 2, then 0.1 * sqrt(3^2 + 3.5^2) / 2
        p.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)
        optimizer.step()
    expected = torch.tensor([3.0, 3.5 - 0.1 * (3.0**2 + 3.5**2) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected)


def test_a_zero_norm_means_a_ratio_of_1(form):
    zero, still = (Parameter(torch.tensor(values, dtype=torch.float64)) for values in ([0.0, 0.0], [3.0, 4.0]))
    zero.grad = torch.tensor([2.0, -1.0], dtype=torch.float64)
    still.grad = torch.zeros(2, dtype=torch.float64)
    Lars([zero, still], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(zero.detach(), torch.tensor([-0.2, 0.1], dtype=torch.float64))
    torch.testing.assert_close(still.detach(), torch.tensor([2.85, 3.8], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum above 0, got momentum=0.0"),
        ({"trust_coefficient": -1.0}, "trust_coefficient must be at least 0"),
        ({"eps": -1.0}, "eps must be at least 0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        Lars([Parameter(torch.zeros(1))], **arguments)
