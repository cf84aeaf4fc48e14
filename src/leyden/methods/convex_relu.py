"""Two-layer ReLU regression by convex optimisation (Y. Bai, T. Gautam, S. Sojoudi, "Efficient Global Optimization of
Two-layer ReLU Networks: Quadratic-time Algorithms and Adversarial Training", 2022, arXiv 2201.01965)."""

from collections.abc import Sized
from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from leyden.core.batch import Batch
from leyden.core.network import Network
from leyden.methods._evaluating import count_step
from leyden.methods.regression import Regression
from leyden.optim.convex_relu import convex_relu_admm, relu_from_convex, sample_arrangements

__all__ = ["ConvexReLU"]


class ConvexReLU(Regression):
    """Solves for the weights of a network with one hidden ReLU layer and one output, in the first step of a fit.

    The optimum is that of ``sum of squared errors / 2 + beta / 2 * (sum of squared weights and hidden biases)`` over
    the whole training set and the sampled arrangements; the same on all processes, and whatever the initial weights.
    The output has no bias: standardise the target. Steps after the first only evaluate; one epoch is enough.

    Args:
        network: a `leyden.models.MLP` with ``hidden=[M]``, M at least ``2 * num_arrangements``, and no dropout.
        num_arrangements: sampled sign patterns, of which those that differ are kept.
        beta: weight of the norms.
        rho: as in `leyden.optim.convex_relu_admm`, like the next two.
        iterations: at most so many.
        tol: residual at which the solver stops.
        **kwargs: see `Regression`; the optimizer counts steps and changes nothing.
    """

    automatic_optimization = False

    def __init__(
        self,
        network: Network,
        *,
        num_arrangements: int = 32,
        beta: float = 1e-3,
        rho: float = 0.1,
        iterations: int = 2000,
        tol: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.num_arrangements = num_arrangements
        self.settings = {"beta": beta, "rho": rho, "iterations": iterations, "tol": tol}
        self.register_buffer("solved", torch.tensor(False))

    def setup(self, stage: str) -> None:
        """Checks that the network is one that the convex problem stands for.

        Raises:
            MisconfigurationException: it has another form, or is too narrow.
        """
        hidden, _ = self._layers()
        if hidden.out_features < 2 * self.num_arrangements:
            raise MisconfigurationException(
                f"the hidden layer of the network must have 2 * num_arrangements = {2 * self.num_arrangements} neurons "
                f"or more, got {hidden.out_features}"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Solves, if that was not done, and evaluates the batch."""
        if not self.solved:
            self._solve()
        return count_step(self, self.transform_batch(batch))

    @torch.no_grad()
    def _solve(self) -> None:
        data = cast(Any, self.datamodule).dataset("train")
        samples = [data[number] for number in range(len(cast(Sized, data)))]
        X = torch.stack([sample["input"].flatten() for sample in samples]).double()
        X = torch.cat([X, torch.ones_like(X[:, :1])], 1)  # [N, D + 1]
        y = torch.cat([sample["target"].flatten() for sample in samples]).double()  # [N]
        generator = torch.Generator().manual_seed(getattr(self.datamodule, "seed", 0))
        arrangements = sample_arrangements(X, self.num_arrangements, generator)
        U, alpha = relu_from_convex(*convex_relu_admm(X, y, arrangements, **self.settings))  # type: ignore[arg-type]
        hidden, head = self._layers()
        for parameter in self.network.parameters():
            parameter.zero_()
        hidden.weight[: len(U)] = U[:, :-1].to(hidden.weight)
        hidden.bias[: len(U)] = U[:, -1].to(hidden.bias)
        head.weight[0, : len(U)] = alpha.to(head.weight)
        cast(Tensor, self.solved).fill_(True)

    def _layers(self) -> tuple[nn.Linear, nn.Linear]:
        """The two linear layers."""
        layers = [module for module in self.network.modules() if not list(module.children())]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear) and layer.bias is not None]
        others = [
            layer
            for layer in layers
            if not isinstance(layer, nn.Linear | nn.ReLU) and not (isinstance(layer, nn.Dropout) and layer.p == 0.0)
        ]
        if others or len(linear) != 2 or len(layers) - 1 > 3 or linear[1].out_features != 1:
            raise MisconfigurationException(
                "ConvexReLU needs a network of a linear layer, ReLU and a linear layer with one output, such as "
                f"leyden.models.MLP(in_features, 1, hidden=[M]); got {self.network}"
            )
        return linear[0], linear[1]
