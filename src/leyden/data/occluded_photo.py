"""Views of a photo, each with other things in front of it: for fits that shall leave them out."""

from typing import Any

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import sample_keys, uniform
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule

__all__ = ["OccludedPhoto"]

_HEIGHT, _WIDTH = 32, 48


class OccludedPhoto(DataModule):
    """A photo of a flower, 32 x 48 pixels; every training view has rectangles of one color each in front of it.

    Samples: ``input`` and ``target``, both the view, float32 ``[3, 32, 48]`` in [0, 1]; ``segments``, bool
    ``[S, 32, 48]``: the rectangles, which overlap, and squares of 8 pixels, as a segmentation of the view would give.
    Validation and test are the clean photo, twice, so that two processes can share it.
    The rectangles are drawn by the DataModule's ``seed``.

    Args:
        num_views: for training.
        num_occluders: rectangles in each view, of 8 to 20 pixels in height and in width.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: ``num_views`` is below 1, or ``num_occluders`` below 0.
    """

    def __init__(self, *, num_views: int = 30, num_occluders: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_views < 1:
            raise ValueError(f"num_views must be 1 or more, got {num_views}")
        if num_occluders < 0:
            raise ValueError(f"num_occluders must be 0 or more, got {num_occluders}")
        self.num_views = num_views
        self.num_occluders = num_occluders

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        pixels = torch.from_numpy(load_sample_image("flower.jpg").copy()).to(torch.float32).permute(2, 0, 1) / 255.0
        photo = torch.nn.functional.avg_pool2d(pixels[:, 5:421, 8:632], 13)  # [3, 32, 48]
        keys = sample_keys(self.seed, 0, torch.arange(self.num_views))
        color = uniform(keys, self.num_occluders, 3)
        covers = _rectangles(uniform(keys, self.num_occluders, 4, stream=1))  # [V, O, H, W]
        views = photo.expand(self.num_views, -1, -1, -1)
        for number in range(self.num_occluders):  # later ones lie in front
            cover = covers[:, number].unsqueeze(1)
            views = torch.where(cover, color[:, number, :, None, None], views)
        tiles = _tiles()
        segments = torch.cat([covers, tiles.expand(self.num_views, -1, -1, -1)], 1)
        clean = photo.expand(2, -1, -1, -1)
        evaluation = TensorDictDataset({"input": clean, "target": clean})
        train = TensorDictDataset({"input": views, "target": views, "segments": segments})
        return {"train": train, "val": evaluation, "test": evaluation}


def _rectangles(draws: Tensor) -> Tensor:
    """Which pixels are in rectangles of which four numbers in [0, 1) say the place and size: bool ``[..., H, W]``."""
    size = 8.0 + 12.0 * draws[..., :2]
    start = draws[..., 2:] * (torch.tensor([_HEIGHT, _WIDTH]) - 0.5 * size) - 0.25 * size
    end = start + size
    rows, columns = torch.arange(_HEIGHT) + 0.5, torch.arange(_WIDTH) + 0.5
    in_rows = (rows >= start[..., :1]) & (rows < end[..., :1])
    in_columns = (columns >= start[..., 1:]) & (columns < end[..., 1:])
    return in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)


def _tiles() -> Tensor:
    """The squares, bool ``[S, H, W]``."""
    number = torch.arange(_HEIGHT).unsqueeze(1) // 8 * (_WIDTH // 8) + torch.arange(_WIDTH) // 8  # [H, W]
    return number == torch.arange(int(number.max()) + 1).view(-1, 1, 1)
