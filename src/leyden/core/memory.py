"""State per training sample."""

from typing import Any

import torch
from torch import Tensor

from leyden.core.distributed import all_gather_rows

__all__ = ["SampleMemory"]


class SampleMemory:
    """One row per training sample, keyed by ``batch["index"]``; the same on all processes.

    A callback makes it in ``setup`` (``trainer.datamodule.num_samples`` rows) and returns `state_dict` from its own.

    Args:
        num_samples: size of the training set.
        shape: shape of a row.
        dtype: of the rows.
        fill: value of a row before it is written.

    Raises:
        ValueError: ``num_samples`` is below 1.
    """

    def __init__(
        self, num_samples: int, *shape: int, dtype: torch.dtype = torch.float32, fill: float | int | bool = 0
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.values = torch.full((num_samples, *shape), fill, dtype=dtype)  # [S, ...]
        self.written = torch.zeros(num_samples, dtype=torch.bool)  # [S]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns copies of the rows, ``[N, ...]``, and whether each was ever written, bool ``[N]``."""
        self._follow(index)
        return self.values[index], self.written[index]

    def write(self, index: Tensor, rows: Tensor) -> None:
        """Writes rows, detached, on all processes.

        Args:
            index: positions, int64 ``[N]``, with the same N on every process and no position twice.
            rows: ``[N, ...]``; cast to the dtype of the memory.

        Raises:
            ValueError: the rows have another shape than the memory.
        """
        if rows.shape != (len(index), *self.values.shape[1:]):
            raise ValueError(
                f"rows must have shape {(len(index), *self.values.shape[1:])} (index by row), got {tuple(rows.shape)}"
            )
        self._follow(index)
        index = all_gather_rows(index)
        self.values[index] = all_gather_rows(rows).to(self.values.dtype)
        self.written[index] = True

    def state_dict(self) -> dict[str, Any]:
        """Rows and flags."""
        return {"values": self.values, "written": self.written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores rows and flags.

        Raises:
            ValueError: the saved rows have another shape.
        """
        if state["values"].shape != self.values.shape:
            raise ValueError(
                f"the saved per-sample memory has shape {tuple(state['values'].shape)}, this run needs "
                f"{tuple(self.values.shape)}: was the data set or the number of classes changed?"
            )
        self.values, self.written = state["values"].clone(), state["written"].clone()

    def _follow(self, index: Tensor) -> None:
        # callbacks are restored before the model is moved to its device
        if index.device != self.values.device:
            self.values, self.written = self.values.to(index.device), self.written.to(index.device)
