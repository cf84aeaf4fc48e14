"""What callbacks share whose terms hold gradients by the parameters."""

from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leyden.core import MethodCallback
from leyden.core.distributed import is_sharded

__all__ = ["DoubleBackward"]


class DoubleBackward(MethodCallback):
    """Collects the parameters of a fit, and has attention computed in a way that can be differentiated twice.

    Args:
        params: shell-style patterns of the names of parameters in the method; all that are trained if None.
        twice: whether gradients are differentiated once more.
    """

    def __init__(self, params: Sequence[str] | None = None, *, twice: bool = True) -> None:
        self.params = None if params is None else tuple(params)
        self.twice = twice
        self._parameters: dict[str, nn.Parameter] = {}
        self._attention = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the parameters.

        Raises:
            MisconfigurationException: a pattern matches none, they are sharded, or their gradients would be scaled.
        """
        name = type(self).__name__
        trained = {key: p for key, p in pl_module.named_parameters() if p.requires_grad}
        for pattern in self.params or ():
            if not any(fnmatchcase(key, pattern) for key in trained):
                shown = ", ".join([*trained][:8]) + (", ..." if len(trained) > 8 else "")
                raise MisconfigurationException(
                    f"{name}: params: {pattern!r} matches none of the trained parameters {shown}"
                )
        patterns = ("*",) if self.params is None else self.params
        self._parameters = {key: p for key, p in trained.items() if any(fnmatchcase(key, at) for at in patterns)}
        if is_sharded(self._parameters.values()):
            raise MisconfigurationException(
                f"{name} differentiates by whole parameters, but these are sharded: train on one device or with DDP"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise MisconfigurationException(
                f"{name} needs gradients within the step, which float16 loses without scaling: set trainer.precision "
                "to bf16-mixed or 32-true"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Chooses the attention kernel, if it is the first that needs it: the choices of several would cross."""
        alike = [cb for cb in trainer.callbacks if isinstance(cb, DoubleBackward) and cb.twice]  # type: ignore[attr-defined]
        if alike[:1] == [self]:
            self._attention.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others have no second derivative

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lets PyTorch choose again."""
        self._attention.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets PyTorch choose again."""
        self._attention.close()
