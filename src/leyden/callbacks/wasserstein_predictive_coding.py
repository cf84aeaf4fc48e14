"""Wasserstein predictive coding (S. Ozair, C. Lynch, Y. Bengio, A. van den Oord, S. Levine, P. Sermanet, "Wasserstein
Dependency Measure for Representation Learning", 2019, arXiv 1903.11780).

The authors have published no code. At which points they penalize the gradient is unverified: here it is at the pairs of
views themselves, as martinmamql/relative_predictive_coding (which compares with this method) has it at its inputs.
"""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leyden.callbacks._double_backward import DoubleBackward
from leyden.core import Batch, Method, Outputs, Terms, all_gather_rows_with_grad
from leyden.core.batch import require_keys
from leyden.losses import lipschitz_penalty, wasserstein_dependency_loss

__all__ = ["WassersteinPredictiveCoding"]


class WassersteinPredictiveCoding(DoubleBackward):
    """Adds ``wpc``, by which features tell which second view belongs to an input, and ``lipschitz``.

    The score of two views is bilinear in their features, with a matrix that is trained too. The other samples of the
    micro-batch, of all processes, are the wrong views. ``lipschitz`` keeps the gradient of the score by both views near
    a norm of 1, so that telling samples apart takes all that views share; without it this is contrastive predictive
    coding (InfoNCE).

    Batches need ``input_2``, as `leyden.data.TwoViews` makes it.

    Args:
        weight: factor of `leyden.losses.wasserstein_dependency_loss`.
        penalty: factor of `leyden.losses.lipschitz_penalty`; 0 leaves it out.
        form: see `leyden.losses.wasserstein_dependency_loss`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, weight: float = 1.0, penalty: float = 1.0, form: str = "nce") -> None:
        for name, value in (("weight", weight), ("penalty", penalty)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if form not in ("nce", "dual"):
            raise ValueError(f"form must be 'nce' or 'dual', got {form!r}")
        super().__init__(twice=penalty > 0.0)
        self.weight = weight
        self.penalty = penalty
        self.form = form
        self._similarity: nn.Module | None = None

    def build(self, method: Method) -> None:
        """Attaches the matrix of the score."""
        size = method.network.feature_dim
        self._similarity = method.attach(self.state_key, nn.Linear(size, size, bias=False))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the network.

        Raises:
            MisconfigurationException: as `DoubleBackward`, or the network has a batch norm.
        """
        super().on_fit_start(trainer, pl_module)
        for name, layer in pl_module.named_modules():
            if self.penalty > 0.0 and isinstance(layer, _BatchNorm):
                raise MisconfigurationException(
                    f"WassersteinPredictiveCoding needs the gradient of each sample, but {name} is a batch norm, which "
                    "mixes them: use another norm, or set penalty to 0"
                )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``wpc`` and ``lipschitz``.

        Raises:
            ValueError: there is no second view.
            MisconfigurationException: there are several rows of features per sample.
        """
        require_keys(batch, "input_2", user="WassersteinPredictiveCoding")
        assert self._similarity is not None
        assert outputs.features is not None
        if outputs.features.ndim != 2:
            raise MisconfigurationException(
                f"WassersteinPredictiveCoding needs features [N, D], got shape {tuple(outputs.features.shape)}: use a "
                "network that gives one row per sample"
            )
        similarity, features = self._similarity, method.network.features
        first = all_gather_rows_with_grad(similarity(outputs.features))
        second = all_gather_rows_with_grad(features(batch["input_2"]))
        scores = first.float() @ second.float().T  # [N, N]
        terms = terms | {"wpc": self.weight * wasserstein_dependency_loss(scores, form=self.form)}
        if self.penalty == 0.0:
            return terms

        def critic(x: Tensor, y: Tensor) -> Tensor:
            return (similarity(features(x)) * features(y)).sum(-1)

        penalty = lipschitz_penalty(critic, batch["input"], batch["input_2"])
        return terms | {"lipschitz": self.penalty * penalty}
