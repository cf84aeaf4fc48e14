"""What a curation is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from leyden.core.replace_file import replace_file
from leyden.data.module import DataModule

__all__ = ["Curation"]

SAVE_EVERY = 50  # steps


class Curation(ABC):
    """Makes or chooses a training set before training; ``leyden curate`` calls it and writes what it returns.

    Attributes:
        numbers: names of the numbers that it returns beside the training set.
    """

    numbers: ClassVar[tuple[str, ...]] = ()
    _progress: tuple[Path, str] | None = None

    @abstractmethod
    def __call__(self, data: DataModule) -> dict[str, Tensor]:
        """Returns the new training set.

        Args:
            data: the DataModule whose training samples it starts from.

        Returns:
            ``[S, ...]`` by batch key, ``input`` and ``target`` among them, and scalars by the names of ``numbers``.
        """

    def keep_progress(self, path: Path, settings: str) -> None:
        """Lets `steps` go on where a killed process was.

        Args:
            path: the file for it.
            settings: all that the result depends on: with others, the curation begins anew.
        """
        self._progress = path, settings

    def steps(self, num_steps: int, state: Mapping[str, Any]) -> Iterator[int]:
        """Counts the steps of a curation, from where it was; every now and then its state is saved.

        Args:
            num_steps: number of all steps.
            state: all that outlives a step: modules, optimizers, or others with ``state_dict``.
        """
        first = self._load(state)
        for step in range(first, num_steps):
            yield step
            if self._progress is not None and (step + 1) % SAVE_EVERY == 0:
                path, settings = self._progress
                parts = {name: part.state_dict() for name, part in state.items()}
                with replace_file(path) as file:
                    torch.save({"settings": settings, "step": step + 1, "state": parts}, file)

    def _load(self, state: Mapping[str, Any]) -> int:
        if self._progress is None or not self._progress[0].is_file():
            return 0
        saved = torch.load(self._progress[0], map_location="cpu", weights_only=True)
        if saved["settings"] != self._progress[1]:
            return 0
        for name, part in state.items():
            part.load_state_dict(saved["state"][name])
        return saved["step"]
