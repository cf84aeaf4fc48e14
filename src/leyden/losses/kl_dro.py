"""KL-regularised distributionally robust objective (D. Sow, S. Lin, Z. Wang, Y. Liang, "Doubly Robust
Instance-Reweighted Adversarial Training", 2023, arXiv 2308.00311): the worst weighting of the examples, held near the
uniform one by a divergence.

``max_w sum_i w_i l_i - r KL(w || 1/N)`` over weights that sum to 1 is ``r log mean_i exp(l_i / r)``, taken at ``w =
softmax(l / r)``. With several processes all of this is over the examples of all of them.
"""

import math

import torch
from torch import Tensor, nn

from leyden.core.distributed import all_gather_rows, world_size

__all__ = ["KLDRO", "CompositionalKLDRO", "kl_dro_loss", "kl_dro_weights"]


def kl_dro_loss(losses: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Worst weighted mean of losses, between their mean and their maximum.

    Args:
        losses: one per example, ``[N]``.
        temperature: r, in units of the loss; a large one gives the mean, a small one the maximum.

    Returns:
        ``[]``, the same on all processes; the mean of its gradients over them (as DDP takes it) is that of the whole.

    Raises:
        ValueError: ``losses`` is no vector or empty, or ``temperature`` is not positive.
    """
    _check(losses, temperature)
    local, total, num_examples = _log_sums(losses, temperature)
    share = (local.detach() - total).exp() * world_size()
    value = temperature * (total - num_examples.log())
    return value + temperature * share * (local - local.detach())


def kl_dro_weights(losses: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Weights of the examples in the gradient of `kl_dro_loss`; they sum to 1 over all processes.

    Args:
        losses: one per example, ``[N]``.
        temperature: r.

    Returns:
        ``[N]``, detached.

    Raises:
        ValueError: ``losses`` is no vector or empty, or ``temperature`` is not positive.
    """
    _check(losses, temperature)
    _, total, _ = _log_sums(losses.detach(), temperature)
    return (_at_least_float(losses.detach()) / temperature - total).exp()


class KLDRO(nn.Module):
    """Module twin of `kl_dro_loss`."""

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the loss."""
        return kl_dro_loss(losses, temperature=self.temperature)


class CompositionalKLDRO(nn.Module):
    """`KLDRO` of the whole training set, estimated from batches.

    A batch knows only its own ``mean exp(l / r)``, whose logarithm is biased. A moving average takes its place, ``u <-
    (1 - m) u + m mean exp(l / r)``: the value is ``r log u``, the gradient ``(r / u) grad mean exp(l / r)``. In
    evaluation the average stays, and the value is that of the batch.

    Args:
        temperature: r.
        momentum: m, the share of the present batch; 1 is `KLDRO`.

    Attributes:
        log_average: log u, which starts as that of the first batch.
        num_batches_tracked: number of batches so far.

    Raises:
        ValueError: an argument is out of range.
    """

    log_average: Tensor
    num_batches_tracked: Tensor

    def __init__(self, *, temperature: float = 1.0, momentum: float = 0.1) -> None:
        super().__init__()
        _check_temperature(temperature)
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum must lie in (0, 1], got {momentum}")
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer("log_average", torch.tensor(0.0))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, losses: Tensor) -> Tensor:
        """Counts the losses ``[N]`` of a batch, and returns the estimate ``[]``."""
        batch = kl_dro_loss(losses, temperature=self.temperature)
        if not self.training:
            return batch
        present = batch.detach() / self.temperature  # log mean exp(l / r)
        past = torch.where(self.num_batches_tracked == 0, present, self.log_average)
        kept = math.log1p(-self.momentum) if self.momentum < 1.0 else -math.inf
        average = torch.logaddexp(past + kept, present + math.log(self.momentum))
        self.log_average.copy_(average)
        self.num_batches_tracked += 1
        return self.temperature * average + (present - average).exp() * (batch - batch.detach())

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"temperature={self.temperature}, momentum={self.momentum}"


def _log_sums(losses: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the sum of exp(l / r), here and over all processes (detached), and the number of losses there."""
    local = (_at_least_float(losses) / temperature).logsumexp(0)
    gathered = all_gather_rows(torch.stack([local.detach(), local.new_tensor(len(losses))]).unsqueeze(0))  # [W, 2]
    return local, gathered[:, 0].logsumexp(0), gathered[:, 1].sum()


def _at_least_float(losses: Tensor) -> Tensor:
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def _check(losses: Tensor, temperature: float) -> None:
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses must be one number per example, [N] with N of 1 or more, got {tuple(losses.shape)}")
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
