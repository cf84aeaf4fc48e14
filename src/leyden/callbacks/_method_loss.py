"""The loss of a method on its own, without what callbacks add."""

import torch
from torch import Tensor, nn

from leyden.core import Batch, Method, Outputs

__all__ = ["MethodLoss", "method_loss"]


def method_loss(method: Method, batch: Batch, outputs: Outputs) -> Tensor:
    """Returns the sum of the method's own terms."""
    return torch.stack(list(method.loss_terms(batch, outputs).values())).sum()


class MethodLoss(nn.Module):
    """The same for a batch, as a module whose parameters `torch.func.functional_call` can replace.

    Args:
        method: becomes ``method`` in the names of the parameters.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> Tensor:
        """Runs the network."""
        return method_loss(self.method, batch, self.method.compute(batch))
