import pytest
import torch
from torch.distributions import Normal

from leyden.losses import perturbation_entropy


def test_entropy():
    raw_scale = torch.tensor([-0.5, 1.5], dtype=torch.float64)
    entropy = perturbation_entropy(raw_scale).item()
    assert entropy == pytest.approx(2.622950755496996)  # compute_entropy of asteroidhouse/self-tuning-networks
    assert entropy == pytest.approx(Normal(0.0, raw_scale.exp().log1p()).entropy().sum().item())
    assert perturbation_entropy(raw_scale + 0.1) > entropy
