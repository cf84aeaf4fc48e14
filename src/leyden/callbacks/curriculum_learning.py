"""Easy samples first (S. Vahidian et al., "When Do Curricula Work in Federated Learning?", ICCV 2023, arXiv 2212.12712;
X. Wu, E. Dyer, B. Neyshabur, "When Do Curricula Work?", 2021, arXiv 2012.03107)."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional

from leyden.callbacks._order import BringsOrder, total_steps
from leyden.core import Network, copy_from_first_, evaluating, require_keys
from leyden.data import Curriculum, DataModule, pacing_function

__all__ = ["CurriculumLearning"]


class CurriculumLearning(BringsOrder):
    """Scores the training samples by their loss under a reference model, and brings the easy ones in first.

    See `leyden.data.Curriculum`. The reference is one that has learned a little, such as this network after one epoch
    (or, in federated learning, the global model when a round begins): what it has not learned is hard. It is asked
    once, before the fit, with the samples as they are, not augmented; a resumed run keeps the ranking.

    Args:
        reference: network for the same input and classes.
        pacing: as in `leyden.data.pacing_function`, as are ``a`` and ``b``.
        a: share of the steps after which all samples are there.
        b: share of the samples that are there at first.
        order: ``"curriculum"``, ``"anti"`` or ``"random"``.
        balance: whether the easiest samples are those of each class, see `leyden.data.balance_order`.

    Raises:
        ValueError: an argument is out of range.
    """

    order: Curriculum

    def __init__(
        self,
        reference: Network,
        *,
        pacing: str = "linear",
        a: float = 0.8,
        b: float = 0.2,
        order: str = "curriculum",
        balance: bool = True,
    ) -> None:
        pacing_function(pacing, 1, 1, a=a, b=b)  # checks them
        if order not in ("curriculum", "anti", "random"):
            raise ValueError(f"order must be 'curriculum', 'anti' or 'random', got {order!r}")
        self.reference = reference
        self.pacing = pacing
        self.a = a
        self.b = b
        self.kind = order
        self.balance = balance

    def make_order(self, trainer: Trainer, data: DataModule) -> Curriculum:
        """Asks the reference, and returns the order."""
        scores, targets = self._score(data, trainer.strategy.root_device)
        copy_from_first_([scores])
        return Curriculum(
            scores.cpu(),
            total_steps=total_steps(trainer, data),
            batch_size=data.batch_size,
            pacing=self.pacing,
            a=self.a,
            b=self.b,
            order=self.kind,
            targets=targets if self.balance else None,
            seed=data.seed,
        )

    def state_dict(self) -> dict[str, Any]:
        """The ranking of the samples."""
        return {"ranking": self.order.ranking} if self.order is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it; without a fit there is none."""
        if self.order is not None:
            self.order.ranking = state_dict["ranking"]

    @torch.no_grad()
    def _score(self, data: DataModule, device: torch.device) -> tuple[Tensor, Tensor]:
        """Loss and target of each training sample."""
        reference = self.reference.to(device)
        scores, targets = [], []
        with evaluating(reference):
            for batch in data.all_batches("train"):
                require_keys(batch, "input", "target", user="CurriculumLearning")
                logits = reference(batch["input"].to(device)).float()
                targets.append(batch["target"])
                scores.append(functional.cross_entropy(logits, batch["target"].to(device), reduction="none"))
        return torch.cat(scores), torch.cat(targets)
