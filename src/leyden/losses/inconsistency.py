"""Inconsistency of two domains (S. Shin, H. Bae, B. Na, Y.-Y. Kim, I.-C. Moon, "Unknown Domain Inconsistency
Minimization for Domain Generalization", 2024, arXiv 2403.07329; authors' code: aailabkaist/UDIM, ``iada_final.py``):
how far the spreads of the gradients of single examples are apart, and how large these are in the second domain."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.distributed import all_reduce_mean

__all__ = ["InconsistencyLoss", "head_gradients", "inconsistency_loss"]


def head_gradients(features: Tensor, logits: Tensor, target: Tensor) -> list[Tensor]:
    """Gradient of the cross entropy of each example by weight and bias of a linear head, differentiable.

    Args:
        features: that go into the head, ``[N, D]``.
        logits: that come out, ``[N, C]``.
        target: class numbers, int64 ``[N]``, or soft, ``[N, C]``.

    Returns:
        By the weight, ``[N, C * D]``, and by the bias, ``[N, C]``.

    Raises:
        ValueError: the shapes do not fit.
    """
    soft = functional.one_hot(target, logits.shape[-1]) if target.ndim == 1 else target
    if not (features.ndim == logits.ndim == 2 and soft.shape == logits.shape and len(features) == len(logits)):
        raise ValueError(
            f"features [N, D], logits [N, C] and target [N] or [N, C] are needed, got {tuple(features.shape)}, "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    surprise = logits.softmax(-1, dtype=dtype) - soft.to(dtype)  # [N, C]
    return [(surprise.unsqueeze(2) * features.to(dtype).unsqueeze(1)).flatten(1), surprise]


def inconsistency_loss(source_grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """Squared distance of the spreads of two domains' gradients, and the squares of the second domain's.

    With the mean m of the source's gradients, the spreads are ``v = mean (g - m)^2`` of each domain, about the same m.
    The loss is ``mean ((v_source - v_perturbed) / 2)^2`` over all entries, plus ``mean_i |g_i|^2 / P_k`` of the
    perturbed ones, summed over the parameters.

    Args:
        source_grads: one entry ``[N, P_k]`` for each parameter k, a row per example.
        perturbed_grads: those of the other domain, ``[M, P_k]`` each.

    Returns:
        ``[]``. All means are over the examples of all processes; the mean of its gradients over them (as DDP takes it)
        is that of the whole.

    Raises:
        ValueError: the shapes do not fit, or a domain has no example.
    """
    shapes = [(tuple(s.shape[1:]), tuple(p.shape[1:])) for s, p in zip(source_grads, perturbed_grads, strict=True)]
    if not shapes or any(one != other or len(one) != 1 for one, other in shapes):
        raise ValueError(f"the gradients of both domains must be [N, P_k] for the same parameters, got {shapes}")
    if not (len(source_grads[0]) and len(perturbed_grads[0])):
        raise ValueError("both domains need one example or more")
    distance, size, num_entries = source_grads[0].new_zeros(()), source_grads[0].new_zeros(()), 0
    for source, perturbed in zip(source_grads, perturbed_grads, strict=True):
        mean, other = _mean(source), _mean(perturbed)  # [P_k]
        squares, other_squares = _mean(source.square()), _mean(perturbed.square())
        difference = squares - other_squares + 2.0 * mean * (other - mean)  # of the spreads about the source's mean
        distance = distance + (difference / 2.0).square().sum()
        size = size + other_squares.mean()
        num_entries += len(mean)
    return distance / num_entries + size


class InconsistencyLoss(nn.Module):
    """Module twin of `inconsistency_loss`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, source_grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
        """Returns the loss."""
        return inconsistency_loss(source_grads, perturbed_grads)


def _mean(rows: Tensor) -> Tensor:
    """Mean of the rows of all processes, whose gradient is that of the rows of this one."""
    mean = rows.mean(0)
    return mean + (all_reduce_mean(mean) - mean.detach())
