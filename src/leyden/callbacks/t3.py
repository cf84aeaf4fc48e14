"""T3 (R. Imam, H. Wang, D. Mahapatra, M. Yaqub, "T3: Test-Time Model Merging in VLMs for Zero-Shot Medical Imaging
Analysis", 2025, arXiv 2510.27265): the weights of each batch lie between those of two networks, nearer to the
generalist where the two disagree.

That disagreement moves the weights to the generalist is said in the abstract; what is unverified stands in
`leyden.weights.t3_coefficient`. The paper's variant per batch is the default.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.callbacks._changes_outputs import ChangesOutputs
from leyden.core import Batch, Method, Outputs
from leyden.core.distributed import is_sharded
from leyden.losses.jensen_shannon import jensen_shannon_divergence
from leyden.weights.files import WeightsFile, load_weights
from leyden.weights.t3 import interpolate, t3_coefficient

__all__ = ["TestTimeMerging"]


class TestTimeMerging(ChangesOutputs):
    """Validates, tests and predicts with ``lambda network + (1 - lambda) expert``, lambda from the batch itself.

    The network is the generalist. Each batch takes three forward passes: one with either network, whose
    Jensen-Shannon divergence gives lambda, and one with the merged weights, BatchNorm's statistics among them; then
    the network has its own weights again. A fit, its validation included, is left alone.

    Networks that agree get the middle of the limits, not the expert (see `leyden.weights.t3_coefficient`). If lambda is
    one per batch, a sample's output depends on the others in its batch, thus on batch size and number of processes.

    Args:
        expert: file of weights of a network of the same shape.
        lambda_min: lower limit of the network's share.
        lambda_max: upper limit; equal limits are a static interpolation.
        gamma: how steeply the share grows with the divergence.
        batch: whether the samples of a batch share the mean of their lambdas; otherwise each has a forward pass of its
            own with its own merged weights.

    Raises:
        ValueError: an argument is out of range.
    """

    __test__ = False  # for pytest

    def __init__(
        self,
        expert: WeightsFile,
        *,
        lambda_min: float = 0.0,
        lambda_max: float = 1.0,
        gamma: float = 0.5,
        batch: bool = True,
    ) -> None:
        self.expert = expert
        self.coefficient = partial(
            t3_coefficient, lambda_min=lambda_min, lambda_max=lambda_max, gamma=gamma, batch=batch
        )
        self.coefficient(torch.zeros(1))  # checks the arguments
        self.batch = batch

    def build(self, method: Method) -> None:
        """Loads the expert.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not fit the network.
        """
        expert = deepcopy(method.network)
        load_weights(expert, self.expert)
        self._expert = expert.state_dict()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes part in a validation that is not one of a fit."""
        if trainer.state.fn != "fit":
            self.start(cast(Method, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes no more part."""
        self.end(cast(Method, pl_module))

    def begin(self, method: Method) -> Callable[[Batch], Outputs]:
        """Copies the weights of both networks; each batch is computed with a mixture of them.

        Raises:
            MisconfigurationException: the parameters are sharded.
        """
        if is_sharded(method.network.parameters()):
            raise MisconfigurationException(
                "TestTimeMerging merges whole parameters, but these are sharded: evaluate with one process or with DDP"
            )
        compute = method.compute
        current = method.network.state_dict()  # the network's own tensors
        expert = {name: tensor.to(method.device) for name, tensor in self._expert.items()}
        generalist = {name: tensor.clone() for name, tensor in current.items()}

        def load(weights: dict[str, Tensor]) -> None:
            for name, tensor in current.items():
                tensor.copy_(weights[name])

        @torch.no_grad()
        def merged(batch: Batch) -> Outputs:
            try:
                logits = compute(batch).logits
                load(expert)
                divergence = jensen_shannon_divergence(logits, compute(batch).logits, reduction="none")
                share = self.coefficient(divergence)
                if self.batch:
                    load(interpolate(generalist, expert, share))
                    return compute(batch)
                outputs = []
                for row, own in enumerate(share.tolist()):
                    load(interpolate(generalist, expert, own))
                    outputs.append(compute(_row(batch, row, len(logits))))
                return _joined(outputs)
            finally:
                load(generalist)

        return merged


def _row(batch: Batch, row: int, size: int) -> Batch:
    """A batch of one sample."""
    one: dict[str, Any] = {}
    for key, value in batch.items():
        has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        one[key] = value[row : row + 1] if has_rows else value
    return one


def _joined(outputs: list[Outputs]) -> Outputs:
    """The outputs of a batch from those of its samples; ``extra`` is the last one's."""
    features = [output.features for output in outputs if output.features is not None]
    logits = torch.cat([output.logits for output in outputs])
    return replace(outputs[-1], logits=logits, features=torch.cat(features) if features else None)
