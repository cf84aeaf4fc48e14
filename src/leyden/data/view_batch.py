"""View batches (H. Kang, G. Seifer, D. Lee, J. Ryu, "Do Your Best and Get Enough Rest for Continual Learning", CVPR
2025, arXiv 2503.18371, section 3): several views of a sample at once, and then a longer rest from it."""

import torch
from torch import Tensor

from leyden.core.batch import Batch
from leyden.data.augment import Augment
from leyden.data.sampler import Order

__all__ = ["ViewAugment", "ViewBatch"]


class ViewBatch(Order):
    """Every sample ``views`` times in a row, in an order that takes ``views`` epochs.

    An epoch has all views of one sample in ``views``, and so as many places as there are samples, or a few more or
    less; a sample returns after ``views`` times as long as usual. A process has all views of a sample in one batch if
    its share of a batch is a multiple of ``views``. The authors' code may cut the views of a sample at an epoch's end.

    Args:
        views: V; 1 is the usual order.
        shuffle: whether each of these rounds has a new random order.

    Raises:
        ValueError: ``views`` is below 1.
    """

    def __init__(self, views: int = 4, *, shuffle: bool = True) -> None:
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views}")
        self.period = views
        self.shuffle = shuffle

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the part of the round that is this epoch's.

        Raises:
            ValueError: there are fewer samples than views.
        """
        if num_samples < self.period:
            raise ValueError(f"views must be at most the number of training samples, {num_samples}, got {self.period}")
        order = torch.randperm(num_samples, generator=generator) if self.shuffle else torch.arange(num_samples)
        begin, end = (num_samples * part // self.period for part in (epoch % self.period, epoch % self.period + 1))
        return order[begin:end].repeat_interleave(self.period)


class ViewAugment(Augment):
    """Gives the views of one sample in a batch random numbers of their own, which are else those of the sample.

    Args:
        first: changes the first view of a sample.
        others: changes its other views, as a rule more strongly; ``first`` if None.
    """

    def __init__(self, first: Augment, others: Augment | None = None) -> None:
        self.first = first
        self.others = others

    def __call__(self, batch: Batch, keys: Tensor) -> Batch:
        """Returns a new batch."""
        view = (keys.unsqueeze(1) == keys).tril(-1).sum(1)  # [N]: how many rows before it are of the same sample
        keys = keys + view
        first = self.first(batch, keys)
        if self.others is None:
            return first
        others = self.others(batch, keys)
        return {
            name: torch.where((view == 0).view(-1, *[1] * (tensor.ndim - 1)), tensor, others[name])
            if tensor is not others[name]
            else tensor
            for name, tensor in first.items()
        }
