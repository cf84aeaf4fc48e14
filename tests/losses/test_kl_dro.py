import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from leyden.losses import KLDRO, CompositionalKLDRO, kl_dro_loss, kl_dro_weights

LOSSES = torch.tensor([0.3, 2.1, 0.0, 1.4, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_value_weights_and_gradient(temperature):
    losses = LOSSES.clone().requires_grad_()
    value = kl_dro_loss(losses, temperature=temperature)
    expected = temperature * logsumexp(LOSSES.numpy() / temperature, b=1.0 / 5)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(KLDRO(temperature=temperature)(losses), value)
    weights = kl_dro_weights(losses, temperature=temperature)
    np.testing.assert_allclose(weights, softmax(LOSSES.numpy() / temperature), rtol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, losses)[0], weights)
    assert not weights.requires_grad


def test_no_other_weights_are_worse():
    def regularized(weights):  # what is maximised
        return (weights * LOSSES).sum(-1) - 0.5 * (weights * (5 * weights).log()).sum(-1)

    value = kl_dro_loss(LOSSES, temperature=0.5)
    torch.testing.assert_close(regularized(kl_dro_weights(LOSSES, temperature=0.5)), value)
    others = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log().neg()
    assert (regularized(others / others.sum(-1, keepdim=True)) < value).all()


def test_limits_and_shift():
    assert kl_dro_loss(LOSSES, temperature=1e6).item() == pytest.approx(LOSSES.mean().item(), rel=1e-6)
    assert kl_dro_loss(LOSSES, temperature=1e-3).item() == pytest.approx(2.1, rel=1e-2)
    shifted = kl_dro_loss(LOSSES + 3.0, temperature=0.7)
    torch.testing.assert_close(shifted, kl_dro_loss(LOSSES, temperature=0.7) + 3.0)
    assert kl_dro_loss(torch.full((4,), 0.8), temperature=0.1).item() == pytest.approx(0.8)


def test_large_losses_of_low_precision():
    losses = torch.tensor([1e4, 2e4], dtype=torch.bfloat16, requires_grad=True)
    value = kl_dro_loss(losses)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(losses[1].item() - np.log(2.0))
    assert torch.autograd.grad(value, losses)[0].tolist() == [0.0, 1.0]


def share(rank):
    return LOSSES.split([2, 3])[rank]


def of_a_share():
    losses = share(torch.distributed.get_rank()).clone().requires_grad_()
    value = kl_dro_loss(losses, temperature=0.6)
    moving = CompositionalKLDRO(temperature=0.6, momentum=0.4).double()
    moved = [moving(scale * losses.detach()) for scale in (1.0, 2.0)]
    return value.detach(), torch.autograd.grad(value, losses)[0], kl_dro_weights(losses, temperature=0.6), moved


def test_two_processes_are_one(run_processes):
    losses = LOSSES.clone().requires_grad_()
    value = kl_dro_loss(losses, temperature=0.6)
    [gradient] = torch.autograd.grad(value, losses)
    moving = CompositionalKLDRO(temperature=0.6, momentum=0.4).double()
    moved = [moving(scale * LOSSES) for scale in (1.0, 2.0)]
    for rank, (part, part_gradient, weights, part_moved) in enumerate(run_processes(of_a_share, 2)):
        torch.testing.assert_close(part, value.detach())
        torch.testing.assert_close(part_gradient / 2, gradient.split([2, 3])[rank])  # DDP takes the mean
        torch.testing.assert_close(weights, gradient.split([2, 3])[rank])
        torch.testing.assert_close(part_moved, moved)


def test_compositional_estimate():
    temperature, momentum = 0.8, 0.3
    loss = CompositionalKLDRO(temperature=temperature, momentum=momentum).double()
    batches = np.random.default_rng(0).uniform(0.0, 3.0, (4, 6))
    average = None
    for batch in batches:
        exponentials = np.exp(batch / temperature)
        average = exponentials.mean() if average is None else 0.7 * average + 0.3 * exponentials.mean()
        losses = torch.tensor(batch, requires_grad=True)
        value = loss(losses)
        assert value.item() == pytest.approx(temperature * np.log(average), rel=1e-12)
        expected = temperature / average * exponentials / temperature / 6  # (r / u) grad mean exp(l / r)
        np.testing.assert_allclose(torch.autograd.grad(value, losses)[0], expected, rtol=1e-12)
    resumed = CompositionalKLDRO(temperature=temperature, momentum=momentum).double()
    resumed.load_state_dict(loss.state_dict())
    assert resumed(LOSSES) == loss(LOSSES)
    assert loss.eval()(LOSSES) == kl_dro_loss(LOSSES, temperature=temperature)
    assert torch.equal(loss.log_average, resumed.log_average)
    assert CompositionalKLDRO(momentum=1.0).double()(LOSSES).item() == pytest.approx(kl_dro_loss(LOSSES).item())


def test_bad_input():
    for losses in (torch.tensor(1.0), torch.zeros(2, 3), torch.zeros(0)):
        with pytest.raises(ValueError, match="one number per example"):
            kl_dro_loss(losses)
    for make in (KLDRO, CompositionalKLDRO):
        with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
            make(temperature=0.0)
    with pytest.raises(ValueError, match=r"momentum must lie in \(0, 1\], got 0"):
        CompositionalKLDRO(momentum=0.0)
