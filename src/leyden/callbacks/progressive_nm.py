"""Progressive gradient flow (A. R. Bambhaniya et al., "Progressive Gradient Flow for Robust N:M Sparsity Training in
Transformers", 2024, arXiv 2402.04744)."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks._masks import register_masks
from leyden.core import Method, MethodCallback
from leyden.nn import DecayedNM, mask_decay_factor, prunable_layers, structure_decay

__all__ = ["ProgressiveNM"]


class ProgressiveNM(MethodCallback):
    """Trains linear layers and convolutions towards ``n`` in every ``m`` weights along the inputs, little by little.

    After a dense phase, the other weights fade (``mask_decay``), or the structure becomes sparser in equal phases
    (``structure``); the last phase trains the final structure, in which evaluations after the fit are made. All is a
    function of the optimizer step. Checkpoints hold the dense weights: evaluate them with this callback in the list.

    Args:
        n: weights of a group that are kept in the end.
        m: size of a group in the end.
        mask_decay: ``"linear"`` or ``"exp"``, as `leyden.nn.mask_decay_factor` says; None for zeros at once.
        structure: ``"stepwise"`` or ``"geometric"``, as `leyden.nn.structure_decay` says; None for ``n:m`` at once.
        coefficient: decay of the mask per optimizer step.
        dense_fraction: share of the steps in the dense phase.
        final_fraction: share of the steps in the last phase.
        skip: dotted names of modules in the network that stay dense, with all that is in them.

    Raises:
        ValueError: a number is out of range, or there is no such decay or structure.
    """

    def __init__(
        self,
        n: int = 2,
        m: int = 4,
        *,
        mask_decay: Literal["linear", "exp"] | None = None,
        structure: Literal["stepwise", "geometric"] | None = "stepwise",
        coefficient: float = 1e-3,
        dense_fraction: float = 0.1,
        final_fraction: float = 0.1,
        skip: Sequence[str] = ("head",),
    ) -> None:
        if not 1 <= n <= m:
            raise ValueError(f"n must lie in 1 to m, got n={n} and m={m}")
        if min(dense_fraction, final_fraction) < 0.0 or dense_fraction + final_fraction > 1.0:
            raise ValueError(
                "dense_fraction and final_fraction must be at least 0 and together at most 1, got "
                f"{dense_fraction} and {final_fraction}"
            )
        self.mask_decay = mask_decay or "step"
        mask_decay_factor(0, kind=self.mask_decay, coefficient=coefficient)  # checks both
        self.coefficient = coefficient
        self.structures = structure_decay(structure, n, m) if structure else [(n, m)]
        self.dense_fraction, self.final_fraction = dense_fraction, final_fraction
        self.skip = tuple(skip)
        self._parts: list[DecayedNM] = []
        self._total_steps = 0

    def build(self, method: Method) -> None:
        """Parametrizes the layers, as they are in the end.

        Raises:
            MisconfigurationException: another callback masks a layer.
            ValueError: no layer has groups of ``m``, or one has, but not the larger groups of the first structure.
        """
        (n, m), largest = self.structures[-1], max(size for _, size in self.structures)
        layers = prunable_layers(method.network, skip=self.skip, m=m)
        for name, layer in layers.items():
            inputs = layer.weight.shape[1]  # type: ignore[index]
            if inputs % largest:
                raise ValueError(f"{name} has {inputs} inputs, no multiple of {largest}: add it to skip")
        parts = {name: DecayedNM(n, m) for name in layers}
        self._parts = list(parts.values())
        register_masks(layers, parts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the length of the fit.

        Raises:
            MisconfigurationException: it has no end.
        """
        if trainer.estimated_stepping_batches == float("inf"):
            raise MisconfigurationException(
                "ProgressiveNM divides the fit into phases: set trainer.max_epochs or trainer.max_steps"
            )
        self._total_steps = int(trainer.estimated_stepping_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets structure and factor of the step."""
        self._set(*self._phase(trainer.global_step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the final structure."""
        self._set(*self.structures[-1], 0.0)

    def _phase(self, step: int) -> tuple[int, int, float]:
        start = int(self.dense_fraction * self._total_steps)
        end = self._total_steps - int(self.final_fraction * self._total_steps)
        if step < start:
            return *self.structures[0], 1.0
        if step >= end:
            return *self.structures[-1], 0.0
        # phases of equal length, each beginning with the step into which its border falls
        structure = self.structures[((step - start + 1) * len(self.structures) - 1) // (end - start)]
        return *structure, mask_decay_factor(step - start, kind=self.mask_decay, coefficient=self.coefficient)

    def _set(self, n: int, m: int, factor: float) -> None:
        for part in self._parts:
            part.n, part.m = n, m
            part.factor.fill_(factor)
