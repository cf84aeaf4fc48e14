"""Dynamic sparse no training at the end of a fit (Y. Zhang et al., "Dynamic Sparse No Training: Training-Free
Fine-tuning for Sparse LLMs", 2023, arXiv 2310.08915)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional

from leyden.callbacks._prunes_at_end import PrunesAtEnd
from leyden.core import Method, evaluating
from leyden.core.distributed import all_reduce_sum, rank, shard_like, whole, world_size
from leyden.data import DataModule
from leyden.data.loader import EvalLoader
from leyden.nn import prunable_layers, stored_weight
from leyden.weights import dsnot_mask, wanda_mask

__all__ = ["DSnoT"]


class DSnoT(PrunesAtEnd):
    """Prunes linear layers and 2-d convolutions at the end of a fit, and before evaluations, by DSnoT on Wanda's masks.

    Layer by layer, in the order of the network's modules, training batches are run through the network as it is pruned
    so far, to measure the layer's inputs; a row of a convolution is an output channel, its inputs are the channels at
    the places of the kernel. Training, with its checkpoints, is that without the callback. What is evaluated afterwards
    is pruned, also where it is loaded from a checkpoint.

    Args:
        sparsity: share of each row that is pruned, or ``(n, m)`` to keep ``n`` in every ``m`` weights along the inputs.
        init: ``"wanda"`` or ``"magnitude"``: by what the masks are chosen from which it starts.
        batches: training batches that are run, of the DataModule's size.
        max_cycles: most swaps in a row; 0 leaves the first masks as they are.
        threshold: error of a row's mean output at which its swaps end.
        skip: dotted names of modules in the network that stay dense, with all that is in them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        sparsity: float | tuple[int, int] = 0.5,
        *,
        init: Literal["wanda", "magnitude"] = "wanda",
        batches: int = 16,
        max_cycles: int = 50,
        threshold: float = 0.1,
        skip: Sequence[str] = ("head",),
    ) -> None:
        if init not in ("wanda", "magnitude"):
            raise ValueError(f"init must be 'wanda' or 'magnitude', got {init!r}")
        if batches < 1 or max_cycles < 0 or threshold < 0.0:
            raise ValueError(
                "batches must be at least 1, max_cycles and threshold at least 0, got "
                f"{batches}, {max_cycles} and {threshold}"
            )
        # refuses a sparsity out of range
        size = sparsity[1] if isinstance(sparsity, tuple | list) else 1
        wanda_mask(torch.zeros(1, size), torch.zeros(size), sparsity)
        self.sparsity = sparsity
        self._pattern = tuple(sparsity) if isinstance(sparsity, tuple | list) else None
        self.init = init
        self.batches = batches
        self.max_cycles = max_cycles
        self.threshold = threshold
        self.skip = tuple(skip)

    def build(self, method: Method) -> None:
        """Checks that it will be able to prune.

        Raises:
            MisconfigurationException: the data are not those of a `leyden.data.DataModule`.
            ValueError: there is no layer for it.
        """
        if not isinstance(method.datamodule, DataModule):
            raise MisconfigurationException("DSnoT measures on training batches: train with a leyden.data.DataModule")
        self._layers(method.network)

    @torch.no_grad()
    def prune(self, trainer: Trainer, method: Method) -> None:
        """Measures and prunes, layer by layer."""
        batches = self._batches(method)
        with evaluating(method):
            for layer in self._layers(method.network):
                statistics = method.with_whole_parameters(partial(_measure, trainer, method, layer, batches))
                stored = stored_weight(layer).data
                weight = _rows(whole(stored))
                ranked = statistics["input_sq"] if self.init == "wanda" else torch.ones_like(statistics["input_sq"])
                keep = wanda_mask(weight, ranked, self.sparsity)
                knobs: dict[str, Any] = {
                    "max_cycles": self.max_cycles,
                    "threshold": self.threshold,
                    "pattern": self._pattern,
                }
                keep = dsnot_mask(weight, keep, **statistics, **knobs)
                stored.mul_(shard_like(keep.view(_rows_shape(stored)).movedim(-1, 1), stored))

    def _layers(self, network: nn.Module) -> list[nn.Module]:
        layers = prunable_layers(network, skip=self.skip, m=self._pattern[1] if self._pattern else 1)
        able = [layer for layer in layers.values() if _is_able(layer)]
        if not able:
            raise ValueError(f"{type(network).__name__} has no linear layer and no 2-d convolution for DSnoT")
        if len(able) < len(layers):
            others = ", ".join(name for name, layer in layers.items() if not _is_able(layer))
            rank_zero_info(f"dense, because DSnoT has no rule for them: {others}")
        return able

    def _batches(self, method: Method) -> EvalLoader:
        """Training samples, the same on any number of processes and in every call."""
        data = cast(DataModule, method.datamodule)
        order = torch.randperm(data.num_samples, generator=torch.Generator().manual_seed(0))
        mine = order[: self.batches * data.batch_size][rank() :: world_size()]
        return EvalLoader(data.dataset("train"), [batch.tolist() for batch in mine.split(data.batch_size)])


def _measure(trainer: Trainer, method: Method, layer: nn.Module, batches: EvalLoader) -> dict[str, Any]:
    """Runs batches, and returns what `dsnot_mask` needs to know of a layer's inputs."""
    num_inputs = _rows(stored_weight(layer)).shape[1]
    sums = torch.zeros(2, num_inputs, dtype=torch.float64, device=method.device)  # of inputs and of their squares
    counts = torch.zeros(2, dtype=torch.float64, device=method.device)  # samples, tokens

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = _tokens(module, args[0])
        tokens = x.reshape(-1, num_inputs).double()
        sums.add_(torch.stack([tokens.sum(0), tokens.square().sum(0)]))
        counts.add_(torch.tensor([len(x), len(tokens)], device=counts.device))

    handle = layer.register_forward_hook(add)
    try:
        with trainer.precision_plugin.val_step_context():
            for batch in batches:
                batch = trainer.precision_plugin.convert_input(batch)
                method.compute(trainer.strategy.batch_to_device(batch, method.device))
    finally:
        handle.remove()
    (total, total_sq), (num_samples, num_tokens) = all_reduce_sum(sums), all_reduce_sum(counts)
    return {
        "input_sum": (total / num_samples).float(),
        "input_var": (total_sq / num_tokens - (total / num_tokens).square()).clamp(min=0.0).float(),
        "input_sq": (total_sq / num_samples).float(),
    }


def _is_able(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _rows_shape(weight: Tensor) -> tuple[int, ...]:
    return (len(weight), *weight.shape[2:], weight.shape[1])


def _rows(weight: Tensor) -> Tensor:
    """``[O, I]``, or ``[O, kH * kW * I]`` of a convolution, so that groups run along its channels."""
    return weight.movedim(1, -1).reshape(len(weight), -1)


def _tokens(layer: nn.Module, x: Tensor) -> Tensor:
    """What the rows of a layer are multiplied with, ``[N, ..., I]``."""
    if isinstance(layer, nn.Linear):
        return x
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = layer.padding
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # [N, I * kH * kW, places]
    return patches.unflatten(1, (layer.in_channels, -1)).permute(0, 3, 2, 1).flatten(2)
