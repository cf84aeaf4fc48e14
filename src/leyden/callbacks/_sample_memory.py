"""What callbacks with memory per sample share."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Batch

__all__ = ["is_mixed", "num_samples_and_classes"]


def num_samples_and_classes(trainer: Trainer, *, user: str) -> tuple[int, int]:
    """Returns the size of the training set and the number of classes, as the DataModule of the fit tells them.

    Raises:
        MisconfigurationException: there is no DataModule, or it lacks one of the two.
    """
    datamodule = getattr(trainer, "datamodule", None)
    num_samples, num_classes = getattr(datamodule, "num_samples", None), getattr(datamodule, "num_classes", None)
    if num_samples is None or num_classes is None:
        has = "the fit has no DataModule" if datamodule is None else f"{type(datamodule).__name__} lacks one of them"
        raise MisconfigurationException(
            f"{user} keeps a row of class scores per training sample and needs a DataModule with num_samples and "
            f"num_classes, but {has}: give trainer.fit a leyden.data.DataModule that sets num_classes"
        )
    return num_samples, num_classes


def is_mixed(batch: Batch, *, user: str) -> bool:
    """Whether another callback mixed the inputs, so that ``index`` does not say what the network sees; warns if so."""
    if "mix_lam" in batch:
        rank_zero_warn(f"{user} remembers single samples: it leaves out batches whose inputs were mixed")
        return True
    return False
