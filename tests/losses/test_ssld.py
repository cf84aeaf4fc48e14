"""Symmetric divergences against torch's own and scipy's."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.distributions import Categorical, kl_divergence

from leyden.losses import SSLD, kd_loss, ssld_loss

STUDENT = torch.sin(torch.arange(20, dtype=torch.float64)).view(4, 5) * 2
TEACHER = torch.cos(torch.arange(20, dtype=torch.float64) * 1.7).view(4, 5) * 3


def test_torchs_divergences():
    p, q = Categorical(logits=STUDENT / 2.0), Categorical(logits=TEACHER / 2.0)
    wanted = 0.5 * (kl_divergence(q, p) + kl_divergence(p, q))
    torch.testing.assert_close(ssld_loss(STUDENT, TEACHER, temperature=2.0, reduction="none"), wanted)
    assert SSLD(temperature=2.0)(STUDENT, TEACHER).item() == pytest.approx(wanted.mean().item())
    both = kd_loss(STUDENT, TEACHER, temperature=1.0) + kd_loss(TEACHER, STUDENT, temperature=1.0)
    assert 2.0 * ssld_loss(STUDENT, TEACHER).item() == pytest.approx(both.item())


def test_scipys_mixture():
    wanted = [jensenshannon(a, b) ** 2 for a, b in zip(STUDENT.softmax(1), TEACHER.softmax(1), strict=True)]
    mixed = ssld_loss(STUDENT, TEACHER, mixture=True, reduction="none")
    assert mixed.tolist() == pytest.approx(wanted)
    assert (mixed <= ssld_loss(STUDENT, TEACHER, reduction="none") / 2).all()
    far = torch.tensor([[50.0, -50.0]])
    assert SSLD(mixture=True)(far, -far).item() == pytest.approx(math.log(2.0))


@pytest.mark.parametrize("mixture", [False, True])
def test_invariances(mixture):
    loss = ssld_loss(STUDENT, TEACHER, mixture=mixture).item()
    assert ssld_loss(TEACHER, STUDENT, mixture=mixture).item() == pytest.approx(loss)
    assert ssld_loss(STUDENT + 9.0, TEACHER - 2.0, mixture=mixture).item() == pytest.approx(loss)
    assert ssld_loss(STUDENT, STUDENT + 1.0, mixture=mixture).item() == pytest.approx(0.0, abs=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="same shape"):
        ssld_loss(STUDENT, TEACHER[:, :4])
    with pytest.raises(ValueError, match="temperature must be positive"):
        SSLD(temperature=0.0)
