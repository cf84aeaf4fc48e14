"""Fully sharded data parallel by `torch.distributed.fsdp.fully_shard` (FSDP2), on GPUs or CPUs."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from leyden.core.distributed import copy_from_first_, shard_like
from leyden.plugins._sharded_checkpoint import write_sharded
from leyden.plugins.checkpoint_io import read_checkpoint
from leyden.plugins.lazy_checkpoint_io import LazyAsyncCheckpointIO

__all__ = ["FSDP2Strategy"]


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients, optimizer states and averages of weights over all processes.

    The module is a `leyden.core.Method`, or shards itself in ``configure_model`` over
    ``device_mesh["data_parallel"]``. A checkpoint is a small index file and a folder beside it, into which each process
    writes its part. Any number of processes reads it with this strategy, or with any other and `AtomicCheckpointIO`;
    this strategy reads the checkpoints of others.

    Args:
        shard_blocks: gather the weights of a network block after block; False gathers all for the time of a step,
            which a method needs that reads weights outside of their layers.
    """

    def __init__(self, *, shard_blocks: bool = True) -> None:
        super().__init__()
        self.shard_blocks = shard_blocks
        self._buffers: list[Tensor] = []

    def setup_environment(self) -> None:
        """Forms the process group and the mesh.

        Raises:
            MisconfigurationException: checkpoints are to be written by something else.
        """
        if isinstance(self.checkpoint_io, LazyAsyncCheckpointIO):
            raise MisconfigurationException(
                "LazyAsyncCheckpointIO writes checkpoints of one process, but with FSDP2Strategy each process writes "
                "its part: take LazyAsyncCheckpointIO and LazyCheckpointing out"
            )
        assert self.lightning_module is not None
        if any(getattr(logger, "_log_model", False) for logger in self.lightning_module.loggers):
            rank_zero_warn(
                "W&B uploads the index of a sharded checkpoint without its parts: set the logger's log_model to false, "
                "and upload what leyden export writes"
            )
        self._setup_distributed()
        self._device_mesh = init_device_mesh(
            self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",)
        )
        self.lightning_module._device_mesh = self._device_mesh

    def setup(self, trainer: Trainer) -> None:
        """Makes the optimizers, after ``configure_model`` has sharded the module."""
        super().setup(trainer)
        assert self.model is not None
        self._buffers = list(self.model.buffers())

    # ---- steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's."""
        with self._advice():
            return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's."""
        with self._advice():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's."""
        with self._advice():
            return super().test_step(*args, **kwargs)

    @contextmanager
    def _advice(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            advice = "set trainer.strategy.shard_blocks to false" if self.shard_blocks else "use the strategy ddp"
            raise MisconfigurationException(
                f"the step reads sharded weights outside of their layers: {advice} ({str(error).split(',')[0]})"
            ) from error

    # ---- buffers: those of the first process count, as in DDP

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Gives all processes the buffers of the first."""
        self._share_buffers()

    def on_validation_start(self) -> None:
        """Gives all processes the buffers of the first."""
        self._share_buffers()

    def on_test_start(self) -> None:
        """Gives all processes the buffers of the first."""
        self._share_buffers()

    def on_predict_start(self) -> None:
        """Gives all processes the buffers of the first."""
        self._share_buffers()

    def _share_buffers(self) -> None:
        copy_from_first_(self._buffers)

    # ---- checkpoints: those of one process, in which tensors are shards

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: ``configure_model`` has sharded the module before."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True, with the other states of training."""
        return True

    load_model_state_dict = Strategy.load_model_state_dict
    lightning_module_state_dict = Strategy.lightning_module_state_dict
    optimizer_state = Strategy.optimizer_state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restores the optimizers."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_shard_states(state, optimizer))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes this process's part; called by all.

        Raises:
            OSError: a process could not write; what was there before is left.
            TypeError: there are ``storage_options``.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options must be None: FSDP2Strategy has none, got {storage_options!r}")
        write_sharded(checkpoint, Path(self.broadcast(filepath)))

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads this process's part; called by all. See `read_checkpoint`."""
        checkpoint = read_checkpoint(checkpoint_path, mesh=self.device_mesh)
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        for name in ("state_dict", "current_model_state"):
            if name in checkpoint:
                state = checkpoint[name]
                checkpoint[name] = {key: shard_like(value, parameters.get(key, value)) for key, value in state.items()}
        return checkpoint


def _shard_states(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Shards the states of parameters that were saved whole."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    named = dict(zip(numbers, parameters, strict=False))

    def shard(value: Any, parameter: Tensor) -> Any:
        is_alike = isinstance(value, Tensor) and value.shape == parameter.shape
        return shard_like(value, parameter) if is_alike else value

    return state | {
        "state": {
            number: {key: shard(value, named[number]) for key, value in values.items()}
            for number, values in state["state"].items()
        }
    }
