"""Batches whose samples are all of one domain."""

import torch
from torch import Tensor

from leyden.data.sampler import Order

__all__ = ["DomainBatches"]


class DomainBatches(Order):
    """Shuffles the samples of each domain, cuts them into whole batches, and shuffles these.

    What is left of a domain behind its last whole batch is another part of it in each epoch.

    Args:
        domain: number of each sample's domain, int64 ``[S]``.
        batch_size: samples of an optimizer step.

    Raises:
        ValueError: a domain has no whole batch.
    """

    def __init__(self, domain: Tensor, batch_size: int) -> None:
        self.domain, self.batch_size = domain, batch_size
        self.counts = domain.unique(return_counts=True)[1].tolist()
        if min(self.counts) < batch_size:
            raise ValueError(
                f"batch_size must be at most {min(self.counts)}, the samples of the smallest domain, got {batch_size}"
            )

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the samples of all whole batches; raises `ValueError` if ``domain`` has another number of samples."""
        if len(self.domain) != num_samples:
            raise ValueError(f"domain has {len(self.domain)} entries, but there are {num_samples} training samples")
        order = torch.randperm(num_samples, generator=generator)
        order = order[self.domain[order].argsort(stable=True)]
        whole = [part[: len(part) // self.batch_size * self.batch_size] for part in order.split(self.counts)]
        batches = torch.cat(whole).view(-1, self.batch_size)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()
