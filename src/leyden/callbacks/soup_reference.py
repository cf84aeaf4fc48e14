"""SALSA (A. Chegini et al., "SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF", 2024, arXiv
2411.01798): the reference of the KL penalty is the average of fine-tuned models, not the one that training starts from.

No code of the authors was found. That the policy starts from one of the models, so that the divergence does not start
at 0, is unverified.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.network import Outputs
from leyden.weights.checkpoint_file import CheckpointFile
from leyden.weights.combine import average
from leyden.weights.files import WeightsFile

if TYPE_CHECKING:
    from leyden.core.method import Method

__all__ = ["SoupReference"]


class SoupReference(MethodCallback):
    """Adds ``reference_kl``, ``kl_weight KL(policy || reference)``, of which the reference is a soup of models.

    The soup is frozen, and not saved: a resumed run averages the same files again.

    Args:
        checkpoints: file of weights of the network (a state dict), or several.
        weights: of the files, at least 0; scaled to the sum 1. All alike if None.
        kl_weight: factor of the divergence, a mean over samples (and tokens).

    Raises:
        ValueError: there is no file, ``kl_weight`` is negative, or ``weights`` are of another number.
    """

    def __init__(
        self,
        checkpoints: WeightsFile | list[WeightsFile],
        *,
        weights: Sequence[float] | None = None,
        kl_weight: float = 0.05,
    ) -> None:
        self.checkpoints = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
        if not self.checkpoints:
            raise ValueError("checkpoints must be at least one file, got an empty list")
        if weights is not None and len(weights) != len(self.checkpoints):
            raise ValueError(f"weights must be {len(self.checkpoints)}, one per checkpoint, got {len(weights)}")
        if kl_weight < 0.0:
            raise ValueError(f"kl_weight must be at least 0, got {kl_weight}")
        self.weights = weights
        self.kl_weight = kl_weight

    def build(self, method: "Method") -> None:
        """Makes the soup.

        Raises:
            ValueError: a file has other names or shapes than the network.
        """
        soup = average([CheckpointFile(path) for path in self.checkpoints], self.weights)
        self.reference = deepcopy(method.network)
        try:
            self.reference.load_state_dict(soup)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"checkpoints {', '.join(self.checkpoints)} do not fit the network: {reason}") from None
        method.attach_frozen(f"{self.state_key}_reference", self.reference)

    def loss_terms(self, method: "Method", batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``reference_kl``."""
        with torch.no_grad():
            reference = self.reference(batch["input"]).float().log_softmax(-1)
        policy = outputs.logits.float().log_softmax(-1)
        divergence = functional.kl_div(reference, policy, reduction="none", log_target=True).sum(-1).mean()
        return terms | {"reference_kl": self.kl_weight * divergence}
