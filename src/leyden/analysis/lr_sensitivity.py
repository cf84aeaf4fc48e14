"""Learning-rate sensitivity (M. Wortsman et al., "Small-scale proxies for large-scale Transformer training
instabilities", 2023, arXiv 2309.14322, section 2.2): how much is lost by a learning rate that is not the best."""

import torch
from torch import Tensor

__all__ = ["lr_sensitivity"]


def lr_sensitivity(losses: Tensor, *, initial_loss: float) -> Tensor:
    """Mean, over learning rates, of the final loss above the best one; a loss counts as the initial one at most.

    Args:
        losses: final losses at learning rates that are evenly spaced on a logarithmic scale (the paper takes three
            decades), ``[..., L]``; NaN and infinite ones count as ``initial_loss``.
        initial_loss: loss before training.

    Returns:
        ``[...]``, 0 if all are equal.

    Raises:
        ValueError: there is no loss.
    """
    if losses.ndim < 1 or losses.shape[-1] < 1:
        raise ValueError(f"losses must have the shape [..., L] with L >= 1, got {tuple(losses.shape)}")
    losses = torch.nan_to_num(losses, nan=initial_loss, posinf=initial_loss, neginf=initial_loss)
    losses = losses.clamp(max=initial_loss)
    return (losses - losses.amin(-1, keepdim=True)).mean(-1)
