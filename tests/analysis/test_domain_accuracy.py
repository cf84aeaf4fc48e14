import pytest
import torch
from torch import nn

from leyden.analysis import domain_accuracy


class Data:
    def __init__(self, *batches):
        self.batches = batches

    def test_dataloader(self):
        return self.batches


def batch(predicted, target, domain=None):
    logits = nn.functional.one_hot(torch.tensor(predicted), 3).float()
    values = {"input": logits, "target": torch.tensor(target)}
    return values if domain is None else values | {"domain": torch.tensor(domain)}


def test_by_hand():
    method = nn.Linear(3, 3, bias=False)
    method.weight.data = torch.eye(3)
    data = Data(batch([0, 1, 2, 2], [0, 1, 1, 2], [0, 0, 2, 2]), batch([1, 1], [1, 0], [0, 2]))
    # domain 0: 3 of 3; domain 2: 1 of 3
    assert domain_accuracy(method, data) == pytest.approx(
        {"accuracy/0": 1.0, "accuracy/2": 1 / 3, "accuracy/mean": 2 / 3}
    )
    with pytest.raises(ValueError, match="no 'domain', only input, target"):
        domain_accuracy(method, Data(batch([0], [0])))
