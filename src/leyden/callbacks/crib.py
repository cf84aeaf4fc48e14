"""Consistency-regularized information bottleneck (J. Yang et al., "Revisiting Multivariate Time Series Forecasting with
Missing Values", 2025, arXiv 2509.23494; authors' code: Muyiiiii/CRIB, ``TSL_models/CRIB.py``).

The authors add the noise behind the normalisation and the positions inside of their network; here it is added to the
input, so that any network can be used. Their description also hides a tenth of the observed values in the second view,
which their code does not do and this does not either.
"""

from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core import (
    Batch,
    Method,
    MethodCallback,
    Outputs,
    Terms,
    all_reduce_mean,
    normal,
    require_keys,
    sample_keys,
    world_size,
)
from leyden.losses import gaussian_kl

__all__ = ["CRIB"]


class CRIB(MethodCallback):
    """Adds ``crib_consistency`` and ``crib_kl``: features that noise leaves alone, and that hold little of the input.

    The first is the mean squared difference between the features of the input and of a noisy one, with gradients
    through both; networks with batch norm count the second pass, too. For the second an attached head makes a normal
    distribution of the features, whose divergence from the standard one is summed over all samples of the step. The
    distribution is used for nothing else: as in the authors' code, the prediction is made of the features themselves.

    Args:
        kl_weight: factor of the divergence; for a sum over samples, hence small.
        consistency_weight: factor of the squared difference.
        noise: factor of the noise, which has mean and standard deviation of the batch's input.
        latent_dim: dimensions of the distribution, and hidden units of its head.

    Raises:
        ValueError: a number is negative, or ``latent_dim`` is below 1.
    """

    def __init__(
        self,
        kl_weight: float = 1e-6,
        consistency_weight: float = 1.0,
        noise: float = 0.01,
        latent_dim: int = 32,
    ) -> None:
        for name, number in (("kl_weight", kl_weight), ("consistency_weight", consistency_weight), ("noise", noise)):
            if number < 0.0:
                raise ValueError(f"{name} must be at least 0, got {number}")
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.kl_weight = kl_weight
        self.consistency_weight = consistency_weight
        self.noise = noise
        self.latent_dim = latent_dim
        self._head: nn.Module | None = None

    def build(self, method: Method) -> None:
        """Attaches the head of the distribution, if there is a divergence."""
        if self.kl_weight > 0.0:
            head = nn.Sequential(
                nn.Linear(method.network.feature_dim, self.latent_dim),
                nn.ReLU(),
                nn.Linear(self.latent_dim, 2 * self.latent_dim),
            )
            self._head = method.attach(self.state_key, head)

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds the terms whose weight is not 0."""
        assert outputs.features is not None
        if self.consistency_weight > 0.0:
            noisy = method.compute(batch | {"input": self._noisy(method, batch)}).features
            assert noisy is not None
            difference = functional.mse_loss(_full(outputs.features), _full(noisy))
            terms = terms | {"crib_consistency": self.consistency_weight * difference}
        if self._head is not None:
            mean, spread = _full(self._head(outputs.features)).chunk(2, -1)
            variance = functional.softplus(spread) + 1e-9  # the logarithm of a tiny one stays finite
            divergence = gaussian_kl(mean, variance, reduction="sum")
            # DDP takes the mean over processes, the trainer that over micro-batches
            num_shares = world_size() * method.trainer.accumulate_grad_batches
            terms = terms | {"crib_kl": self.kl_weight * num_shares * divergence}
        return terms

    def _noisy(self, method: Method, batch: Batch) -> Tensor:
        require_keys(batch, "index", user="CRIB")
        x = batch["input"]
        if not x.is_floating_point():
            raise ValueError(f"CRIB adds noise to the input, which must hold real numbers, got {x.dtype}")
        mean = all_reduce_mean(x.mean())
        std = all_reduce_mean((x - mean).square().mean()).sqrt()
        seed = getattr(method.datamodule, "seed", 0) + crc32(self.state_key.encode())
        noise = normal(sample_keys(seed, method.global_step, batch["index"]), *x.shape[1:]).to(x.dtype)
        return x + self.noise * (mean + std * noise)


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
