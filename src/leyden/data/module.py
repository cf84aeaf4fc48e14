"""The base of all DataModules: loaders on the resumable sampler, and augmentation on the device."""

import os
from abc import abstractmethod
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset

from leyden.core.batch import Batch
from leyden.core.random import sample_keys
from leyden.data.loader import EvalLoader, ResumableLoader
from leyden.data.sampler import GlobalBatchSampler, Order, eval_batches

if TYPE_CHECKING:
    from leyden.data.augment import Augment

__all__ = ["DataModule"]


class DataModule(LightningDataModule):
    """Loaders for training, validation, test and prediction over map-style data sets.

    A subclass implements `datasets` and sets ``num_classes`` where there are classes.

    Args:
        batch_size: samples of one *optimizer step*, over all processes and accumulated micro-batches: the same samples
            make the same step on any number of processes.
        eval_batch_size: samples of an evaluation batch, over all processes; ``batch_size`` if None.
        num_workers: loading processes per training process. A data set that draws random numbers resumes exactly if
            there is at least one.
        drop_last: leave out the last, smaller training batch of an epoch.
        order: order of the training samples; shuffled if None.
        augment: changes training batches, on the device.
        seed: seed of order and augmentation; that of ``seed_everything`` if None.

    Attributes:
        sampler_class: makes the sampler of the training loader; a callback that needs another sets it before.
    """

    num_classes: int | None = None
    sampler_class: Callable[..., GlobalBatchSampler] = GlobalBatchSampler

    def __init__(
        self,
        batch_size: int = 64,
        *,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        drop_last: bool = True,
        order: Order | None = None,
        augment: "Augment | None" = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.order = order
        self.augment = augment
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.sampler: GlobalBatchSampler | None = None
        self._datasets: dict[str, Dataset] = {}

    @abstractmethod
    def datasets(self) -> dict[str, Dataset]:
        """Returns the map-style data sets ``train``, ``val``, ``test`` and, if it is another, ``predict``.

        Their samples are batches without the batch dimension; with ``__getitems__`` they return whole batches. What a
        data set has as ``sources`` (the name of each sample, such as its path) stands beside its predictions.
        """

    @property
    def num_samples(self) -> int:
        """Size of the training set: what per-sample memory is as long as."""
        return len(cast(Sized, self.dataset("train")))

    def dataset(self, split: str) -> Dataset:
        """Returns one of the data sets, made on first use."""
        if not self._datasets:
            self._datasets = self.datasets()
        if split == "predict" and split not in self._datasets:
            split = "test"
        if split not in self._datasets:
            raise MisconfigurationException(f"{type(self).__name__} has no {split!r} data, only {list(self._datasets)}")
        return self._datasets[split]

    def __str__(self) -> str:
        """Names class, batch size and data sets; Lightning's own makes loaders, of which a fit has only one set."""
        sizes = {split: len(cast(Sized, dataset)) for split, dataset in self._datasets.items()}
        return (
            f"{type(self).__name__}(batch_size={self.batch_size}, seed={self.seed}, samples={sizes or 'not read yet'})"
        )

    __repr__ = __str__

    def setup(self, stage: str) -> None:
        """Makes the data sets."""
        self.dataset({"fit": "train", "validate": "val", "test": "test", "predict": "predict"}[stage])

    def train_dataloader(self) -> ResumableLoader:
        """Training batches of this process."""
        replicas = self._replicas()
        self.sampler = self.sampler_class(
            self.num_samples,
            self.batch_size,
            order=self.order,
            drop_last=self.drop_last,
            seed=self.seed,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
            **replicas,
        )
        return ResumableLoader(
            self.dataset("train"),
            self.sampler,
            num_workers=self.num_workers,
            on_epoch_start=lambda: _update_epoch_length(self.trainer),
        )

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Validation batches of this process; none if there are no such data."""
        self._datasets = self._datasets or self.datasets()
        return self._eval_loader("val") if "val" in self._datasets else []

    def test_dataloader(self) -> EvalLoader:
        """Test batches of this process."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Batches to predict of this process."""
        return self._eval_loader("predict")

    def all_batches(self, split: str) -> EvalLoader:
        """All samples of a data set as they lie, in evaluation batches; the same on each process."""
        dataset = self.dataset(split)
        return EvalLoader(dataset, eval_batches(len(cast(Sized, dataset)), self.eval_batch_size))

    def set_batch_size(self, batch_size: int, accumulate: int | None = None) -> None:
        """Resizes the global training batch from the next optimizer step on; the trainer learns the new epoch length.

        Args:
            batch_size: samples of an optimizer step.
            accumulate: micro-batches that share it, from now on ``trainer.accumulate_grad_batches``; as many as before
                if None. It can change between two optimizer steps: best in ``on_train_batch_end`` after one.

        Raises:
            ValueError: the size is out of range or cannot be shared equally, or ``accumulate`` changes within a step.
            MisconfigurationException: called before the training loader was made.
        """
        if self.sampler is None or self.trainer is None:
            raise MisconfigurationException("set_batch_size can only be called during a fit")
        before = self.sampler.accumulate
        self.sampler.resize(batch_size, accumulate)
        if self.sampler.accumulate != before:
            _count_batches_anew(self.trainer, before, self.sampler.accumulate)
        _update_epoch_length(self.trainer)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments training batches."""
        if self.augment is None or self.trainer is None or not self.trainer.training:
            return batch
        return self.augment(batch, sample_keys(self.seed, self.trainer.global_step, batch["index"]))

    def _eval_loader(self, split: str) -> EvalLoader:
        dataset = self.dataset(split)
        batches = eval_batches(len(cast(Sized, dataset)), self.eval_batch_size, **self._replicas())
        return EvalLoader(dataset, batches, num_workers=self.num_workers)

    def _replicas(self) -> dict[str, Any]:
        strategy = getattr(self.trainer, "strategy", None)
        return dict(getattr(strategy, "distributed_sampler_kwargs", None) or {})


def _count_batches_anew(trainer: Trainer, before: int, accumulate: int) -> None:
    """Counts the batches of the running epoch as if it had begun with this accumulation.

    The trainer ends an optimizer step at batches whose number can be divided by ``accumulate_grad_batches``.
    """
    trainer.accumulate_grad_batches = accumulate
    loop = trainer.fit_loop
    progress = loop.epoch_loop.batch_progress
    change = progress.current.ready // before * accumulate - progress.current.ready
    for counts in (progress.current, progress.total):
        for name in ("ready", "started", "processed", "completed"):  # which differ within the hooks of a batch
            setattr(counts, name, getattr(counts, name) + change)
    if loop._data_fetcher is not None:
        loop._data_fetcher.fetched = loop._data_fetcher.fetched // before * accumulate


def _update_epoch_length(trainer: Trainer | None) -> None:
    """Tells the trainer the number of batches in the running epoch; by itself it asks only once, before the first."""
    if trainer is None or trainer.fit_loop._combined_loader is None:
        return
    loop, loader, fetcher = trainer.fit_loop, trainer.fit_loop._combined_loader, trainer.fit_loop._data_fetcher
    loader.limits = [
        _parse_num_batches(RunningStage.TRAINING, len(part), trainer.limit_train_batches) for part in loader.flattened
    ]
    if loader._iterator is not None:
        loader._iterator.limits = loader.limits
    if fetcher is None:  # Lightning is about to count the batches
        return
    loop.max_batches = fetcher.length = len(loader)
    fetcher.done = fetcher.fetched >= loop.max_batches
    loop.epoch_loop.batch_progress.is_last_batch = fetcher.done
    if isinstance(trainer.val_check_interval, float):
        trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))
