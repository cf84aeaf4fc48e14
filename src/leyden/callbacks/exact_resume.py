"""Continuing a run with the same bits: random states, logs and progress."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from leyden.core.distributed import rank, world_size

__all__ = ["ExactResume"]


class ExactResume(Callback):
    """Saves the random generators of all processes with every checkpoint and puts them back when a run goes on.

    They are put back before the first training batch, because Lightning's own start of a fit draws from them. Loggers
    are flushed before a checkpoint is written; a logger with a ``rewind`` method drops what was logged after it. In a
    new run each process gets a seed of its own. Stands first among the callbacks.
    """

    def __init__(self) -> None:
        self._random_states: list[dict[str, Any]] | None = None
        self._resumed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the processes of a new run different random numbers, and the loader of a resumed run its state."""
        loop = trainer.fit_loop
        if loop.restarting and loop.restarted_on_epoch_end:
            # With max_steps Lightning goes on with a finished epoch: it would end it twice and skip data of the next.
            loop._restarting = loop.epoch_loop.restarting = False
            loop.reset_restart_stage()
            loop.epoch_progress.increment_completed()
        if self._resumed and loop._combined_loader is not None and loop._combined_loader_states_to_load:
            # Lightning does not, if the loader was made before the state was read (to count the steps of a schedule).
            loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
            loop._combined_loader_states_to_load = []
        if not self._resumed and world_size() > 1:
            _seed_all(torch.initial_seed() + rank())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first batch of a resumed run, puts random states and logs back to where it was saved."""
        if not self._resumed:
            return
        self._resumed = False
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(trainer.fit_loop.epoch_loop._batches_that_stepped)
        states, self._random_states = self._random_states or [], None
        if len(states) == world_size():
            _set_random_state(states[rank()])
        else:
            rank_zero_warn(
                f"The run was saved by {len(states)} processes and goes on with {world_size()}: the order of the "
                "samples stays the same, but random numbers inside of the network (dropout) cannot."
            )
            _seed_all(torch.initial_seed() + rank() + trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flushes the loggers and adds the random states."""
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, WandbLogger):
                checkpoint["wandb_id"] = logger.version
        states: list[Any] = [_random_state()]
        if world_size() > 1:
            states = [None] * world_size()
            dist.all_gather_object(states, _random_state())
        checkpoint["random_states"] = states
        checkpoint["accumulate_grad_batches"] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the random states, and counts batches anew if the run goes on with other accumulation."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.state_key in checkpoint["callbacks"]:
                _follow_moved_files(checkpoint["callbacks"][callback.state_key], callback.dirpath)
        if not trainer.training:
            return
        self._resumed = True
        self._random_states = checkpoint.get("random_states")
        before = checkpoint.get("accumulate_grad_batches", trainer.accumulate_grad_batches)
        if before != trainer.accumulate_grad_batches:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            ready = progress["current"]["ready"]
            change = ready // before * trainer.accumulate_grad_batches - ready
            for counts in (progress["total"], progress["current"]):
                # how far the last batch had come tells Lightning at which hook the checkpoint was saved
                counts.update({name: count + change for name, count in counts.items()})


def _follow_moved_files(state: dict[str, Any], here: str | os.PathLike[str] | None) -> None:
    """Changes the folder in the state of a `ModelCheckpoint` whose files lie in another one now.

    It would forget the best score otherwise, and put a worse checkpoint in the place of the best.
    """
    before, best = state["dirpath"], state["best_model_path"]
    if before is None or here is None or not best or not Path(here, os.path.relpath(best, before)).is_file():
        return

    def moved(path: str) -> str:
        return os.path.join(here, os.path.relpath(path, before)) if path else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = here


def _random_state() -> dict[str, Any]:
    # only what a checkpoint may hold that is loaded with `weights_only=True`: tensors, numbers, strings, tuples
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "random": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["random"])


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
