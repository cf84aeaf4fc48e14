import math

import pytest
import torch

from leyden.callbacks import AuxiliaryZLoss
from leyden.core import Outputs


def term(logits, batch, **kwargs):
    terms = AuxiliaryZLoss(**kwargs).loss_terms(None, batch, Outputs(logits=logits), {"task": torch.tensor(1.0)})
    assert list(terms) == ["task", "z_loss"]
    return terms["z_loss"].item()


def test_term():
    assert term(torch.zeros(3, 8), {"target": torch.arange(3)}) == pytest.approx(1e-4 * math.log(8) ** 2)
    assert term(torch.zeros(3, 8), {"target": torch.full((3,), -1)}, weight=1.0) == pytest.approx(math.log(8) ** 2)
    assert term(torch.zeros(3, 8), {"target": torch.zeros(3, 8)}, weight=1.0) == pytest.approx(math.log(8) ** 2)
    assert term(torch.zeros(3, 8), {}, weight=1.0) == pytest.approx(math.log(8) ** 2)


def test_padding_is_left_out():
    logits = torch.stack([torch.zeros(2, 8), torch.full((2, 8), 5.0)])  # [N, T, V]
    target = torch.tensor([[1, -100], [-100, -100]])
    assert term(logits, {"target": target}, weight=1.0) == pytest.approx(math.log(8) ** 2)


def test_bad_weight():
    with pytest.raises(ValueError, match="weight must be at least 0, got -0.1"):
        AuxiliaryZLoss(-0.1)
