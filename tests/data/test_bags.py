import pytest
import torch

from leyden.data import BagDataset

INSTANCES = torch.arange(1.0, 13.0).view(6, 2)
SIZES, TARGET = torch.tensor([1, 3, 2]), torch.tensor([0, 1, 1])
LABELS = torch.tensor([0, 1, 0, 0, 1, 1])


def bags(**given):
    return BagDataset(**{"instances": INSTANCES, "sizes": SIZES, "target": TARGET, "instance_target": LABELS} | given)


def test_batches_are_padded_to_their_largest_bag():
    batch = bags().__getitems__([2, 0])
    assert batch["input"].tolist() == [[[9.0, 10.0], [11.0, 12.0]], [[1.0, 2.0], [0.0, 0.0]]]
    assert batch["mask"].tolist() == [[True, True], [True, False]]
    assert batch["target"].tolist() == [1, 0]
    assert batch["instance_target"].tolist() == [[1, 1], [0, -1]]
    assert "instance_target" not in bags(instance_target=None).__getitems__([1])


def test_one_bag():
    data = bags()
    assert len(data) == 3
    assert data[1]["input"].tolist() == INSTANCES[1:4].tolist()
    assert data[1]["mask"].all()
    assert data[1]["target"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": torch.tensor([0, 4, 2])}, "sizes must be those of one bag or more"),
        ({"sizes": torch.tensor([], dtype=torch.int64)}, "sizes must be those of one bag or more"),
        ({"sizes": SIZES + 1}, "instances must be as many as the sizes sum up to, 9, got 6"),
        ({"target": TARGET[:2]}, "target must be one for each of the 3 bags, got 2"),
        ({"instance_target": LABELS[:5]}, "instance_target must be one for each of the 6 instances, got 5"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        bags(**given)
