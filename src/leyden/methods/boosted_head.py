"""Gradient boosting of a network's last layers (S. Emami, G. Martinez-Munoz, "Sequential Training of Neural Networks
with Gradient Boosting", 2019, arXiv 1909.12098, algorithm 1; authors' code: GAA-UAM/GBNN)."""

import warnings
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection, R2Score
from torchmetrics.classification import MulticlassAccuracy

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.method import Method
from leyden.core.network import Network, Outputs
from leyden.data.module import DataModule
from leyden.losses.boosting import BoostingLoss, boosting_init, boosting_residual, boosting_step_size
from leyden.methods._evaluating import check_whole_data_sets, count_step, features_and_targets
from leyden.nn.fuse_boosted import fuse_boosted

__all__ = ["BoostedHead"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "logistic": nn.Sigmoid, "relu": nn.ReLU}
_STATE = ("parts", "steps", "intercept")


class BoostedHead(Method):
    """Builds the last hidden layer and the output of a network a few units at a time, by gradient boosting.

    The head becomes a hidden layer of ``num_stages * units`` units and a linear output. Each of the first
    ``num_stages`` training steps fits the next ``units`` of them, by L-BFGS on a subsample, to what the stages before
    leave of the whole training set, and is the same on all processes; the steps after them change nothing. The features
    are those of the network as it is, in evaluation mode.

    Args:
        network: its head is replaced; without hidden layers, features are the inputs. Outputs: those of the target
            with ``"mse"``, 2 with ``"binary"``, classes with ``"multiclass"``.
        num_stages: T.
        units: J, hidden units of a stage.
        learning_rate: factor of each stage's step.
        subsample: share of the training samples that a stage is fitted to, drawn without replacement.
        loss: see `leyden.losses.boosting_residual`.
        activation: of the hidden units, ``"tanh"``, ``"logistic"`` or ``"relu"``.
        max_iterations: of L-BFGS, in each stage.
        **kwargs: see `Method`; the optimizer counts steps and changes nothing.

    Raises:
        ValueError: an argument is out of range.
    """

    automatic_optimization = False

    def __init__(
        self,
        network: Network,
        *,
        num_stages: int = 10,
        units: int = 2,
        learning_rate: float = 1.0,
        subsample: float = 0.5,
        loss: BoostingLoss = "multiclass",
        activation: Literal["tanh", "logistic", "relu"] = "tanh",
        max_iterations: int = 200,
        **kwargs: Any,
    ) -> None:
        for name, value in {"num_stages": num_stages, "units": units, "max_iterations": max_iterations}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not learning_rate > 0.0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        if not 0.0 < subsample <= 1.0:
            raise ValueError(f"subsample must lie in (0, 1], got {subsample}")
        if loss not in ("mse", "binary", "multiclass"):
            raise ValueError(f"loss must be 'mse', 'binary' or 'multiclass', got {loss!r}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be 'tanh', 'logistic' or 'relu', got {activation!r}")
        if not isinstance(network.head, nn.Linear):
            raise ValueError(f"BoostedHead needs a network whose head is a torch.nn.Linear, got {network.head}")
        num_outputs = network.head.out_features
        if loss == "binary" and num_outputs != 2:
            raise ValueError(f"the network must have 2 outputs with loss='binary', got {num_outputs}")
        network.head = nn.Sequential(
            nn.Linear(network.feature_dim, num_stages * units),
            _ACTIVATIONS[activation](),
            nn.Linear(num_stages * units, num_outputs),
        )
        self.loss = loss  # `Method` calls make_metrics
        super().__init__(network, **kwargs)
        self.num_stages = num_stages
        self.units = units
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.activation = activation
        self.max_iterations = max_iterations
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.steps: list[float] = []
        self.intercept = torch.zeros(())

    def setup(self, stage: str) -> None:
        """Checks the data.

        Raises:
            MisconfigurationException: they are no `DataModule`.
        """
        if stage == "fit" and not isinstance(self.datamodule, DataModule):
            raise MisconfigurationException(
                f"BoostedHead needs the training data of a leyden.data.DataModule, got {type(self.datamodule).__name__}"
            )

    def on_fit_start(self) -> None:
        """Reads the training set, and the raw scores of the stages that are there.

        Raises:
            MisconfigurationException: a callback changes batches or loss terms, which stages do not have.
        """
        super().on_fit_start()
        check_whole_data_sets(self)
        features, self._target = (x.cpu() for x in features_and_targets(self, "train"))
        self._features = features.numpy()
        if self.loss == "mse":
            self._target = self._target.double()
        if not self.parts:
            num_outputs = cast(nn.Linear, cast(nn.Sequential, self.network.head)[2]).out_features
            self.intercept = boosting_init(self._target, loss=self.loss, num_classes=num_outputs).double()
        self._raw = self.intercept.repeat(len(features), 1)
        for part, step in zip(self.parts, self.steps, strict=True):
            self._raw = self._raw + step * self._output(part)
        self.keep(len(self.parts))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Fits a stage, if there is one left, and evaluates the batch."""
        if len(self.parts) < self.num_stages:
            self._boost()
        return count_step(self, batch)

    def _boost(self) -> None:
        seed = cast(DataModule, self.datamodule).seed
        draw = np.random.default_rng([seed, len(self.parts)])
        size = len(self._features)
        rows = draw.choice(size, max(1, int(self.subsample * size)), replace=False)
        residual = boosting_residual(self._raw, self._target, loss=self.loss)
        stage = MLPRegressor(
            hidden_layer_sizes=(self.units,),
            activation=self.activation,
            solver="lbfgs",
            max_iter=self.max_iterations,
            tol=0.0,
            random_state=int(draw.integers(2**31)),
        )
        wanted = residual[rows].numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a stage need not be fitted to the end
            stage.fit(self._features[rows], wanted.ravel() if wanted.shape[1] == 1 else wanted)
        (hidden, out), (hidden_bias, out_bias) = stage.coefs_, stage.intercepts_
        part = (torch.tensor(hidden.T), torch.tensor(hidden_bias), torch.tensor(out.T), torch.tensor(out_bias))
        prediction = self._output(part)
        step = self.learning_rate * boosting_step_size(self._target, residual, prediction, loss=self.loss)
        self.parts.append(part)
        self.steps.append(step.item())
        self._raw = self._raw + step * prediction
        self.keep(len(self.parts))

    def _output(self, part: tuple[Tensor, ...]) -> Tensor:
        hidden, hidden_bias, out, out_bias = part
        activation = _ACTIVATIONS[self.activation]()
        return activation(torch.from_numpy(self._features) @ hidden.T + hidden_bias) @ out.T + out_bias

    @torch.no_grad()
    def keep(self, num_stages: int) -> None:
        """Makes the head that of the first stages: the model as it was after them.

        Args:
            num_stages: how many; 0 leaves the constant.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= num_stages <= len(self.parts):
            raise ValueError(f"num_stages must lie in [0, {len(self.parts)}], got {num_stages}")
        first, _, last = cast(Any, self.network.head)
        for p in self.network.head.parameters():
            p.zero_()
        bias = self.intercept
        factor = 2.0 if self.loss == "binary" else 1.0  # the logit is twice the raw score
        start = 1 if self.loss == "binary" else 0  # logits of class 0 stay 0
        if num_stages:
            fused = fuse_boosted(self.parts[:num_stages], self.steps[:num_stages], self.intercept)
            hidden, hidden_bias, out, bias = fused
            first.weight[: len(hidden)].copy_(hidden)
            first.bias[: len(hidden)].copy_(hidden_bias)
            last.weight[start:, : len(hidden)].copy_(factor * out)
        last.bias[start:].copy_(factor * bias)

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns squared error or cross entropy as ``task``."""
        require_keys(batch, "target", user="BoostedHead")
        loss = functional.mse_loss if self.loss == "mse" else functional.cross_entropy
        return {"task": loss(outputs.logits, batch["target"])}

    def make_metrics(self) -> dict[str, Metric]:
        """Mean absolute error and R2, or accuracy."""
        if self.loss == "mse":
            return {"mae": MeanAbsoluteError(), "r2": R2Score()}
        return {"accuracy": MulticlassAccuracy(average="micro")}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        prediction, target = outputs.logits, batch["target"]
        if self.loss == "mse":
            for name in ("mae", "r2"):
                metrics[name].update(prediction.float().flatten(), target.float().flatten())
        else:
            metrics["accuracy"].update(prediction.argmax(-1), target if target.ndim == 1 else target.argmax(-1))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the stages."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"]["boosted_head"] = {name: getattr(self, name) for name in _STATE}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the stages."""
        super().on_load_checkpoint(checkpoint)
        for name, value in checkpoint.get("method", {}).get("boosted_head", {}).items():
            setattr(self, name, value)
