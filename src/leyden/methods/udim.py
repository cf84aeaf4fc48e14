"""Unknown domain inconsistency minimization (S. Shin, H. Bae, B. Na, Y.-Y. Kim, I.-C. Moon, "Unknown Domain
Inconsistency Minimization for Domain Generalization", 2024, arXiv 2403.07329; authors' code: aailabkaist/UDIM).

As in the authors' code, an input moves by one step, whose length is one for each of its numbers over the whole batch.
"""

from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leyden.core.batch import Batch, Terms
from leyden.core.distributed import all_reduce_mean, all_reduce_sum
from leyden.core.gradients import gradients_per_term, with_gradients
from leyden.core.network import Network, Outputs
from leyden.losses.inconsistency import head_gradients, inconsistency_loss
from leyden.methods._two_passes import check_own_terms, check_two_passes, sam_gradients
from leyden.methods.classification import Classification
from leyden.nn.running_stats import frozen_running_stats
from leyden.optim.sam import sam_perturbation

__all__ = ["UDIM"]


class UDIM(Classification):
    """Learns a minimum that is flat, and alike for the training domains and for inputs moved out of them.

    A step is one of sharpness-aware minimisation (`leyden.optim.sam_perturbation`). After the warm-up, inputs are also
    moved to where the loss in the ball around the weights is larger, and the gradients that single examples give to
    the linear head are held together before and behind the move (`leyden.losses.inconsistency_loss`). Where gradients
    are accumulated, each micro-batch perturbs by itself.

    Callbacks see the outputs at the weights; a term that they add counts with its plain gradient.

    Args:
        network: gives logits ``[N, C]``; its head is linear, its inputs are numbers.
        rho: radius of the perturbation of the weights.
        weight: of the inconsistency; 0 is sharpness-aware minimisation.
        input_step: step of the inputs, in their units: the root of the sum of its squares over the batch. The authors'
            scripts use 10 with a weight of 1, for normalised images.
        warmup: share of the steps without inconsistency.
        **kwargs: see `Classification`; the loss is cross entropy.

    Raises:
        ValueError: an argument is out of range, or the loss is another.
    """

    def __init__(
        self,
        network: Network,
        *,
        rho: float = 0.05,
        weight: float = 0.5,
        input_step: float = 0.005,
        warmup: float = 1 / 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        for name, value in (("rho", rho), ("weight", weight), ("input_step", input_step)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(f"warmup must lie in [0, 1], got {warmup}")
        if not isinstance(self.loss, nn.CrossEntropyLoss):
            raise ValueError(f"loss must be cross entropy, whose gradients UDIM knows, got {type(self.loss).__name__}")
        self.rho = rho
        self.weight = weight
        self.input_step = input_step
        self.warmup = warmup
        self._trained: list[nn.Parameter] = []
        self._warmup_steps = 0.0
        self._own_terms: Terms = {}

    def setup(self, stage: str) -> None:
        """Checks that the head is linear.

        Raises:
            MisconfigurationException: it is not, or it has too few outputs.
        """
        super().setup(stage)
        if not isinstance(self.network.head, nn.Linear):
            raise MisconfigurationException(
                f"UDIM needs a network whose head is a linear layer, got {type(self.network.head).__name__}"
            )

    def on_fit_start(self) -> None:
        """Collects the parameters, and plans the warm-up.

        Raises:
            MisconfigurationException: the parameters are sharded, the precision needs a scaled loss, or the fit has no
                end of which the warm-up could be a share.
        """
        super().on_fit_start()
        check_two_passes(self)
        self._trained = [p for p in self.parameters() if p.requires_grad]
        self._warmup_steps = self.warmup * self.trainer.estimated_stepping_batches
        if self._warmup_steps == float("inf"):
            raise MisconfigurationException(
                "UDIM warms up for a share of the steps: set trainer.max_epochs or trainer.max_steps"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss, with the gradient of the method.

        Raises:
            MisconfigurationException: the batch has samples without label, or a callback changes the loss.
        """
        if "labeled" in batch:
            raise MisconfigurationException("UDIM needs labels, but the batch has samples without: leave them out")
        batch = self.transform_batch(batch)
        explores = self.weight > 0.0 and self.global_step >= self._warmup_steps
        if explores:
            batch = batch | {"input": batch["input"].detach().clone().requires_grad_()}
        # only this kernel of attention has a second derivative
        with sdpa_kernel(SDPBackend.MATH) if explores else nullcontext():
            outputs, terms = self.terms_of(batch)
            own, self._own_terms = self._own_terms, {}
            check_own_terms(self, own, terms)
            moved = self._moved(batch["input"], terms["task"]) if explores else None
        gradients = gradients_per_term(terms, self._trained)
        at_weights = gradients.pop("task")
        total = sam_gradients(self, lambda: self._task(batch), self._trained, at_weights, rho=self.rho)
        if moved is not None:
            inconsistency = self.weight * self._inconsistency(batch, moved)
            gradients |= gradients_per_term({"inconsistency": inconsistency}, self._trained)
            terms = terms | {"inconsistency": inconsistency.detach()}
        for others in gradients.values():
            torch._foreach_add_(total, others)
        loss = self.sum_terms(terms, num_samples=self.loss_count(batch, outputs))
        return with_gradients(loss, self._trained, total)

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss as ``task``."""
        terms = super().loss_terms(batch, outputs)
        self._own_terms = dict(terms) if self.training else {}
        return terms

    def _task(self, batch: Batch) -> Tensor:
        return super().loss_terms(batch, self.compute(batch))["task"]

    def _moved(self, x: Tensor, task: Tensor) -> Tensor:
        """Inputs at which ``L + rho |grad L|``, the largest loss in the ball around the weights, is larger."""
        local = torch.autograd.grad(task, self._trained, create_graph=True, materialize_grads=True)
        step = sam_perturbation(self._trained, [all_reduce_mean(g) for g in local], rho=self.rho)
        largest = task + torch.stack([(g * s).sum() for g, s in zip(local, step, strict=True)]).sum()
        [direction] = torch.autograd.grad(largest, x, retain_graph=True)
        norms = all_reduce_sum(direction.square().sum(0)).sqrt()
        return x.detach() + self.input_step * direction / norms.clamp(min=1e-12)

    def _inconsistency(self, batch: Batch, moved: Tensor) -> Tensor:
        with frozen_running_stats(self.network):
            outputs = self.compute(batch | {"input": torch.cat([batch["input"].detach(), moved])})
        assert outputs.features is not None
        halves = zip(outputs.features.chunk(2), outputs.logits.chunk(2), strict=True)
        used = 1 if self.network.head.bias is None else 2
        return inconsistency_loss(*(head_gradients(*half, batch["target"])[:used] for half in halves))
