"""Augmentation of whole batches on the device, drawn from one key per sample.

What is drawn for a sample depends on its key alone: on the training step and the sample's number, but neither on the
process that holds it nor on its row in the batch.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from leyden.core.batch import Batch
from leyden.core.random import sample_keys

__all__ = ["Augment", "Compose", "TwoViews"]


class Augment(ABC):
    """Changes a training batch at random."""

    @abstractmethod
    def __call__(self, batch: Batch, keys: Tensor) -> Batch:
        """Returns a new batch; does not write into the one it gets.

        Args:
            batch: the batch.
            keys: one key per sample, int64 ``[N]``, the only source of randomness (`leyden.core.uniform`).
        """


class Compose(Augment):
    """One augmentation after the other, each with random numbers of its own.

    Args:
        augments: the augmentations.
    """

    def __init__(self, augments: list[Augment]) -> None:
        self.augments = augments

    def __call__(self, batch: Batch, keys: Tensor) -> Batch:
        """Returns a new batch."""
        for number, augment in enumerate(self.augments):
            batch = augment(batch, _branch(keys, number))
        return batch


class TwoViews(Augment):
    """Several views of each sample, each with random numbers of its own.

    Args:
        weak: makes ``input``.
        strong: makes ``input_strong``, from the unchanged input; no such view if None.
        second: makes ``input_2``, from the unchanged input; no such view if None.

    Raises:
        ValueError: there is but one view.
    """

    def __init__(self, weak: Augment, strong: Augment | None = None, second: Augment | None = None) -> None:
        if strong is None and second is None:
            raise ValueError("TwoViews needs strong or second beside weak")
        self.views = {"input": weak, "input_strong": strong, "input_2": second}

    def __call__(self, batch: Batch, keys: Tensor) -> Batch:
        """Returns a new batch."""
        views = {
            key: augment(batch, _branch(keys, number))["input"]
            for number, (key, augment) in enumerate(self.views.items())
            if augment is not None
        }
        return {**batch, **views}


def _branch(keys: Tensor, number: int) -> Tensor:
    """Other keys, of which each number gives independent ones."""
    return sample_keys(number, 0, keys)
