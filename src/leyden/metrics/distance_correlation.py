"""How far predictions depend on protected attributes (`leyden.losses.distance_correlation`)."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from leyden.losses.distance_covariance import distance_correlation

__all__ = ["DistanceCorrelation"]


class DistanceCorrelation(Metric):
    """Squared distance correlation of a prediction and some attributes side by side, over all S samples.

    Takes memory for ``S^2`` numbers when it is computed.

    Args:
        num_attributes: number of attributes that `update` gets.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    prediction: list[Tensor]

    def __init__(self, num_attributes: int = 1) -> None:
        super().__init__()
        self.add_state("prediction", [], dist_reduce_fx="cat")
        self._names = [f"attribute_{number}" for number in range(num_attributes)]
        for name in self._names:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, *attributes: Tensor) -> None:
        """Adds predictions and attributes, float ``[N]`` or ``[N, p]``, or integer (categories)."""
        self.prediction.append(prediction)
        for name, attribute in zip(self._names, attributes, strict=True):
            getattr(self, name).append(attribute)

    def compute(self) -> Tensor:
        """Returns the correlation, ``[]``, between 0 and 1."""
        attributes = [dim_zero_cat(getattr(self, name)) for name in self._names]
        return distance_correlation(dim_zero_cat(self.prediction), attributes)
