"""Estimates of the Hessian's diagonal for Sophia, between the steps of a fit.

H. Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training", 2023,
algorithm 3. Original code: Liuhong99/Sophia, ``train_sophiag.py``.
"""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.distributed import all_reduce_mean, all_reduce_sum, is_sharded
from leyden.core.gradients import accumulate_gradients, gradients_per_term
from leyden.core.method import Method
from leyden.core.network import Outputs
from leyden.core.random import sample_keys, uniform
from leyden.optim.sophia import Sophia, gnb_labels, hutchinson

__all__ = ["SophiaHessian"]

_STREAM = 0x50F1A  # the labels are not drawn by the numbers that the next step's augmentation draws by


class SophiaHessian(MethodCallback):
    """Calls `Sophia.update_hessian` after every ``interval``-th optimizer step, and logs ``train/win_rate`` then.

    ``"gnb"`` runs the network once more on the batches of that step, with labels drawn from its own outputs: the
    gradient is averaged over micro-batches and processes, clipped as the trainer clips, and squared. It fits methods
    whose ``logits`` are scores of classes; predictions whose target is negative (ignored, unlabeled) do not count.
    ``"hutchinson"`` differentiates the method's loss twice, which the attention kernels of a GPU cannot; the plain
    one is used then. All draws are functions of the data's seed, the step and the sample, so they are the same in a
    resumed run, and on any number of processes.

    Args:
        estimator: ``"gnb"`` (Gauss-Newton-Bartlett, Sophia-G) or ``"hutchinson"`` (Sophia-H).
        interval: optimizer steps between two estimates.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, estimator: str = "gnb", interval: int = 10) -> None:
        if estimator not in ("gnb", "hutchinson"):
            raise ValueError(f"estimator must be 'gnb' or 'hutchinson', got {estimator!r}")
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.estimator = estimator
        self.interval = interval
        self._batches: list[Batch] = []  # of the step that an estimate follows
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks optimizer and parameters.

        Raises:
            MisconfigurationException: the one optimizer is not Sophia, or the parameters are sharded.
        """
        names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        if len(trainer.optimizers) != 1 or not isinstance(trainer.optimizers[0], Sophia):
            raise MisconfigurationException(
                f"SophiaHessian needs leyden.optim.Sophia as the only optimizer, but there is {names}: "
                "set the method's optimizer to it"
            )
        if is_sharded(pl_module.parameters()):
            raise MisconfigurationException(
                "SophiaHessian differentiates whole parameters, but these are sharded: train on one device or with DDP"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step from which the fit goes on."""
        self._step = trainer.global_step

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Keeps the batch, as the step got it, if an estimate follows."""
        if (method.global_step + 1) % self.interval == 0:
            self._batches.append(batch)
        return terms

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Makes the estimate, if the optimizer made the step for it."""
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        batches, self._batches = self._batches, []
        if not batches:
            return
        method, optimizer = cast(Method, pl_module), cast(Sophia, trainer.optimizers[0])
        if self.estimator == "gnb":
            self._gauss_newton_bartlett(trainer, method, optimizer, batches)
        else:
            self._hutchinson(trainer, method, optimizer, batches)
        # written now and not by `self.log`, which would go on writing this value in the steps between two estimates
        win_rate = {"train/win_rate": optimizer.win_rate().item()} if trainer.loggers else {}
        for logger in trainer.loggers:
            logger.log_metrics(win_rate, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _gauss_newton_bartlett(self, trainer: Trainer, method: Method, optimizer: Sophia, batches: list[Batch]) -> None:
        params = _params(optimizer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()  # what keeps gradients in float16 from becoming 0
        optimizer.zero_grad()
        num_predictions = torch.zeros((), dtype=torch.int64, device=method.device)
        for batch in batches:
            with trainer.precision_plugin.train_step_context():
                logits = method.compute(batch).logits
            labels = self._labels(method, batch, logits)
            num_predictions += (labels >= 0).sum()
            loss = functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100)
            gradients = gradients_per_term({"drawn": loss * (scale / len(batches))}, params)["drawn"]
            accumulate_gradients(params, [gradient / scale for gradient in gradients])
        method.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        # the scaler leaves out steps that overflow; so does this
        if scaler is None or all(cast(Tensor, p.grad).isfinite().all() for p in params):
            optimizer.update_hessian(batch_size=int(all_reduce_sum(num_predictions)))
        optimizer.zero_grad()

    def _labels(self, method: Method, batch: Batch, logits: Tensor) -> Tensor:
        keys = sample_keys(_seed(method), self._step, batch["index"])
        labels = gnb_labels(logits, uniforms=uniform(keys, *logits.shape[1:-1], stream=_STREAM))
        target = batch.get("target")
        if target is not None and target.shape == labels.shape:
            labels = labels.masked_fill(target < 0, -100)
        return labels

    def _hutchinson(self, trainer: Trainer, method: Method, optimizer: Sophia, batches: list[Batch]) -> None:
        params = _params(optimizer)
        key = sample_keys(_seed(method), self._step, torch.tensor([_STREAM]))
        estimates = [torch.zeros_like(p) for p in params]
        for batch in batches:
            # the same noise for all micro-batches and processes: the mean of their products is the whole batch's
            generator = torch.Generator(method.device).manual_seed(int(key))
            with trainer.precision_plugin.train_step_context(), sdpa_kernel(SDPBackend.MATH):
                loss = torch.stack(list(method.loss_terms(batch, method.compute(batch)).values())).sum()
                parts = hutchinson(loss / len(batches), params, generator)
            torch._foreach_add_(estimates, [all_reduce_mean(part) for part in parts])
        optimizer.update_hessian(estimates)


def _params(optimizer: Sophia) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _seed(method: Method) -> int:
    return getattr(method.datamodule, "seed", 0)
