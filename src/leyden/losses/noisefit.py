"""Noise augmented fine-tuning (A. Khadangi et al., "Noise Augmented Fine Tuning for Mitigating Hallucinations in Large
Language Models", 2025, arXiv 2504.03302; authors' code: akhadangi/NoiseFiT, ``NoiseFiT_v1_manual_snr.py``).

As in that code nothing is detached, and the temperature is that of the clean side only. The code masks tokens by labels
that are not shifted, while its cross entropy shifts them; here one mask serves both.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NoiseFiTLoss", "noisefit_loss", "noisefit_penalty"]


def noisefit_loss(
    logits: Tensor,
    noisy_logits1: Tensor,
    noisy_logits2: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    consistency: float = 0.1,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy of the clean outputs, times ``alpha``, plus `noisefit_penalty`; means over the tokens.

    Args:
        logits: clean outputs, ``[..., C]``.
        noisy_logits1: outputs with noise on hidden states, ``[..., C]``.
        noisy_logits2: the same with another draw of the noise.
        target: class numbers, int64 ``[...]``, or soft targets ``[..., C]``.
        alpha: share of the cross entropy, in [0, 1].
        consistency: weight of the divergence between the noisy outputs.
        temperature: of the clean outputs where they are a target.
        ignore_index: class number of tokens that have no loss.

    Raises:
        ValueError: the shapes do not fit, or a number is out of range.
    """
    soft = target.is_floating_point()
    if target.shape != (logits.shape if soft else logits.shape[:-1]):
        raise ValueError(
            f"target must be int64 {tuple(logits.shape[:-1])} or floating point {tuple(logits.shape)}, got "
            f"{target.dtype} {tuple(target.shape)}"
        )
    penalty = noisefit_penalty(
        logits,
        noisy_logits1,
        noisy_logits2,
        mask=None if soft else target != ignore_index,
        alpha=alpha,
        consistency=consistency,
        temperature=temperature,
    )
    task = functional.cross_entropy(
        _float(logits).flatten(0, -2),
        target.flatten(0, -2) if soft else target.flatten(),
        ignore_index=-100 if soft else ignore_index,
    )
    return alpha * task + penalty


def noisefit_penalty(
    logits: Tensor,
    noisy_logits1: Tensor,
    noisy_logits2: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: float = 0.5,
    consistency: float = 0.1,
    temperature: float = 1.0,
) -> Tensor:
    """Divergences to noisy outputs: ``(1 - alpha) (KL(q || n1) + KL(q || n2)) / 2 + consistency KL(n2 || n1)``.

    ``q`` is the softmax of the clean logits over the temperature, ``n1`` and ``n2`` those of the noisy logits.

    Args:
        logits: clean outputs, ``[..., C]``.
        noisy_logits1: outputs with noise on hidden states, ``[..., C]``.
        noisy_logits2: the same with another draw of the noise.
        mask: tokens that are counted, bool ``[...]``; all if None.
        alpha: in [0, 1].
        consistency: weight of the divergence between the noisy outputs.
        temperature: of the clean outputs.

    Returns:
        The mean over the tokens that are counted; 0 if there are none.

    Raises:
        ValueError: the shapes differ, or a number is out of range.
    """
    for name, noisy in (("noisy_logits1", noisy_logits1), ("noisy_logits2", noisy_logits2)):
        if noisy.shape != logits.shape:
            raise ValueError(f"{name} must have the shape of logits, {tuple(logits.shape)}, got {tuple(noisy.shape)}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if consistency < 0.0:
        raise ValueError(f"consistency must be at least 0, got {consistency}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    clean = (_float(logits) / temperature).log_softmax(-1)
    noisy1, noisy2 = (_float(noisy).log_softmax(-1) for noisy in (noisy_logits1, noisy_logits2))
    soft = 0.5 * (_divergence(noisy1, clean) + _divergence(noisy2, clean))
    values = (1.0 - alpha) * soft + consistency * _divergence(noisy1, noisy2)  # [...]
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


class NoiseFiTLoss(nn.Module):
    """Module twin of `noisefit_loss`."""

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        consistency: float = 0.1,
        temperature: float = 1.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.consistency = consistency
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, noisy_logits1: Tensor, noisy_logits2: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return noisefit_loss(
            logits,
            noisy_logits1,
            noisy_logits2,
            target,
            alpha=self.alpha,
            consistency=self.consistency,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )


def _divergence(input: Tensor, target: Tensor) -> Tensor:
    return functional.kl_div(input, target, reduction="none", log_target=True).sum(-1)


def _float(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
