import pytest
import torch
from torch.nn import Linear, Parameter
from torch.nn.functional import cross_entropy

from leyden.optim import Sophia, gnb_labels, hutchinson

SHAPES = [(4, 3), (7,)]


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def give(params, grads):
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def reference(p, steps, *, lr, betas=(0.965, 0.99), rho=0.04, wd=0.1, eps=1e-15):
    """Algorithm 3 of the paper, in double precision; a step is a gradient and, if one follows, an estimate."""
    m, h = torch.zeros_like(p), torch.zeros_like(p)
    for g, estimate in steps:
        p = p - lr * wd * p
        m = betas[0] * m + (1 - betas[0]) * g
        for i in range(p.numel()):
            ratio = m.view(-1)[i] / max(rho * h.view(-1)[i], eps)
            p.view(-1)[i] -= lr * max(-1.0, min(1.0, ratio))
        if estimate is not None:
            h = betas[1] * h + (1 - betas[1]) * estimate
    return p


@pytest.mark.parametrize("estimator", ["gradients", "estimates"])
def test_equations(form, estimator):
    start = tensors(0)
    params = [Parameter(p.clone()) for p in start]
    groups = [{"params": params[:1]}, {"params": params[1:], "rho": 0.7, "weight_decay": 0.0, "betas": (0.5, 0.6)}]
    optimizer = Sophia(groups, lr=0.05, betas=(0.8, 0.9), rho=2.0, weight_decay=0.2)
    steps = []
    for step in range(24):
        grads, estimates = tensors(1 + step), [None] * 2
        give(params, grads)
        optimizer.step()
        if step % 4 == 3 and estimator == "estimates":
            estimates = tensors(100 + step)  # also negative ones
            optimizer.update_hessian(estimates)
        elif step % 4 == 3:
            drawn = tensors(100 + step)
            give(params, drawn)
            optimizer.update_hessian(batch_size=3)
            estimates = [3 * grad**2 for grad in drawn]
        steps.append(list(zip(grads, estimates, strict=True)))
    settings = [{"betas": (0.8, 0.9), "rho": 2.0, "wd": 0.2}, {"betas": (0.5, 0.6), "rho": 0.7, "wd": 0.0}]
    for number, p in enumerate(params):
        expected = reference(start[number], [step[number] for step in steps], lr=0.05, **settings[number])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def test_numbers_of_the_authors_code(form):
    # SophiaG of Liuhong99/Sophia at a7e1572, on float64: lr=0.01, betas=(0.9, 0.8), rho=0.04, weight_decay=0.1; the
    # gradients below, step(bs=24), and after every fifth step update_hessian() on the gradient of "step" 100 + t.
    k = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)
    p = Parameter(torch.tensor([[0.5, -1.0, 0.25], [2.0, -0.125, 1.5]], dtype=torch.float64))
    optimizer = Sophia([p], lr=0.01, betas=(0.9, 0.8), rho=0.04, weight_decay=0.1)
    for t in range(1, 25):
        p.grad = torch.sin(1.7 * t * k) + 0.1 * k
        optimizer.step()
        if t % 5 == 0:
            p.grad = torch.sin(1.7 * (100 + t) * k) + 0.1 * k
            optimizer.update_hessian(batch_size=24)
    expected = [
        [0.37380016268859567, -1.1495584976550068, 0.1851661729112219],
        [1.7152878390035626, -0.35847370790044986, 1.2466958704681763],
    ]
    torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_no_entry_moves_by_more_than_lr(form):
    params = [Parameter(p) for p in tensors(0)]
    optimizer = Sophia(params, lr=0.05, weight_decay=0.0)
    for step in range(20):
        before = [p.detach().clone() for p in params]
        give(params, [100.0 * grad for grad in tensors(1 + step)])
        optimizer.step()
        optimizer.update_hessian(tensors(100 + step))
        for p, old in zip(params, before, strict=True):
            assert (p - old).abs().max() <= 0.05 * (1 + 1e-12)


def test_rho_0_is_the_sign_of_the_momentum(form):
    p = Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = Sophia([p], lr=0.1, rho=0.0, weight_decay=0.0)
    optimizer.update_hessian([torch.ones_like(p)])
    p.grad = torch.tensor([3.0, -1e-9, 0.0, 1.0], dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == [-0.1, 0.1, 0.0, -0.1]


def test_large_rho_is_preconditioned_momentum(form):
    p, other = (Parameter(tensors(0)[0]) for _ in range(2))
    h = tensors(1)[0].abs() + 0.1
    optimizer = Sophia([p], lr=0.1, betas=(0.9, 0.0), rho=1e6, weight_decay=0.0)
    sgd = torch.optim.SGD([other], lr=0.1 * (1 - 0.9) / 1e6, momentum=0.9)
    optimizer.update_hessian([h])
    for step in range(20):
        p.grad = tensors(2 + step)[0]
        other.grad = p.grad / h
        optimizer.step()
        sgd.step()
    start = tensors(0)[0]
    torch.testing.assert_close(p - start, other - start, rtol=1e-6, atol=0.0)


def test_win_rate():
    a, b = (Parameter(torch.zeros(4)) for _ in range(2))
    optimizer = Sophia([{"params": [a]}, {"params": [b], "rho": 10.0}], betas=(0.0, 0.0), rho=1.0)
    a.grad, b.grad = (torch.tensor([0.5, -0.5, -2.0, 2.0]) for _ in range(2))
    optimizer.step()
    optimizer.update_hessian([torch.ones(4), torch.tensor([1.0, 1.0, 1.0, -1.0])])
    assert optimizer.win_rate() == (2 + 3) / 8


def test_parameters_without_gradient_keep_their_estimate():
    a, b = (Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = Sophia([a, b], betas=(0.9, 0.5))
    for grad in (torch.ones(1), None):
        a.grad, b.grad = torch.ones(1), grad
        optimizer.update_hessian()
    assert optimizer.state[a]["hessian"].item() == 0.75
    assert optimizer.state[b]["hessian"].item() == 0.5


def test_zero_gradients_in_float16_are_no_nan(form):
    p = Parameter(torch.ones(2, dtype=torch.float16))
    p.grad = torch.tensor([0.0, 1.0], dtype=torch.float16)
    Sophia([p], lr=0.5, weight_decay=0.0).step()
    assert p.tolist() == [1.0, 0.5]


def test_gnb_labels_follow_the_softmax():
    probabilities = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 0.25, 0.25, 0.5]])
    places = (torch.arange(100) + 0.5) / 100
    logits = probabilities.log().unsqueeze(1).expand(2, 100, 4)
    labels = gnb_labels(logits, uniforms=places.expand(2, 100))
    assert labels.dtype == torch.int64
    counts = torch.nn.functional.one_hot(labels, 4).sum(1)  # [2, C]
    assert counts.tolist() == [[10, 0, 60, 30], [0, 25, 25, 50]]
    drawn = gnb_labels(logits[:, :1].expand(2, 20_000, 4), torch.Generator().manual_seed(0))
    frequencies = torch.nn.functional.one_hot(drawn, 4).float().mean(1)
    torch.testing.assert_close(frequencies, probabilities, rtol=0.0, atol=0.015)
    assert torch.equal(frequencies == 0.0, probabilities == 0.0)


def test_gnb_labels_at_the_ends_are_possible_classes():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    assert gnb_labels(logits, uniforms=torch.tensor([0.0, 1.0 - 2.0**-24])).tolist() == [1, 1]


def test_gnb_labels_come_from_the_generator():
    logits = torch.zeros(3, 5, 50)
    first, again = (gnb_labels(logits, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert first.shape == (3, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, gnb_labels(logits, torch.Generator().manual_seed(2)))


def test_gauss_newton_of_a_linear_model_on_average():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator)
    model = Linear(3, 4, bias=False)
    p = model(x).softmax(-1).detach()
    exact = torch.einsum("nc,nd->cd", p * (1 - p), x**2) / 6  # diagonal of the Hessian of the mean cross entropy
    optimizer = Sophia(model.parameters(), betas=(0.9, 0.0))
    total = torch.zeros(4, 3)
    for _ in range(3000):
        optimizer.zero_grad()
        logits = model(x)
        cross_entropy(logits, gnb_labels(logits, generator)).backward()
        optimizer.update_hessian(batch_size=6)
        total += optimizer.state[model.weight]["hessian"]
    torch.testing.assert_close(total / 3000, exact, rtol=0.12, atol=0.0)  # each mean is within about 0.026 of 1


def test_hutchinson_is_noise_times_hessian_times_noise():
    a, b = (torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (2, 3))
    a.requires_grad_()
    b.requires_grad_()
    unused = torch.zeros(2, requires_grad=True)

    def loss(a, b):
        return (a.sin().sum() * b.square()).sum() + (a * a[0]).sum() ** 2 - b.prod()

    blocks = torch.autograd.functional.hessian(loss, (a, b))
    hessian = torch.cat([torch.cat(row, 1) for row in blocks])  # [5, 5]
    generator = torch.Generator().manual_seed(7)
    estimates = hutchinson(loss(a, b), [a, b, unused], generator)
    generator.manual_seed(7)
    u = torch.cat([torch.randn(n, dtype=torch.float64, generator=generator) for n in (2, 3)])
    torch.testing.assert_close(torch.cat(estimates[:2]), u * (hessian @ u))
    assert estimates[2].tolist() == [0.0, 0.0]


def test_hutchinson_of_a_linear_loss_is_zero():
    p = torch.ones(3, requires_grad=True)
    assert hutchinson((2.0 * p).sum(), [p])[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Sophia([Parameter(torch.zeros(1))], rho=-1.0), "rho must be at least 0, got -1.0"),
        (lambda: Sophia([Parameter(torch.zeros(1))], eps=0.0), "eps must be above 0, got 0.0"),
        (lambda: Sophia([Parameter(torch.zeros(1))]).update_hessian([]), "one tensor for each of 1 parameters, got 0"),
        (lambda: Sophia([Parameter(torch.zeros(1))]).update_hessian(batch_size=0), "batch_size must be at least 1"),
        (lambda: Sophia([Parameter(torch.zeros(1))]).update_hessian([], batch_size=2), "not for estimates; got 2"),
        (lambda: gnb_labels(torch.zeros(3, 1)), r"2 or more classes, got shape \(3, 1\)"),
        (lambda: gnb_labels(torch.zeros(3, 2), uniforms=torch.zeros(2)), r"labels, \(3,\), got \(2,\)"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
