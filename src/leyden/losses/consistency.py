"""Consistency training: losses and schedules (Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023,
arXiv 2303.01469, algorithm 3; authors' code: openai/consistency_models) and their improvement (Y. Song, P. Dhariwal,
"Improved Techniques for Training Consistency Models", 2023, arXiv 2310.14189, table 1; no code of the authors).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = [
    "ConsistencyTrainingLoss",
    "PseudoHuber",
    "consistency_teacher_decay",
    "consistency_training_loss",
    "ict_discretization_steps",
    "karras_sigmas",
    "lognormal_sigma_probabilities",
    "progressive_discretization_steps",
    "pseudo_huber_loss",
]

Denoise = Callable[[Tensor, Tensor], Tensor]


def pseudo_huber_loss(prediction: Tensor, target: Tensor, *, c: float | None = None, reduction: str = "mean") -> Tensor:
    """``sqrt(||prediction - target||^2 + c^2) - c``: quadratic near 0, and linear far off.

    Args:
        prediction: ``[N, ...]``.
        target: ``[N, ...]``.
        c: where one goes over into the other; ``0.00054 sqrt(D)`` for D numbers in a sample if None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, ``c`` is not positive (the slope would be infinite), or another ``reduction``.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"target must have the shape of prediction, {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    error = (prediction.to(_at_least_float32(prediction)) - target).flatten(1)  # [N, D]
    if c is None:
        c = 0.00054 * math.sqrt(error.shape[1])
    if not c > 0.0:
        raise ValueError(f"c must be positive, got {c}")
    squares = error.square().sum(-1)
    # the difference of the root and c, where they are nearly the same, without loss of digits
    return reduce_loss(squares / ((squares + c * c).sqrt() + c), reduction)


def consistency_training_loss(
    denoise: Denoise,
    target_denoise: Denoise,
    input: Tensor,
    sigma_high: Tensor,
    sigma_low: Tensor,
    noise: Tensor,
    *,
    distance: str = "pseudo_huber",
    weighting: str = "inverse_gap",
    reduction: str = "mean",
) -> Tensor:
    """Distance of what a network makes of a sample with much noise and with slightly less of the same noise.

    Both calls see the same random numbers (dropout); only the first has a gradient.

    Args:
        denoise: maps noisy samples ``[N, ...]`` and the sizes of their noise ``[N]`` to samples without.
        target_denoise: the same for less noise: the network itself, or its average.
        input: samples, ``[N, ...]``.
        sigma_high: the larger sizes of the noise, ``[N]``.
        sigma_low: the smaller ones, ``[N]``.
        noise: standard normal, ``[N, ...]``.
        distance: ``"pseudo_huber"``, see `pseudo_huber_loss`, or ``"mse"``, the mean of the squares.
        weighting: ``"inverse_gap"`` divides by ``sigma_high - sigma_low``, ``"uniform"`` does not.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: shapes do not fit, or there is no such distance, weighting or reduction.
    """
    if distance not in ("pseudo_huber", "mse"):
        raise ValueError(f"distance must be 'pseudo_huber' or 'mse', got {distance!r}")
    if weighting not in ("inverse_gap", "uniform"):
        raise ValueError(f"weighting must be 'inverse_gap' or 'uniform', got {weighting!r}")
    if noise.shape != input.shape or sigma_high.shape != input.shape[:1] or sigma_low.shape != input.shape[:1]:
        raise ValueError(
            f"for input of shape {tuple(input.shape)}, noise must have the same and both sigmas "
            f"{tuple(input.shape[:1])}, got {tuple(noise.shape)}, {tuple(sigma_high.shape)} and "
            f"{tuple(sigma_low.shape)}"
        )
    x = input.to(_at_least_float32(input))
    by_sample = (-1, *(1 for _ in x.shape[1:]))
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        target = target_denoise(x + sigma_low.view(by_sample) * noise, sigma_low)
    denoised = denoise(x + sigma_high.view(by_sample) * noise, sigma_high)
    if distance == "pseudo_huber":
        each = pseudo_huber_loss(denoised, target, reduction="none")
    else:
        each = (denoised.to(x.dtype) - target).square().flatten(1).mean(-1)
    if weighting == "inverse_gap":
        each = each / (sigma_high - sigma_low)
    return reduce_loss(each, reduction)


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Sizes of noise whose ``rho``-th roots are equally spaced.

    Args:
        n: their number, at least 2.
        sigma_min: the smallest.
        sigma_max: the largest.
        rho: larger values put more of them near ``sigma_min``.

    Returns:
        float64 ``[n]``, ascending.

    Raises:
        ValueError: an argument is out of range.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min must lie between 0 and sigma_max, got {sigma_min} and {sigma_max}")
    if not rho > 0.0:
        raise ValueError(f"rho must be positive, got {rho}")
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    sigmas = torch.linspace(low, high, n, dtype=torch.float64) ** rho
    sigmas[0], sigmas[-1] = sigma_min, sigma_max  # without rounding: there the network must be the identity
    return sigmas


def ict_discretization_steps(step: int, total_steps: int, *, s0: int = 10, s1: int = 1280) -> int:
    """Number of sigmas in a training step: it doubles at equal intervals.

    Args:
        step: counted from 0.
        total_steps: of the training.
        s0: intervals between the first sigmas.
        s1: intervals between the last ones.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_steps(step, total_steps, s0, s1)
    stage = max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))
    return min(s0 * 2 ** min(step // stage, s1.bit_length()), s1) + 1


def progressive_discretization_steps(step: int, total_steps: int, *, s0: int = 2, s1: int = 150) -> int:
    """Number of sigmas in a step of plain consistency training, whose square grows linearly; see the other."""
    _check_steps(step, total_steps, s0, s1)
    intervals = math.ceil(math.sqrt(step / total_steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1.0)
    return max(intervals, 1) + 1


def consistency_teacher_decay(num_sigmas: int, *, s0: int = 2, mu0: float = 0.95) -> float:
    """Decay of the average that is the teacher of plain consistency training.

    Args:
        num_sigmas: of this training step, at least 2.
        s0: intervals between the first sigmas.
        mu0: the decay for those.

    Raises:
        ValueError: an argument is out of range.
    """
    if num_sigmas < 2 or s0 < 1:
        raise ValueError(f"num_sigmas must be at least 2 and s0 at least 1, got {num_sigmas} and {s0}")
    if not 0.0 < mu0 <= 1.0:
        raise ValueError(f"mu0 must lie in (0, 1], got {mu0}")
    return math.exp(s0 * math.log(mu0) / (num_sigmas - 1))


def lognormal_sigma_probabilities(sigmas: Tensor, *, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """Shares of the intervals between sigmas whose logarithms are normal.

    Args:
        sigmas: ascending, ``[n]``.
        mean: of the logarithm.
        std: of the logarithm.

    Returns:
        float64 ``[n - 1]``, with the sum 1.

    Raises:
        ValueError: ``std`` is not positive.
    """
    if not std > 0.0:
        raise ValueError(f"std must be positive, got {std}")
    # float32 has nothing left of the largest ones
    shares = torch.special.ndtr((sigmas.double().log() - mean) / std).diff()
    return shares / shares.sum()


class PseudoHuber(nn.Module):
    """Module twin of `pseudo_huber_loss`."""

    def __init__(self, *, c: float | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.c, self.reduction = c, reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return pseudo_huber_loss(prediction, target, c=self.c, reduction=self.reduction)


class ConsistencyTrainingLoss(nn.Module):
    """Module twin of `consistency_training_loss`."""

    def __init__(
        self, *, distance: str = "pseudo_huber", weighting: str = "inverse_gap", reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.distance, self.weighting, self.reduction = distance, weighting, reduction

    def forward(
        self,
        denoise: Denoise,
        target_denoise: Denoise,
        input: Tensor,
        sigma_high: Tensor,
        sigma_low: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Returns the loss."""
        return consistency_training_loss(
            denoise,
            target_denoise,
            input,
            sigma_high,
            sigma_low,
            noise,
            distance=self.distance,
            weighting=self.weighting,
            reduction=self.reduction,
        )


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_steps(step: int, total_steps: int, s0: int, s1: int) -> None:
    if step < 0 or total_steps < 1:
        raise ValueError(f"step must be at least 0 and total_steps at least 1, got {step} and {total_steps}")
    if not 1 <= s0 <= s1:
        raise ValueError(f"s0 must be at least 1 and at most s1, got {s0} and {s1}")
