"""What a curation is."""

from abc import ABC, abstractmethod

from torch import Tensor

from leyden.data.module import DataModule

__all__ = ["Curation"]


class Curation(ABC):
    """Makes or chooses a training set before training; ``leyden curate`` calls it and writes what it returns."""

    @abstractmethod
    def __call__(self, data: DataModule) -> dict[str, Tensor]:
        """Returns the new training set.

        Args:
            data: the DataModule whose training samples it starts from.

        Returns:
            ``[S, ...]`` by batch key, ``input`` and ``target`` among them.
        """
