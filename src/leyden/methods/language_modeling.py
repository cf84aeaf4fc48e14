"""Language modelling: the next token."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.text import Perplexity

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.method import Method
from leyden.core.network import Network, Outputs
from leyden.metrics.bits_per_byte import BitsPerByte

__all__ = ["LanguageModeling"]


class LanguageModeling(Method):
    """Trains a network to predict the next token; logs loss (nats per token), bits per byte and perplexity.

    ``input`` and ``target`` are int64 ``[N, T]``; a target of -100 has no loss.

    Args:
        network: gives logits ``[N, T, V]``.
        label_smoothing: share of the target that is spread over all tokens.
        **kwargs: see `Method`.

    Raises:
        ValueError: ``label_smoothing`` is outside of [0, 1).
    """

    def __init__(self, network: Network, *, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the mean cross entropy per token as ``task``."""
        require_keys(batch, "target", user="LanguageModeling")
        return {"task": _cross_entropy(outputs.logits, batch["target"], self.label_smoothing)}

    def loss_count(self, batch: Batch, outputs: Outputs) -> int | Tensor:
        """Number of tokens that have a loss."""
        return (batch["target"] != -100).sum()

    def make_metrics(self) -> dict[str, Metric]:
        """Bits per byte and perplexity."""
        return {"bits_per_byte": BitsPerByte(), "perplexity": Perplexity(ignore_index=-100)}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        target = batch["target"]
        bits = metrics["bits_per_byte"]
        bits.bytes_per_token = getattr(self.datamodule, "bytes_per_token", 1.0)
        bits.update(_cross_entropy(outputs.logits, target), weight=self.loss_count(batch, outputs))
        metrics["perplexity"].update(outputs.logits, target)


def _cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), label_smoothing=label_smoothing)
