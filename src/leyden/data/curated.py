"""Training on a data set that a curation wrote, and evaluating on the data that it was made from."""

from typing import Any

from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.data.written import DatasetFile, read_tensors

__all__ = ["CuratedData"]


class CuratedData(DataModule):
    """Training samples of a file; validation and test of another DataModule, whose training samples are predicted.

    Args:
        source: where the data come from.
        dataset: dataset file of training samples; those of the source if None.
        **kwargs: as in `DataModule`.
    """

    def __init__(self, source: DataModule, *, dataset: DatasetFile | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.written = dataset
        self.num_classes = source.num_classes

    def datasets(self) -> dict[str, Dataset]:
        """Returns the parts."""
        parts = dict(self.source.datasets())
        train = parts["train"]
        if self.written is not None:
            parts["train"] = TensorDictDataset(read_tensors(self.written, "input", "target"))
        return {**parts, "predict": train}
