"""Rare domains often at first, and less often later (T. Li, H. Xu, W. Tan, K. Murray, D. Khashabi, "Upsample or
Upweight? Balanced Training on Heavily Imbalanced Datasets", NAACL 2025, arXiv 2410.04579)."""

import torch
from lightning.pytorch import Trainer

from leyden.callbacks._order import BringsOrder, total_steps
from leyden.core import require_keys
from leyden.data import DataModule, TemperatureSampling, cooldown_temperature

__all__ = ["Cooldown"]


class Cooldown(BringsOrder):
    """Samples domains at a temperature that falls with the training, see `leyden.data.TemperatureSampling`.

    High temperatures learn rare domains fast, and then overfit to their few samples.

    Args:
        temperature: at first; 1 is the share of the domains in the data, more brings rare ones more often.
        end_temperature: to which it falls; None for one that stays.
        begin: share of the training after which it falls.
        finish: share of the training after which it stays.
        key: entry of the training samples that is the number of their domain.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        temperature: float = 5.0,
        end_temperature: float | None = 1.0,
        *,
        begin: float = 0.0,
        finish: float = 1.0,
        key: str = "domain",
    ) -> None:
        end = temperature if end_temperature is None else end_temperature
        cooldown_temperature(0.0, start=temperature, end=end, begin=begin, finish=finish)  # checks them
        self.temperature = temperature
        self.end_temperature = end_temperature
        self.begin = begin
        self.finish = finish
        self.key = key

    def make_order(self, trainer: Trainer, data: DataModule) -> TemperatureSampling:
        """Looks for the domains of the samples, and returns the order."""
        domains = []
        for batch in data.all_batches("train"):
            require_keys(batch, self.key, user="Cooldown")
            domains.append(batch[self.key])
        return TemperatureSampling(
            torch.cat(domains),
            temperature=self.temperature,
            end_temperature=self.end_temperature,
            begin=self.begin,
            finish=self.finish,
            total_samples=total_steps(trainer, data) * data.batch_size,
        )
