"""Mini-batch aware regularization (G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2017,
arXiv 1706.06978, section 5.1)."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from leyden.core import (
    Batch,
    Method,
    MethodCallback,
    Outputs,
    Terms,
    all_gather_rows,
    all_reduce_sum,
    evaluating,
    rank,
    world_size,
)
from leyden.data.loader import EvalLoader
from leyden.data.module import DataModule
from leyden.data.sampler import eval_batches
from leyden.losses import minibatch_aware_l2

__all__ = ["MiniBatchAwareRegularization"]


class MiniBatchAwareRegularization(MethodCallback):
    """Adds ``minibatch_l2``: an L2 penalty on the rows of embeddings that a batch looks up, less for frequent ids.

    How often each id is looked up in an epoch is counted before the first one, by a pass over the training set. The
    batch is that of all processes, but of one micro-batch where gradients are accumulated. Padding has no penalty.

    Args:
        weight: factor of the term.
        embeddings: names of `torch.nn.Embedding` modules in the network; all if None.

    Raises:
        ValueError: ``weight`` is negative.
    """

    def __init__(self, weight: float = 0.01, embeddings: Sequence[str] | None = None) -> None:
        if weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.weight = weight
        self.embeddings = embeddings
        self.counts: dict[str, Tensor] = {}  # lookups in the training set, [V] each
        self._tables: dict[str, nn.Embedding] = {}
        self._lookups: dict[str, list[Tensor]] | None = None  # of the running step; None outside of one

    def build(self, method: Method) -> None:
        """Watches the embeddings.

        Raises:
            MisconfigurationException: the data are not those of a `leyden.data.DataModule`.
            ValueError: there is no embedding, or none of a name.
        """
        if not isinstance(method.datamodule, DataModule):
            raise MisconfigurationException(
                "MiniBatchAwareRegularization counts ids in the training set: train with a leyden.data.DataModule"
            )
        found = {name: part for name, part in method.network.named_modules() if isinstance(part, nn.Embedding)}
        if not found:
            raise ValueError(f"{type(method.network).__name__} has no torch.nn.Embedding to regularize")
        for name in self.embeddings or ():
            if name not in found:
                near = get_close_matches(name, found, n=3) or list(found)
                raise ValueError(f"embeddings: there is no torch.nn.Embedding {name!r}; near it: {', '.join(near)}")
        self._tables = {name: found[name] for name in self.embeddings or found}
        for name, table in self._tables.items():
            self._watch(name, table)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the counts of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.counts = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the ids, unless the counts came with a checkpoint.

        Raises:
            MisconfigurationException: an embedding is frozen.
        """
        if frozen := [name for name, table in self._tables.items() if not table.weight.requires_grad]:
            raise MisconfigurationException(
                f"MiniBatchAwareRegularization has no effect on embeddings that are frozen ({', '.join(frozen)}): "
                "train them, or name others in embeddings"
            )
        if not self.counts:
            method = cast(Method, pl_module)
            self.counts = method.with_whole_parameters(lambda: self._count(trainer, method))
        self.counts = {name: counts.to(pl_module.device) for name, counts in self.counts.items()}

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Begins to note what is looked up."""
        self._lookups = {}
        return batch

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``minibatch_l2``.

        Raises:
            MisconfigurationException: an embedding was not used.
        """
        lookups, self._lookups = self._lookups or {}, {}  # a method may evaluate the loss again, at other weights
        penalties = []
        for name, table in self._tables.items():
            if name not in lookups:
                raise MisconfigurationException(f"nothing was looked up in {name}: leave it out of embeddings")
            ids = all_gather_rows(torch.cat([ids.flatten() for ids in lookups[name]]))
            penalties.append(minibatch_aware_l2(table.weight, ids, self.counts[name], sparse=table.sparse))
        return terms | {"minibatch_l2": self.weight * torch.stack(penalties).sum()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends noting: what validation looks up does not count."""
        self._lookups = None

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counts."""
        self.counts = state_dict["counts"]

    def _watch(self, name: str, table: nn.Embedding) -> None:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._lookups is not None and module is table:  # a copy of the module has a copy of this hook
                self._lookups.setdefault(name, []).append(args[0])

        table.register_forward_hook(note)

    @torch.no_grad()
    def _count(self, trainer: Trainer, method: Method) -> dict[str, Tensor]:
        data = cast(DataModule, method.datamodule)
        counts = {
            name: torch.zeros(table.num_embeddings, dtype=torch.float64, device=method.device)
            for name, table in self._tables.items()
        }
        batches = eval_batches(data.num_samples, data.batch_size, world_size(), rank())
        with evaluating(method), trainer.precision_plugin.val_step_context():
            for batch in EvalLoader(data.dataset("train"), batches):
                self._lookups = {}
                method.compute(trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch)))
                for name, lookups in self._lookups.items():
                    for ids in lookups:
                        counts[name] += torch.bincount(ids.flatten(), minlength=len(counts[name]))
        self._lookups = None
        for name, table in self._tables.items():
            counts[name] = all_reduce_sum(counts[name])
            if table.padding_idx is not None:
                counts[name][table.padding_idx] = torch.inf
        return counts
