"""Penalties of a classifier by bilevel optimisation (M. S. Salehi, S. Mukherjee, L. Roberts, M. J. Ehrhardt, "An
adaptively inexact first-order method for bilevel optimization with application to hyperparameter learning", 2023, arXiv
2308.10098, the experiment of multinomial logistic regression)."""

from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.batch import Batch
from leyden.core.network import Network
from leyden.data.module import DataModule
from leyden.methods._evaluating import check_whole_data_sets, count_step, features_and_targets
from leyden.methods.classification import Classification
from leyden.optim.maid import MAID

__all__ = ["Bilevel"]


class Bilevel(Classification):
    """Multinomial logistic regression on a network's features, with an L2 weight per feature for the validation data.

    The head is the minimiser of the mean cross entropy of the training data plus
    ``0.5 * sum_f exp(log_l2[f]) * |weights of feature f|^2``, where the bias counts as the last feature. `MAID`
    minimises the cross entropy of the validation data over ``log_l2``; a training step is one of its steps, on the
    whole data sets, the same on all processes. The features are those of the network as it is, in evaluation mode.

    As the penalties are fitted to them, the validation data no longer say how the network does on new data.

    Args:
        network: has a linear head with bias; without hidden layers, its features are the inputs.
        log_l2: first value of all ``log_l2``.
        epsilon: as in `leyden.optim.MAID`, like the next two.
        delta: see there.
        step_size: see there.
        **kwargs: see `Classification`; the optimizer counts steps and changes nothing.
    """

    automatic_optimization = False

    def __init__(
        self,
        network: Network,
        *,
        log_l2: float = -3.0,
        epsilon: float = 0.1,
        delta: float = 0.1,
        step_size: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.settings: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "step_size": step_size}
        self.register_buffer("log_l2", torch.full((network.feature_dim + 1,), log_l2, dtype=torch.float64))
        self._maid: MAID | None = None  # from the start of a fit on
        self._resumed: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Checks network and data.

        Raises:
            MisconfigurationException: the head is not linear with a bias, or there are no validation data.
        """
        super().setup(stage)
        if not isinstance(self.network.head, nn.Linear) or self.network.head.bias is None:
            raise MisconfigurationException(
                f"Bilevel needs a network whose head is a torch.nn.Linear with bias, got {self.network.head}"
            )
        if stage == "fit" and not isinstance(self.datamodule, DataModule):
            raise MisconfigurationException(
                f"Bilevel needs the training and validation data of a leyden.data.DataModule, got "
                f"{type(self.datamodule).__name__}"
            )

    def on_fit_start(self) -> None:
        """Makes the two problems, or goes on with them.

        Raises:
            MisconfigurationException: a callback changes batches or loss terms, which these problems do not have.
        """
        super().on_fit_start()
        check_whole_data_sets(self)
        head = cast(nn.Linear, self.network.head)
        self._maid = maid(
            *self._columns_and_targets("train"),
            *self._columns_and_targets("val"),
            x0=torch.cat([head.weight, head.bias.unsqueeze(-1)], 1).T.double(),
            theta0=cast(Tensor, self.log_l2).double(),
            **self.settings,
        )
        if self._resumed is not None:
            self._maid.load_state_dict(self._resumed)
            self._resumed = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Makes a step of `MAID`, and evaluates the batch."""
        assert self._maid is not None
        found = self._maid.step()
        head, weights = cast(nn.Linear, self.network.head), self._maid.x.T  # [C, D + 1]
        with torch.no_grad():
            head.weight.copy_(weights[:, :-1])
            head.bias.copy_(weights[:, -1])
            cast(Tensor, self.log_l2).copy_(self._maid.theta)
        if self._is_logged_step():
            self.log_dict({f"bilevel/{name}": value for name, value in found.items()})
        return count_step(self, batch)

    def _columns_and_targets(self, split: str) -> tuple[Tensor, Tensor]:
        """Features of all samples with a column of ones, float64 ``[S, D + 1]``, and targets."""
        features, targets = features_and_targets(self, split)
        return torch.cat([features, torch.ones_like(features[:, :1])], 1), targets

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of `MAID`."""
        super().on_save_checkpoint(checkpoint)
        if self._maid is not None:
            checkpoint["method"]["bilevel"] = self._maid.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what `on_save_checkpoint` added for `on_fit_start`."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.training:
            self._resumed = checkpoint.get("method", {}).get("bilevel")


def maid(
    train: Tensor, train_target: Tensor, val: Tensor, val_target: Tensor, *, x0: Tensor, theta0: Tensor, **settings: Any
) -> MAID:
    """The two problems of multinomial logistic regression with an L2 weight per feature.

    Args:
        train: features, ``[S, D]``.
        train_target: class numbers ``[S]``, or soft ``[S, C]``.
        val: features, ``[V, D]``.
        val_target: as ``train_target``.
        x0: first weights, ``[D, C]``.
        theta0: first logarithms of the L2 weights, ``[D]``.
        **settings: see `MAID`.
    """

    def lower(x: Tensor, theta: Tensor) -> Tensor:
        penalty = 0.5 * (theta.exp().unsqueeze(-1) * x.square()).sum()
        return functional.cross_entropy(train @ x, _cast(train_target, x)) + penalty

    def upper(x: Tensor, theta: Tensor) -> Tensor:
        return functional.cross_entropy(val @ x, _cast(val_target, x))

    loss_curvature = _largest_curvature(train)

    def curvature(theta: Tensor) -> tuple[float, float]:
        weights = theta.exp()
        return weights.min().item(), weights.max().item() + loss_curvature

    return MAID(lower, upper, x0, theta0, lipschitz=_largest_curvature(val), curvature=curvature, **settings)


def _cast(target: Tensor, like: Tensor) -> Tensor:
    return target.to(like.dtype) if target.is_floating_point() else target


def _largest_curvature(features: Tensor) -> float:
    """Bound of that of the mean cross entropy: the Hessian of a softmax is at most 1/2."""
    return 0.5 * torch.linalg.matrix_norm(features, ord=2).square().item() / len(features)
