import math

import pytest
import torch

from leyden.losses import expected_reward_loss


def test_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # policies (3/4, 1/4) and (1/2, 1/2)
    chosen = expected_reward_loss(logits, torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(chosen, torch.tensor([-0.75, -0.5]))
    rewards = expected_reward_loss(logits, torch.tensor([[2.0, -1.0], [0.0, 4.0]]))
    assert rewards.item() == pytest.approx(-(1.25 + 2.0) / 2)


def test_gradient_is_that_of_the_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    expected_reward_loss(logits, reward, reduction="sum").backward()
    # E[reward grad log policy], action by action
    policy = logits.detach().softmax(-1)
    log_gradient = torch.eye(4, dtype=torch.float64) - policy.unsqueeze(1)  # [N, action, logit]
    expected = (policy * reward).unsqueeze(-1).mul(log_gradient).sum(1)
    torch.testing.assert_close(logits.grad, -expected)


def test_bad_input():
    with pytest.raises(ValueError, match=r"logits and target must be \[N, C\] and \[N\] or \[N, C\], got \(2, 3\) and"):
        expected_reward_loss(torch.zeros(2, 3), torch.zeros(2, 4))
