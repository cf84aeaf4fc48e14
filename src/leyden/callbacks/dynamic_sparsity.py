"""Dynamic sparse training: RigL (U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All
Tickets Winners", 2020, arXiv 1911.11134, algorithm 1) and SET (D. C. Mocanu et al., 2018), as sparse iso-FLOP layers
use them (V. Thangarasa, S. Saxena, A. Gupta, S. Lie, "Sparse Iso-FLOP Transformations for Maximizing Training
Efficiency", 2023, arXiv 2303.11525). Original code: CerebrasResearch/Sparse-IFT, ``cbsparse``."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from leyden.callbacks._masks import register_masks
from leyden.core import Method, MethodCallback, sample_keys, uniform
from leyden.core.distributed import shard_like, whole
from leyden.nn import FixedMask, SparseDopedLinear, prunable_layers, stored_weight

__all__ = ["DynamicSparsity"]


class DynamicSparsity(MethodCallback):
    """Trains layers of which a fixed share of weights is not zero, and changes which ones.

    Every ``interval`` optimizer steps, up to ``end`` of the fit, each layer drops the share
    ``fraction (1 + cos(pi t / t_end)) / 2`` of its smallest active weights, and as many others grow from 0: those with
    the largest gradient (``"rigl"``) or by chance (``"set"``). Masks are buffers, and checkpoints hold them.

    Args:
        sparsity: share of zeros in each layer; the first masks are random.
        update: ``"rigl"``, ``"set"``, or ``"static"`` to keep the first masks.
        interval: optimizer steps between two changes.
        fraction: of the active weights that the first change drops.
        end: share of the fit in which masks change.
        skip: dotted names of modules in the network that stay dense, with all that is in them; the dense part of a
            `leyden.nn.SparseDopedLinear` always does.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        sparsity: float = 0.75,
        *,
        update: Literal["rigl", "set", "static"] = "rigl",
        interval: int = 100,
        fraction: float = 0.3,
        end: float = 0.75,
        skip: Sequence[str] = ("head",),
    ) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
        if update not in ("rigl", "set", "static"):
            raise ValueError(f"update must be 'rigl', 'set' or 'static', got {update!r}")
        if interval < 1 or not 0.0 <= fraction <= 1.0 or not 0.0 <= end <= 1.0:
            raise ValueError(
                "interval must be at least 1, fraction and end must lie in [0, 1], got "
                f"{interval}, {fraction} and {end}"
            )
        self.sparsity = sparsity
        self.update = update
        self.interval = interval
        self.fraction = fraction
        self.end = end
        self.skip = tuple(skip)
        self._masked: list[tuple[nn.Module, FixedMask]] = []
        self._last_change = 0

    def build(self, method: Method) -> None:
        """Draws the masks and puts them on the layers.

        Raises:
            MisconfigurationException: another callback masks a layer.
            ValueError: there is no layer for it.
        """
        doped = [module for module in method.network.modules() if isinstance(module, SparseDopedLinear)]
        dense = {id(thin) for module in doped for thin in (module.u, module.v)}
        found = prunable_layers(method.network, skip=self.skip)
        layers = {name: layer for name, layer in found.items() if id(layer) not in dense}
        masks = {name: FixedMask(_random_mask(stored_weight(layer), self.sparsity)) for name, layer in layers.items()}
        register_masks(layers, masks)
        self._masked = [(layer, masks[name]) for name, layer in layers.items()]
        for layer, part in self._masked:
            stored_weight(layer).data.mul_(part.mask)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes until which step masks change.

        Raises:
            MisconfigurationException: the fit has no end.
        """
        if self.update == "static":
            return
        if trainer.estimated_stepping_batches == float("inf"):
            raise MisconfigurationException(
                "DynamicSparsity changes masks in a share of the fit: set trainer.max_epochs or trainer.max_steps, or "
                "update='static'"
            )
        self._last_change = int(self.end * trainer.estimated_stepping_batches)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Changes the masks if it is time, and masks the gradients."""
        step = trainer.global_step
        if 0 < step < self._last_change and step % self.interval == 0:
            fraction = self.fraction * 0.5 * (1.0 + math.cos(math.pi * step / self._last_change))
            for number, (layer, part) in enumerate(self._masked):
                weight = stored_weight(layer)
                if weight.grad is not None:
                    part.mask.copy_(self._changed(weight, part.mask, fraction, step, number, _seed(pl_module)))
                    _clear(weight, shard_like(part.mask, weight), optimizer)
        for layer, part in self._masked:
            weight = stored_weight(layer)
            if weight.grad is not None:
                weight.grad.mul_(shard_like(part.mask, weight))

    @torch.no_grad()
    def _changed(self, weight: Any, mask: Tensor, fraction: float, step: int, number: int, seed: int) -> Tensor:
        num_active = _num_active(weight, self.sparsity)
        num_kept = num_active - int(fraction * num_active)
        magnitude = whole(weight).abs().masked_fill(~mask, -1.0).flatten()
        kept = torch.zeros_like(mask).flatten()
        kept[magnitude.argsort(descending=True, stable=True)[:num_kept]] = True
        if self.update == "rigl":
            score = whole(weight.grad).abs().flatten()
        else:
            keys = sample_keys(seed, step, torch.tensor([number], device=weight.device))
            score = uniform(keys, weight.numel(), stream=5)[0]
        grown = score.masked_fill(kept, -1.0).argsort(descending=True, stable=True)[: num_active - num_kept]
        kept[grown] = True
        return kept.view_as(mask)


@torch.no_grad()
def _clear(weight: Tensor, mask: Tensor, optimizer: Optimizer) -> None:
    """Sets what was dropped to zero, in the weight and in the optimizer's averages of it."""
    weight.mul_(mask)
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value.mul_(mask)


def _num_active(weight: Tensor, sparsity: float) -> int:
    return round((1.0 - sparsity) * weight.numel())


def _random_mask(weight: Tensor, sparsity: float) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.randperm(weight.numel())[: _num_active(weight, sparsity)]] = True
    return mask.view(weight.shape).to(weight.device)


def _seed(pl_module: LightningModule) -> int:
    return getattr(getattr(pl_module, "datamodule", None), "seed", 0)
