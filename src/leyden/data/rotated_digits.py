"""Digits turned by some angles in training and by others in the test, for domain generalisation."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits
from leyden.data.domain_batches import DomainBatches

__all__ = ["RotatedDigits"]


class RotatedDigits(Digits):
    """`Digits` in domains, each turned by its angle; every image is in one of them, alike many in each.

    Samples also have ``domain``, int64: the number of the angle; those of the test come after those of training.

    Args:
        angles: of the domains of training and validation, in degrees, counterclockwise.
        test_angles: of the domains of the test.
        domain_batches: whether all training samples of a batch are of one domain, see `DomainBatches`.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: there is no angle, or an ``order`` beside ``domain_batches``.
    """

    def __init__(
        self,
        *,
        angles: Sequence[float] = (0.0, 15.0, 30.0),
        test_angles: Sequence[float] = (45.0, 60.0),
        domain_batches: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not angles or not test_angles:
            raise ValueError(f"angles and test_angles must have one angle or more, got {angles} and {test_angles}")
        if domain_batches and self.order is not None:
            raise ValueError("domain_batches is an order of its own: leave order out")
        self.angles, self.test_angles = tuple(angles), tuple(test_angles)
        self.domain_batches = domain_batches

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for name, part in super().datasets().items():
            tensors, sources = cast(TensorDictDataset, part).tensors, cast(TensorDictDataset, part).sources
            angles, first = (self.test_angles, len(self.angles)) if name == "test" else (self.angles, 0)
            domain = torch.arange(len(tensors["target"])) % len(angles)  # the order is random
            turned = rotated(tensors["input"], torch.tensor(angles)[domain])
            parts[name] = TensorDictDataset(tensors | {"input": turned, "domain": first + domain}, sources=sources)
            if name == "train" and self.domain_batches:
                self.order = DomainBatches(domain, self.batch_size)
        return parts


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns images ``[N, C, H, W]`` counterclockwise by ``[N]`` degrees about their middle; bilinear, 0 outside."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    zero = torch.zeros_like(cos)
    back = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # [N, 2, 3]
    grid = nn.functional.affine_grid(back, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)
