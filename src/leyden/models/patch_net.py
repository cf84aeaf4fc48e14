"""A two-layer network on patches, such as theory of feature learning studies (D. Zou, Y. Cao, Y. Li, Q. Gu, "The
Benefits of Mixup for Feature Learning", 2023, arXiv 2303.08433; the activation is unverified)."""

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_positive

__all__ = ["PatchNet"]


class PatchNet(Network):
    """Filters that all patches share: ``features[r] = sum over patches of (w_r . x_p)^2``, then a linear head.

    The filters begin small, so that features have to grow.

    Args:
        patch_dim: size of a patch.
        num_outputs: C.
        width: number of filters, D.
        std: standard deviation of the initial filters.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, patch_dim: int, num_outputs: int, *, width: int = 20, std: float = 0.01) -> None:
        super().__init__()
        check_positive(patch_dim=patch_dim, num_outputs=num_outputs, width=width)
        self.filters = nn.Linear(patch_dim, width, bias=False)
        nn.init.normal_(self.filters.weight, std=std)
        self.feature_dim = width
        self.head = nn.Linear(width, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Maps patches ``[N, P, patch_dim]`` to features ``[N, D]``."""
        return self.filters(x).square().sum(1)
