"""Mixup (H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018, arXiv
1710.09412), with shares of its own for the targets and an early end (D. Zou, Y. Cao, Y. Li, Q. Gu, "The Benefits of
Mixup for Feature Learning", 2023, arXiv 2303.08433)."""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leyden.core import Batch, Method, MethodCallback, require_keys

__all__ = ["Mixup", "mix_batch"]


class Mixup(MethodCallback):
    """Mixes inputs and targets of two samples each, as `mix_batch` says.

    The share ``lam`` is drawn from ``Beta(alpha, alpha)`` once per optimizer step, by the data's seed and the step. The
    two are neighbours in the batch, samples 2i and 2i + 1, which the order of the data shuffles anew each epoch; the
    last of an odd number stays as it is. So what is mixed does not depend on the number of processes and of accumulated
    micro-batches, as long as each has an even number of samples.

    A batch that another callback has mixed already is left alone, so that of several each batch has one.

    Args:
        alpha: of the distribution; small ones mix little.
        target_lam: share in the targets: None for that of the inputs, a number for a fixed one, two numbers for one
            drawn from this Beta distribution. The larger share is given to the sample whose input has the larger one
            (unverified: the paper has no public code).
        stop_epoch: batches stay as they are from this epoch on, counted from 0; None mixes to the end.
        prob: chance of a step to be mixed.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        target_lam: float | tuple[float, float] | None = None,
        stop_epoch: int | None = None,
        prob: float = 1.0,
    ) -> None:
        if not alpha > 0.0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if isinstance(target_lam, int | float) and not 0.0 <= target_lam <= 1.0:
            raise ValueError(f"target_lam must lie in [0, 1], got {target_lam}")
        if isinstance(target_lam, tuple | list) and not (len(target_lam) == 2 and min(target_lam) > 0.0):
            raise ValueError(f"target_lam must be two positive numbers for a Beta distribution, got {target_lam}")
        if stop_epoch is not None and stop_epoch < 1:
            raise ValueError(f"stop_epoch must be at least 1, got {stop_epoch}")
        if not 0.0 < prob <= 1.0:
            raise ValueError(f"prob must lie in (0, 1], got {prob}")
        self.alpha = alpha
        self.target_lam = target_lam
        self.stop_epoch = stop_epoch
        self.prob = prob

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Returns the mixed batch.

        Raises:
            ValueError: inputs or targets cannot be mixed.
        """
        if "mix_lam" in batch or (self.stop_epoch is not None and method.current_epoch >= self.stop_epoch):
            return batch
        require_keys(batch, "input", "target", user="Mixup")
        data = method.datamodule
        # the state's name, so that a second Mixup draws numbers of its own
        key = [getattr(data, "seed", 0), method.global_step, crc32(self.state_key.encode())]
        generator = np.random.default_rng(key)
        if generator.random() >= self.prob:
            return batch
        lam = generator.beta(self.alpha, self.alpha)
        num_samples = len(batch["input"])
        neighbours = (torch.arange(num_samples, device=batch["input"].device) ^ 1).clamp(max=num_samples - 1)
        target_lam = self._target_lam(lam, generator)
        return mix_batch(batch, neighbours, lam, target_lam, num_classes=getattr(data, "num_classes", None))

    def _target_lam(self, lam: float, generator: np.random.Generator) -> float:
        if self.target_lam is None:
            return lam
        share = self.target_lam if isinstance(self.target_lam, int | float) else generator.beta(*self.target_lam)
        return max(share, 1.0 - share) if lam >= 0.5 else min(share, 1.0 - share)


def mix_batch(
    batch: Batch, permutation: Tensor, input_lam: float, target_lam: float, *, num_classes: int | None = None
) -> Batch:
    """Mixes each sample with another one, ``lam x + (1 - lam) x[permutation]``.

    Args:
        batch: ``input`` floating point ``[N, ...]``; ``target`` int64 ``[N]`` or floating point ``[N, C]``.
        permutation: the other one of each sample, int64 ``[N]``.
        input_lam: share of a sample in its input.
        target_lam: share of a sample in its target.
        num_classes: C, which targets int64 need.

    Returns:
        A new batch: ``input`` and ``target`` mixed, the latter floating point ``[N, C]``; ``mix_target``, the classes
        of the two (the most probable ones of soft targets), int64 ``[N, 2]``; ``mix_lam``, the share of the first one
        in the target, a scalar. Where there is ``labeled``, a mixture with an unlabeled sample is unlabeled. The rest
        is as it was.

    Raises:
        ValueError: inputs are no floating-point numbers, targets have another form, or ``num_classes`` is missing.
    """
    x, target = batch["input"], batch["target"]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"input must be a floating-point tensor to be mixed, got {kind}; embed tokens first")
    if target.is_floating_point() and target.ndim == 2:
        classes = target.argmax(-1)
    elif target.dtype == torch.int64 and target.ndim == 1:
        if num_classes is None:
            raise ValueError("num_classes is needed to mix class numbers: give the DataModule num_classes")
        classes = target  # -1 where unlabeled
        target = functional.one_hot(target.clamp(min=0), num_classes).to(torch.promote_types(x.dtype, torch.float32))
    else:
        raise ValueError(
            f"target must be int64 [N] or floating point [N, C] to be mixed, got {target.dtype} {tuple(target.shape)}"
        )
    mixed = {
        "input": torch.lerp(x[permutation], x, input_lam),
        "target": torch.lerp(target[permutation], target, target_lam),
        "mix_target": torch.stack([classes, classes[permutation]], 1),
        "mix_lam": target.new_full((), target_lam),
    }
    if "labeled" in batch:
        mixed["labeled"] = batch["labeled"] & batch["labeled"][permutation]
    return batch | mixed
