"""Decoupled mixup (Z. Liu, S. Li, G. Wang, C. Tan, L. Wu, S. Z. Li, "Harnessing Hard Mixed Samples with Decoupled
Regularizer", 2022, arXiv 2203.10761)."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Batch, Method, MethodCallback, Outputs, Terms, require_keys
from leyden.losses import decoupled_cross_entropy

__all__ = ["DecoupledMixup"]


class DecoupledMixup(MethodCallback):
    """Adds ``decoupled_mixup``, which asks for confidence in the dominant class of a mixed sample.

    Which samples were mixed, and how, is what another callback such as `Mixup` leaves in the batch: ``mix_target`` and
    ``mix_lam``. Batches that were not mixed have no such term.

    Args:
        eta: weight; the authors take 0.01 to 1.
        threshold: as in `leyden.losses.decoupled_cross_entropy`, like the next.
        power: exponent of the share in the weight.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, eta: float = 0.1, *, threshold: float = 0.5, power: float = 0.5) -> None:
        if eta < 0.0 or power < 0.0:
            raise ValueError(f"eta and power must be at least 0, got {eta} and {power}")
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        self.eta = eta
        self.threshold = threshold
        self.power = power

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for what mixes.

        Raises:
            MisconfigurationException: nothing changes the batches of a fit.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        callbacks = [cb for cb in trainer.callbacks if isinstance(cb, MethodCallback)]  # type: ignore[attr-defined]
        if all(type(callback).transform_batch is MethodCallback.transform_batch for callback in callbacks):
            raise MisconfigurationException(
                "DecoupledMixup adds to the loss of mixed samples, but no callback mixes them: add one, such as "
                "leyden.callbacks.Mixup"
            )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``decoupled_mixup`` if the batch is mixed."""
        if "mix_lam" not in batch:
            return terms
        require_keys(batch, "mix_target", user="DecoupledMixup")
        logits, targets, lam = outputs.logits, batch["mix_target"], batch["mix_lam"]
        if "labeled" in batch:
            logits, targets = logits[batch["labeled"]], targets[batch["labeled"]]
            if not len(targets):
                return terms
        first, second = targets.unbind(1)
        term = decoupled_cross_entropy(
            logits, first, second, lam, eta=self.eta, threshold=self.threshold, power=self.power
        )
        return terms | {"decoupled_mixup": term}
