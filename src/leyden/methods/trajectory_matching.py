"""Parts of a step that distils a data set by matching trajectories (Z. Guo et al., "Towards Lossless Dataset
Distillation via Difficulty-Aligned Trajectory Matching", 2023, arXiv 2310.05773; authors' code: NUS-HPC-AI-Lab/DATM).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leyden.losses.trajectory_matching import soft_label_loss

__all__ = ["correct_logit_average", "expert_start_bound", "unroll_sgd"]


def unroll_sgd(
    network: nn.Module,
    params: Mapping[str, Tensor],
    inputs: Tensor,
    target_logits: Tensor,
    lr: Tensor | float,
    batches: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Trains by plain SGD, and keeps the graph: the result can be differentiated by inputs, labels and rate.

    Args:
        network: whose ``forward`` is run, without buffers that it changes, such as those of BatchNorm.
        params: the parameters that it starts from, by name.
        inputs: ``[S, ...]``.
        target_logits: labels before softmax, ``[S, C]``.
        lr: learning rate.
        batches: sample numbers of each step, int64.

    Returns:
        The parameters after the last step.
    """
    current = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
    for rows in batches:
        loss = soft_label_loss(functional_call(network, current, (inputs[rows],)), target_logits[rows])
        gradients = torch.autograd.grad(loss, list(current.values()), create_graph=True)
        current = {name: p - lr * g for (name, p), g in zip(current.items(), gradients, strict=True)}
    return current


def expert_start_bound(iteration: int, *, current: int = 10, maximum: int = 20, expansion_end: int = 1000) -> int:
    """Returns the epoch below which a match may start: it grows, so that what experts learn early is matched first.

    Args:
        iteration: number of the step of the distillation, from 0.
        current: the bound at the beginning.
        maximum: the bound from ``expansion_end`` on; equal to ``current``, it never grows.
        expansion_end: number of steps in which it grows.
    """
    return min(maximum, current + int((maximum - current) * iteration / expansion_end))


def correct_logit_average(logits: Tensor, target: Tensor) -> Tensor:
    """Averages logits over the experts that are right; over all where none is, which the authors divide by zero for.

    Args:
        logits: of the experts, ``[E, N, C]``.
        target: class numbers, int64 ``[N]``.

    Returns:
        ``[N, C]``.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.ndim != 3 or logits.shape[1:2] != target.shape:
        raise ValueError(f"logits [E, N, C] and target [N] must fit, got {tuple(logits.shape)}, {tuple(target.shape)}")
    right = logits.argmax(-1) == target  # [E, N]
    weight = torch.where(right.any(0), right, True).to(logits.dtype)
    return (logits * weight.unsqueeze(-1)).sum(0) / weight.sum(0).unsqueeze(-1)
