import torch

from leyden.metrics import WorstClassAccuracy


def test_smallest_recall_of_the_classes_that_are_there():
    metric = WorstClassAccuracy()
    metric.update(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 0, 2, 0]))
    scores = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    metric.update(scores, torch.tensor([2, 2, 2]))
    assert metric.compute().item() == torch.tensor(2 / 3).item()  # class 0: 2 of 3; class 1: none; class 2: 3 of 4
