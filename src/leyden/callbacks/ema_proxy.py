"""Dynamic EMA proxy (C. Li, Z. Shi, Y. Lu, W. He, X. Xu, "Robust Neural Rendering in the Wild with Asymmetric Dual 3D
Gaussian Splatting", 2025, arXiv 2506.03538; authors' code: steveli88/AsymGS, ``asym_emags.py``)."""

from leyden.callbacks._follows_network import FollowsNetwork
from leyden.core import Batch, Method, Outputs, Terms

__all__ = ["EMAProxy"]


class EMAProxy(FollowsNetwork):
    """Adds ``ema_proxy``, the mean absolute difference of the outputs from those of a moving average of the network.

    The average has so short a memory that it stands in for a second network, trained beside the first.

    Args:
        decay: share of the old average that is kept after each optimizer step; buffers are copied.
        consistency_weight: factor of the term; 0.1 is what the authors' code calls optimal, though its flag is 1.
        warmup_steps: optimizer steps before the term is added.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, decay: float = 0.8, *, consistency_weight: float = 0.1, warmup_steps: int = 1000) -> None:
        super().__init__(decay)
        for name, value in (("consistency_weight", consistency_weight), ("warmup_steps", warmup_steps)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.consistency_weight = consistency_weight
        self.warmup_steps = warmup_steps

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``ema_proxy`` when the steps without it are done."""
        if method.global_step < self.warmup_steps:
            return terms
        assert self.teacher is not None
        distance = (outputs.logits.float() - self.teacher(batch["input"]).float()).abs().mean()
        return terms | {"ema_proxy": self.consistency_weight * distance}
