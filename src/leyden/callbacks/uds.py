"""Utility-diversity sampling (H. Zou, Y. Mao, Y. Qu, Q. Wang, X. Ji, "Utility-Diversity Aware Online Batch Selection
for LLM Supervised Fine-tuning", 2025, arXiv 2510.16882; authors' code: gfyddha/UDS, ``UDSamplingTrainer.py``).

The paper describes a bilinear random projection; that of the authors' code is followed here.
"""

import math
from typing import Any
from zlib import crc32

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from leyden.callbacks._selection import log_selection, select_rows
from leyden.core import Batch, Method, MethodCallback, all_gather_rows, evaluating, require_keys, world_size

__all__ = ["UDS", "FastJL", "RepresentationMemory", "nuclear_norm"]


def nuclear_norm(logits: Tensor) -> Tensor:
    """Returns the sum of the singular values of each matrix, in float32 at least.

    They are roots of the eigenvalues of the smaller Gram matrix, which is of float64: in float32 those that are zero
    would count for a thousandth of the largest. Of a matrix that is not finite, the sum is not finite either.

    Args:
        logits: ``[N, L, V]``.

    Returns:
        ``[N]``.
    """
    x = logits.double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    if gram.shape[-1] == 1:  # one vector, whose length needs no solver (which waits for a GPU)
        values = gram.flatten(1).sqrt().sum(-1)
    else:
        finite = gram.isfinite().all(-1).all(-1)  # the solver raises for others, ahead of what says that a fit failed
        values = torch.linalg.eigvalsh(gram.where(finite[:, None, None], 0.0)).clamp(min=0.0).sqrt().sum(-1)
        values = values.where(finite, torch.nan)
    return values.to(torch.promote_types(logits.dtype, torch.float32))


class FastJL(nn.Module):
    """Random projection of matrices by signs, Fourier transforms and a choice of columns and rows, all drawn once.

    Buffers: ``row_sign [length]``, ``row_index [rows]``, ``col_sign [vocab]`` and ``col_index [cols]``.

    Args:
        length: rows of a matrix; fewer are filled up with zeros.
        vocab: columns of a matrix.
        rows: of the projection.
        cols: of the projection.
        generator: draws; torch's own if None.

    Raises:
        ValueError: a size is below 1.
    """

    row_sign: Tensor
    row_index: Tensor
    col_sign: Tensor
    col_index: Tensor

    def __init__(
        self, length: int, vocab: int, *, rows: int = 8, cols: int = 128, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if min(length, vocab, rows, cols) < 1:
            raise ValueError(f"length, vocab, rows and cols must be at least 1, got {(length, vocab, rows, cols)}")
        for name, size, count in (("col", vocab, cols), ("row", length, rows)):
            sign = 2.0 * torch.randint(2, (size,), generator=generator) - 1.0
            self.register_buffer(f"{name}_sign", sign.float())
            self.register_buffer(f"{name}_index", torch.randint(size, (count,), generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Projects matrices ``[N, L, vocab]`` to ``[N, rows * cols]``, in float32 at least.

        Raises:
            ValueError: the matrices have more rows than ``length``, or another number of columns.
        """
        length, vocab = len(self.row_sign), len(self.col_sign)
        if x.ndim != 3 or x.shape[1] > length or x.shape[2] != vocab:
            raise ValueError(
                f"matrices must be [N, L, {vocab}] with L of at most {length}, the projection's length, got "
                f"{tuple(x.shape)}"
            )
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = _transformed(x * self.col_sign, self.col_index, vocab)
        x = x.mT * self.row_sign[: x.shape[1]]  # [N, cols, L]
        return _transformed(x, self.row_index, length).mT.flatten(1)


def _transformed(x: Tensor, index: Tensor, size: int) -> Tensor:
    """Entries of the real part of the Fourier transform over the last dimension, filled up with zeros to a size."""
    mirrored = torch.minimum(index, size - index)  # of real numbers, the real part is symmetric
    return torch.fft.rfft(x, size).real[..., mirrored] * math.sqrt(size / len(index))


class RepresentationMemory(nn.Module):
    """The last representations that were pushed. Buffers: ``items [size, dim]`` and ``count``, of all pushed so far.

    Args:
        size: number that is kept.
        dim: of a representation.

    Raises:
        ValueError: a size is below 1.
    """

    items: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if min(size, dim) < 1:
            raise ValueError(f"size and dim must be at least 1, got {(size, dim)}")
        self.register_buffer("items", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def distance(self, x: Tensor) -> Tensor:
        """Mean Euclidean distance of ``[N, dim]`` to the items, ``[N]``; zero if there is none."""
        held = torch.arange(len(self.items), device=x.device) < self.count  # [size]
        distance = torch.cdist(x, self.items.to(x.dtype)).masked_fill(~held, 0.0)
        return distance.sum(1) / held.sum().clamp(min=1)

    def push(self, x: Tensor) -> None:
        """Puts ``[N, dim]`` in the places of the oldest items."""
        size = len(self.items)
        new = x[-size:].to(self.items.dtype)
        places = (self.count + len(x) - len(new) + torch.arange(len(new), device=x.device)) % size
        self.items.index_copy_(0, places, new)
        self.count += len(x)


class UDS(MethodCallback):
    """Trains on those samples of each batch whose logits are large and unlike those trained on lately.

    A sample's score is the nuclear norm of its logits plus ``alpha`` times the mean distance of their projection to a
    memory of projections. The logits are those of a pass in evaluation mode, without gradients; ``[N, C]`` is taken for
    ``[N, 1, C]``, and rows that ``batch["mask"]`` ``[N, L]`` leaves out for zeros. Each process chooses from its own
    share of a micro-batch; all remember what each has chosen. ``train/uds_kept`` is the share that is trained on, which
    is also that of the memory for activations, beside ``uds_utility`` and ``uds_diversity``, means over the batch:
    logits grow in training, and ``alpha`` is fixed.

    Args:
        k: samples that a process keeps of a micro-batch.
        alpha: weight of the distance; the authors' script takes 1.5e-3.
        memory: number of projections to remember.
        rows: of a projection, of which 1 is enough for classification; ``max_length`` is 1 then, too.
        cols: of a projection.
        max_length: largest number of tokens.
        start_step: optimizer step from which on samples are chosen.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        k: int = 1,
        alpha: float = 2.5e-3,
        memory: int = 1024,
        rows: int = 8,
        cols: int = 128,
        max_length: int = 512,
        start_step: int = 0,
    ) -> None:
        sizes = {"k": k, "memory": memory, "rows": rows, "cols": cols, "max_length": max_length}
        for name, number in sizes.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not alpha >= 0.0 or start_step < 0:
            raise ValueError(f"alpha and start_step must be at least 0, got {alpha} and {start_step}")
        self.k = k
        self.alpha = alpha
        self.rows = rows
        self.cols = cols
        self.max_length = max_length
        self.start_step = start_step
        self.memory = RepresentationMemory(memory, rows * cols)
        self._projection: FastJL | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets what an earlier fit was trained on."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._projection = None
            self.memory = RepresentationMemory(*self.memory.items.shape)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares ``k`` with the size of the batches.

        Raises:
            ValueError: there are not that many samples to choose from.
        """
        batch_size = getattr(getattr(pl_module, "datamodule", None), "batch_size", None)
        if batch_size is not None:
            size = batch_size // (trainer.accumulate_grad_batches * world_size())
            if self.k > size:
                raise ValueError(f"UDS: k must be at most {size}, the samples of a process's micro-batch, got {self.k}")

    @torch.no_grad()
    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Returns the chosen samples, in the order of the batch."""
        if method.global_step < self.start_step:
            return batch
        require_keys(batch, "input", user="UDS")
        with evaluating(method):
            logits = method.compute(batch).logits
        logits = logits.unsqueeze(1) if logits.ndim == 2 else logits  # [N, L, V]
        if "mask" in batch and batch["mask"].shape == logits.shape[:2]:
            logits = logits * batch["mask"].unsqueeze(-1)
        utility, projected = nuclear_norm(logits), self._project(method, logits)
        self.memory.to(projected.device)  # callbacks are restored before the model is moved
        diversity = self.memory.distance(projected)
        score = utility + self.alpha * diversity
        chosen = score.topk(min(self.k, len(score))).indices.sort().values
        self.memory.push(all_gather_rows(projected[chosen]))
        kept = len(chosen) / len(score)
        log_selection(method, "uds", kept=kept, utility=utility.mean(), diversity=diversity.mean())
        return select_rows(batch, chosen)

    def state_dict(self) -> dict[str, Any]:
        """The memory; the projection is a function of the data's seed."""
        return self.memory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the memory."""
        self.memory.load_state_dict(state_dict)

    def _project(self, method: Method, logits: Tensor) -> Tensor:
        if self._projection is None:
            seed = getattr(method.datamodule, "seed", 0) + crc32(self.state_key.encode())
            generator = torch.Generator().manual_seed(seed)
            self._projection = FastJL(
                self.max_length, logits.shape[-1], rows=self.rows, cols=self.cols, generator=generator
            ).to(logits.device)
        return self._projection(logits)
