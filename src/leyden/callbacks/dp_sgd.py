"""Training with differential privacy: DP-SGD, with the noise that the Edgeworth accountant asks for.

M. Abadi et al., "Deep Learning with Differential Privacy", 2016, algorithm 1; R. Behnia et al., "Privately Fine-Tuning
Large Language Models with Differential Privacy" (EW-Tune), 2022, arXiv 2210.15042.
"""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leyden.callbacks._per_sample_gradients import per_sample_gradients
from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.distributed import is_sharded, world_size
from leyden.core.method import Method
from leyden.core.network import Outputs
from leyden.core.random import sample_keys
from leyden.data.module import DataModule
from leyden.data.poisson import PoissonBatchSampler
from leyden.optim.privacy import dp_gradient, edgeworth_noise_multiplier, rdp_noise_multiplier

__all__ = ["DPSGD"]

_ACCOUNTANTS = {"edgeworth": edgeworth_noise_multiplier, "rdp": rdp_noise_multiplier}
_STREAM = 0xD9  # the noise is not drawn by the numbers that augmentation draws by


class DPSGD(MethodCallback):
    """Clips the gradient of each sample and adds noise, such that the whole fit is (epsilon, delta)-private.

    Batches are drawn by `leyden.data.PoissonBatchSampler`; ``data.batch_size`` is their mean size. The noise is solved
    for once, from the number of optimizer steps that the trainer plans, and saved. It is a function of the data's seed
    and the step, so that it is the same in a resumed run and on any number of processes: whoever knows the seed knows
    the noise, so keep it to yourself where privacy matters. It is added once per optimizer step, also where gradients
    are accumulated. The logged loss, and everything else that is logged or chosen by the data, is not private.

    Args:
        target_epsilon: epsilon of the whole fit.
        target_delta: delta, below one over the number of samples.
        max_grad_norm: largest norm of a sample's gradient, over all parameters.
        accountant: ``"edgeworth"`` (`leyden.optim.edgeworth_noise_multiplier`), which is close but no guarantee, or
            ``"rdp"`` (`leyden.optim.rdp_noise_multiplier`), an upper bound that costs more noise.

    Attributes:
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``; set when a fit starts.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, target_epsilon: float, target_delta: float, max_grad_norm: float = 1.0, accountant: str = "edgeworth"
    ) -> None:
        for name, value in (("target_epsilon", target_epsilon), ("max_grad_norm", max_grad_norm)):
            if value <= 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 1e-8 <= target_delta < 1.0:
            raise ValueError(f"target_delta must lie in [1e-8, 1), got {target_delta}")
        if accountant not in _ACCOUNTANTS:
            raise ValueError(f"accountant must be 'edgeworth' or 'rdp', got {accountant!r}")
        self.target_epsilon = target_epsilon
        self.target_delta = target_delta
        self.max_grad_norm = max_grad_norm
        self.accountant = accountant
        self.noise_multiplier: float | None = None
        self._planned_steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses the sampler of a fit.

        Raises:
            MisconfigurationException: the data are no `leyden.data.DataModule`, a layer mixes samples, or another
                callback would change the loss or the batch.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        method = cast(Method, pl_module)
        data = method.datamodule
        if not isinstance(data, DataModule):
            raise MisconfigurationException(f"DPSGD samples from a leyden.data.DataModule, got {type(data).__name__}")
        for name, layer in method.named_modules():
            if isinstance(layer, _BatchNorm):
                raise MisconfigurationException(
                    f"DPSGD needs the gradient of each sample, but {name} is a batch norm, which mixes them: use "
                    "another norm"
                )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MethodCallback) and not isinstance(callback, DPSGD) and _changes_step(callback):
                raise MisconfigurationException(
                    f"DPSGD accounts for the method's own loss, but {type(callback).__name__} changes the step: remove "
                    "one of the two"
                )
        data.sampler_class = PoissonBatchSampler

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Solves for the noise.

        Raises:
            MisconfigurationException: weights are parametrized or sharded, the fit has no end, or a resumed one has
                more steps than the noise was chosen for.
        """
        for name, layer in pl_module.named_modules():
            if parametrize.is_parametrized(layer):
                raise MisconfigurationException(
                    f"DPSGD differentiates the loss of each sample by the weights themselves, but {name} is "
                    "parametrized: remove one of the two"
                )
        if is_sharded(pl_module.parameters()):
            raise MisconfigurationException(
                "DPSGD needs whole parameters, but these are sharded: train on one device or with DDP"
            )
        steps, data = trainer.estimated_stepping_batches, cast(DataModule, cast(Method, pl_module).datamodule)
        if steps == float("inf"):
            raise MisconfigurationException(
                "DPSGD needs to know the number of steps: set trainer.max_epochs or trainer.max_steps"
            )
        if self.noise_multiplier is None:
            self.noise_multiplier = _ACCOUNTANTS[self.accountant](
                self.target_epsilon,
                self.target_delta,
                sample_rate=data.batch_size / data.num_samples,
                steps=int(steps),
            )
            self._planned_steps = int(steps)
            rank_zero_info(
                f"DPSGD: noise multiplier {self.noise_multiplier:.4f} for epsilon {self.target_epsilon} at delta "
                f"{self.target_delta} in {self._planned_steps} steps"
            )
        elif steps > self._planned_steps:
            raise MisconfigurationException(
                f"DPSGD chose its noise for {self._planned_steps} steps, but the resumed fit has {steps}: go on with "
                "as many, or start a new run"
            )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Returns terms of the same values whose gradient is the private one.

        Raises:
            MisconfigurationException: the samples of the batch are mixed.
        """
        if "mix_target" in batch:
            raise MisconfigurationException("DPSGD needs the gradient of each sample, but the batch is mixed")
        assert self.noise_multiplier is not None
        named = {name: p for name, p in method.named_parameters() if p.requires_grad}
        trainer, data = method.trainer, cast(DataModule, method.datamodule)
        key = sample_keys(data.seed, trainer.global_step, torch.tensor([_STREAM]))
        # What the trainer averages over processes and micro-batches must be summed; the noise of all is the same.
        parts = world_size() * trainer.accumulate_grad_batches
        gradients = dp_gradient(
            list(per_sample_gradients(method, batch).values()),
            max_grad_norm=self.max_grad_norm,
            noise_multiplier=self.noise_multiplier / parts,
            expected_batch_size=data.batch_size / parts,
            generator=torch.Generator(method.device).manual_seed(int(key)),
        )
        surrogate = torch.stack([(p * g).sum() for p, g in zip(named.values(), gradients, strict=True)]).sum()
        empty = not len(batch["index"])  # the mean over no samples is NaN
        values = {name: torch.zeros_like(term) if empty else term.detach() for name, term in terms.items()}
        first = next(iter(values))
        return values | {first: values[first] + (surrogate - surrogate.detach())}

    def state_dict(self) -> dict[str, Any]:
        """The noise, and for how many steps it was chosen."""
        return {"noise_multiplier": self.noise_multiplier, "planned_steps": self._planned_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.noise_multiplier, self._planned_steps = state_dict["noise_multiplier"], state_dict["planned_steps"]


def _changes_step(callback: MethodCallback) -> bool:
    kind = type(callback)
    return (
        kind.transform_batch is not MethodCallback.transform_batch or kind.loss_terms is not MethodCallback.loss_terms
    )
