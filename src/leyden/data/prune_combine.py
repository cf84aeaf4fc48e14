"""Prune, combine and augment: easy samples, several of them in one image, and crops of about one.

From "Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images" (2025, arXiv 2502.06434; its
second version is "Unifying Dataset Pruning and Distillation for Efficient Large-scale Compression"). How many images
the paper puts into one, in which order, and how the crops depend on it, is not published as code (unverified): the
factor and the least crop are arguments, neighbours are neighbours by score.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.analysis.el2n import el2n_scores
from leyden.core.batch import Batch
from leyden.data.augment import Compose
from leyden.data.dataset import TensorDictDataset, all_samples
from leyden.data.image_augment import RandomResizedCrop
from leyden.data.module import DataModule
from leyden.data.written import DatasetFile, read_tensors

__all__ = ["PCADataModule", "combine_grid", "prune_and_combine", "prune_by_score"]


def prune_by_score(scores: Tensor, targets: Tensor, per_class: int, *, keep: str = "low") -> Tensor:
    """Chooses samples of each class by their score.

    Args:
        scores: ``[S]``, low for easy samples.
        targets: class numbers, int64 ``[S]``.
        per_class: number of samples of each class; all of a class that has fewer.
        keep: ``"low"`` or ``"high"`` scores.

    Returns:
        Positions, int64 ``[K]``: class by class, the best first; of equal scores the earlier one.

    Raises:
        ValueError: a score is NaN, the lengths differ, or a number or ``keep`` is out of range.
    """
    if keep not in ("low", "high"):
        raise ValueError(f"keep must be 'low' or 'high', got {keep!r}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    if scores.shape != targets.shape or scores.ndim != 1:
        raise ValueError(
            f"scores and targets must be of one length, got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    if scores.isnan().any():
        raise ValueError(f"scores must be numbers, got {int(scores.isnan().sum())} NaN")
    order = scores.argsort(stable=True, descending=keep == "high")
    parts = [order[targets[order] == number][:per_class] for number in targets.unique().tolist()]
    return torch.cat(parts) if parts else order


def combine_grid(images: Tensor, factor: int = 2) -> Tensor:
    """Puts ``factor * factor`` images, each made smaller by the mean over its pixels, into one.

    Args:
        images: ``[n * factor^2, C, H, W]`` floating point; the first ``factor^2`` make the first result, row by row.
        factor: in each direction; 1 leaves the images as they are.

    Returns:
        ``[n, C, H, W]``.

    Raises:
        ValueError: their number, or H or W, cannot be divided.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating point [N, C, H, W], got {images.dtype} {tuple(images.shape)}")
    count, channels, height, width = images.shape
    if count % factor**2 or height % factor or width % factor:
        raise ValueError(
            f"images must be a multiple of {factor**2}, and their sides of {factor}, got {tuple(images.shape)}"
        )
    small = images.view(-1, channels, height // factor, factor, width // factor, factor).mean((3, 5))
    grid = small.view(-1, factor, factor, channels, height // factor, width // factor)  # [n, row, column, C, h, w]
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def prune_and_combine(
    samples: Batch, predictions: list[DatasetFile], *, images_per_class: int = 10, factor: int = 2, keep: str = "low"
) -> dict[str, Tensor]:
    """Keeps the easiest samples of each class, by their EL2N score, and puts several of them into one image.

    A class with too few samples gives fewer images.

    Args:
        samples: all training samples, ``input`` ``[S, C, H, W]`` and ``target`` ``[S]``.
        predictions: dataset files with the ``output`` of networks for them (logits ``[S, C]``) and their ``index``;
            the scores are averaged over the files.
        images_per_class: of the result.
        factor: as in `combine_grid`.
        keep: as in `prune_by_score`.

    Returns:
        ``input`` and ``target`` of the images, and ``source_index`` ``[N, factor^2]``.

    Raises:
        ValueError: the predictions are of other samples, no class has samples for an image, or an argument is out of
            range.
    """
    check_prune_and_combine(images_per_class, factor, keep, predictions)
    images, targets = samples["input"], samples["target"]
    logits = torch.stack([_logits(path, len(targets)) for path in predictions])  # [F, S, C]
    tiles = factor**2
    chosen = prune_by_score(el2n_scores(logits, targets), targets, images_per_class * tiles, keep=keep)
    # whole images only, class by class
    groups = [chosen[targets[chosen] == number] for number in targets[chosen].unique().tolist()]
    chosen = torch.cat([group[: len(group) // tiles * tiles] for group in groups])
    if not len(chosen):
        raise ValueError(f"factor={factor} puts {tiles} samples of a class into an image, but no class has as many")
    return {
        "input": combine_grid(images[chosen], factor),
        "target": targets[chosen[::tiles]],
        "source_index": chosen.view(-1, tiles),
    }


class PCADataModule(DataModule):
    """Trains on the easiest samples of each class of another DataModule, several in one image, by random crops.

    A crop shows a tile or more of them. Validation and test are those of the other.

    Args:
        source: where the data come from.
        predictions: dataset files with the ``output`` of networks for the training samples; None trains on these
            samples as they are, and predicts them.
        ipc: images per class.
        factor: ``factor * factor`` samples are put into one image; 1 prunes only.
        keep: ``"low"`` keeps easy samples, ``"high"`` hard ones.
        min_scale: least share of an image in a crop; 1 crops none.
        **kwargs: as in `DataModule`; what ``augment`` names comes after the crop.

    Raises:
        ValueError: a number or ``keep`` is out of range, or there are no predictions.
    """

    def __init__(
        self,
        source: DataModule,
        predictions: DatasetFile | list[DatasetFile] | None = None,
        *,
        ipc: int = 10,
        factor: int = 2,
        keep: str = "low",
        min_scale: float = 0.25,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if ipc < 1:
            raise ValueError(f"ipc must be at least 1, got {ipc}")
        check_prune_and_combine(ipc, factor, keep, predictions)
        if not 0.0 < min_scale <= 1.0:
            raise ValueError(f"min_scale must lie in (0, 1], got {min_scale}")
        self.source = source
        self.predictions = [predictions] if isinstance(predictions, str) else predictions
        self.ipc, self.factor, self.keep = ipc, factor, keep
        self.num_classes = source.num_classes
        if min_scale < 1.0:
            crop = RandomResizedCrop((min_scale, 1.0))
            self.augment = crop if self.augment is None else Compose([crop, self.augment])

    def datasets(self) -> dict[str, Dataset]:
        """Returns the parts."""
        parts = dict(self.source.datasets())
        train = parts["train"]
        if self.predictions is not None:
            made = prune_and_combine(
                all_samples(train), self.predictions, images_per_class=self.ipc, factor=self.factor, keep=self.keep
            )
            parts["train"] = TensorDictDataset({key: made[key] for key in ("input", "target")})
        return {**parts, "predict": train}


def check_prune_and_combine(images_per_class: int, factor: int, keep: str, predictions: str | list[str] | None) -> None:
    """Checks what is known before the files are read.

    Raises:
        ValueError: it is out of range.
    """
    if predictions is not None and not predictions:
        raise ValueError("predictions must be at least one file, got an empty list")
    if images_per_class < 1 or factor < 1:
        raise ValueError(f"images_per_class and factor must be at least 1, got {images_per_class} and {factor}")
    if keep not in ("low", "high"):
        raise ValueError(f"keep must be 'low' or 'high', got {keep!r}")


def _logits(path: DatasetFile, size: int) -> Tensor:
    tensors = read_tensors(path, "output", "index")
    index = tensors["index"]
    if not torch.equal(index.sort().values, torch.arange(size)):
        raise ValueError(f"{path} predicts {len(index)} samples, which are not the {size} of the training set")
    return tensors["output"][index.argsort()]
