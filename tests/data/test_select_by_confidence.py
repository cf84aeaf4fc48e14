"""The choice of samples by a teacher's confidence, by hand."""

import pytest
import torch

from leyden.data import select_by_confidence

PROBS = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.5, 0.5]])


def test_by_hand():
    assert select_by_confidence(PROBS, per_class=1).tolist() == [0, 1]
    assert select_by_confidence(PROBS, per_class=2).tolist() == [0, 1, 3, 4]
    assert select_by_confidence(PROBS, per_class=9).tolist() == [0, 1, 2, 3, 4, 5]
    assert select_by_confidence(PROBS, per_class=9, min_confidence=0.7).tolist() == [0, 1, 3, 4]
    assert select_by_confidence(PROBS[:0], per_class=1).tolist() == []


def test_errors():
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        select_by_confidence(PROBS, per_class=0)
    with pytest.raises(ValueError, match=r"probs must be \[N, C\] without NaN, got \(6,\)"):
        select_by_confidence(PROBS[:, 0], per_class=1)
