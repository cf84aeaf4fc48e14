"""Bags of instances: one label for all that a bag holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.batch import Batch

__all__ = ["BagDataset"]


class BagDataset(Dataset):
    """Bags of several sizes; those of a batch are padded with zeros up to the largest of them.

    Batches: ``input`` ``[B, N, ...]``, ``mask`` bool ``[B, N]``, False where there is no instance, ``target`` ``[B]``,
    and ``instance_target`` ``[B, N]``, -1 where there is none, if there are such labels.

    Args:
        instances: of all bags, one bag after the other, ``[T, ...]``; may be mapped from a file.
        sizes: of the bags, int64 ``[S]``; their sum is T.
        target: of the bags, ``[S]`` or ``[S, C]``.
        instance_target: of the instances, int64 ``[T]``.
        sources: what each bag is called where it comes from.

    Raises:
        ValueError: a bag is empty, or lengths do not fit together.
    """

    def __init__(
        self,
        instances: Tensor,
        sizes: Tensor,
        target: Tensor,
        *,
        instance_target: Tensor | None = None,
        sources: Sequence[Any] | None = None,
    ) -> None:
        if not len(sizes) or sizes.min() < 1:
            raise ValueError("sizes must be those of one bag or more, with one instance or more each")
        if len(instances) != sizes.sum():
            raise ValueError(f"instances must be as many as the sizes sum up to, {sizes.sum()}, got {len(instances)}")
        if len(target) != len(sizes):
            raise ValueError(f"target must be one for each of the {len(sizes)} bags, got {len(target)}")
        if instance_target is not None and len(instance_target) != len(instances):
            raise ValueError(
                f"instance_target must be one for each of the {len(instances)} instances, got {len(instance_target)}"
            )
        self.instances = instances
        self.sizes = sizes
        self.target = target
        self.instance_target = instance_target
        self.sources = sources
        self._starts = sizes.cumsum(0) - sizes

    def __len__(self) -> int:
        """Number of bags."""
        return len(self.sizes)

    def __getitem__(self, index: int) -> Batch:
        """Returns one bag, without batch dimension."""
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        """Returns a batch."""
        bags = torch.tensor(indices, dtype=torch.int64)
        sizes = self.sizes[bags].unsqueeze(1)
        place = torch.arange(int(sizes.max()))
        mask = place < sizes  # [B, N]
        rows = (self._starts[bags].unsqueeze(1) + place)[mask]
        batch = {"input": _padded(self.instances[rows], mask, 0), "mask": mask, "target": self.target[bags]}
        if self.instance_target is not None:
            batch["instance_target"] = _padded(self.instance_target[rows], mask, -1)
        return batch


def _padded(values: Tensor, mask: Tensor, value: int) -> Tensor:
    padded = values.new_full((*mask.shape, *values.shape[1:]), value)
    padded[mask] = values
    return padded
