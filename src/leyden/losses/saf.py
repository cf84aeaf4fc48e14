"""Trajectory loss (J. Du, D. Zhou, J. Feng, V. Y. F. Tan, J. T. Zhou, "Sharpness-Aware Training for Free", 2022, arXiv
2205.14083): stay near what the network said of the same example some epochs ago, because sharp minima are entered by
sudden drops of the loss.

The factor T^2 stands in the authors' code and not in the paper.
"""

from torch import Tensor, nn

from leyden.losses.kd import kd_loss

__all__ = ["TrajectoryLoss", "trajectory_loss"]


def trajectory_loss(
    logits: Tensor, past_logits: Tensor, *, temperature: float = 5.0, reduction: str = "mean"
) -> Tensor:
    """Divergence from past to present predictions, ``T^2 KL(softmax(past / T) || softmax(logits / T))``.

    Args:
        logits: present scores, ``[N, C]``.
        past_logits: scores of the same examples by older weights, ``[N, C]``; get no gradient.
        temperature: T; a larger one compares the whole shape of the scores rather than the top class.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, ``temperature`` is not positive, or another ``reduction``.
    """
    if logits.shape != past_logits.shape:
        raise ValueError(
            f"past_logits must have the shape of logits, {tuple(logits.shape)}, got {tuple(past_logits.shape)}"
        )
    return kd_loss(logits, past_logits.detach(), temperature=temperature, reduction=reduction)


class TrajectoryLoss(nn.Module):
    """Module twin of `trajectory_loss`."""

    def __init__(self, *, temperature: float = 5.0, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature, self.reduction = temperature, reduction

    def forward(self, logits: Tensor, past_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return trajectory_loss(logits, past_logits, temperature=self.temperature, reduction=self.reduction)
