"""Training on coresets of large batches (D. Nguyen, W. Yang, R. Anand, Y. Yang, B. Mirzasoleiman, "Mini-batch Coresets
for Memory-efficient Language Model Training on Data Mixtures", 2024, arXiv 2407.19580; authors' code:
BigML-CS-UCLA/CoLM, ``subset_trainer_distributed.py``).

The authors' code lists the small sources by hand; which ones the paper calls small is unverified.
"""

from collections.abc import Sequence
from typing import Any, cast
from zlib import crc32

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.func import vmap

from leyden.callbacks._method_loss import method_loss
from leyden.callbacks._per_sample_gradients import per_sample_gradients
from leyden.callbacks._selection import log_selection, select_rows
from leyden.callbacks.coresets import adam_directions, coreset_by_source, sparsify_by_source
from leyden.core import (
    Batch,
    Method,
    MethodCallback,
    Outputs,
    all_gather_rows,
    copy_from_first_,
    evaluating,
    is_sharded,
    rank,
    require_keys,
    shard_like,
    world_size,
)

__all__ = ["CoLM"]


class CoLM(MethodCallback):
    """Trains on a part of each batch whose samples stand for the others, source by source.

    What a sample would do to one weight, by Adam, is what samples are compared by: in each source the choice maximises
    the similarity of all its samples to the nearest chosen one (`coreset_by_source`). ``batch["source"]`` has their
    numbers; without it all are of one source. Each micro-batch is chosen from over all processes, which then share the
    choice equally: it may be as large as can be evaluated without gradients. ``train/colm_kept`` is the share that is
    trained on, which is also that of the memory for activations.

    The zeroth-order gradient is the slope of a sample's loss along one random direction of the weight, the same for all
    samples and steps: two passes without gradients. ``"exact"`` differentiates by the weight, one sample at a time in
    effect. Both leave dropout out, use running statistics and do not see what callbacks add to the loss.

    Args:
        ratio: share of a batch that is kept.
        keep_sources: sources of which all samples are kept before others are chosen, the small ones; ``"auto"`` for
            those with fewer samples in the training set than a source has on average.
        dim: numbers by which two samples of a source are compared, those with the largest mean.
        parameter: part of the name of the weight, the last one in the network that has it.
        gradient: ``"zeroth_order"`` or ``"exact"``.
        zo_eps: step to both sides along the direction.
        betas: of Adam, as is ``eps``.
        eps: added to the root of the second mean.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        ratio: float = 0.5,
        keep_sources: Sequence[int] | str = (),
        dim: int = 2560,
        parameter: str = "v_proj",
        gradient: str = "zeroth_order",
        zo_eps: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
        if isinstance(keep_sources, str) and keep_sources != "auto":
            raise ValueError(f"keep_sources must be a list of numbers or 'auto', got {keep_sources!r}")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if gradient not in ("zeroth_order", "exact"):
            raise ValueError(f"gradient must be 'zeroth_order' or 'exact', got {gradient!r}")
        if not (zo_eps > 0.0 and eps > 0.0):
            raise ValueError(f"zo_eps and eps must be positive, got {zo_eps} and {eps}")
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
        self.ratio = ratio
        self.keep_sources = keep_sources
        self.dim = dim
        self.parameter = parameter
        self.gradient = gradient
        self.zo_eps = zo_eps
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.exp_avg: Tensor | None = None  # [D]
        self.exp_avg_sq: Tensor | None = None
        self.step = 0  # choices so far
        self._name = ""
        self._small: list[int] = []
        self._direction: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets what an earlier fit averaged."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.exp_avg = self.exp_avg_sq = self._direction = None
            self.step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the weight and for the small sources.

        Raises:
            MisconfigurationException: there is no such weight, it is of half precision, or it is sharded and the
                gradient exact; the training set does not tell its sources.
            ValueError: the processes cannot share a coreset equally.
        """
        method = cast(Method, pl_module)
        named = {name: p for name, p in method.network.named_parameters() if p.ndim > 1 and p.requires_grad}
        matching = [name for name in named if self.parameter in name]
        if not matching:
            raise MisconfigurationException(
                f"CoLM: parameter must be part of the name of a weight that is trained, one of {list(named)}, got "
                f"{self.parameter!r}"
            )
        self._name = matching[-1]
        weight = named[self._name]
        if weight.dtype not in (torch.float32, torch.float64):
            raise MisconfigurationException(
                f"CoLM takes differences of losses, for which {self._name} must be of float32, got {weight.dtype}"
            )
        if self.gradient == "exact" and is_sharded([weight]):
            raise MisconfigurationException(
                "CoLM differentiates by a whole parameter, but it is sharded: use gradient 'zeroth_order'"
            )
        self._small = _small_sources(method) if self.keep_sources == "auto" else [int(s) for s in self.keep_sources]
        if method.datamodule is not None and hasattr(method.datamodule, "batch_size"):
            self._size(method.datamodule.batch_size // trainer.accumulate_grad_batches)

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Returns this process's share of the coreset.

        Raises:
            MisconfigurationException: some samples have no label.
        """
        require_keys(batch, "input", *(["source"] if self._small else []), user="CoLM")
        if "labeled" in batch:
            raise MisconfigurationException("CoLM needs a loss of every sample, but some have no label")
        gradients = self._gradients(method, batch)  # [n, D], of all processes
        if world_size() > 1:
            size = len(batch["input"])
            batch = {k: all_gather_rows(v) if v.shape[:1] == (size,) else v for k, v in batch.items()}
        chosen = self._choose(gradients, batch.get("source")).sort().values
        copy_from_first_([chosen])
        log_selection(method, "colm", kept=len(chosen) / len(gradients))
        return select_rows(batch, chosen.chunk(world_size())[rank()])

    def state_dict(self) -> dict[str, Any]:
        """Adam's means over the chosen samples, and their number of steps."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.exp_avg, self.exp_avg_sq, self.step = (state_dict[key] for key in ("exp_avg", "exp_avg_sq", "step"))

    def _size(self, n: int) -> int:
        k = round(self.ratio * n)
        if k < 1 or k % world_size():
            raise ValueError(
                f"CoLM: ratio {self.ratio} keeps {k} of {n} samples, which must be a positive multiple of the "
                f"number of processes, {world_size()}"
            )
        return k

    @torch.no_grad()
    def _choose(self, gradients: Tensor, sources: Tensor | None) -> Tensor:
        k = self._size(len(gradients))
        kept = torch.zeros(len(gradients), dtype=torch.bool, device=gradients.device)
        if self._small:
            assert sources is not None
            kept = torch.isin(sources, torch.tensor(self._small, device=sources.device))
        always, others = kept.nonzero().squeeze(1), (~kept).nonzero().squeeze(1)
        if len(always) >= k:
            return always[:k]
        if self.exp_avg is None or self.exp_avg_sq is None:
            self.exp_avg = self.exp_avg_sq = torch.zeros_like(gradients[0])
        exp_avg, exp_avg_sq = self.exp_avg.to(gradients), self.exp_avg_sq.to(gradients)
        directions, exp_avg, exp_avg_sq = adam_directions(
            gradients[others], exp_avg, exp_avg_sq, self.step, betas=self.betas, eps=self.eps
        )
        sources = None if sources is None else sources[others]
        directions = sparsify_by_source(directions, sources, self.dim)
        positions, _ = coreset_by_source(directions, sources, k - len(always))  # as by the authors, without weights
        self.exp_avg, self.exp_avg_sq = exp_avg[positions].mean(0), exp_avg_sq[positions].mean(0)
        self.step += 1
        return torch.cat([always, others[positions]])

    def _gradients(self, method: Method, batch: Batch) -> Tensor:
        with evaluating(method), torch.autocast(method.device.type, enabled=False):
            if self.gradient == "exact":
                name = f"network.{self._name}"
                return all_gather_rows(per_sample_gradients(method, batch, [name])[name].flatten(1))
            return self._zeroth_order(method, batch)

    @torch.no_grad()
    def _zeroth_order(self, method: Method, batch: Batch) -> Tensor:
        weight = method.network.get_parameter(self._name)
        if self._direction is None:
            seed = getattr(method.datamodule, "seed", 0) + crc32(self.state_key.encode())
            z = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
            self._direction = z.to(weight.device, weight.dtype)
        before = weight.clone()
        step = shard_like(self.zo_eps * self._direction, weight)
        try:
            weight.copy_(before + step)
            above = _losses(method, batch)
            weight.copy_(before - step)
            below = _losses(method, batch)
        finally:
            weight.copy_(before)
        slope = all_gather_rows((above - below) / (2.0 * self.zo_eps))  # [n]
        return slope.unsqueeze(1) * self._direction.flatten()


def _losses(method: Method, batch: Batch) -> Tensor:
    """The method's own loss on each sample, ``[N]``."""
    outputs = method.compute(batch)
    size = len(outputs.logits)
    rows = {key: value for key, value in batch.items() if value.shape[:1] == (size,)}

    def loss(sample: Batch, logits: Tensor, features: Tensor | None) -> Tensor:
        one = {key: value.unsqueeze(0) for key, value in sample.items()}
        features = None if features is None else features.unsqueeze(0)
        return method_loss(method, one, Outputs(logits=logits.unsqueeze(0), features=features))

    return vmap(loss)(rows, outputs.logits, outputs.features)


def _small_sources(method: Method) -> list[int]:
    dataset = getattr(method.datamodule, "dataset", lambda split: None)("train")
    sources = getattr(dataset, "tensors", {}).get("source")
    if sources is None:
        raise MisconfigurationException(
            "CoLM: keep_sources 'auto' needs a training set in memory that has 'source': list the small sources"
        )
    numbers, counts = sources.unique(return_counts=True)
    return numbers[counts * len(numbers) < len(sources)].tolist()
