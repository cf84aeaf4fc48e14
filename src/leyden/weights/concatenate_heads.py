"""One linear head on the features of several networks (J. Zhang, L. Bottou, "Learning useful representations for
shifting tasks and distributions", 2022, arXiv 2212.07346, section 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["concatenate_heads"]


@torch.no_grad()
def concatenate_heads(heads: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Returns the head whose logits on concatenated features are the mean of the logits of the heads.

    Args:
        heads: weight ``[C, D_i]`` and bias ``[C]`` of each.

    Returns:
        Weight ``[C, sum of D_i]`` and bias ``[C]``, on the device and in the dtype of the first.

    Raises:
        ValueError: there is no head, or their shapes do not fit together.
    """
    if not heads:
        raise ValueError("heads must hold at least one head, got none")
    num_classes = len(heads[0][0])
    for number, (weight, bias) in enumerate(heads):
        if weight.ndim != 2 or len(weight) != num_classes or bias.shape != (num_classes,):
            raise ValueError(
                f"heads[{number}] must be a weight [{num_classes}, D] and a bias [{num_classes}], got "
                f"{list(weight.shape)} and {list(bias.shape)}"
            )
    first = heads[0][0]
    weight = torch.cat([weight.to(first) for weight, _ in heads], dim=1) / len(heads)
    return weight, torch.stack([bias.to(first) for _, bias in heads]).mean(0)
