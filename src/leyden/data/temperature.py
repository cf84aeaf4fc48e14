"""Sampling of domains at a temperature that falls (T. Li, H. Xu, W. Tan, K. Murray, D. Khashabi, "Upsample or Upweight?
Balanced Training on Heavily Imbalanced Datasets", NAACL 2025, arXiv 2410.04579)."""

import torch
from torch import Tensor

from leyden.data.sampler import Order
from leyden.losses.domain_weighted import temperature_probabilities

__all__ = ["TemperatureSampling", "cooldown_temperature", "temperature_probabilities"]

_STEPS = 100  # of the temperature in an epoch


def cooldown_temperature(
    progress: float, *, start: float = 5.0, end: float = 1.0, begin: float = 0.0, finish: float = 1.0
) -> float:
    """Temperature at a point of the training: ``start``, then falling linearly, then ``end``.

    (The paper's abstract says that rare domains come often at first and less often later; the form is unverified.)

    Args:
        progress: share of the training that is over.
        start: temperature up to ``begin``.
        end: temperature from ``finish`` on.
        begin: share of the training after which it falls.
        finish: share of the training after which it stays; if it is ``begin``, the temperature falls at once.

    Raises:
        ValueError: a temperature is not positive, or not ``0 <= begin <= finish``.
    """
    if not (start > 0.0 and end > 0.0):
        raise ValueError(f"temperatures must be positive, got {start} and {end}")
    if not 0.0 <= begin <= finish:
        raise ValueError(f"begin and finish must be shares with 0 <= begin <= finish, got {begin} and {finish}")
    if progress < begin:
        return start
    if progress >= finish:
        return end
    return start + (end - start) * (progress - begin) / (finish - begin)


class TemperatureSampling(Order):
    """Draws a domain at a temperature, and takes a sample of it that has not come in this round of the domain.

    A domain begins a new round when all of its samples have come, and with each epoch. The temperature follows the
    samples that were drawn, in a hundred steps per epoch.

    Args:
        domains: number of each sample's domain, int64 ``[S]``.
        temperature: see `temperature_probabilities`.
        end_temperature: to which it falls, see `cooldown_temperature`; None for one that stays.
        begin: share of the training after which it falls.
        finish: share of the training after which it stays.
        num_samples: draws of an epoch; the size of the training set if None.
        total_samples: draws of the training; needed if the temperature falls.

    Raises:
        ValueError: an argument is out of range, or ``total_samples`` is missing.
    """

    def __init__(
        self,
        domains: Tensor | list[int],
        *,
        temperature: float = 5.0,
        end_temperature: float | None = None,
        begin: float = 0.0,
        finish: float = 1.0,
        num_samples: int | None = None,
        total_samples: int | None = None,
    ) -> None:
        domains = torch.as_tensor(domains)
        if domains.ndim != 1 or domains.is_floating_point() or not len(domains):
            raise ValueError(
                f"domains must be the number of each sample's domain, int64 [S], got {domains.dtype} of shape "
                f"{tuple(domains.shape)}"
            )
        if end_temperature is not None and total_samples is None:
            raise ValueError("total_samples must be given for a temperature that falls to end_temperature, got None")
        for name, count in (("num_samples", num_samples), ("total_samples", total_samples)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.temperature, self.end_temperature = temperature, end_temperature
        self.begin, self.finish = begin, finish
        self.num_samples, self.total_samples = num_samples, total_samples
        self.size = len(domains)
        order = domains.argsort(stable=True)
        self.counts = domains.unique(return_counts=True)[1]
        self.members = order.split(self.counts.tolist())
        self.temperature_at(0)  # checks it

    def temperature_at(self, drawn: int) -> float:
        """Returns the temperature after so many draws."""
        end = self.temperature if self.end_temperature is None else self.end_temperature
        return cooldown_temperature(
            drawn / (self.total_samples or 1), start=self.temperature, end=end, begin=self.begin, finish=self.finish
        )

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the draws of an epoch; raises `ValueError` if there is not one domain per sample."""
        if self.size != num_samples:
            raise ValueError(f"domains has {self.size} entries, but there are {num_samples} training samples")
        draws = self.num_samples or num_samples
        drawn = []
        for part in torch.arange(epoch * draws, (epoch + 1) * draws).chunk(_STEPS):
            probabilities = temperature_probabilities(self.counts, self.temperature_at(int(part[0])))
            drawn.append(torch.multinomial(probabilities, len(part), replacement=True, generator=generator))
        domain = torch.cat(drawn)
        samples = torch.empty_like(domain)
        for number, members in enumerate(self.members):
            places = (domain == number).nonzero().flatten()
            rounds = [torch.randperm(len(members), generator=generator) for _ in range(-(-len(places) // len(members)))]
            if rounds:
                samples[places] = members[torch.cat(rounds)[: len(places)]]
        return samples
