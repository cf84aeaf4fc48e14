"""Ghost batch norm in any network (E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better: closing the
generalization gap in large batch training of neural networks", 2017, arXiv 1705.08741)."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Method, MethodCallback
from leyden.nn import convert_ghost_batch_norm

__all__ = ["GhostBatchNorm"]


class GhostBatchNorm(MethodCallback):
    """Turns the batch norms of the network into ghost batch norms, when a fit begins.

    Evaluation alone needs no callback: there they are the same, and so are the names in a checkpoint.

    Args:
        ghost_batch_size: rows that share their statistics; of the rows that one process has in one micro-batch.

    Raises:
        ValueError: ``ghost_batch_size`` is below 2.
    """

    def __init__(self, ghost_batch_size: int = 32) -> None:
        if ghost_batch_size < 2:
            raise ValueError(f"ghost_batch_size must be at least 2, got {ghost_batch_size}")
        self.ghost_batch_size = ghost_batch_size

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Converts the network.

        Raises:
            MisconfigurationException: the trainer would turn the layers into SyncBatchNorm.
            ValueError: the network has no batch norm, or one that has no ghost form.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if getattr(trainer.strategy, "_layer_sync", None) is not None:
            raise MisconfigurationException(
                "GhostBatchNorm takes statistics of few rows, sync_batchnorm of those of all processes: set "
                "trainer.sync_batchnorm to false or remove GhostBatchNorm"
            )
        assert isinstance(pl_module, Method)
        convert_ghost_batch_norm(pl_module.network, self.ghost_batch_size)
