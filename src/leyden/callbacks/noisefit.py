"""Noise augmented fine-tuning (A. Khadangi et al., "Noise Augmented Fine Tuning for Mitigating Hallucinations in Large
Language Models", 2025, arXiv 2504.03302; authors' code: akhadangi/NoiseFiT, ``NoiseFiT_v1_manual_snr.py``).

In that code the hooks multiply by ``std`` twice, but the choice of layers only once; here both do it once.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from leyden.core import Batch, Method, MethodCallback, Outputs, Terms, all_reduce_mean, require_keys
from leyden.core.random import normal, sample_keys
from leyden.losses import noisefit_penalty
from leyden.nn import adaptive_noise

__all__ = ["NoiseFiT"]


class NoiseFiT(MethodCallback):
    """Holds the outputs near those of two more passes, with noise on the outputs of some blocks of the network.

    ``task`` is weighted with ``alpha``, and ``noisefit`` added: `leyden.losses.noisefit_penalty`. The blocks are chosen
    in the first training step by the ratio of the mean size of their outputs to that of the noise they would have; the
    latter is taken as its expectation, where the authors average ten draws, and with the layers in training mode.

    The noise depends on the seed of the data, the step and the sample, its size on the spread of the process's share of
    the batch. Running statistics count the noisy passes too.

    Args:
        std: of the noise, in units of the standard deviation of a block's output.
        layers: number of blocks that have noise.
        select: ``"largest"`` or ``"smallest"`` ratios.
        alpha: share of the method's own loss, in [0, 1].
        consistency: weight of the divergence between the two noisy passes.
        blocks: name of the `torch.nn.ModuleList` or `torch.nn.Sequential` in the network that holds the blocks, which
            give states ``[N, ..., D]``, or tuples that begin with them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        std: float = 0.1,
        layers: int = 3,
        select: str = "largest",
        alpha: float = 0.5,
        consistency: float = 0.1,
        *,
        blocks: str = "blocks",
    ) -> None:
        if std < 0.0:
            raise ValueError(f"std must be at least 0, got {std}")
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        if select not in ("largest", "smallest"):
            raise ValueError(f"select must be 'largest' or 'smallest', got {select!r}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        if consistency < 0.0:
            raise ValueError(f"consistency must be at least 0, got {consistency}")
        self.std = std
        self.layers = layers
        self.select = select
        self.alpha = alpha
        self.consistency = consistency
        self.blocks = blocks
        self.selected: list[int] = []  # numbers of the blocks that have noise
        self._names: list[str] = []  # of all blocks
        self._handles: list[RemovableHandle] = []
        self._keys: Tensor | None = None  # of the samples in a noisy pass
        self._pass = 0

    def build(self, method: Method) -> None:
        """Asks for the outputs of the blocks.

        Raises:
            MisconfigurationException: there are no such blocks, or fewer than ``layers``.
        """
        held = dict(method.network.named_modules()).get(self.blocks)
        if not isinstance(held, nn.ModuleList | nn.Sequential):
            lists = [name for name, m in method.network.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
            raise MisconfigurationException(
                f"NoiseFiT: blocks must name a ModuleList or Sequential of {type(method.network).__name__}, which has "
                f"{lists}, got {self.blocks!r}"
            )
        if len(held) < self.layers:
            raise MisconfigurationException(
                f"NoiseFiT: layers is {self.layers}, but {self.blocks} holds {len(held)} blocks"
            )
        self._names = [f"network.{self.blocks}.{name}" for name, _ in held.named_children()]
        for name in self._names:
            method.taps.add(name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the blocks that an earlier fit chose."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.selected = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts hooks on the blocks.

        Raises:
            MisconfigurationException: activations are computed again in the backward pass, which would have no noise.
        """
        if any(getattr(module, "gradient_checkpointing", False) for module in pl_module.modules()):
            raise MisconfigurationException(
                "NoiseFiT cannot add its noise again where activations are computed twice: switch gradient "
                "checkpointing off"
            )
        for number, name in enumerate(self._names):
            self._handles.append(self._hook(number, pl_module.get_submodule(name)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Weighs ``task`` and adds ``noisefit``."""
        require_keys(batch, "index", user="NoiseFiT")
        if not self.selected:
            self.selected = self._choose([outputs.taps[name] for name in self._names])
        seed = getattr(method.datamodule, "seed", 0) + crc32(self.state_key.encode())
        noisy = []
        for number in range(2):
            with self._noise(sample_keys(seed, method.global_step, batch["index"]), number):
                noisy.append(method.compute(batch).logits)
        target = batch.get("target")
        mask = None if target is None or target.is_floating_point() else target != -100
        penalty = noisefit_penalty(outputs.logits, *noisy, mask=mask, alpha=self.alpha, consistency=self.consistency)
        return terms | {"task": self.alpha * terms["task"], "noisefit": penalty}

    def state_dict(self) -> dict[str, Any]:
        """Numbers of the chosen blocks."""
        return {"selected": self.selected}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.selected = list(state_dict["selected"])

    @torch.no_grad()
    def _choose(self, outputs: list[Any]) -> list[int]:
        ratios = []
        for output in outputs:
            hidden = _states(output).float()
            size = torch.full_like(hidden, math.sqrt(2.0 / math.pi))  # the mean of |z|
            noise = adaptive_noise(hidden, base_std=self.std * hidden.std(), normal=size) - hidden
            ratios.append(hidden.abs().mean() / (noise.mean() + 1e-6))
        order = all_reduce_mean(torch.stack(ratios)).argsort(descending=self.select == "largest", stable=True)
        return sorted(order[: self.layers].tolist())

    @contextmanager
    def _noise(self, keys: Tensor, number: int) -> Iterator[None]:
        self._keys, self._pass = keys, number
        try:
            yield
        finally:
            self._keys = None

    def _hook(self, number: int, block: nn.Module) -> RemovableHandle:
        def disturb(module: nn.Module, args: Any, output: Any) -> Any:
            if self._keys is None or number not in self.selected or module is not block:  # a copy has this hook too
                return output
            hidden = _states(output)
            z = normal(self._keys, *hidden.shape[1:], stream=self._pass * len(self._names) + number)
            noisy = adaptive_noise(hidden, base_std=self.std * hidden.detach().float().std(), normal=z)
            return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

        return block.register_forward_hook(disturb)


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
