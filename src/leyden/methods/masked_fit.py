"""Fits to images with distractors, which masks leave out: by one network, or by two that look out for each other's
errors (C. Li, Z. Shi, Y. Lu, W. He, X. Xu, "Robust Neural Rendering in the Wild with Asymmetric Dual 3D Gaussian
Splatting", 2025, arXiv 2506.03538; authors' code: steveli88/AsymGS)."""

from typing import Any, cast

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.network import Network, Outputs
from leyden.losses.asymgs import MaskedL1SSIMLoss, segment_residual_mask, soft_mask_loss
from leyden.methods.regression import Regression
from leyden.nn.soft_masks import SoftMasks

__all__ = ["DualPeers", "MaskedFit"]


class MaskedFit(Regression):
    """Fits a network to images; what differs most from them is left out of the gradient, as something before the scene.

    Two kinds of masks: those of segments, and those that are learned. With both, they take turns, one optimizer step
    each. An evaluation has no masks. The paper also compares features of a pretrained network, here only colors are.

    Args:
        network: gives images ``[N, C, H, W]``, the shape of the target.
        segment_masks: whether segments, ``batch["segments"]``, bool ``[N, S, H, W]``, are left out by
            `leyden.losses.segment_residual_mask`.
        soft_masks: masks that `leyden.losses.soft_mask_loss` trains in every step; their parameters are called
            ``attached.soft_masks.*``. In the paper Adam has the learning rate 0.1 for them.
        quantile: of an image's differences, above which they are large.
        loss: called with images, targets and, in training, masks ``[N, 1, H, W]``; `leyden.losses.MaskedL1SSIMLoss` if
            None.
        **kwargs: see `Regression`.

    Raises:
        ValueError: ``quantile`` lies outside of [0, 1].
    """

    def __init__(
        self,
        network: Network,
        *,
        segment_masks: bool = False,
        soft_masks: SoftMasks | None = None,
        quantile: float = 0.95,
        loss: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, loss=loss or MaskedL1SSIMLoss(), **kwargs)
        if not 0.0 <= quantile <= 1.0:
            raise ValueError(f"quantile must lie in [0, 1], got {quantile}")
        if soft_masks is not None:
            self.attach("soft_masks", soft_masks)
        self.segment_masks = segment_masks
        self.quantile = quantile

    def on_fit_start(self) -> None:
        """Checks that there is a mask for every image.

        Raises:
            MisconfigurationException: there are fewer.
        """
        super().on_fit_start()
        images = getattr(self.datamodule, "num_samples", 0)
        if "soft_masks" in self.attached and (masks := len(self._soft_masks)) < images:
            raise MisconfigurationException(
                f"soft_masks has {masks} masks for {images} training images: set its num_images to {images}"
            )

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss as ``task`` and, in training, that of the learned masks as ``mask``."""
        if not self.training or not (self.segment_masks or "soft_masks" in self.attached):
            return super().loss_terms(batch, outputs)
        pred = outputs.logits
        if "soft_masks" not in self.attached:
            return {"task": self.loss(pred, batch["target"], self.segment_mask(batch, pred))}
        soft, term = self.soft_mask(batch, pred)
        turn = self.segment_masks and self.global_step % 2
        return {
            "task": self.loss(pred, batch["target"], self.segment_mask(batch, pred) if turn else soft),
            "mask": term,
        }

    def segment_mask(self, batch: Batch, pred: Tensor) -> Tensor:
        """Returns 0 in the segments where images ``[N, C, H, W]`` differ most from the targets, ``[N, 1, H, W]``."""
        require_keys(batch, "segments", user=type(self).__name__)
        return segment_residual_mask(_residual(batch, pred), batch["segments"], quantiles=[self.quantile]).unsqueeze(1)

    def soft_mask(self, batch: Batch, pred: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the learned masks ``[N, 1, H, W]``, and how far they are from what images ``[N, C, H, W]`` say."""
        require_keys(batch, "index", user=type(self).__name__)
        mask = self._soft_masks(batch["index"])
        return mask, soft_mask_loss(mask, _residual(batch, pred))

    @property
    def _soft_masks(self) -> SoftMasks:
        return cast(SoftMasks, self.attached["soft_masks"])


class DualPeers(MaskedFit):
    """Fits two networks to images, with different masks: what only one of them errs in, both are taught to leave.

    The first network has the masks of segments, the second one those that are learned. In the paper each gets an image
    of its own and both are compared on the two; here both get all images of a batch. Evaluations, predictions and
    exports are those of the first network.

    Args:
        network: the first network.
        second_network: the second one, with other weights; its parameters are called ``attached.second_network.*``.
        soft_masks: masks of the second network.
        consistency_weight: factor of the mean absolute difference of the networks' outputs, which counts twice, as in
            the sum over two images.
        warmup_steps: optimizer steps before that is added.
        **kwargs: see `MaskedFit`.

    Raises:
        ValueError: ``consistency_weight`` or ``warmup_steps`` is negative, or both networks are one.
    """

    def __init__(
        self,
        network: Network,
        second_network: Network,
        *,
        soft_masks: SoftMasks,
        consistency_weight: float = 1.0,
        warmup_steps: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, segment_masks=True, soft_masks=soft_masks, **kwargs)
        for name, value in (("consistency_weight", consistency_weight), ("warmup_steps", warmup_steps)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if second_network is network:
            raise ValueError("second_network must be another one than network: they look out for each other's errors")
        self.attach("second_network", second_network)
        self.consistency_weight = consistency_weight
        self.warmup_steps = warmup_steps

    def compute(self, batch: Batch) -> Outputs:
        """Runs the first network; in training also the second one, for ``extra["second"]``."""
        outputs = super().compute(batch)
        if self.training:
            second = cast(Network, self.attached["second_network"])
            _, outputs.extra["second"] = self._run_network(second, batch["input"])
        return outputs

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns ``task`` and, in training, ``second_task``, ``mask`` and, after the warm-up, ``consistency``."""
        if not self.training:
            return super().loss_terms(batch, outputs)
        first, second = outputs.logits, outputs.extra["second"]
        soft, term = self.soft_mask(batch, second)
        terms = {
            "task": self.loss(first, batch["target"], self.segment_mask(batch, first)),
            "second_task": self.loss(second, batch["target"], soft),
            "mask": term,
        }
        if self.global_step >= self.warmup_steps:
            terms["consistency"] = 2.0 * self.consistency_weight * (first.float() - second.float()).abs().mean()
        return terms


def _residual(batch: Batch, pred: Tensor) -> Tensor:
    """Mean absolute difference of colors, without gradient, ``[N, 1, H, W]``."""
    return (pred.detach() - batch["target"]).abs().mean(1, keepdim=True)
