"""Windows of tokens that a trained network has sampled (K. Kim, S. Kotha, P. Liang, T. Hashimoto, "Pre-training under
infinite compute", 2025, arXiv 2509.14786; authors' code: marin-community/marin, experiments/data_efficiency).

As there, a fit has as many passes over the real text as without samples, and is longer by the samples: by
``1 / (1 - weight)``. The authors sample from the beginning of a document; here a sample begins with the first token of
a window of the text, because its bytes have no such beginning.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.batch import Batch
from leyden.core.network import Network
from leyden.data.sampler import Order
from leyden.nn.generate_tokens import generate_tokens
from leyden.nn.logit_ensemble import LogitEnsemble

if TYPE_CHECKING:
    from leyden.data.text import TokenWindows

__all__ = ["TeacherSamples"]

ROWS = 256  # that are sampled at a time: members keep keys and values of all their tokens


class TeacherSamples:
    """Samples of a teacher, for the training windows of a `TextDataModule`.

    An epoch has each window of the text once, and samples that are drawn anew. Every process makes all samples when the
    data are set up, on the device of the teacher.

    Args:
        teacher: a trained network such as `leyden.models.GPT`, or several, whose logits are averaged.
        length: number of different samples.
        weight: share of samples among the windows of an epoch.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, teacher: Network | Sequence[Network], length: int, *, weight: float = 0.75) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if not 0.0 <= weight < 1.0:
            raise ValueError(f"weight must lie in [0, 1), got {weight}")
        self.teacher = LogitEnsemble(teacher)
        self.length = length
        self.order = _RealAndSampled(length, weight)

    def behind(self, real: "TokenWindows", *, vocab_size: int, seed: int) -> Dataset:
        """Returns the windows of the text and behind them the samples, which ``order`` goes through.

        Args:
            real: windows of the text.
            vocab_size: number of its different tokens.
            seed: of the samples.

        Raises:
            ValueError: the teacher knows other tokens.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(real), (self.length,), generator=generator)
        device = next(self.teacher.parameters()).device
        first = real.__getitems__(chosen.tolist())["input"][:, :1].to(device)
        known = self.teacher(torch.zeros_like(first[:1])).shape[-1]  # it may not know the first one
        if known != vocab_size:
            raise ValueError(f"teacher must give logits of the text's {vocab_size} tokens, it gives {known}")
        on_device = torch.Generator(device).manual_seed(seed)
        rows = [generate_tokens(self.teacher, r, real.context, generator=on_device) for r in first.split(ROWS)]
        return _Windows(real, torch.cat(rows).cpu())


class _Windows(Dataset):
    """Windows of a text, and behind them rows ``[L, context + 1]``."""

    def __init__(self, real: "TokenWindows", sampled: Tensor) -> None:
        self.real, self.sampled = real, sampled

    def __len__(self) -> int:
        return len(self.real) + len(self.sampled)

    def __getitem__(self, index: int) -> Batch:
        return {key: rows[0] for key, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        places = torch.tensor(indices)
        is_real = places < len(self.real)
        batch = self.real.__getitems__(places.where(is_real, 0).tolist())
        sampled = self.sampled[(places - len(self.real)).clamp(min=0)]
        for key, rows in (("input", sampled[:, :-1]), ("target", sampled[:, 1:])):
            batch[key] = torch.where(is_real.unsqueeze(-1), batch[key], rows)
        return batch


class _RealAndSampled(Order):
    """Each real sample once, and of the ``length`` others behind them so many that ``weight`` is their share."""

    def __init__(self, length: int, weight: float) -> None:
        self.length, self.weight = length, weight

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        num_real = num_samples - self.length
        wanted = round(num_real * self.weight / (1.0 - self.weight))
        passes = [torch.randperm(self.length, generator=generator) for _ in range(-(-wanted // self.length))]
        chosen = torch.cat([torch.arange(num_real), *(num_real + indices for indices in passes)])[: num_real + wanted]
        return chosen[torch.randperm(len(chosen), generator=generator)]
