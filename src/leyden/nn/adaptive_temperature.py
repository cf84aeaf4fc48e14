"""Temperature per sample (Y. Liu, L. Wang, Y. Zou, J. Zou, L. Zheng, "Optimizing Calibration by Gaining Aware of
Prediction Correctness", 2024, arXiv 2404.13016), from what a network says of transformed versions of the input.

Original code: liuyvchi/Correctness-aware-calibration, ``src/cal_metrics/temperature_scaling_CA.py`` and
``src/run_cal.py`` (its method 3NT4: three versions, top four classes of the original).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["AdaptiveTemperature", "transformed_topk_features"]


class AdaptiveTemperature(nn.Module):
    """Divides logits by a temperature per sample, which leaves predictions as they are.

    The temperature is ``clamp(temperature(relu(embed(features))), low, high)``; it starts near 1.

    Args:
        in_features: F.
        hidden: outputs of the first layer.
        low: least temperature.
        high: largest temperature.

    Raises:
        ValueError: a size is below 1, or the bounds are no bounds around 1.
    """

    def __init__(self, in_features: int, hidden: int = 5, *, low: float = 0.1, high: float = 10.0) -> None:
        super().__init__()
        if min(in_features, hidden) < 1:
            raise ValueError(f"in_features and hidden must be at least 1, got {in_features} and {hidden}")
        if not 0.0 < low < 1.0 < high:
            raise ValueError(f"low and high must be positive with 1 between them, got {low} and {high}")
        self.low, self.high = low, high
        self.embed = nn.Linear(in_features, hidden)
        self.temperature = nn.Linear(hidden, 1)
        nn.init.ones_(self.temperature.bias)  # outside of the bounds there is no gradient

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Maps logits ``[N, C]`` and features ``[N, F]`` to calibrated logits ``[N, C]``."""
        return logits / self.temperature(self.embed(features).relu()).clamp(self.low, self.high)


def transformed_topk_features(probs: Sequence[Tensor], k: int = 4) -> Tensor:
    """Probabilities of transformed versions of the inputs, at the classes that are likeliest for the originals.

    Args:
        probs: of the originals, then of each version, ``[N, C]`` each.
        k: number of classes; all if there are fewer.

    Returns:
        ``[N, V k]`` for V versions.

    Raises:
        ValueError: there is no version, shapes differ, or ``k`` is below 1.
    """
    if len(probs) < 2 or any(p.ndim != 2 or p.shape != probs[0].shape for p in probs):
        shapes = ", ".join(str(tuple(p.shape)) for p in probs)
        raise ValueError(f"probs must be two or more tensors [N, C] of the same shape, got {shapes}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    top = probs[0].topk(min(k, probs[0].shape[-1]), dim=-1).indices  # [N, k]
    return torch.cat([p.gather(-1, top) for p in probs[1:]], -1)
