"""Multi-task learning in flat regions of each task (H. Phan et al., "Improving Multi-task Learning via Seeking
Task-based Flat Regions", 2022, arXiv 2211.13723, algorithm 1; authors' code: VietHoang1512/FS-MTL)."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.gradients import gradients_per_term, with_gradients
from leyden.core.method import Method
from leyden.core.network import Network, Outputs
from leyden.core.random import sample_keys
from leyden.methods._two_passes import check_own_terms, check_two_passes, sam_gradients
from leyden.optim.gradient_surgery import cagrad, flat_task_gradient, imtl_g, pcgrad

__all__ = ["FlatMultiTask"]

_AGGREGATES = {"cagrad": cagrad, "imtl_g": imtl_g, "pcgrad": pcgrad}
_STREAM = 0xF5  # the orders of tasks are not drawn by the numbers that augmentation draws by


class FlatMultiTask(Method):
    """Learns several classifications of the same inputs with one network, towards a minimum that is flat for each task.

    The outputs of the network are the logits of all tasks, side by side. Each task has a loss gradient at the weights
    and one at its own perturbed weights (`leyden.optim.sam_perturbation`); those of all tasks are aggregated for the
    body of the network (`leyden.optim.flat_task_gradient`), and summed for its head, of which each task has its
    outputs. Where gradients are accumulated, each micro-batch is aggregated and perturbs by itself.

    Callbacks see the outputs at the weights; a term that they add counts with its plain gradient.

    Args:
        network: gives logits ``[N, sum of the classes]``.
        heads: number of classes of each task, by the batch key of its target: int64 ``[N]``, or soft float ``[N, C]``.
        rho: radius of the perturbations; 0 leaves them out.
        adaptive: measure the radius relative to the weights; the authors then use a rho of 2.
        aggregate: ``"pcgrad"``, ``"cagrad"`` or ``"imtl_g"``.
        loss: module called with logits and target of a task; cross entropy if None.
        **kwargs: see `Method`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: Network,
        heads: dict[str, int],
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        aggregate: str = "pcgrad",
        loss: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if not heads or min(heads.values()) < 1:
            raise ValueError(f"heads must map one or more tasks to numbers of classes of 1 or more, got {heads}")
        if not rho >= 0.0:
            raise ValueError(f"rho must be at least 0, got {rho}")
        if aggregate not in _AGGREGATES:
            raise ValueError(f"aggregate must be one of {', '.join(_AGGREGATES)}, got {aggregate!r}")
        self.heads = heads  # `Method` calls make_metrics
        super().__init__(network, **kwargs)
        self.rho = rho
        self.adaptive = adaptive
        self.aggregate = aggregate
        self.loss = loss or nn.CrossEntropyLoss()
        self._trained: list[nn.Parameter] = []
        self._num_shared = 0
        self._own_terms: Terms = {}

    def setup(self, stage: str) -> None:
        """Checks that the network has an output for each class of each task.

        Raises:
            MisconfigurationException: it has not.
        """
        outputs, needed = getattr(self.network.head, "out_features", None), sum(self.heads.values())
        if outputs not in (None, needed):
            raise MisconfigurationException(f"heads has {needed} classes, but the network has {outputs} outputs")

    def on_fit_start(self) -> None:
        """Collects the parameters.

        Raises:
            MisconfigurationException: they are sharded, or the precision is one that needs a scaled loss.
        """
        super().on_fit_start()
        check_two_passes(self)
        head = {id(p) for p in self.network.head.parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]
        self._trained = sorted(trained, key=lambda p: id(p) in head)  # those of the head last
        self._num_shared = sum(id(p) not in head for p in trained)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the sum of the losses, with the aggregated gradient.

        Raises:
            MisconfigurationException: a callback mixed the samples, or changes the loss of a task.
        """
        batch = self.transform_batch(batch)
        if "mix_lam" in batch:
            raise MisconfigurationException(
                "FlatMultiTask has several targets, but a callback mixed the samples and only one of them: take it out"
            )
        outputs, terms = self.terms_of(batch)
        own, self._own_terms = self._own_terms, {}
        check_own_terms(self, own, terms)
        loss = self.sum_terms(terms, num_samples=self.loss_count(batch, outputs))
        gradients = gradients_per_term(terms, self._trained)
        plain = [gradients.pop(name) for name in list(gradients) if name not in self.heads]
        total = self._total(gradients, self._sam_gradients(batch, gradients))
        for others in plain:
            torch._foreach_add_(total, others)
        return with_gradients(loss, self._trained, total)

    def _sam_gradients(self, batch: Batch, gradients: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Gradients of each task at its perturbed weights."""
        if self.rho == 0.0:
            return gradients
        return {
            name: sam_gradients(
                self,
                partial(self._loss_anew, name, batch),
                self._trained,
                at_weights,
                rho=self.rho,
                adaptive=self.adaptive,
            )
            for name, at_weights in gradients.items()
        }

    def _total(self, gradients: dict[str, list[Tensor]], sam: dict[str, list[Tensor]]) -> list[Tensor]:
        shared, total = self._trained[: self._num_shared], []
        if shared:
            flat = flat_task_gradient(
                *(_rows([found[: len(shared)] for found in kind.values()]) for kind in (gradients, sam)),
                aggregate=self._aggregate(),
            )
            parts = flat.split([p.numel() for p in shared])
            total = [part.view_as(p) for part, p in zip(parts, shared, strict=True)]
        heads = zip(*(found[len(shared) :] for found in sam.values()), strict=True)
        return total + [torch.stack(tasks).sum(0) for tasks in heads]

    def _aggregate(self) -> Any:
        if self.aggregate != "pcgrad":
            return _AGGREGATES[self.aggregate]
        key = sample_keys(getattr(self.datamodule, "seed", 0), self.global_step, torch.tensor([_STREAM]))
        return partial(pcgrad, generator=torch.Generator().manual_seed(int(key)))

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss of each task, by its name."""
        require_keys(batch, *self.heads, user="FlatMultiTask")
        terms = {name: self._task_loss(name, batch, outputs) for name in self.heads}
        self._own_terms = dict(terms) if self.training else {}
        return terms

    def _loss_anew(self, name: str, batch: Batch) -> Tensor:
        return self._task_loss(name, batch, self.compute(batch))

    def _task_loss(self, name: str, batch: Batch, outputs: Outputs) -> Tensor:
        return self.loss(self._task_logits(outputs)[name], batch[name])

    def _task_logits(self, outputs: Outputs) -> dict[str, Tensor]:
        return dict(zip(self.heads, outputs.logits.split(list(self.heads.values()), -1), strict=True))

    def make_metrics(self) -> dict[str, Metric]:
        """Accuracy of each task, and the mean of all."""
        return {name: MulticlassAccuracy(average="micro") for name in ("accuracy", *map(_accuracy, self.heads))}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        for name, logits in self._task_logits(outputs).items():
            target = batch[name] if batch[name].ndim == 1 else batch[name].argmax(-1)
            for key in ("accuracy", _accuracy(name)):
                metrics[key].update(logits.argmax(-1), target)


def _accuracy(task: str) -> str:
    return f"accuracy_{task}"


def _rows(tasks: list[list[Tensor]]) -> Tensor:
    """Gradients of T tasks by P parameters in all, ``[T, P]``."""
    return torch.stack([torch.cat([gradient.flatten() for gradient in task]) for task in tasks])
