"""Auxiliary z-loss on any method (M. Wortsman et al., "Small-scale proxies for large-scale Transformer training
instabilities", 2023, arXiv 2309.14322, section 3.1.2)."""

from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.method import Method
from leyden.core.network import Outputs
from leyden.losses.z_loss import z_loss

__all__ = ["AuxiliaryZLoss"]


class AuxiliaryZLoss(MethodCallback):
    """Adds ``z_loss``, which keeps the normaliser of the output softmax near 1 (`leyden.losses.z_loss`).

    Tokens whose target is -100 are not in its mean.

    Args:
        weight: factor of the term.

    Raises:
        ValueError: ``weight`` is negative.
    """

    def __init__(self, weight: float = 1e-4) -> None:
        if weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.weight = weight

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``z_loss``."""
        target = batch.get("target")
        is_token = target is not None and target.ndim > 1 and target.shape == outputs.logits.shape[:-1]
        mask = target != -100 if target is not None and is_token else None
        return terms | {"z_loss": z_loss(outputs.logits, mask, weight=self.weight)}
