"""Exponential moving averages of weights: decay schedules, the update, and averages made after training.

Polyak averaging with the warm-up that timm's ``ModelEmaV3`` uses, and the power-function averages of "Analyzing
and Improving the Training Dynamics of Diffusion Models" (T. Karras et al., 2023, arXiv 2312.02696, section 3).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ema_decay",
    "ema_exponent_to_std",
    "ema_std_to_exponent",
    "ema_update_",
    "posthoc_ema_coefficients",
    "power_ema_decay",
]


def ema_decay(
    step: int,
    *,
    decay: float = 0.9999,
    warmup: bool = False,
    warmup_gamma: float = 1.0,
    warmup_power: float = 2 / 3,
    min_decay: float = 0.0,
    update_after_step: int = 0,
) -> float:
    """Decay of the update after a given optimizer step; 0 in the first one, so that the average starts as the weights.

    Args:
        step: optimizer steps done, 1 after the first.
        decay: the constant decay, with ``warmup`` the largest.
        warmup: grow as ``1 - (1 + n / gamma) ** -power`` over n updates.
        warmup_gamma: gamma.
        warmup_power: power.
        min_decay: the smallest decay during warm-up.
        update_after_step: the average follows the weights until here.
    """
    updates = max(0, step - update_after_step - 1)
    if updates == 0:
        return 0.0
    if not warmup:
        return decay
    return min(max(1.0 - (1.0 + updates / warmup_gamma) ** -warmup_power, min_decay), decay)


def power_ema_decay(step: int, *, std: float = 0.05, exponent: float | None = None, delta: int = 1) -> float:
    """Decay that makes the average weight iterate t in proportion to ``t ** exponent``, ``(1 - delta/t)^(g+1)``.

    Args:
        step: t, optimizer steps done.
        std: relative width of the profile, as in `ema_std_to_exponent`.
        exponent: g; wins over ``std``.
        delta: optimizer steps between two updates.

    Raises:
        ValueError: ``step`` is below ``delta``.
    """
    if step < delta:
        raise ValueError(f"step must be at least delta={delta}, got {step}")
    g = ema_std_to_exponent(std) if exponent is None else exponent
    return (1.0 - delta / step) ** (g + 1.0)


def ema_std_to_exponent(std: float) -> float:
    """Exponent of the power profile of relative width ``std`` (appendix C.2); 0.05 gives 16.97, 0.10 gives 6.94.

    Raises:
        ValueError: ``std`` does not lie in (0, 0.2886], the widths of exponents from 0 up.
    """
    if not 0.0 < std <= 12**-0.5 + 1e-12:
        raise ValueError(f"std must lie in (0, {12**-0.5:.4f}], got {std}")
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(roots.real[np.abs(roots.imag) < 1e-6 * np.abs(roots)].max())


def ema_exponent_to_std(exponent: float) -> float:
    """Relative width of the power profile with this exponent: ``sqrt((g+1) / ((g+2)^2 (g+3)))``."""
    return ((exponent + 1.0) / ((exponent + 2.0) ** 2 * (exponent + 3.0))) ** 0.5


def posthoc_ema_coefficients(
    in_steps: Sequence[float], in_stds: Sequence[float], out_step: float, out_std: float
) -> Tensor:
    """Weights of kept power-function averages whose combination comes nearest to another one (appendix C.3).

    Args:
        in_steps: optimizer steps at which the K averages were kept.
        in_stds: their relative widths.
        out_step: step of the wanted average.
        out_std: its relative width.

    Returns:
        float64 ``[K]``, summing to 1.

    Raises:
        ValueError: the two lists differ in length or are empty.
    """
    if len(in_steps) != len(in_stds) or not in_steps:
        raise ValueError(f"in_steps and in_stds must have the same length >= 1, got {len(in_steps)} and {len(in_stds)}")
    steps = torch.tensor(in_steps, dtype=torch.float64)
    exponents = torch.tensor([ema_std_to_exponent(std) for std in in_stds], dtype=torch.float64)
    among = _profile_dot(steps[:, None], exponents[:, None], steps, exponents)  # [K, K]
    out = torch.tensor([ema_std_to_exponent(out_std)], dtype=torch.float64)
    wanted = _profile_dot(steps, exponents, torch.tensor([out_step], dtype=torch.float64), out)  # [K]
    coefficients = torch.linalg.solve(among, wanted)
    return coefficients / coefficients.sum()


@torch.no_grad()
def ema_update_(average: Mapping[str, Tensor], current: Mapping[str, Tensor], decay: float) -> None:
    """Moves an average towards the current weights, ``average = decay * average + (1 - decay) * current``, in place.

    Args:
        average: the average; entries that are not floating point are copied from ``current``.
        current: the weights; cast to the dtype of the average.
        decay: 0 copies, 1 leaves the average as it is.

    Raises:
        ValueError: the names or shapes differ, or ``decay`` is outside of [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    if average.keys() != current.keys():
        raise ValueError(f"the names differ, first at {min(average.keys() ^ current.keys())!r}")
    for name, value in average.items():
        if value.shape != current[name].shape:
            raise ValueError(f"the shapes of {name!r} differ: {tuple(value.shape)} and {tuple(current[name].shape)}")
    floating = [name for name, value in average.items() if value.is_floating_point()]
    lerp_([average[name] for name in floating], [current[name] for name in floating], 1.0 - decay)
    for name in average.keys() - set(floating):
        average[name].copy_(current[name])


def lerp_(average: list[Tensor], current: list[Tensor], weight: float) -> None:
    """Moves each tensor of a list towards its twin; lists of one dtype go through one fused call."""
    if all(a.dtype == c.dtype for a, c in zip(average, current, strict=True)):
        if average:
            torch._foreach_lerp_(average, current, weight)
        return
    for a, c in zip(average, current, strict=True):
        a.lerp_(c.to(a.dtype), weight)


def _profile_dot(t_a: Tensor, g_a: Tensor, t_b: Tensor, g_b: Tensor) -> Tensor:
    ratio = t_a / t_b
    # from the shorter profile's end on, only the longer one is not zero
    overlap = torch.where(t_a < t_b, ratio**g_b, ratio**-g_a)
    return (g_a + 1) * (g_b + 1) * overlap / ((g_a + g_b + 1) * torch.maximum(t_a, t_b))
