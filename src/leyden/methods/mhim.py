"""Masked hard instance mining (W. Tang, S. Huang, X. Zhang, F. Zhou, Y. Zhang, B. Liu, "Multiple Instance Learning
Framework with Masked Hard Instance Mining for Whole Slide Image Classification", 2023, arXiv 2307.15254; its second
version: W. Tang and others, "... for Gigapixel Histopathology Image Analysis", 2025, arXiv 2509.11526; authors' code:
DearCaat/MHIM-MIL).
"""

import math
from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.network import Outputs
from leyden.core.random import sample_keys
from leyden.losses.soft_target_cross_entropy import soft_target_cross_entropy_loss
from leyden.methods.bag_classification import BagClassification
from leyden.models.attention_mil import AttentionMIL
from leyden.nn.ema_teacher import EMATeacher
from leyden.nn.global_recycle import GlobalRecycle
from leyden.nn.hard_instances import hard_instance_mask, instance_class_scores
from leyden.weights.files import WeightsFile, load_weights

__all__ = ["MHIM"]


class MHIM(BagClassification):
    """Trains a network on what a teacher, its moving average, does not find easy in a bag.

    The loss is that of the bags without the masked instances, and ``consistency``, the cross entropy of their features
    with those that the teacher has of the whole bags. Validation and test are of the network on whole bags. Masks
    depend on seed, optimizer step and ``index`` alone; the teacher has dropout as the network does.

    The defaults are those of the second version, without its recycling; the first has no ``class_scores``, masks more
    at random (``random_ratio``), and decays ``high_ratio``.

    Args:
        network: is trained; with ``class_scores`` its head is linear.
        recycle: sums up some of the instances that the mask has left, in training; None leaves them.
        momentum: of the teacher.
        consistency_weight: factor of ``consistency``.
        teacher_temperature: of the teacher's features, in ``consistency``.
        high_ratio: share of the easiest instances that is masked, as the four arguments below in `hard_instance_mask`.
        high_random: share of the highest that is masked.
        low_ratio: share that is masked for its low scores.
        random_ratio: share that is masked at random.
        decay_high_ratio: whether ``high_ratio`` falls to 0 by a cosine over the training.
        class_scores: whether an instance is easy by the network's classes; else, by attention.
        teacher_weights: file of the weights of a network that was trained on whole bags: those of the teacher at first,
            and of the network's embedding. None starts the teacher as a copy of the network.
        compile: see `Method`.
        **kwargs: see `BagClassification`.

    Raises:
        ValueError: an argument is out of range, or ``recycle`` does not fit the network.
    """

    _planned_steps = 1.0

    def __init__(
        self,
        network: AttentionMIL,
        *,
        recycle: GlobalRecycle | None = None,
        momentum: float = 0.9997,
        consistency_weight: float = 0.5,
        teacher_temperature: float = 0.1,
        high_ratio: float = 0.03,
        high_random: float = 1.0,
        low_ratio: float = 0.0,
        random_ratio: float = 0.0,
        decay_high_ratio: bool = False,
        class_scores: bool = True,
        teacher_weights: WeightsFile | None = None,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, compile=compile, **kwargs)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        if not consistency_weight >= 0.0:
            raise ValueError(f"consistency_weight must be at least 0, got {consistency_weight}")
        if not teacher_temperature > 0.0:
            raise ValueError(f"teacher_temperature must be positive, got {teacher_temperature}")
        self.ratios = {
            "high_ratio": high_ratio,
            "high_random": high_random,
            "low_ratio": low_ratio,
            "random_ratio": random_ratio,
        }
        # checks them
        hard_instance_mask(torch.zeros(1, 1), None, keys=torch.zeros(1, dtype=torch.int64), **self.ratios)
        if recycle is not None:
            if recycle.query.shape[-1] != network.feature_dim:
                raise ValueError(
                    f"recycle must have the dim of the network's features, {network.feature_dim}, got "
                    f"{recycle.query.shape[-1]}"
                )
            self.attach("recycle", recycle)
        self.momentum = momentum
        self.consistency_weight = consistency_weight
        self.teacher_temperature = teacher_temperature
        self.decay_high_ratio = decay_high_ratio
        self.class_scores = class_scores
        self.teacher_weights = teacher_weights

    # ---- life of a fit

    def setup(self, stage: str) -> None:
        """Makes the teacher.

        Raises:
            FileNotFoundError: there is no file ``teacher_weights``.
            ValueError: it does not fit the network.
        """
        super().setup(stage)
        if stage == "fit" and "teacher" not in self.frozen:
            teacher = EMATeacher(self.network, decay=self.momentum)
            if self.teacher_weights is not None:
                trained = cast(AttentionMIL, teacher.module)
                load_weights(trained, self.teacher_weights)
                self.network.embedding.load_state_dict(trained.embedding.state_dict())
            self.attach_frozen("teacher", teacher, save=True).train()  # for its dropout

    def on_fit_start(self) -> None:
        """Counts the steps of the fit.

        Raises:
            MisconfigurationException: ``high_ratio`` falls to 0 at an end that the fit does not have.
        """
        super().on_fit_start()
        self._planned_steps = self.trainer.estimated_stepping_batches
        if self.decay_high_ratio and self._planned_steps == math.inf:
            raise MisconfigurationException("decay_high_ratio needs trainer.max_epochs or trainer.max_steps")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Moves the teacher when the optimizer has made its step, and before a checkpoint may be saved."""
        super().optimizer_step(*args, **kwargs)
        self._teacher.update(self.network, self.global_step + 1)

    # ---- the step

    def compute(self, batch: Batch) -> Outputs:
        """Runs the network; in training its teacher on the whole bags, and the network on what that leaves."""
        if not self.training or "teacher" not in self.frozen:
            return super().compute(batch)
        require_keys(batch, "index", user="MHIM")
        keys = sample_keys(getattr(self.datamodule, "seed", 0), self.global_step, batch["index"])
        wanted, scores = self._ask_teacher(batch["input"], batch.get("mask"))
        ratios = self.ratios | {"high_ratio": self._high_ratio()}
        kept = hard_instance_mask(scores, batch.get("mask"), keys=keys, **ratios)
        recycle = cast(GlobalRecycle, self.attached["recycle"]) if "recycle" in self.attached else None
        features, logits, _ = self._run_bags(self.network, batch["input"], kept, recycle, keys)
        return Outputs(logits=logits, features=features, extra={"teacher_features": wanted})

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss as ``task``, and in training ``consistency``."""
        terms = super().loss_terms(batch, outputs)
        if "teacher_features" in outputs.extra and self.consistency_weight:
            assert outputs.features is not None
            consistency = soft_target_cross_entropy_loss(
                outputs.features, outputs.extra["teacher_features"], teacher_temperature=self.teacher_temperature
            )
            terms["consistency"] = self.consistency_weight * consistency
        return terms

    # ---- inner workings

    @property
    def _teacher(self) -> EMATeacher:
        return cast(EMATeacher, self.frozen["teacher"])

    @torch.no_grad()
    def _ask_teacher(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of the bags, ``[B, D]``, and how easy each instance is, ``[B, N]``."""
        network = cast(AttentionMIL, self._teacher.module)
        embeddings = network.embed(x)
        features, attention = network.pool(embeddings, mask)
        scores = instance_class_scores(embeddings, attention, network.head.weight) if self.class_scores else attention
        return features, scores

    def _high_ratio(self) -> float:
        if not self.decay_high_ratio:
            return self.ratios["high_ratio"]
        share = min(self.global_step / self._planned_steps, 1.0)
        return self.ratios["high_ratio"] * 0.5 * (1.0 + math.cos(math.pi * share))
