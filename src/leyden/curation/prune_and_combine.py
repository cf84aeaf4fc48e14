"""Prune and combine as a curation ("Rethinking Large-scale Dataset Compression", 2025, arXiv 2502.06434)."""

import torch
from torch import Tensor

from leyden.analysis.el2n import el2n_scores
from leyden.curation.curation import Curation
from leyden.data.dataset import all_samples
from leyden.data.module import DataModule
from leyden.data.prune_combine import combine_grid, prune_by_score
from leyden.data.written import DatasetFile, read_tensors

__all__ = ["PruneAndCombine"]


class PruneAndCombine(Curation):
    """Keeps the easiest samples of each class, by their EL2N score, and puts several of them into one image.

    Hard labels stay right, because images of one class are combined. A class with too few samples gives fewer images.

    Args:
        predictions: dataset files with the ``output`` of networks for the training samples (logits ``[S, C]``) and
            their ``index``; the scores are averaged over the files.
        images_per_class: of the new training set.
        factor: ``factor * factor`` samples are put into one image; 1 prunes only.
        keep: ``"low"`` keeps easy samples, ``"high"`` hard ones.

    Raises:
        ValueError: there are no predictions, or a number or ``keep`` is out of range.
    """

    def __init__(
        self,
        predictions: DatasetFile | list[DatasetFile],
        *,
        images_per_class: int = 10,
        factor: int = 2,
        keep: str = "low",
    ) -> None:
        self.predictions = [predictions] if isinstance(predictions, str) else list(predictions)
        if not self.predictions:
            raise ValueError("predictions must be at least one file, got an empty list")
        if images_per_class < 1 or factor < 1:
            raise ValueError(f"images_per_class and factor must be at least 1, got {images_per_class} and {factor}")
        if keep not in ("low", "high"):
            raise ValueError(f"keep must be 'low' or 'high', got {keep!r}")
        self.images_per_class = images_per_class
        self.factor = factor
        self.keep = keep

    def __call__(self, data: DataModule) -> dict[str, Tensor]:
        """Returns ``input`` and ``target`` of the images, and ``source_index`` ``[S, factor^2]``.

        Raises:
            ValueError: the predictions are of other samples.
        """
        samples = all_samples(data.dataset("train"))
        images, targets = samples["input"], samples["target"]
        logits = torch.stack([_logits(path, len(targets)) for path in self.predictions])  # [F, S, C]
        tiles = self.factor**2
        chosen = prune_by_score(el2n_scores(logits, targets), targets, self.images_per_class * tiles, keep=self.keep)
        # whole images only, class by class
        groups = [chosen[targets[chosen] == number] for number in targets[chosen].unique().tolist()]
        chosen = torch.cat([group[: len(group) // tiles * tiles] for group in groups])
        return {
            "input": combine_grid(images[chosen], self.factor),
            "target": targets[chosen[::tiles]],
            "source_index": chosen.view(-1, tiles),
        }


def _logits(path: DatasetFile, size: int) -> Tensor:
    tensors = read_tensors(path, "output", "index")
    index = tensors["index"]
    if not torch.equal(index.sort().values, torch.arange(size)):
        raise ValueError(f"{path} predicts {len(index)} samples, which are not the {size} of the training set")
    return tensors["output"][index.argsort()]
