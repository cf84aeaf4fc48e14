"""Hypernetworks with magnitude invariant parametrizations (J. J. Gonzalez Ortiz, J. Guttag, A. Dalca, "Magnitude
Invariant Parametrizations Improve Hypernetwork Learning", 2023, arXiv 2304.07645, section 4). Original code:
JJGO/hyperlight."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

__all__ = ["HyperModule", "HyperNetwork", "magnitude_invariant_encode"]


def magnitude_invariant_encode(z: Tensor) -> Tensor:
    """Cosines, then sines, of ``pi z / 2``: as long for any z.

    Args:
        z: numbers in [0, 1], ``[..., D]``; others are not checked.

    Returns:
        ``[..., 2 D]``, of Euclidean norm ``sqrt(D)``.
    """
    angles = 0.5 * math.pi * z
    return torch.cat([angles.cos(), angles.sin()], -1)


class HyperNetwork(nn.Module):
    """Predicts named tensors from a few numbers, by linear layers with LeakyReLU(0.01) between.

    Args:
        input_dim: D, the number of inputs.
        output_shapes: shapes of the predicted tensors, by name.
        hidden: sizes of the hidden layers.
        encode: the two parts of the method: inputs are encoded by `magnitude_invariant_encode`, and what is predicted
            is added to tensors that do not depend on the input (the bias of the last layer), which start as weights of
            a network do: Kaiming normal, 0 where the name does not end in ``weight``. False is the usual hypernetwork:
            inputs as they are, and that bias starts from 0.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self,
        input_dim: int,
        output_shapes: Mapping[str, Sequence[int]],
        *,
        hidden: Sequence[int] = (16, 64),
        encode: bool = True,
    ) -> None:
        super().__init__()
        if input_dim < 1 or min(hidden, default=1) < 1 or not output_shapes:
            raise ValueError(
                f"input_dim and hidden must be at least 1, and output_shapes not empty; got {input_dim}, "
                f"{tuple(hidden)} and {dict(output_shapes)}"
            )
        self.encode = encode
        self.output_shapes = {name: tuple(shape) for name, shape in output_shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.output_shapes.values()]
        widths = [2 * input_dim if encode else input_dim, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths, hidden, strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(0.01)]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], sum(self.sizes))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew, those of the last layer tensor by tensor: the fan-out is a tensor's size."""
        for layer in (*self.body, self.last):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
                if layer is not self.last:
                    nn.init.kaiming_normal_(layer.weight, 0.01, mode="fan_out")
        for rows in self.last.weight.split(self.sizes):
            nn.init.kaiming_normal_(rows, 0.01, mode="fan_out")
        if self.encode:
            for name, tensor in self._named(self.last.bias).items():
                if name.endswith("weight"):
                    # a vector of weights belongs to a norm layer, which starts from 1
                    nn.init.kaiming_normal_(tensor, 0.01) if tensor.ndim > 1 else nn.init.ones_(tensor)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Maps ``[D]``, or several ``[..., D]``, to tensors of the shapes (with ``...`` before)."""
        z = magnitude_invariant_encode(z) if self.encode else z
        return self._named(self.last(self.body(z)))

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split(self.sizes, -1)
        return {
            name: part.view(*flat.shape[:-1], *shape)
            for (name, shape), part in zip(self.output_shapes.items(), parts, strict=True)
        }


class HyperModule(nn.Module):
    """Runs a network with weights that a hypernetwork predicts, sample by sample.

    Args:
        network: takes and returns a batch. A copy is made; its weights are the start of those that do not depend on the
            input of the hypernetwork, its buffers stay as they are.
        input_dim: numbers that the hypernetwork gets.
        hidden: see `HyperNetwork`.
        encode: see `HyperNetwork`.

    Raises:
        ValueError: the network has no parameters, or a batch norm, whose statistics are those of a batch.
    """

    def __init__(
        self, network: nn.Module, input_dim: int, *, hidden: Sequence[int] = (16, 64), encode: bool = True
    ) -> None:
        super().__init__()
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            raise ValueError("network must have no batch norm: every sample has weights of its own")
        start = {name: p.detach() for name, p in network.named_parameters()}
        self.hypernetwork = HyperNetwork(
            input_dim, {name: p.shape for name, p in start.items()}, hidden=hidden, encode=encode
        )
        if encode:
            with torch.no_grad():
                self.hypernetwork.last.bias.copy_(torch.cat([p.flatten() for p in start.values()]))
        self.network = copy.deepcopy(network)
        for module in self.network.modules():
            for name in module._parameters:
                module.register_parameter(name, None)  # its place is kept, for `functional_call`

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Runs the network on each sample ``x[i]`` with the weights of ``z[i]``.

        Args:
            x: ``[N, ...]``.
            z: numbers in [0, 1], ``[N, D]``.
        """

        def run(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(self.network, weights, (sample.unsqueeze(0),)).squeeze(0)

        return vmap(run, randomness="different")(self.hypernetwork(z), x)
