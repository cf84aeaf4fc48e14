"""A multilayer perceptron that responds to its own dropout rate and input noise (M. MacKay, P. Vicol, J. Lorraine,
D. Duvenaud, R. Grosse, "Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response
Functions", 2019, arXiv 1903.03088)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.core.random import normal
from leyden.models._checks import check_positive
from leyden.nn.self_tuning import HyperLinear, Hyperparameters, per_example_dropout

__all__ = ["SelfTuningMLP"]

_RANGES = {"dropout": (0.0, 0.9), "input_noise": (0.0, math.inf)}
_STREAM = 0x570  # of the noise; the layers' dropout has the next ones


class SelfTuningMLP(Network):
    """`MLP` whose hidden layers are `leyden.nn.HyperLinear`; for `leyden.methods.SelfTuning`.

    Args:
        in_features: numbers in one input.
        num_outputs: C.
        hidden: sizes of the hidden layers, at least one.
        dropout: rate behind each activation, between 0 and 0.9, that tuning starts from; None for no dropout.
        input_noise: standard deviation of normal noise on the inputs that tuning starts from; None for no noise.
        scale: first scale of the perturbations, see `leyden.nn.Hyperparameters`.

    Raises:
        ValueError: a size is below 1, or a hyperparameter is out of its range.
    """

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        hidden: Sequence[int] = (128, 128),
        *,
        dropout: float | None = 0.05,
        input_noise: float | None = 0.05,
        scale: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_outputs=num_outputs, num_hidden=len(hidden))
        given = {"dropout": dropout, "input_noise": input_noise}
        start = {name: value for name, value in given.items() if value is not None}
        self.hyperparameters = Hyperparameters(start, _RANGES, scale=scale)
        sizes = zip((in_features, *hidden), hidden, strict=False)
        self.body = nn.ModuleList(HyperLinear(fan_in, fan_out, len(start)) for fan_in, fan_out in sizes)
        self.feature_dim = hidden[-1]
        self.head: nn.Module = nn.Linear(self.feature_dim, num_outputs)

    def features(self, x: Tensor, h: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Maps ``[N, ...]``, with ``in_features`` numbers per row, to the last hidden layer ``[N, D]``.

        Args:
            x: inputs.
            h: real numbers of the hyperparameters, ``[N, H]``; those of the network if None.
            keys: one per row, from which dropout and noise are drawn (`leyden.core.random`), int64 ``[N]``; if None
                there is neither.
        """
        x = x.flatten(1)
        h = self.hyperparameters.h.unsqueeze(0) if h is None else h
        values = self.hyperparameters.values(h) if keys is not None else {}
        if keys is not None and "input_noise" in values:
            noise = normal(keys, x.shape[1], stream=_STREAM)
            x = x + (values["input_noise"].unsqueeze(-1) * noise).to(x.dtype)
        for number, layer in enumerate(self.body, start=1):
            x = layer(x, h).relu()
            if keys is not None and "dropout" in values:
                x = per_example_dropout(x, values["dropout"], keys, stream=_STREAM + number)
        return x
