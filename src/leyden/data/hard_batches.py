"""Training on the batches with the highest losses (S. Sahayam, J. Zakkam, U. Jayaraman, "Can we learn better with hard
samples?", 2023, arXiv 2304.03486, called DyBAT in the authors' code: imjohnzakkam/DyBAT, ``run.py``)."""

from typing import Any

import torch
from torch import Tensor

from leyden.data.sampler import Order

__all__ = ["HardBatches", "hardest_batches"]


def hardest_batches(losses: Tensor, delta: float = 0.5) -> list[int]:
    """Returns the numbers of the batches with the highest losses, the highest first; of equal ones the first.

    Args:
        losses: one per batch, ``[M]``; those that are not finite are never chosen.
        delta: share of the batches, in (0, 1]: ``delta * M`` rounded down, but at least one.

    Raises:
        ValueError: ``losses`` is no vector, or ``delta`` is out of range.
    """
    _check_delta(delta)
    if losses.ndim != 1:
        raise ValueError(f"losses must be one number per batch, [M], got shape {tuple(losses.shape)}")
    count = max(1, int(delta * len(losses) + 1e-9))
    known = losses.isfinite().nonzero().flatten()
    return known[losses[known].argsort(descending=True, stable=True)[:count]].tolist()


class HardBatches(Order):
    """Cuts the shuffled samples into batches once; an epoch after the first has those with the highest known losses.

    These come in the order of the first epoch. The loss of a batch is that of the last time it was trained on, before
    its step: `record` takes it in. The samples behind the last whole batch are left out. (The authors' code cuts the
    data into batches as they lie; shuffled, the classes are mixed.)

    Args:
        batch_size: samples of an optimizer step, over all processes and micro-batches.
        delta: as in `hardest_batches`.

    Attributes:
        chosen: numbers of the batches of the running epoch, in their order.

    Raises:
        ValueError: ``delta`` is out of range.
    """

    pure = False

    def __init__(self, batch_size: int, *, delta: float = 0.5) -> None:
        _check_delta(delta)
        self.batch_size = batch_size
        self.delta = delta
        self.batches = torch.empty(0, batch_size, dtype=torch.int64)  # [M, B]
        self.losses = torch.empty(0)  # [M], -inf where there is none yet
        self.chosen: list[int] = []

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the samples of all batches in the first epoch, and of the hardest in another."""
        if not len(self.batches):
            whole = num_samples // self.batch_size * self.batch_size
            self.batches = torch.randperm(num_samples, generator=generator)[:whole].view(-1, self.batch_size)
            self.losses = torch.full((len(self.batches),), -torch.inf)
            self.chosen = list(range(len(self.batches)))
        if epoch == 0:  # also asked by a run that is resumed in a later epoch, to know its length
            return self.batches.flatten()
        self.chosen = sorted(hardest_batches(self.losses, self.delta)) or list(range(len(self.batches)))
        return self.batches[self.chosen].flatten()

    def record(self, step: int, loss: Tensor) -> None:
        """Notes the loss of an optimizer step, by its number in the epoch; it may stay on its device."""
        self.losses = self.losses.to(loss)
        self.losses[self.chosen[step]] = loss

    def state_dict(self) -> dict[str, Any]:
        """The batches, their losses, and which of them the running epoch has."""
        return {"batches": self.batches, "losses": self.losses.clone(), "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them.

        Raises:
            ValueError: the batches had another size.
        """
        if state["batches"].shape[1] != self.batch_size:
            raise ValueError(
                f"cannot resume with batch_size={self.batch_size}: the batches that are trained on again have "
                f"{state['batches'].shape[1]} samples"
            )
        self.batches, self.losses, self.chosen = state["batches"], state["losses"].clone(), state["chosen"]


def _check_delta(delta: float) -> None:
    if not 0.0 < delta <= 1.0:
        raise ValueError(f"delta must lie in (0, 1], got {delta}")
