"""Prune and combine as a curation ("Rethinking Large-scale Dataset Compression", 2025, arXiv 2502.06434)."""

from torch import Tensor

from leyden.curation.curation import Curation
from leyden.data.dataset import all_samples
from leyden.data.module import DataModule
from leyden.data.prune_combine import check_prune_and_combine, prune_and_combine
from leyden.data.written import DatasetFile

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
        check_prune_and_combine(images_per_class, factor, keep, self.predictions)
        self.images_per_class = images_per_class
        self.factor = factor
        self.keep = keep

    def __call__(self, data: DataModule) -> dict[str, Tensor]:
        """Returns ``input`` and ``target`` of the images, and ``source_index`` ``[S, factor^2]``.

        Raises:
            ValueError: the predictions are of other samples.
        """
        return prune_and_combine(
            all_samples(data.dataset("train")),
            self.predictions,
            images_per_class=self.images_per_class,
            factor=self.factor,
            keep=self.keep,
        )
