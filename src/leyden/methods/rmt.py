"""Robust mean teacher (M. Döbler, R. A. Marsden, B. Yang, "Robust Mean Teacher for Continual and Gradual Test-Time
Adaptation", 2022, arXiv 2211.13081; authors' code: mariodoebler/test-time-adaptation).

The authors' code keeps dropout where a network has it; here there is none on the stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.distributed import all_gather_rows_with_grad, all_reduce_sum
from leyden.core.evaluating import evaluating
from leyden.core.method import OptimizerCallable
from leyden.core.network import Network, Outputs
from leyden.data.dataset import TensorDictDataset
from leyden.data.loader import EvalLoader
from leyden.data.module import DataModule
from leyden.data.sampler import eval_batches
from leyden.losses.rmt import multiview_contrastive_loss, nearest_prototype, soft_symmetric_cross_entropy_loss
from leyden.methods.classification import Classification
from leyden.nn.ema_teacher import EMATeacher
from leyden.nn.running_stats import frozen_running_stats

__all__ = ["RobustMeanTeacher"]


class RobustMeanTeacher(Classification):
    """Adapts a network to a stream of unlabeled batches, and predicts each before it learns from it.

    The last epoch is the stream, seen once and in its order: batches have ``input`` and a second view ``input_2``. The
    epochs before it train on the source, ``source_input`` and ``source_target``, with the loss; the last of their
    steps are the warm-up, in which the network follows its teacher. With one epoch alone, start from a trained network
    (`leyden.callbacks.InitialWeights`).

    On the stream batch norms take the statistics of the batch, and dropout is off. ``stream/accuracy`` compares the sum
    of the logits of network and teacher, before the update, with ``clean_target``, if batches have it. Validation and
    test are those of the network, without adaptation, by its running statistics.

    The optimizer starts anew with the adaptation. With more than one process, each normalises by its share of a batch.

    Args:
        network: is trained; its features are compared with the means of the source's classes.
        momentum: of the teacher.
        temperature: of the contrast.
        projection_dim: size of what is contrasted.
        source_weight: factor of the loss on source samples beside the stream; with 0 none are needed there.
        self_training_weight: factor of the symmetric cross entropy with the teacher, of both views.
        contrastive_weight: factor of the contrast of class mean, first and second view.
        warmup_samples: source samples of the warm-up, in which the learning rate rises; all before the stream if there
            are fewer.
        optimizer: see `Method`.
        **kwargs: see `Classification`; there can be no schedule.

    Raises:
        ValueError: an argument is out of range, or there is a schedule.
    """

    online: Tensor
    prototypes: Tensor
    _first_stream_epoch = 0
    _stream_step = 0
    _warmup_steps = 0

    def __init__(
        self,
        network: Network,
        *,
        momentum: float = 0.999,
        temperature: float = 0.1,
        projection_dim: int = 128,
        source_weight: float = 1.0,
        self_training_weight: float = 1.0,
        contrastive_weight: float = 1.0,
        warmup_samples: int = 50000,
        optimizer: OptimizerCallable = torch.optim.Adam,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, optimizer=optimizer, **kwargs)
        weights = {
            "source_weight": source_weight,
            "self_training_weight": self_training_weight,
            "contrastive_weight": contrastive_weight,
            "warmup_samples": warmup_samples,
        }
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1, got {projection_dim}")
        if self.scheduler is not None:
            raise ValueError("scheduler must be null: the learning rate rises in the warm-up and is constant otherwise")
        self.momentum = momentum
        self.temperature = temperature
        self.source_weight = source_weight
        self.self_training_weight = self_training_weight
        self.contrastive_weight = contrastive_weight
        self.warmup_samples = warmup_samples
        dims = network.feature_dim, projection_dim
        self.attach("projector", nn.Sequential(nn.Linear(*dims), nn.ReLU(), nn.Linear(projection_dim, projection_dim)))
        self.register_buffer("online", torch.zeros(2, dtype=torch.int64))  # right predictions on the stream, and all

    # ---- life of a fit

    def setup(self, stage: str) -> None:
        """Makes the teacher and the place of the class means.

        Raises:
            MisconfigurationException: the data are not of a `leyden.data.DataModule` with classes.
        """
        super().setup(stage)
        data = self.datamodule
        if stage == "fit" and not (isinstance(data, DataModule) and data.num_classes):
            raise MisconfigurationException(
                "RobustMeanTeacher needs a leyden.data.DataModule with num_classes and a data set 'source', such as "
                f"CorruptedDigits, got {type(data).__name__}"
            )
        if "teacher" not in self.frozen:
            self.attach_frozen("teacher", EMATeacher(self.network, decay=self._teacher_decay), save=True)
            num_classes = getattr(data, "num_classes", None) or 1
            self.register_buffer("prototypes", torch.zeros(num_classes, self.network.feature_dim))

    def on_fit_start(self) -> None:
        """Plans source, warm-up and stream.

        Raises:
            MisconfigurationException: the fit has no number of epochs, of which the last could be the stream.
        """
        super().on_fit_start()
        epochs, trainer = self.trainer.max_epochs, self.trainer
        if epochs is None or epochs < 1 or trainer.max_steps != -1:
            raise MisconfigurationException(
                "RobustMeanTeacher adapts in the last epoch: set trainer.max_epochs, and leave trainer.max_steps out"
            )
        data = cast(DataModule, self.datamodule)
        if self.source_weight or self.contrastive_weight or epochs > 1:
            data.dataset("source")  # says what is missing
        self._first_stream_epoch = epochs - 1
        self._stream_step = int(trainer.estimated_stepping_batches) // epochs * (epochs - 1)
        self._warmup_steps = min(self.warmup_samples // data.batch_size, self._stream_step)

    def configure_optimizers(self) -> Any:
        """Adds the learning rate of the warm-up."""

        def factor(step: int) -> float:
            into_warmup = step - self._adaptation_step
            return (into_warmup + 1) / self._warmup_steps if 0 <= into_warmup < self._warmup_steps else 1.0

        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    @property
    def phase(self) -> str:
        """``"source"``, ``"warmup"`` or ``"stream"``."""
        if self._trainer is None or self.current_epoch >= self._first_stream_epoch:
            return "stream"
        return "warmup" if self.global_step >= self._adaptation_step else "source"

    @property
    def _adaptation_step(self) -> int:
        return self._stream_step - self._warmup_steps

    @property
    def _teacher(self) -> EMATeacher:
        return cast(EMATeacher, self.frozen["teacher"])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Prepares the first step of the adaptation, and the first one of the stream."""
        if self.global_step == self._adaptation_step:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
            if self.contrastive_weight:
                self.with_whole_parameters(self._measure_prototypes)
        if batch_idx == 0 and self.phase == "stream":
            self.online.zero_()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes the step, and moves the teacher: before a callback saves both."""
        super().optimizer_step(*args, **kwargs)
        self._teacher.update(self.network, self.global_step + 1)

    def on_train_epoch_end(self) -> None:
        """Logs the means, and the accuracy on the stream."""
        super().on_train_epoch_end()
        if self.phase == "stream" and self.online[1] > 0:
            accuracy = self.online[0].float() / self.online[1]
            self.log("stream/accuracy", accuracy, sync_dist=True, reduce_fx=torch.max)  # the same everywhere

    # ---- the step

    def transform_batch(self, batch: Batch) -> Batch:
        """Before the stream, makes source samples the input."""
        if self.phase != "stream":
            require_keys(batch, "source_input", "source_target", user="RobustMeanTeacher before the stream")
            batch = {key: value for key, value in batch.items() if key not in ("labeled", "clean_target", "domain")}
            batch |= {"input": batch["source_input"], "target": batch["source_target"]}
        return super().transform_batch(batch)

    def compute(self, batch: Batch) -> Outputs:
        """Runs the network; in training also its teacher, and on the stream on both views."""
        phase = self.phase if self.training and self._trainer is not None else "source"
        if phase == "source":
            return super().compute(batch)
        with _batch_statistics(self.network), _batch_statistics(self._teacher.module):
            outputs = super().compute(batch)
            outputs.extra["teacher_logits"] = self._teacher(batch["input"])
            if phase == "stream":
                require_keys(batch, "input_2", user="RobustMeanTeacher on the stream")
                features, logits = self._run_network(self.network, batch["input_2"])
                outputs.extra |= {"features_2": features, "logits_2": logits}
                if self.source_weight:
                    require_keys(batch, "source_input", "source_target", user="RobustMeanTeacher with a source_weight")
                    outputs.extra["source_logits"] = self._run_network(self.network, batch["source_input"])[1]
        return outputs

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns ``task``, the loss or the cross entropy with the teacher; on the stream what else has a weight."""
        teacher_logits = outputs.extra.get("teacher_logits")
        if teacher_logits is None:
            return self._with_projector(super().loss_terms(batch, outputs))
        first = soft_symmetric_cross_entropy_loss(outputs.logits, teacher_logits)
        if "logits_2" not in outputs.extra:
            return self._with_projector({"task": first})
        if "clean_target" in batch:
            right = (outputs.logits + teacher_logits).argmax(-1) == batch["clean_target"]
            self.online += all_reduce_sum(torch.stack([right.sum(), torch.ones_like(right).sum()]))
        second = soft_symmetric_cross_entropy_loss(outputs.extra["logits_2"], teacher_logits)
        terms = {"task": self.self_training_weight * (first + second) / 2}
        if self.contrastive_weight:
            terms["contrastive"] = self.contrastive_weight * self._contrast(outputs)
        else:
            terms = self._with_projector(terms)
        if self.source_weight:
            terms["source"] = self.source_weight * self.loss(outputs.extra["source_logits"], batch["source_target"])
        return terms

    # ---- inner workings

    def _contrast(self, outputs: Outputs) -> Tensor:
        assert outputs.features is not None
        features, second = outputs.features, outputs.extra["features_2"]
        nearest = self.prototypes[nearest_prototype(features.detach(), self.prototypes)]
        views = torch.stack([nearest.to(features.dtype), features, second], 1)  # [N, 3, D]
        projected = all_gather_rows_with_grad(self.attached["projector"](views))
        return multiview_contrastive_loss(projected, temperature=self.temperature)

    def _with_projector(self, terms: Terms) -> Terms:
        """Lets parameters take part that a step does not use, as DDP wants it."""
        unused = torch.stack([p.sum() for p in self.attached["projector"].parameters()]).sum()
        return terms | {"task": terms["task"] + 0.0 * unused}

    def _teacher_decay(self, step: int) -> float:
        return self.momentum if step > self._adaptation_step else 0.0  # a copy until then

    @torch.no_grad()
    def _measure_prototypes(self) -> None:
        """Class means of the source's features, the same on all processes."""
        data = cast(DataModule, self.datamodule)
        dataset = cast(TensorDictDataset, data.dataset("source"))
        sums = torch.zeros_like(self.prototypes)
        counts = sums.new_zeros(len(sums))
        with _batch_statistics(self.network), frozen_running_stats(self.network):
            for batch in EvalLoader(dataset, eval_batches(len(dataset), data.batch_size)):
                batch = self.trainer.precision_plugin.convert_input(batch)
                target = batch["target"].to(self.device)
                features = self.network.features(batch["input"].to(self.device))
                sums.index_add_(0, target, features.to(sums.dtype))
                counts.index_add_(0, target, torch.ones_like(target, dtype=counts.dtype))
        self.prototypes.copy_(sums / counts.clamp(min=1.0).unsqueeze(-1))


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, but batch norms take the statistics of the batch."""
    with evaluating(network):
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                layer.train()
        yield
