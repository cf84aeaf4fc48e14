"""Early-learning regularization (S. Liu, J. Niles-Weed, N. Razavian, C. Fernandez-Granda, "Early-Learning
Regularization Prevents Memorization of Noisy Labels", 2020, arXiv 2007.00151, section 4)."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from leyden.callbacks._sample_memory import is_mixed, num_samples_and_classes
from leyden.core import Batch, Method, MethodCallback, Outputs, SampleMemory, Terms, require_keys
from leyden.losses import elr_loss, elr_update

__all__ = ["EarlyLearningRegularization"]


class EarlyLearningRegularization(MethodCallback):
    """Adds ``elr``, which holds predictions near their own running mean, kept per training sample.

    The means are updated before they are used, once per training batch, also where an optimizer evaluates the loss
    several times. Batches with mixed inputs are left out.

    Args:
        weight: factor of the term; the authors take 3 for CIFAR-10, 7 for CIFAR-100.
        momentum: share of the old mean that an update keeps; the authors take 0.7, and 0.9 for CIFAR-100 and for
            asymmetric noise.

    Raises:
        ValueError: ``weight`` is negative, or ``momentum`` is outside of [0, 1).
    """

    def __init__(self, weight: float = 3.0, momentum: float = 0.7) -> None:
        if weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.weight = weight
        self.momentum = momentum
        self.memory: SampleMemory | None = None  # targets, [S, C]
        self._batch_is_new = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the memory of a fit.

        Raises:
            MisconfigurationException: the DataModule does not say how many samples and classes there are.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.memory = SampleMemory(*num_samples_and_classes(trainer, user=type(self).__name__))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lets the next `loss_terms` update the memory."""
        self._batch_is_new = True

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``elr``."""
        require_keys(batch, "index", user=type(self).__name__)
        if is_mixed(batch, user=type(self).__name__):
            return terms
        assert self.memory is not None
        targets, _ = self.memory.read(batch["index"])  # [N, C]
        if self._batch_is_new:
            targets = elr_update(targets, outputs.logits, momentum=self.momentum)
            self.memory.write(batch["index"], targets)
            self._batch_is_new = False
        return terms | {"elr": self.weight * elr_loss(outputs.logits, targets)}

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return self.memory.state_dict() if self.memory is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the memory; without a fit there is none."""
        if self.memory is not None:
            self.memory.load_state_dict(state_dict)
