import math

import pytest
import torch

from leyden.analysis import lr_sensitivity


def test_numbers_by_hand():
    losses = torch.tensor([[3.0, 2.0, 9.0, math.nan, math.inf], [2.5, 2.5, 2.5, 2.5, 2.5]])
    assert lr_sensitivity(losses, initial_loss=5.0).tolist() == pytest.approx([(1 + 0 + 3 + 3 + 3) / 5, 0.0])
    assert lr_sensitivity(losses[0, [4, 1, 0, 3, 2]], initial_loss=5.0).item() == pytest.approx(2.0)  # in any order
    assert lr_sensitivity(torch.tensor([9.0, -math.inf]), initial_loss=5.0).item() == 0.0
    with pytest.raises(ValueError, match=r"losses must have the shape \[..., L\]"):
        lr_sensitivity(torch.tensor(1.0), initial_loss=1.0)
