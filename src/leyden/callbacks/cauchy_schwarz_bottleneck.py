"""Cauchy-Schwarz information bottleneck (S. Yu, X. Yu, S. Lokse, R. Jenssen, J. Principe, "Cauchy-Schwarz Divergence
Information Bottleneck for Regression", 2024, arXiv 2404.17951)."""

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Batch, Method, MethodCallback, Outputs, Terms, all_gather_rows, all_gather_rows_with_grad
from leyden.losses import conditional_cs_divergence, normalized_cs_qmi

__all__ = ["CauchySchwarzBottleneck"]


class CauchySchwarzBottleneck(MethodCallback):
    """Adds ``cs_qmi``, which compresses: how much the features know of the input (`leyden.losses.normalized_cs_qmi`).

    The terms are those of the rows of all processes, of one micro-batch.

    Args:
        weight: factor of the term.
        sigma: width of all kernels; inputs, features and targets should have a standard deviation of about as much.
        divergence: whether `leyden.losses.conditional_cs_divergence` takes the place of a regression's own loss in
            training, as in the paper.

    Raises:
        ValueError: ``weight`` is negative, or ``sigma`` is not positive.
    """

    def __init__(self, weight: float = 0.01, sigma: float = 1.0, *, divergence: bool = False) -> None:
        if weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if not sigma > 0.0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.weight = weight
        self.sigma = sigma
        self.divergence = divergence

    def build(self, method: Method) -> None:
        """Checks that there is a regression to diverge from.

        Raises:
            MisconfigurationException: the data have classes, and the divergence is asked for.
        """
        if self.divergence and getattr(method.datamodule, "num_classes", None) is not None:
            raise MisconfigurationException(
                "CauchySchwarzBottleneck: divergence=True is a loss of regressions, but the data have classes: set "
                "divergence to false"
            )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``cs_qmi``, and replaces ``task`` by the divergence where it is asked for."""
        assert outputs.features is not None
        x = all_gather_rows(batch["input"])
        features = all_gather_rows_with_grad(outputs.features)
        terms = terms | {"cs_qmi": self.weight * normalized_cs_qmi(x, features, sigma=self.sigma)}
        if self.divergence:
            prediction, target = all_gather_rows_with_grad(outputs.logits), all_gather_rows(batch["target"])
            terms["task"] = conditional_cs_divergence(prediction, target, x, sigma=self.sigma)
        return terms
