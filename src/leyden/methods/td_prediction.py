"""Streaming TD(lambda) (M. Elsayed, G. Vasan, A. R. Mahmood, "Streaming Deep Reinforcement Learning Finally Works",
2024, arXiv 2410.14606; authors' code: mohmdelsayed/streaming-drl, ``stream_td.py``)."""

from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanSquaredError, Metric, MetricCollection

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.method import Method
from leyden.core.network import Network, Outputs
from leyden.nn.running_norm import RewardScale, RunningNorm
from leyden.optim.obgd import ObGD

__all__ = ["TDPrediction"]


class TDPrediction(Method):
    """Learns to predict discounted sums of rewards from a stream of transitions, one at a time, with no replay.

    A training batch is one transition: ``input``, ``next_input``, ``reward`` ``[1]`` and ``terminated`` bool ``[1]``.
    With ``delta = reward + gamma * v(next_input) - v(input)``, without next value where the episode ended, it makes a
    step of `ObGD`; the logged loss is ``delta^2 / 2``. Evaluation batches have true values as ``target``, ``[N, 1]``.

    Args:
        network: gives values ``[N, 1]``.
        gamma: discount of future rewards; has to be that of optimizer and data.
        observation_norm: normalises inputs; counts each when it is the present one.
        reward_scale: scales rewards; values that are evaluated are scaled back.
        **kwargs: see `Method`.

    Raises:
        ValueError: ``gamma`` is outside of [0, 1].
    """

    def __init__(
        self,
        network: Network,
        *,
        gamma: float = 0.99,
        observation_norm: RunningNorm | None = None,
        reward_scale: RewardScale | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
        self.automatic_optimization = False
        self.gamma = gamma
        self.observation_norm = observation_norm
        self.reward_scale = reward_scale

    def on_fit_start(self) -> None:
        """Checks that optimizer, data and callbacks fit.

        Raises:
            MisconfigurationException: they do not, or several processes share the stream.
        """
        super().on_fit_start()
        [optimizer] = self.trainer.optimizers
        if not isinstance(optimizer, ObGD):
            raise MisconfigurationException(
                f"TDPrediction makes its steps by leyden.optim.ObGD or AdaptiveObGD, but the optimizer is "
                f"{type(optimizer).__name__}"
            )
        gammas = {"optimizer": optimizer.defaults["gamma"], "data": getattr(self.datamodule, "gamma", self.gamma)}
        for name, gamma in gammas.items():
            if gamma != self.gamma:
                raise MisconfigurationException(f"gamma is {self.gamma}, but that of the {name} is {gamma}")
        if self.trainer.world_size > 1:
            raise MisconfigurationException("TDPrediction follows one stream, which processes cannot share: use one")
        if self._open_doors()[1]:
            raise MisconfigurationException(
                "TDPrediction steps along the gradient of a value, to which callbacks cannot add loss terms: take out "
                "those that do"
            )

    def compute(self, batch: Batch) -> Outputs:
        """Values of ``input``; in training those of scaled rewards, otherwise scaled back."""
        x = batch["input"] if self.observation_norm is None else self.observation_norm(batch["input"])
        features, values = self._run_network(self.network, x)
        if self.reward_scale is not None and not self.training:
            values = values * self.reward_scale.std().to(values.dtype)
        return Outputs(logits=values, features=features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Makes a step and returns half the squared error.

        Raises:
            ValueError: the batch is not one transition.
        """
        require_keys(batch, "next_input", "reward", "terminated", user="TDPrediction")
        batch = self.transform_batch(batch)
        if len(batch["input"]) != 1:
            raise ValueError(f"a batch of TDPrediction is one transition (batch_size 1), got {len(batch['input'])}")
        value = self.compute(batch).logits.squeeze(-1)  # [1]
        with torch.no_grad():
            delta = self._reward(batch) + self.gamma * self._next_value(batch) - value
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(-value.sum())
        optimizer.step(delta=delta, reset=batch["terminated"])
        return self.sum_terms({"task": 0.5 * delta.square().sum()}, num_samples=1)

    def _reward(self, batch: Batch) -> Tensor:
        if self.reward_scale is None:
            return batch["reward"]
        return self.reward_scale(batch["reward"], batch["terminated"])

    def _next_value(self, batch: Batch) -> Tensor:
        x = batch["next_input"]
        if self.observation_norm is not None:
            x = self.observation_norm.normalize(x)
        return self.network(x).squeeze(-1).masked_fill(batch["terminated"], 0.0)

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the mean squared error of an evaluation batch as ``task``."""
        require_keys(batch, "target", user="TDPrediction")
        return {"task": functional.mse_loss(outputs.logits, batch["target"])}

    def make_metrics(self) -> dict[str, Metric]:
        """Root mean squared error of the values."""
        return {"value_error": MeanSquaredError(squared=False)}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        metrics["value_error"].update(outputs.logits, batch["target"])
