"""Digits for runs of several stages: few labels and pseudo-labels, and classes that come task by task."""

from typing import Any, cast

import torch
from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits
from leyden.data.written import DatasetFile, read_tensors

__all__ = ["DigitTasks", "PseudoLabeledDigits"]


class DigitTasks(Digits):
    """Ten digits in tasks of classes: 0 and 1, then 2 and 3, and so on.

    Trains and validates on one task; tests on it and all tasks before it. A sample's ``domain`` is its task.

    Args:
        task: number of the task, from 0.
        num_tasks: 1, 2, 5 or 10.
        test_task: the only task of the test data; None tests on all so far.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, task: int = 0, *, num_tasks: int = 5, test_task: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_tasks not in (1, 2, 5, 10):
            raise ValueError(f"num_tasks must be 1, 2, 5 or 10, got {num_tasks}")
        self.size = 10 // num_tasks
        self.task, self.test_task = task, test_task
        for name, value in {"task": task, "test_task": task if test_task is None else test_task}.items():
            if not 0 <= value < num_tasks:
                raise ValueError(f"{name} must lie in 0..{num_tasks - 1}, got {value}")
        self.num_classes = self.size * (max(task, test_task or 0) + 1)  # those that a network must know

    def datasets(self) -> dict[str, Dataset]:
        """Returns the samples of the tasks."""
        parts = {}
        for name, dataset in super().datasets().items():
            tensors = cast(TensorDictDataset, dataset).tensors
            tensors = tensors | {"domain": tensors["target"] // self.size}
            if name == "test":
                one = self.test_task
                rows = tensors["domain"] <= self.task if one is None else tensors["domain"] == one
            else:
                rows = tensors["domain"] == self.task
            parts[name] = TensorDictDataset({key: tensor[rows] for key, tensor in tensors.items()})
        return cast(dict[str, Dataset], parts)


class PseudoLabeledDigits(Digits):
    """Digits of which few have labels; the others have those that a network predicted with confidence, if any.

    Trains on both, and predicts for those without labels.

    Args:
        num_labeled: training samples whose label is known.
        predictions: dataset file with ``output`` (logits ``[S, 10]``) and ``index`` of the samples without label.
        confidence: probability from which a predicted class becomes a label.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        num_labeled: int = 100,
        *,
        predictions: DatasetFile | None = None,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 1 <= num_labeled < (self.num_train or 1258):
            raise ValueError(f"num_labeled must lie in 1..{(self.num_train or 1258) - 1}, got {num_labeled}")
        if not 0.0 <= confidence <= 1.0:
            raise ValueError(f"confidence must lie in [0, 1], got {confidence}")
        self.num_labeled = num_labeled
        self.predictions = predictions
        self.confidence = confidence

    def datasets(self) -> dict[str, Dataset]:
        """Returns the parts.

        Raises:
            ValueError: the predictions are of other samples.
        """
        parts = super().datasets()
        tensors = cast(TensorDictDataset, parts["train"]).tensors
        images, target = tensors["input"], tensors["target"]
        train = {"input": images[: self.num_labeled], "target": target[: self.num_labeled]}
        unlabeled = images[self.num_labeled :]
        if self.predictions is not None:
            predicted = read_tensors(self.predictions, "output", "index")
            rows = predicted["index"]
            if rows.numel() and int(rows.max()) >= len(unlabeled):
                raise ValueError(
                    f"{self.predictions} predicts for other samples: an index is {int(rows.max())}, "
                    f"but {len(unlabeled)} samples have no label"
                )
            probability, label = predicted["output"].softmax(-1).max(-1)
            sure = probability >= self.confidence
            train["input"] = torch.cat([train["input"], unlabeled[rows[sure]]])
            train["target"] = torch.cat([train["target"], label[sure]])
        predict = {"input": unlabeled}
        return {**parts, "train": TensorDictDataset(train), "predict": TensorDictDataset(predict)}
