"""Co-teaching (B. Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", 2018,
arXiv 1804.06872) on two halves of a batch, as in Y. Chen, S. X. Hu, X. Shen, C. Ai, J. A. K. Suykens, "Compressing
Features for Learning with Noisy Labels", 2022 (authors' code: yingyichen-cyy/Nested-Co-teaching)."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from leyden.core.batch import Batch, require_keys
from leyden.core.network import Network, Outputs
from leyden.losses.small_loss import forget_rate_at, small_loss_selection
from leyden.methods.classification import Classification

__all__ = ["CoTeaching"]


class CoTeaching(Classification):
    """Trains two networks, each on the samples that the other one finds easy: those with small losses.

    Samples are ranked in evaluation mode. The loss is the mean over the samples of both, so that the gradient of each
    network is half of what it would be alone; one optimizer steps both, which is the same as one for each. Predictions
    are the means of the two networks' logits, but ``leyden export`` writes the first network alone. Callbacks see a
    batch of the chosen samples. Each process chooses from its own share of a batch.

    Args:
        network: the first network.
        second_network: the second one, of the same outputs; its parameters are called ``attached.second_network.*``.
        forget_rate: share of the samples that is left out in the end; about that of the false labels.
        gradual: epochs in which the share grows from 0, as in `leyden.losses.forget_rate_at`.
        split: whether each network chooses from a half of the batch of its own; otherwise both do from all of it, and
            what both choose is in the batch twice.
        **kwargs: see `Classification`.

    Raises:
        ValueError: ``forget_rate`` or ``gradual`` is out of range, or both networks are one.
    """

    def __init__(
        self,
        network: Network,
        second_network: Network,
        *,
        forget_rate: float = 0.2,
        gradual: int = 5,
        split: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if not 0.0 <= forget_rate < 1.0:
            raise ValueError(f"forget_rate must lie in [0, 1), got {forget_rate}")
        if gradual < 0:
            raise ValueError(f"gradual must be at least 0, got {gradual}")
        if second_network is network:
            raise ValueError("second_network must be another one than network: they teach each other")
        self.attach("second_network", second_network)
        self.forget_rate = forget_rate
        self.gradual = gradual
        self.split = split

    @property
    def networks(self) -> tuple[Network, Network]:
        """Both networks."""
        return self.network, cast(Network, self.attached["second_network"])

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean of the two networks' logits."""
        first, second = (network(x) for network in self.networks)
        return (first + second) / 2

    def transform_batch(self, batch: Batch) -> Batch:
        """Returns the samples to train on: first those of the second network, then as many of the first one."""
        return self._choose(super().transform_batch(batch))

    def compute(self, batch: Batch) -> Outputs:
        """Runs each network on its samples of a training batch, or both on all samples to evaluate."""
        if not self.training:
            return Outputs(logits=self(batch["input"]))
        runs = [self._run_network(*run) for run in zip(reversed(self.networks), batch["input"].chunk(2), strict=True)]
        features, logits = (torch.cat(of_both) for of_both in zip(*runs, strict=True))
        return Outputs(logits=logits, features=features)

    @torch.no_grad()
    def _choose(self, batch: Batch) -> Batch:
        require_keys(batch, "input", "target", user="CoTeaching")
        if "labeled" in batch:
            raise ValueError("CoTeaching ranks samples by their losses: leave unlabeled ones out of the data")
        rows = torch.arange(len(batch["input"]), device=batch["input"].device)
        half = len(rows) // 2  # the last of an odd number is left out, as in the authors' code
        shares = (rows[:half], rows[half : 2 * half]) if self.split else (rows, rows)
        rate = forget_rate_at(self.current_epoch, rate=self.forget_rate, gradual=self.gradual)
        chosen = []
        modes = {module: module.training for network in self.networks for module in network.modules()}
        for network, share in zip(self.networks, shares, strict=True):
            logits = network.eval()(batch["input"][share])
            losses = functional.cross_entropy(logits.float(), batch["target"][share], reduction="none")
            chosen.append(share[small_loss_selection(losses, rate)])
        for module, mode in modes.items():
            module.training = mode
        kept = torch.cat(chosen)
        return {key: value[kept] if value.ndim and len(value) == len(rows) else value for key, value in batch.items()}
