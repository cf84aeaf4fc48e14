"""A stream of digits whose corruption changes as it goes on, beside clean ones, for test-time adaptation."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.batch import Batch
from leyden.core.random import sample_keys, uniform
from leyden.data.corruptions import CORRUPTIONS, corrupt
from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits
from leyden.data.sampler import Sequential

__all__ = ["CorruptedDigits"]

_ORDER, _SOURCE = 0xD1, 0xD2  # streams of random numbers


class CorruptedDigits(Digits):
    """Trains on a stream of corrupted digits without labels, in the order of the stream; the source is clean.

    The stream goes from corruption to corruption, each a block of the test images in an order of its own: all at one
    severity (continual adaptation), or from severity 1 up to it and down again in blocks of their own (gradual).

    Training samples: ``input``, ``target`` -1, ``labeled`` False, ``clean_target`` (the true label, to measure by),
    ``domain`` (number of the corruption); and, drawn anew in every step, one training digit ``source_input`` with its
    label ``source_target``. The data set ``source`` has all of these. Validation and test are clean.

    Args:
        corruptions: names in the order of the stream; see `leyden.data.corrupt`.
        severity: the largest, 1 to 5.
        gradual: whether severities rise and fall.
        block_size: images of a block, at most 359; all if None.
        **kwargs: as in `Digits`; ``order`` is that of the stream.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        corruptions: Sequence[str] = CORRUPTIONS,
        severity: int = 5,
        gradual: bool = False,
        block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unknown := set(corruptions) - set(CORRUPTIONS):
            raise ValueError(f"corruptions must be of {', '.join(CORRUPTIONS)}, got {', '.join(sorted(unknown))}")
        if not corruptions:
            raise ValueError("corruptions must have one name or more, got none")
        if severity not in range(1, 6):
            raise ValueError(f"severity must lie in 1..5, got {severity}")
        if block_size is not None and not 1 <= block_size <= 359:
            raise ValueError(f"block_size must lie in 1..359, got {block_size}")
        if self.order is not None:
            raise ValueError("order must be left out: it is that of the stream")
        if (self.mean, self.std) != (0.0, 1.0):
            raise ValueError("mean and std must be left out: pixels are corrupted in [0, 1]")
        self.corruptions = tuple(corruptions)
        self.severity = severity
        self.gradual = gradual
        self.block_size = block_size
        self.order = Sequential()
        self._source: dict[str, Tensor] = {}

    def datasets(self) -> dict[str, Dataset]:
        """Returns the stream as ``train``, the clean training data as ``source``, and the clean other parts."""
        parts = super().datasets()
        clean = cast(TensorDictDataset, parts["test"]).tensors
        rising = list(range(1, self.severity + 1))
        severities = rising + rising[-2::-1] if self.gradual else [self.severity]
        blocks = [(number, severity) for number in range(len(self.corruptions)) for severity in severities]
        rows_of_blocks, images = [], []
        for block, (number, severity) in enumerate(blocks):
            keys = sample_keys(self.split_seed, block, torch.arange(len(clean["target"])))
            rows = uniform(keys, stream=_ORDER).argsort(stable=True)[: self.block_size]
            corruption = self.corruptions[number]
            images.append(corrupt(clean["input"][rows], keys[rows], corruption=corruption, severity=severity))
            rows_of_blocks.append(rows)
        size = len(rows_of_blocks[0])
        target = clean["target"][torch.cat(rows_of_blocks)]
        stream = {
            "input": torch.cat(images),
            "target": torch.full_like(target, -1),
            "labeled": torch.zeros(len(target), dtype=torch.bool),
            "clean_target": target,
            "domain": torch.tensor([number for number, _ in blocks]).repeat_interleave(size),
        }
        return {**parts, "source": parts["train"], "train": TensorDictDataset(stream)}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments training batches, and adds samples of the source."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.trainer is None or not self.trainer.training:
            return batch
        index, x = batch["index"], batch["input"]
        if not self._source or self._source["input"].device != x.device:
            tensors = cast(TensorDictDataset, self.dataset("source")).tensors
            self._source = {key: tensor.to(x.device) for key, tensor in tensors.items()}
        draws = uniform(sample_keys(self.seed, self.trainer.global_step, index), stream=_SOURCE).double()  # [N]
        rows = (draws * len(self._source["target"])).to(torch.int64)
        return {
            **batch,
            "source_input": self._source["input"][rows].to(x.dtype),
            "source_target": self._source["target"][rows],
        }
