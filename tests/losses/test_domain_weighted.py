import math

import pytest
import torch
from torch.nn import functional

from leyden.losses import DomainWeighted, domain_weighted_loss, scalarization_weights, temperature_probabilities

COUNTS = torch.tensor([1000, 100, 10])


def test_probabilities():
    # by hand: roots of 1000, 100 and 10 are 31.623, 10 and 3.162
    roots = torch.tensor([31.6227766, 10.0, 3.16227766], dtype=torch.float64)
    torch.testing.assert_close(temperature_probabilities(COUNTS, 2.0), roots / 44.78505426)
    torch.testing.assert_close(temperature_probabilities(COUNTS), COUNTS.double() / 1110)
    torch.testing.assert_close(
        temperature_probabilities(COUNTS, math.inf), torch.full((3,), 1 / 3, dtype=torch.float64)
    )
    for temperature in (0.1, 1.0, 5.0, math.inf):
        equal = temperature_probabilities(torch.tensor([7, 7, 0, 7]), temperature)
        torch.testing.assert_close(equal, torch.tensor([1, 1, 0, 1], dtype=torch.float64) / 3)
    huge = temperature_probabilities(torch.tensor([1e30, 1e15], dtype=torch.float64), 0.01)  # 1e3000 is no number
    assert huge.tolist() == [1.0, 0.0]


def test_weights():
    # by hand: 0.706100 / 0.900901 and so on
    weights = scalarization_weights(COUNTS, 2.0)
    torch.testing.assert_close(weights, torch.tensor([0.783771, 2.478518, 7.837710]).double(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close((temperature_probabilities(COUNTS) * weights).sum().item(), 1.0)
    assert scalarization_weights(COUNTS).tolist() == [1.0, 1.0, 1.0]
    assert scalarization_weights(torch.tensor([5, 0]), 3.0).tolist() == [1.0, 0.0]


def test_mean_gradient_is_that_of_temperature_sampling():
    generator = torch.Generator().manual_seed(0)
    domain = torch.repeat_interleave(torch.arange(3), torch.tensor([8, 4, 2]))
    x = torch.randn(14, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (14,), generator=generator)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    losses = functional.cross_entropy(x @ weight.T, target, reduction="none")
    [scalarized] = torch.autograd.grad(
        domain_weighted_loss(losses, domain, counts=[8, 4, 2], temperature=3.0), weight, retain_graph=True
    )
    roots = torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64) ** (1 / 3)
    means = torch.stack([losses[domain == number].mean() for number in range(3)])
    [sampled] = torch.autograd.grad((roots / roots.sum() * means).sum(), weight)  # expected over domains, then samples
    torch.testing.assert_close(scalarized, sampled)


def test_reductions_and_half_precision():
    losses, domain = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0, 2])
    weighted = torch.tensor([7.837710, 2 * 0.783771, 3 * 7.837710])
    for reduction, expected in (("none", weighted), ("sum", weighted.sum()), ("mean", weighted.mean())):
        value = domain_weighted_loss(losses, domain, counts=COUNTS, temperature=2.0, reduction=reduction)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
        twin = DomainWeighted(counts=COUNTS, temperature=2.0, reduction=reduction)
        assert torch.equal(twin(losses, domain), value)
    rare = torch.tensor([10**8, 1])
    value = domain_weighted_loss(torch.tensor([9.0]).half(), torch.tensor([1]), counts=rare, temperature=math.inf)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(9 * 0.5e8, rel=1e-6)  # above what half precision can hold


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temperature_probabilities(COUNTS, 0.0), "temperature must be positive, got 0.0"),
        (lambda: DomainWeighted(counts=COUNTS, temperature=0.0), "temperature must be positive, got 0.0"),
        (lambda: temperature_probabilities(torch.zeros(2)), "counts must be numbers of samples"),
        (lambda: temperature_probabilities(torch.tensor([1, -1])), "counts must be numbers of samples"),
        (lambda: temperature_probabilities(torch.ones(2, 2)), "counts must be numbers of samples"),
        (lambda: domain_weighted_loss(torch.ones(3), torch.ones(2).long(), counts=COUNTS), r"got \(3,\) and \(2,\)"),
        (
            lambda: domain_weighted_loss(torch.ones(1), torch.zeros(1).long(), counts=COUNTS, reduction="max"),
            "reduction must be",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
