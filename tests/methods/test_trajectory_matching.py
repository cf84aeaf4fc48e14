"""Parts of trajectory matching against numbers of the authors' code."""

import pytest
import torch
from torch import nn

from leyden.losses import trajectory_matching_loss
from leyden.methods import correct_logit_average, expert_start_bound, unroll_sgd


def problem():
    """Network, flat start and target, images, labels, rate and batches."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    i = torch.arange(26, dtype=torch.float64)
    start = (i + 1).sin()
    target = start + 0.1 * (3 * i).cos()
    images = (2 * torch.arange(12, dtype=torch.float64) + 1).sin().view(4, 3).requires_grad_()
    labels = torch.arange(8, dtype=torch.float64).cos().view(4, 2).requires_grad_()
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    named = [unflatten(network, flat) for flat in (start, target)]
    return network, *named, images, labels, lr, [torch.tensor(rows) for rows in ([2, 0], [3, 1], [1, 0])]


def unflatten(network, flat):
    sizes = [p.numel() for p in network.parameters()]
    parts = zip(network.named_parameters(), flat.split(sizes), strict=True)
    return {name: part.view_as(p) for (name, p), part in parts}


def test_a_match_of_the_authors_code():
    network, start, target, images, labels, lr, batches = problem()
    final = unroll_sgd(network, start, images, labels, lr, batches)
    loss = trajectory_matching_loss(final, start, target)
    loss.backward()
    # the loop of distill/DATM.py in NUS-HPC-AI-Lab/DATM at 97ae510, with its ReparamModule, on these numbers
    assert loss.item() == pytest.approx(6.403870138484249)
    assert lr.grad.item() == pytest.approx(4.791883587444515)
    assert images.grad[1].tolist() == pytest.approx([0.699203392, 1.981500739, 2.224687737])
    assert images.grad[2].tolist() == pytest.approx([0.103959489, 0.235021768, 0.096290013])
    assert labels.grad[:, 0].tolist() == pytest.approx([1.457568409, 1.701030113, 0.104139075, 0.338714614])
    assert final["0.weight"].flatten()[:3].tolist() == pytest.approx([0.75745773307, 0.84151968312, 0.28154424705])


def test_gradients_by_differences():
    network, start, target, images, labels, lr, batches = problem()

    def match(images, labels, lr):
        return trajectory_matching_loss(unroll_sgd(network, start, images, labels, lr, batches), start, target)

    assert torch.autograd.gradcheck(match, (images, labels, lr))


def test_standing_still_costs_one():
    network, start, target, images, labels, lr, batches = problem()
    for rate, steps in ((0.0, batches), (lr, [])):
        final = unroll_sgd(network, start, images, labels, rate, steps)
        assert trajectory_matching_loss(final, start, target).item() == pytest.approx(1.0)
    assert not any(p.requires_grad for p in start.values())  # the given ones are left as they are


def test_start_bound():
    bounds = [expert_start_bound(step) for step in (0, 99, 100, 550, 999, 1000, 9999)]
    assert bounds == [10, 10, 11, 15, 19, 20, 20]
    assert expert_start_bound(500, current=4, maximum=4) == 4


def test_average_of_the_right_experts():
    logits = torch.tensor(
        [[[2.0, 0.0], [0.0, 1.0]], [[1.0, 3.0], [4.0, 2.0]], [[3.0, 1.0], [5.0, 1.0]]], dtype=torch.float64
    )
    # distill/DATM.py on these numbers
    assert correct_logit_average(logits, torch.tensor([0, 1])).tolist() == [[2.5, 0.5], [0.0, 1.0]]
    # none is right: the mean of all
    assert correct_logit_average(logits[1:, 1:], torch.tensor([1])).tolist() == [[4.5, 1.5]]
    with pytest.raises(ValueError, match=r"must fit, got \(3, 2, 2\), \(3,\)"):
        correct_logit_average(logits, torch.tensor([0, 1, 1]))
