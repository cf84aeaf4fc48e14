"""Combining the checkpoints of a fit when it has ended (E. Liu et al., "Linear Combination of Saved Checkpoints Makes
Consistency and Diffusion Models Better", 2024, arXiv 2404.02241; authors' code: imagination-research/LCSC)."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torchmetrics import MetricCollection

from leyden.core import Method, MethodCallback, replace_file
from leyden.core.distributed import is_sharded
from leyden.data import DataModule, EvalLoader, eval_batches
from leyden.weights import CheckpointFile, combine, lcsc_search, pack_weights
from leyden.weights._journal import Journal

__all__ = ["LCSC"]

DECAYS = (0.0, 0.5, 0.9, 0.95, 0.99)  # of the moving averages with which the search begins
IN_MEMORY = 2**31  # bytes of snapshots that are kept in memory during the search


class LCSC(MethodCallback):
    """Keeps the weights of the last steps on disk and leaves the best linear combination of them in the module.

    It is searched (`leyden.weights.lcsc_search`) when the fit has ended, by a metric of the validation data; tell what
    it is worth by other data, such as those of the test. Statistics of BatchNorm are measured anew on the training data
    for every combination. The search draws random numbers of its own, and every process finds the same. One that was
    killed goes on when the finished fit is resumed.

    In the run folder, ``lcsc`` has the snapshots and the search, ``checkpoints/lcsc.ckpt`` the result with its
    coefficients. Logged are values of the metric: ``lcsc/last``, ``lcsc/best_ema`` and ``lcsc/combined``.

    Args:
        every_n_steps: optimizer steps between two snapshots.
        window: number of snapshots that are kept.
        iterations: of the search.
        parents: of the search; fewer find more in a short one.
        metric: a validation metric of the method.
        mode: whether less (``"min"``) or more (``"max"``) of it is better.
        seed: of the search.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        window: int = 50,
        *,
        iterations: int = 500,
        parents: int = 50,
        metric: str = "val/loss",
        mode: str = "min",
        seed: int = 0,
    ) -> None:
        if every_n_steps < 1 or window < 2 or iterations < 0 or parents < 1:
            raise ValueError(
                "every_n_steps and parents must be at least 1, window at least 2 and iterations at least 0, got "
                f"{every_n_steps}, {parents}, {window} and {iterations}"
            )
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.every_n_steps = every_n_steps
        self.window = window
        self.iterations = iterations
        self.parents = parents
        self.metric = metric
        self.mode = mode
        self.seed = seed
        self._steps: list[int] = []  # of the snapshots
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there will be something to search by.

        Raises:
            MisconfigurationException: there are no validation data, no such metric, or the parameters are sharded.
        """
        names = [str(name) for name in _metrics(pl_module)]
        if self.metric not in names:
            raise MisconfigurationException(
                f"LCSC searches by a validation metric of the method, got {self.metric!r}; it may be {', '.join(names)}"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DataModule) or not trainer.limit_val_batches or not data.val_dataloader():
            raise MisconfigurationException("LCSC needs a leyden DataModule with validation data to search by")
        if is_sharded(pl_module.parameters()):
            raise MisconfigurationException("LCSC keeps whole parameters, but these are sharded: train with DDP")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step from which the fit goes on."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a snapshot every ``every_n_steps`` optimizer steps."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        if step % self.every_n_steps:
            return
        self._steps.append(step)
        dropped, self._steps = self._steps[: -self.window], self._steps[-self.window :]
        if trainer.is_global_zero:
            self._journal_path(trainer).unlink(missing_ok=True)  # of other weights
            with replace_file(self._snapshot_path(trainer, step)) as file:
                file.write(pack_weights(pl_module.state_dict()))
            for old in dropped:
                self._snapshot_path(trainer, old).unlink(missing_ok=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches, and loads what was found.

        Raises:
            MisconfigurationException: a snapshot is missing.
        """
        if len(self._steps) < 2:
            rank_zero_info(f"LCSC: there is nothing to combine, only {len(self._steps)} snapshots were taken")
            return
        trainer.strategy.barrier()  # the snapshots are written
        paths = [self._snapshot_path(trainer, step) for step in self._steps]
        if missing := next((path for path in paths if not path.is_file()), None):
            raise MisconfigurationException(f"LCSC: the snapshot {missing} is missing; train again without --resume")
        files: list[Mapping[str, Tensor]] = [CheckpointFile(path) for path in paths]
        if sum(cast(CheckpointFile, file).num_bytes for file in files) <= IN_MEMORY:
            files = [dict(file) for file in files]
        method, training = cast(Method, pl_module), pl_module.training
        settings = {name: getattr(self, name) for name in ("metric", "mode", "parents", "seed")}
        journal = Journal(self._journal_path(trainer), settings | {"steps": self._steps})
        known = trainer.strategy.broadcast(journal.read() if trainer.is_global_zero else [])
        values = list(known)

        def evaluate(coefficients: Tensor) -> float:
            pl_module.load_state_dict(combine(files, coefficients), strict=pl_module.strict_loading)
            value = self._evaluate(trainer, method)
            values.append(value if self.mode == "min" else -value)
            if trainer.is_global_zero:
                journal.add(values[-1])
            return values[-1]

        best, least = lcsc_search(
            evaluate,
            len(files),
            iterations=self.iterations,
            parents=self.parents,
            decays=DECAYS,
            known=known,
            generator=torch.Generator().manual_seed(self.seed),
        )
        pl_module.load_state_dict(combine(files, best), strict=pl_module.strict_loading)
        self._measure_batch_norm(trainer, method)
        method.train(training)
        sign = 1.0 if self.mode == "min" else -1.0
        found = {"last": values[0], "best_ema": min(values[: len(DECAYS)]), "combined": least}
        found = {f"lcsc/{name}": sign * value for name, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        self._save(trainer, pl_module, {"coefficients": best.tolist(), "steps": self._steps, **found})

    def state_dict(self) -> dict[str, Any]:
        """The steps of the snapshots, which their files are named by."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the steps of the snapshots."""
        self._steps = list(state_dict["steps"])

    def _evaluate(self, trainer: Trainer, method: Method) -> float:
        """The metric of the module, over the validation data of all processes."""
        self._measure_batch_norm(trainer, method)
        loader = cast(DataModule, trainer.datamodule).val_dataloader()  # type: ignore[attr-defined]
        metrics = _metrics(method)
        limit = _parse_num_batches(RunningStage.VALIDATING, len(loader), trainer.limit_val_batches)
        method.eval()
        metrics.reset()
        with torch.no_grad(), _seeded(self.seed, method.device), trainer.precision_plugin.forward_context():
            for number, batch in enumerate(loader):
                if number == limit:
                    break
                method.validation_step(self._on_device(trainer, batch), number)
        value = float(metrics.compute()[self.metric])
        metrics.reset()
        return value

    def _measure_batch_norm(self, trainer: Trainer, method: Method) -> None:
        """Measures statistics of BatchNorm on all training data: the same in every process."""
        if not any(isinstance(module, _BatchNorm) and module.track_running_stats for module in method.modules()):
            return
        data = cast(DataModule, trainer.datamodule)  # type: ignore[attr-defined]
        batches = [batch for batch in eval_batches(data.num_samples, data.batch_size) if len(batch) > 1]
        loader = EvalLoader(data.dataset("train"), batches, num_workers=data.num_workers)
        with _seeded(self.seed, method.device), trainer.precision_plugin.forward_context():
            update_bn((self._on_device(trainer, batch) for batch in loader), _Computes(method))

    def _on_device(self, trainer: Trainer, batch: Any) -> Any:
        return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))

    def _save(self, trainer: Trainer, pl_module: LightningModule, provenance: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        checkpoint = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": pl_module.state_dict(),
            "provenance": json.dumps(provenance),
        }
        name = self.state_key.lower()
        trainer.strategy.checkpoint_io.save_checkpoint(
            checkpoint, Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"
        )

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.state_key.lower()

    def _snapshot_path(self, trainer: Trainer, step: int) -> Path:
        return self._folder(trainer) / f"step={step:08}.safetensors"

    def _journal_path(self, trainer: Trainer) -> Path:
        return self._folder(trainer) / "search.txt"


class _Computes(nn.Module):
    """Runs a method on whole batches."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any) -> Any:
        return self.method.compute(batch)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws the same random numbers every time, and leaves those of the fit as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _metrics(method: LightningModule) -> MetricCollection:
    return cast(MetricCollection, cast(Method, method).metrics["val"])
