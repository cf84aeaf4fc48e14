import pytest
import torch

from leyden.analysis import el2n_scores


def test_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 30.0], [0.0, 30.0]])
    # (1/2, -1/2) has the length sqrt(1/2); right and sure 0; wrong and sure sqrt(2)
    expected = torch.tensor([0.5**0.5, 0.0, 2**0.5])
    torch.testing.assert_close(el2n_scores(logits, torch.tensor([0, 1, 0])), expected)
    both = torch.stack([logits, logits[[1, 0, 2]]])
    mean = torch.tensor([(0.5**0.5 + 2**0.5) / 2, 0.5**0.5 / 2, 2**0.5])
    torch.testing.assert_close(el2n_scores(both, torch.tensor([0, 1, 0])), mean)
    assert el2n_scores(logits.bfloat16(), torch.tensor([0, 1, 0])).dtype == torch.float32


def test_wrong_shapes():
    with pytest.raises(ValueError, match="must fit"):
        el2n_scores(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
