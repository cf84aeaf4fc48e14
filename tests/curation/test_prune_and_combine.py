"""Prune and combine, by hand."""

import pytest
import torch

from leyden.curation import PruneAndCombine
from leyden.data import DataModule, TensorDictDataset, pack_tensors


class Six(DataModule):
    """Five samples of class 0 and three of class 1, each of one grey."""

    def datasets(self):
        grey = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 2, 2).contiguous()
        return {"train": TensorDictDataset({"input": grey, "target": torch.tensor([0, 1, 0, 0, 1, 0, 0, 1])})}


def write(path, sure, index=range(8)):
    """Predictions: the probability of the right class rises with ``sure``."""
    target = Six().datasets()["train"].tensors["target"]
    logits = torch.zeros(8, 2)
    logits[torch.arange(8), target] = torch.tensor(sure, dtype=torch.float32)
    rows = torch.tensor(list(index))
    path.write_bytes(pack_tensors({"output": logits[rows], "index": rows}))
    return str(path)


def test_by_hand(tmp_path):
    file = write(tmp_path / "a", [1, 0, 5, 2, 9, 4, 3, 8], index=[7, 6, 5, 4, 3, 2, 1, 0])
    made = PruneAndCombine(file, images_per_class=3)(Six())
    # class 0 by ease: 2, 5, 6, 3 (then 0 alone); class 1 has three samples: no whole image
    assert made["source_index"].tolist() == [[2, 5, 6, 3]]
    assert made["target"].tolist() == [0]
    assert made["input"].tolist() == [[[[2.0, 5.0], [6.0, 3.0]]]]


def test_prune_only_and_the_mean_of_several_networks(tmp_path):
    files = [write(tmp_path / "a", [1, 0, 5, 2, 9, 4, 3, 8]), write(tmp_path / "b", [9, 9, 0, 0, 0, 0, 0, 0])]
    first = PruneAndCombine(files[0], images_per_class=2, factor=1)(Six())
    assert first["source_index"].flatten().tolist() == [2, 5, 4, 7]
    hard = PruneAndCombine(files[0], images_per_class=1, factor=1, keep="high")(Six())
    assert hard["source_index"].flatten().tolist() == [0, 1]
    # two logits 0 and s: the score is sqrt(2) / (1 + e^s). Class 0: 0.38 and 0 for sample 0, 0.0095 and 0.71 for 2;
    # class 1: 0.71 and 0 for sample 1, 0 and 0.71 for 4
    both = PruneAndCombine(files, images_per_class=1, factor=1)(Six())
    assert both["source_index"].flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": []}, "predictions must be at least one file"),
        ({"factor": 0}, "must be at least 1, got 10 and 0"),
        ({"keep": "both"}, "keep must be 'low' or 'high', got 'both'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PruneAndCombine(**{"predictions": "x", **arguments})


def test_predictions_of_other_samples(tmp_path):
    file = write(tmp_path / "a", [0] * 8, index=[0, 1, 2])
    with pytest.raises(ValueError, match="predicts 3 samples, which are not the 8 of the training set"):
        PruneAndCombine(file)(Six())
