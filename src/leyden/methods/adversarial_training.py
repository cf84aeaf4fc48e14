"""Adversarial training (A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards Deep Learning Models Resistant
to Adversarial Attacks", 2018, arXiv 1706.06083), and with `leyden.losses.KLDRO` the doubly robust one (D. Sow, S. Lin,
Z. Wang, Y. Liang, "Doubly Robust Instance-Reweighted Adversarial Training", 2023, arXiv 2308.00311).

The gradient takes the attacked input as fixed, which is exact at the maximum of the very loss that is trained. The
second paper also differentiates the attack, by an implicit term for a ball with a logarithmic barrier: left out here.
"""

from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.evaluating import evaluating
from leyden.core.network import Network, Outputs
from leyden.core.random import sample_keys, uniform
from leyden.inference.pgd import check_pgd, pgd
from leyden.methods.classification import Classification
from leyden.metrics.worst_class import WorstClassAccuracy

__all__ = ["AdversarialTraining"]

_STREAM = 0xAD  # starts are not drawn by the numbers that augmentation draws by


class AdversarialTraining(Classification):
    """Trains on inputs that `leyden.inference.pgd` moved to where their loss is larger.

    A training step attacks each input from a random place in its ball, with the network in evaluation mode, after the
    callbacks have changed the batch. Evaluation is that of the inputs as they are; ``robust_accuracy`` and
    ``worst_class_robust_accuracy`` are those of inputs that are attacked from where they are.

    Args:
        network: gives logits ``[N, C]``.
        eps: radius of the ball; the default, that of the papers, is for images with pixels in [0, 1].
        step_size: length of a step of the attack.
        steps: number of steps.
        norm: that measures both, ``"linf"`` or ``"l2"``.
        bounds: smallest and largest legal number of an input; None for no bounds.
        loss: module called with logits and target, gives one loss per sample, ``[N]``; cross entropy if None.
        aggregate: makes the loss of a training batch of its losses ``[N]``, as `leyden.losses.KLDRO` does; their mean
            if None. Where gradients are accumulated, that of each micro-batch; evaluation takes the mean.
        **kwargs: see `Classification`.

    Raises:
        ValueError: an argument is out of range, or ``loss`` reduces.
    """

    def __init__(
        self,
        network: Network,
        *,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        norm: str = "linf",
        bounds: tuple[float, float] | None = (0.0, 1.0),
        loss: nn.Module | None = None,
        aggregate: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.attack_settings: dict[str, Any] = {
            "norm": norm,
            "eps": eps,
            "step_size": step_size,
            "steps": steps,
            "bounds": bounds,
        }
        check_pgd(**self.attack_settings)
        if eps == float("inf"):
            raise ValueError("eps must be finite, because the attack starts at a random place in the ball, got inf")
        if (reduction := getattr(loss, "reduction", "none")) != "none":
            raise ValueError(f"loss must give one loss per sample: set its reduction to 'none', got {reduction!r}")
        super().__init__(network, loss=loss or nn.CrossEntropyLoss(reduction="none"), **kwargs)
        self.aggregate = aggregate

    def transform_batch(self, batch: Batch) -> Batch:
        """Returns the batch as the callbacks change it, then attacked."""
        batch = super().transform_batch(batch)
        require_keys(batch, "target", "index", user="AdversarialTraining")
        x, eps = batch["input"], self.attack_settings["eps"]
        keys = sample_keys(getattr(self.datamodule, "seed", 0), self.global_step, batch["index"])
        noise = eps * (2.0 * uniform(keys, *x.shape[1:], stream=_STREAM) - 1.0)
        return batch | {"input": self.attack(batch, start=x + noise.to(x.dtype))}

    def attack(self, batch: Batch, *, start: Tensor | None = None) -> Tensor:
        """Inputs within the ball around those of a batch, at which their losses are larger.

        Args:
            batch: the batch; only ``input`` moves.
            start: where the attack starts, ``[N, ...]``; at the inputs if None.
        """
        with evaluating(self.network), torch.inference_mode(False):
            batch = {key: value.clone() for key, value in batch.items()}  # those of an evaluation know no gradients

            def score(x: Tensor) -> Tensor:
                return self._losses(self.compute(batch | {"input": x}), batch)

            return pgd(score, batch["input"], start=start, **self.attack_settings)

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss as ``task``."""
        require_keys(batch, "target", user="AdversarialTraining")
        losses = self._losses(outputs, batch)
        return {"task": self.aggregate(losses) if self.aggregate is not None and self.training else losses.mean()}

    def _losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        if "labeled" in batch:
            raise MisconfigurationException(
                "AdversarialTraining attacks the losses of labels, but the batch has samples without: leave them out"
            )
        return self.loss(outputs.logits, batch["target"])

    def make_metrics(self) -> dict[str, Metric]:
        """Accuracies of the inputs as they are and under attack."""
        return {
            **super().make_metrics(),
            "robust_accuracy": MulticlassAccuracy(average="micro"),
            "worst_class_robust_accuracy": WorstClassAccuracy(),
        }

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch, and attacks it."""
        super().update_metrics(metrics, batch, outputs)
        target = batch["target"] if batch["target"].ndim == 1 else batch["target"].argmax(-1)
        attacked = self.compute(batch | {"input": self.attack(batch)}).logits.argmax(-1)
        metrics["robust_accuracy"].update(attacked, target)
        metrics["worst_class_robust_accuracy"].update(attacked, target)
