"""The checkpoint from which a run goes on."""

import os
import signal
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from leyden.callbacks._stop_signals import StopSignals, requeue

__all__ = ["LastCheckpoint"]


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` in the run folder and keeps the one before it as ``previous.ckpt``.

    It saves at the end of every epoch, when validation and the epoch's logs are done, and every ``every_n_steps``
    between, but not just before a validation, which a run resumed from there would skip.

    On SIGTERM, with which schedulers take a machine away, it saves as soon as the optimizer step (and a validation that
    is due) is done, and ends the fit. So it does on SIGUSR1, which SLURM sends before the time of a job is over
    (``sbatch --signal=USR1@60``); a SLURM job is then put back into the queue.

    Args:
        every_n_steps: optimizer steps between two checkpoints within an epoch; 0 saves at epochs' ends only.
        dirpath: folder; ``checkpoints`` under the trainer's ``default_root_dir`` if None.

    Raises:
        ValueError: ``every_n_steps`` is negative.
    """

    def __init__(self, every_n_steps: int = 0, *, dirpath: str | None = None) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must be at least 0, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.dirpath = dirpath
        self.last_model_path = ""
        self._step = 0
        self._signals = StopSignals()
        self._to_obey = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the folder, and moves to the end of the callbacks: to save what the others did in the same hook.

        Raises:
            OSError: the folder cannot be made.
        """
        # a new list, because Lightning is going through the present one
        trainer.callbacks = [*(cb for cb in trainer.callbacks if cb is not self), self]  # type: ignore[attr-defined]
        if stage == "fit" and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            self._folder(trainer).mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step, and the checkpoint if it is this one, from which the fit goes on."""
        self._step = trainer.global_step
        self._to_obey = 0
        self._signals.install()
        last = self._folder(trainer) / "last.ckpt"
        resumed = trainer.ckpt_path is not None and last.is_file() and os.path.exists(trainer.ckpt_path)
        if resumed and last.samefile(cast(str, trainer.ckpt_path)):
            self.last_model_path = str(last)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every ``every_n_steps`` optimizer steps, and when a signal came."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        number = self._signals.received()
        if not number and (not self.every_n_steps or step % self.every_n_steps):
            return
        loop = trainer.fit_loop
        if not trainer.is_last_batch and not loop.epoch_loop._should_check_val_fx(
            cast(_DataFetcher, loop._data_fetcher)
        ):
            self._save(trainer)
            self._to_obey = number  # when Lightning has logged this step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the fit after a signal."""
        self._obey(trainer, self._to_obey)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves."""
        self._save(trainer)
        self._obey(trainer, self._signals.received())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obeys signals again."""
        self._signals.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Obeys signals again."""
        self._signals.restore()

    def _obey(self, trainer: Trainer, number: int) -> None:
        if not number:
            return
        self._wait_for_io(trainer)
        rank_zero_info(f"{signal.Signals(number).name}: the run is saved and ends; it can be resumed")
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise SIGTERMException

    def _save(self, trainer: Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        folder = self._folder(trainer)
        last, previous = folder / "last.ckpt", folder / "previous.ckpt"
        if trainer.is_global_zero and self.last_model_path:
            self._wait_for_io(trainer)
            # A second name for the present file, so that there is a `last.ckpt` at every moment. A file that this fit
            # neither wrote nor read may be damaged: it must not take the place of a good one.
            link = folder / ".previous.ckpt"
            link.unlink(missing_ok=True)
            os.link(last, link)
            link.replace(previous)
        trainer.save_checkpoint(last, weights_only=False)
        self.last_model_path = str(last)

    def _wait_for_io(self, trainer: Trainer) -> None:
        """Waits for the last file, if it is written in the background."""
        if hasattr(trainer.strategy.checkpoint_io, "wait"):
            trainer.strategy.checkpoint_io.wait()

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
