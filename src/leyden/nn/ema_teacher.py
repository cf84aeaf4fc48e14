"""A network's moving average as a module: the teacher of self-distillation and mean-teacher methods."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leyden.core.distributed import copy_from_first_, whole
from leyden.weights.ema import lerp_

__all__ = ["EMATeacher"]


class EMATeacher(nn.Module):
    """A frozen copy of a network that follows it; buffers are copied.

    Args:
        network: the student; copied in its present state.
        decay: share of the old average that an update keeps, or a function from the optimizer steps done to it.

    Raises:
        ValueError: ``decay`` is a number outside of [0, 1], or the weights have less than 32 bits: an average in so few
            stands still.
    """

    def __init__(self, network: nn.Module, *, decay: float | Callable[[int], float] = 0.999) -> None:
        super().__init__()
        if not callable(decay) and not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1] or be a function of the step, got {decay}")
        for name, parameter in network.named_parameters():
            if parameter.is_floating_point() and parameter.element_size() < 4:
                raise ValueError(
                    f"the network's {name!r} is {parameter.dtype}, too coarse for an average to move in: keep the "
                    "weights in float32 (mixed precision does)"
                )
        self.decay = decay
        self.module = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the average without gradients, in eval mode unless ``train()`` was called."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves the average towards the network, after an optimizer step.

        Args:
            network: the student.
            step: optimizer steps done.
        """
        decay = self.decay(step) if callable(self.decay) else self.decay
        lerp_(list(self.module.parameters()), [whole(p) for p in network.parameters()], 1.0 - decay)
        for average, current in zip(self.module.buffers(), network.buffers(), strict=True):
            average.copy_(current)
        copy_from_first_(list(self.module.buffers()))
