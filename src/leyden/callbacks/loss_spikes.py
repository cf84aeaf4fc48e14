"""Spoiled steps, to see what an optimizer makes of them (T. Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset
for Stable LLM Training", 2025, whose injected spikes these follow in spirit)."""

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.callback import MethodCallback
from leyden.core.method import Method
from leyden.core.network import Outputs

__all__ = ["LossSpikes"]


class LossSpikes(MethodCallback):
    """Spoils every ``interval``-th optimizer step: wrong targets, those of the next sample, and a far too large loss.

    Args:
        interval: optimizer steps between two spoiled ones.
        scale: factor of the loss in a spoiled step.

    Raises:
        ValueError: ``interval`` is below 1.
    """

    def __init__(self, interval: int = 50, scale: float = 100.0) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.interval = interval
        self.scale = scale

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Shifts the targets of a spoiled step."""
        if not self._spoils(method):
            return batch
        require_keys(batch, "target", user="LossSpikes")
        return batch | {"target": batch["target"].roll(-1, 0)}

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Scales the loss of a spoiled step."""
        return {name: self.scale * term for name, term in terms.items()} if self._spoils(method) else terms

    def _spoils(self, method: Method) -> bool:
        return (method.global_step + 1) % self.interval == 0
