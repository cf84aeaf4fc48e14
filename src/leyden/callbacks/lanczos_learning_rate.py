"""Learning rate and momentum from the curvature of a batch (D. Granziol, S. Zohren, S. Roberts, "Learning Rates as a
Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training", 2022, arXiv 2006.09092; B. Polyak,
"Some methods of speeding up the convergence of iteration methods", 1964)."""

import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from leyden.analysis.lanczos import lanczos
from leyden.callbacks._measuring import measuring
from leyden.callbacks._method_loss import method_loss
from leyden.callbacks.multigrid import Multigrid
from leyden.core import Batch, Method, MethodCallback, Outputs, Terms
from leyden.core.distributed import all_reduce_mean, is_sharded
from leyden.core.random import sample_keys
from leyden.nn.running_stats import frozen_running_stats

__all__ = ["LanczosLearningRate", "polyak_parameters"]

_STREAM = 0x1A2C05  # the start is not drawn by the numbers that augmentation draws by
_MAX_MOMENTUM = 0.99


def polyak_parameters(largest: float, smallest: float) -> tuple[float, float]:
    """Learning rate and momentum with which the heavy ball is fastest on a quadratic.

    ``4 / (sqrt(L) + sqrt(m))^2`` and ``((sqrt(L) - sqrt(m)) / (sqrt(L) + sqrt(m)))^2``.

    Args:
        largest: L, the largest eigenvalue of the Hessian.
        smallest: m, the smallest one.

    Raises:
        ValueError: not ``0 <= smallest <= largest``, or both are 0.
    """
    if not 0.0 <= smallest <= largest or not 0.0 < largest < math.inf:
        raise ValueError(
            f"largest and smallest must be 0 <= smallest <= largest, not both 0, got {largest}, {smallest}"
        )
    high, low = math.sqrt(largest), math.sqrt(smallest)
    return 4.0 / (high + low) ** 2, ((high - low) / (high + low)) ** 2


class LanczosLearningRate(MethodCallback):
    """Sets learning rate and momentum anew in the first step of epochs, by the Hessian of the loss on its batch.

    L is the largest Ritz value (`leyden.analysis.lanczos`), and m the positive one with the largest weight: where most
    eigenvalues are. (What the paper takes for m was not found out.) The rates of parameter groups keep their ratios.
    The Hessian is that of the method's own loss on all of the step's samples, at least in float32, without dropout, and
    with batch norm by the statistics of the batch, which are not recorded. It is multiplied with ``steps`` vectors,
    each of which costs about as much as four steps. Logs ``train/largest_eigenvalue`` and ``train/bulk_eigenvalue``.
    Where there is no positive curvature, everything stays as it is.

    Args:
        interval: epochs from one measurement to the next.
        steps: of the Lanczos algorithm; as many vectors as long as all parameters are held.
        scale: factor of the learning rate. The optimum of a quadratic has no room for noise: below 1 is usual.
        momentum: whether the momentum of SGD is set, to 0.99 at most, with the learning rate that belongs to it. Else
            the learning rate is ``2 / (L + m)``, the best one without momentum.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, interval: int = 1, steps: int = 20, scale: float = 1.0, momentum: bool = True) -> None:
        for name, count in (("interval", interval), ("steps", steps)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not scale > 0.0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.interval = interval
        self.steps = steps
        self.scale = scale
        self.momentum = momentum
        self._ratios: list[float] = []  # of the groups' rates to that of the optimizer
        self._measures = False
        self._batches: list[Batch] = []  # of the step that is measured

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the optimizer, and notes its rates before a checkpoint changes them.

        Raises:
            MisconfigurationException: something else sets the learning rate, there is no momentum to set, the steps are
                not the trainer's, or parameters are sharded.
        """
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"LanczosLearningRate measures the loss of a step, but {type(pl_module).__name__} makes its optimizer "
                "steps itself"
            )
        if trainer.lr_scheduler_configs:
            raise MisconfigurationException(
                "LanczosLearningRate sets the learning rate, but the method has a schedule that does so too: leave "
                "scheduler out"
            )
        if any(isinstance(callback, Multigrid) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "LanczosLearningRate sets the learning rate, but so does Multigrid: remove one of the two"
            )
        optimizer = trainer.optimizers[0]
        if self.momentum and not all("momentum" in group for group in optimizer.param_groups):
            raise MisconfigurationException(
                f"LanczosLearningRate sets the momentum, but {type(optimizer).__name__} has none: set its momentum to "
                "false, or use torch.optim.SGD"
            )
        if is_sharded(pl_module.parameters()):
            raise MisconfigurationException(
                "LanczosLearningRate differentiates by whole parameters, but these are sharded: train on one device or "
                "with DDP"
            )
        base = optimizer.defaults["lr"]
        self._ratios = [group["lr"] / base if base else 1.0 for group in optimizer.param_groups]
        self._batches = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes whether the batch belongs to a step that is measured."""
        is_first = batch_idx < trainer.accumulate_grad_batches
        self._measures = is_first and trainer.current_epoch % self.interval == 0

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Keeps the batch, as the step got it, if the step is measured."""
        if self._measures:
            self._batches.append(batch)
        return terms

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measures, and sets the rates of this step and of those that follow."""
        batches, self._batches = self._batches, []
        if not batches:
            return
        method = cast(Method, pl_module)
        nodes, weights = self._spectrum(trainer, method, batches)
        positive = nodes > 0.0
        if not positive.any():
            return
        largest, bulk = nodes[-1].item(), nodes[positive][weights[positive].argmax()].item()
        for logger in trainer.loggers:
            values = {"train/largest_eigenvalue": largest, "train/bulk_eigenvalue": bulk}
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        lr, momentum = polyak_parameters(largest, bulk)
        if not self.momentum:
            lr = 2.0 / (largest + bulk)
        elif momentum > _MAX_MOMENTUM:  # and the rate of the m for which it would be the best
            lr, momentum = (1.0 + math.sqrt(_MAX_MOMENTUM)) ** 2 / largest, _MAX_MOMENTUM
        for group, ratio in zip(optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = self.scale * lr * ratio
            if self.momentum:
                group["momentum"] = momentum

    def _spectrum(self, trainer: Trainer, method: Method, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        params = [p for p in method.parameters() if p.requires_grad]
        norms = [module for module in method.modules() if isinstance(module, _BatchNorm) and module.training]

        def hessian_times(vector: Tensor) -> Tensor:
            parts = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]
            with torch.enable_grad():
                return all_reduce_mean(
                    torch.stack([_product(method, batch, params, parts) for batch in batches]).mean(0)
                )

        seed = getattr(method.datamodule, "seed", 0)
        key = sample_keys(seed, method.global_step, torch.tensor([_STREAM]))
        generator = torch.Generator(method.device).manual_seed(int(key))
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        size = sum(p.numel() for p in params)
        start = torch.randn(size, generator=generator, device=method.device, dtype=dtype)
        with measuring(trainer, method), frozen_running_stats(method):
            for norm in norms:
                norm.training = True
            return lanczos(hessian_times, start, min(self.steps, size))


def _product(method: Method, batch: Batch, params: list[nn.Parameter], vectors: list[Tensor]) -> Tensor:
    """Hessian of the loss on a batch, times a vector, ``[D]``."""
    loss = method_loss(method, batch, method.compute(batch))
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    slope = torch.stack([(g * v).sum() for g, v in zip(grads, vectors, strict=True) if g is not None]).sum()
    if not slope.requires_grad:  # the loss is linear
        return torch.cat([torch.zeros_like(v).flatten() for v in vectors])
    products = torch.autograd.grad(slope, params, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(v) if q is None else q.to(v.dtype)).flatten()
            for q, v in zip(products, vectors, strict=True)
        ]
    )
