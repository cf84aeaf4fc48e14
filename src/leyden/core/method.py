"""The training step as a LightningModule that callbacks, networks, losses and optimizers plug into."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection

from leyden.core._resume import apply_changes, check_classes, check_weights, initial_state
from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.meter import NonFiniteLossError, TermMeter
from leyden.core.network import Network, Outputs
from leyden.core.param_groups import make_optimizer
from leyden.core.sharding import shard_parameters
from leyden.core.surgery import replace_module
from leyden.core.taps import FeatureTaps

__all__ = ["Method", "OptimizerCallable", "SchedulerCallable"]

OptimizerCallable = Callable[[Iterable], Optimizer]
SchedulerCallable = Callable[[Optimizer], LRScheduler]
T = TypeVar("T")


class Method(LightningModule, ABC):
    """A way to make a training step: ``compute`` the outputs of a batch, then name the ``loss_terms`` to be summed.

    A subclass overrides one of the two. A step of another shape (alternating, adversarial, bilevel) sets
    ``automatic_optimization = False`` and overrides ``training_step`` and ``configure_optimizers``; it calls
    ``transform_batch``, ``terms_of`` and ``sum_terms``, so that callbacks take part and epochs have their means.

    Args:
        network: what is trained; ``forward`` runs it.
        optimizer: makes the optimizer from parameter groups, such as ``functools.partial(torch.optim.AdamW, lr=1e-3)``.
        scheduler: makes the learning-rate schedule, stepped after every optimizer step; a ``total_steps`` argument left
            out is the number of optimizer steps of the fit. None keeps the rate constant.
        param_groups: settings of the optimizer for parameters whose names match a pattern, such as
            ``{"*.bias": {"weight_decay": 0.0}, "network.head.*": {"lr_scale": 0.1}}``; see `make_optimizer`.
        compile: whether `torch.compile` compiles the network.

    Attributes:
        attached: trainable modules of callbacks, by name (see `attach`).
        frozen: modules outside of training, by name (see `attach_frozen`).
        taps: outputs of inner modules that training steps collect into ``Outputs.taps``; ask with ``taps.add(name)``.
    """

    def __init__(
        self,
        network: Network,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: SchedulerCallable | None = None,
        param_groups: dict[str, dict[str, Any]] | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.param_groups = param_groups
        self.attached = nn.ModuleDict()
        self.taps = FeatureTaps(self)
        self.frozen: dict[str, nn.Module] = {}
        self._saved_frozen: set[str] = set()
        self._lr_scales: dict[str, float] = {}
        self._run_network = torch.compile(_features_and_logits) if compile else _features_and_logits
        self._doors: tuple[list, list] | None = None
        self._meter = TermMeter()
        self._initial: dict[str, Any] = {}
        self._loaded: dict[str, Any] | None = None
        self.metrics = nn.ModuleDict()
        for stage in ("val", "test"):
            metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(), **self.make_metrics()}
            self.metrics[stage] = MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)

    # ---- what a subclass overrides

    def compute(self, batch: Batch) -> Outputs:
        """Runs the network on ``batch["input"]``."""
        features, logits = self._run_network(self.network, batch["input"])
        return Outputs(logits=logits, features=features)

    @abstractmethod
    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns named scalars, already weighted, whose sum is the loss; the main one is called ``task``."""

    def make_metrics(self) -> dict[str, Metric]:
        """Returns the metrics of validation and test, by name; called once for each of the two, by ``__init__``."""
        return {}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds one evaluation batch to the metrics of `make_metrics`; ``loss`` is added for you."""

    def loss_count(self, batch: Batch, outputs: Outputs) -> int | Tensor:
        """Returns over how many things the loss is a mean, which is its weight in the means over batches."""
        return len(outputs.logits)

    # ---- what a callback calls

    def attach(self, name: str, module: nn.Module, *, lr_scale: float = 1.0) -> nn.Module:
        """Takes in a module with trainable parts: moved, sharded, optimised and saved like the network.

        To be called in ``build`` of a callback (or in ``setup``), before the optimizer is made.

        Args:
            name: name in ``attached`` and in the state dict.
            module: the module.
            lr_scale: its learning rate as a multiple of the network's.

        Raises:
            ValueError: the name is taken by another module.
        """
        if name in self.attached and self.attached[name] is not module:
            raise ValueError(f"there is an attached module {name!r} already; choose one of your own")
        self.attached[name] = module
        self._lr_scales[name] = lr_scale
        return module

    def attach_frozen(self, name: str, module: nn.Module, *, save: bool = False) -> nn.Module:
        """Takes in a module that is not trained, such as a teacher: moved with the method, and always in eval mode.

        It gets no gradients and is no submodule: outside of the optimizer, of DDP and (unless ``save``) of checkpoints.

        Args:
            name: name in ``frozen``.
            module: the module.
            save: whether checkpoints hold its state (where it changes, as an average of weights does).

        Raises:
            ValueError: the name is taken by another module.
        """
        if name in self.frozen and self.frozen[name] is not module:
            raise ValueError(f"there is a frozen module {name!r} already; choose one of your own")
        self.frozen[name] = module.eval().requires_grad_(False).to(self.device)
        if save:
            self._saved_frozen.add(name)
        return module

    def replace(self, name: str, module: nn.Module) -> nn.Module:
        """Puts a module in the place of another between two fits: a head with outputs for new classes.

        To be called in ``build`` of a callback (which a resumed run calls again, so that its checkpoint fits), or when
        no fit runs: the optimizers of a running one would go on with the old parameters. The new module gets device,
        dtype and mode of the old one; it keeps its own weights.

        Args:
            name: dotted, such as ``network.head``; all other places of the same module are replaced too.
            module: the new module.

        Raises:
            ValueError: there is no module of this name.
            MisconfigurationException: a fit is running.
        """
        trainer = self._trainer
        running = trainer is not None and trainer.state.fn == "fit" and trainer.state.status == "running"
        if running and self._current_fx_name not in ("setup", "configure_model"):
            raise MisconfigurationException(
                f"{name} cannot be replaced during a fit, whose optimizers hold its parameters: replace it in build of "
                "a MethodCallback, or between two fits"
            )
        return replace_module(self, self.taps, name, module)

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The DataModule of the running fit or evaluation, if there is one."""
        return getattr(self._trainer, "datamodule", None)

    # ---- steps

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return self.network(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Transforms the batch, computes the terms and returns their sum."""
        batch = self.transform_batch(batch)
        outputs, terms = self.terms_of(batch)
        return self.sum_terms(terms, num_samples=self.loss_count(batch, outputs))

    def transform_batch(self, batch: Batch) -> Batch:
        """Returns the batch as the callbacks change it."""
        for transform in (self._doors or self._open_doors())[0]:
            batch = transform(self, batch)
        return batch

    def terms_of(self, batch: Batch) -> tuple[Outputs, Terms]:
        """Returns outputs and loss terms of a training batch, those of the callbacks included."""
        with parametrize.cached():
            if self.taps:
                with self.taps.collect() as taps:
                    outputs = self.compute(batch)
                outputs.taps = taps
            else:
                outputs = self.compute(batch)
            terms = self.loss_terms(batch, outputs)
            for door in (self._doors or self._open_doors())[1]:
                terms = door(self, batch, outputs, terms)
        return outputs, terms

    def sum_terms(self, terms: Terms, *, num_samples: int | Tensor) -> Tensor:
        """Sums the terms, adds them to the epoch's means, and logs them in steps that the logger writes.

        Args:
            terms: named scalars.
            num_samples: weight of this batch in the means.

        Raises:
            NonFiniteLossError: a term is NaN or infinite.
        """
        try:
            loss = self._meter.update(terms, num_samples=num_samples, step=self.global_step)
            if self._is_logged_step():
                self._meter.check()
                values = {f"train/{name}": term.detach() for name, term in terms.items()} if len(terms) > 1 else {}
                self.log_dict({"train/loss": loss.detach(), **values}, prog_bar=True)
        except NonFiniteLossError as error:
            raise self._with_last_checkpoint(error) from None
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the validation metrics; returns the ``logits`` for callbacks."""
        return {"logits": self._evaluate("val", batch).logits}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the test metrics; returns the ``logits`` for callbacks."""
        return {"logits": self._evaluate("test", batch).logits}

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Returns ``output`` and the ``index`` that says whose it is."""
        return {"output": self.compute(batch).logits, "index": batch["index"]}

    def _evaluate(self, stage: str, batch: Batch) -> Outputs:
        outputs = self.compute(batch)
        metrics = self._stage_metrics(stage)
        loss = torch.stack(list(self.loss_terms(batch, outputs).values())).sum()
        metrics["loss"].update(loss, weight=self.loss_count(batch, outputs))
        self.update_metrics(metrics, batch, outputs)
        return outputs

    def _log_metrics(self, stage: str) -> None:
        metrics = self._stage_metrics(stage)
        # every process has the same value: `max` synchronises without rounding
        self.log_dict(metrics.compute(), sync_dist=True, reduce_fx=torch.max, prog_bar=stage == "val")
        metrics.reset()

    def _stage_metrics(self, stage: str) -> MetricCollection:
        return cast(MetricCollection, self.metrics[stage])

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_metrics("test")

    # ---- optimizer and schedule

    def configure_optimizers(self) -> Any:
        """Makes the optimizer and the schedule that were given to ``__init__``.

        Raises:
            MisconfigurationException: there is a schedule, but the step is optimised by hand: nothing would step it; or
                ``param_groups`` names parameters or settings that there are not.
        """
        if self.scheduler is not None and not self.automatic_optimization:
            raise MisconfigurationException(
                f"{type(self).__name__} makes its optimizer steps itself, so that its schedule would never be stepped: "
                "leave scheduler out, or override configure_optimizers and step it"
            )
        optimizer = make_optimizer(
            self.optimizer,
            {"network": self.network, **{f"attached.{name}": module for name, module in self.attached.items()}},
            self.param_groups,
            lr_scales={f"attached.{name}": scale for name, scale in self._lr_scales.items()},
        )
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer, **self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> dict[str, int]:
        given = getattr(self.scheduler, "keywords", {})
        takes_it = "total_steps" in given or "total_steps" in inspect.signature(self.scheduler).parameters  # type: ignore[arg-type]
        if not takes_it or given.get("total_steps") is not None:
            return {}
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise MisconfigurationException(
                "the schedule needs total_steps, which an endless fit does not have: set trainer.max_epochs or "
                "trainer.max_steps, or the schedule's total_steps"
            )
        return {"total_steps": int(total_steps)}

    # ---- life of a fit

    def configure_model(self) -> None:
        """Shards the parameters where the strategy is Lightning's ``ModelParallelStrategy`` or of its kind.

        Raises:
            MisconfigurationException: the method makes its optimizer steps itself, or processes have other weights.
        """
        if self.device_mesh is not None:
            blocks = getattr(self.trainer.strategy, "shard_blocks", True)
            shard_parameters(self, self.device_mesh["data_parallel"], blocks=blocks)

    def with_whole_parameters(self, function: Callable[[], T]) -> T:
        """Runs a function that runs the network outside of a step; what it writes into sharded parameters is lost."""
        return function()

    def on_fit_start(self) -> None:
        """Notes how optimizers and schedules look before a checkpoint changes them."""
        self._doors = None
        self._initial = initial_state(self.trainer)
        if self._loaded is not None:
            check_classes(self._loaded["initial"], self._initial)

    def on_train_start(self) -> None:
        """Goes on with the means of a resumed epoch; arguments of this run win over those of the run resumed."""
        self._meter.reset()
        if self._loaded is not None:
            self._meter.load_state_dict(self._loaded["meter"])
            apply_changes(self.trainer, self._loaded["initial"], self._initial)
            self._loaded = None

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the first step, makes sure that the callbacks had their part in it.

        Raises:
            MisconfigurationException: a step of its own shape left out the doors of the callbacks.
        """
        if self._doors is None and any(self._open_doors()):
            raise MisconfigurationException(
                f"{type(self).__name__}.training_step calls neither transform_batch nor terms_of, so that "
                "MethodCallbacks have no effect: call them, or take the callbacks out"
            )

    def on_train_epoch_end(self) -> None:
        """Logs the means of the loss terms over the epoch."""
        try:
            self._meter.check()
        except NonFiniteLossError as error:
            raise self._with_last_checkpoint(error) from None
        means = {f"train/{name}_epoch": value for name, value in self._meter.means().items()}
        self._meter.reset()
        # Written now and not by Lightning, which would do it after the checkpoint of this epoch is saved.
        self.log_dict(means, logger=False, sync_dist=True, reduce_fx=torch.max)
        for logger in self.loggers:
            step = self.trainer.fit_loop.epoch_loop._batches_that_stepped - 1
            logger.log_metrics({**means, "epoch": self.current_epoch}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds sums of the running epoch and the frozen modules that asked for it; refuses to save after a bad loss."""
        try:
            self._meter.check()
        except NonFiniteLossError as error:
            raise self._with_last_checkpoint(error) from None
        checkpoint["method"] = {
            "meter": self._meter.state_dict(),
            "frozen": {name: self.frozen[name].state_dict() for name in sorted(self._saved_frozen)},
            "initial": self._initial,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what `on_save_checkpoint` added.

        Raises:
            MisconfigurationException: the checkpoint's weights do not fit this module.
        """
        training = self._trainer is not None and self.trainer.training
        check_weights(checkpoint["state_dict"], self.state_dict(), training=training)
        state = checkpoint.get("method")
        if state is None:
            return
        self._loaded = {"meter": state["meter"], "initial": state["initial"]}
        for name, frozen_state in state["frozen"].items():
            if name in self._saved_frozen:
                self.frozen[name].load_state_dict(frozen_state)

    # ---- inner workings

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; the one that Lightning sets tens of times a step goes past nn.Module's slow checks."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Method":
        # `.to()` and its kin move frozen modules too, though they are no submodules
        super()._apply(fn, recurse)
        for module in self.frozen.values():
            module._apply(fn, recurse)
        return self

    def _open_doors(self) -> tuple[list, list]:
        callbacks = [cb for cb in self.trainer.callbacks if isinstance(cb, MethodCallback)]  # type: ignore[attr-defined]
        transforms = [cb.transform_batch for cb in callbacks if _overrides(cb, "transform_batch")]
        terms = [cb.loss_terms for cb in callbacks if _overrides(cb, "loss_terms")]
        self._doors = transforms, terms
        return self._doors

    def _is_logged_step(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0

    def _with_last_checkpoint(self, error: NonFiniteLossError) -> NonFiniteLossError:
        paths = [getattr(callback, "last_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        path = next((path for path in paths if path), None)
        return NonFiniteLossError(
            f"{error}; " + (f"last good checkpoint: {path}" if path else "no checkpoint was saved yet")
        )


def _features_and_logits(network: Network, x: Tensor, *args: Tensor) -> tuple[Tensor, Tensor]:
    features = network.features(x, *args)
    return features, network.head(features)


def _overrides(callback: MethodCallback, name: str) -> bool:
    return getattr(type(callback), name) is not getattr(MethodCallback, name)
