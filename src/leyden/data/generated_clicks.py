"""Generated clicks: users with several interests, items of very different popularity, and a known chance of a click."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import uniform
from leyden.data._generated import generated_datasets
from leyden.data.module import DataModule

__all__ = ["GeneratedClicks"]


class GeneratedClicks(DataModule):
    """Users with a history of items who click a candidate or not; whether they do depends on one of their interests.

    Items belong to groups; item r of a group is drawn with a chance proportional to ``1 / r``. A user is interested in
    some groups, and has clicked 1 to ``max_history`` of their items. The candidate is of the group of one of these in
    half of the samples, of any group in the others. It is clicked with a chance of 0.8 if its group is in the history,
    and of 0.1 if not.

    Samples: ``input`` int64 ``[1 + max_history]``, the candidate and the history, 0 where it is shorter; ``target``
    int64, 1 for a click; ``chance`` float32, of a click. The items are 1 to ``num_items``; item i is of group
    ``(i - 1) % num_groups``.

    Args:
        num_train: samples to train on.
        num_eval: samples for validation, and as many for the test.
        num_items: a multiple of ``num_groups``.
        num_groups: number of groups.
        num_interests: groups that a user is interested in.
        max_history: items in the longest history.
        data_seed: which users and clicks; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: a number is out of range.
    """

    num_classes = 2

    def __init__(
        self,
        *,
        num_train: int = 20_000,
        num_eval: int = 4000,
        num_items: int = 200,
        num_groups: int = 20,
        num_interests: int = 8,
        max_history: int = 12,
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"num_train": num_train, "num_eval": num_eval, "max_history": max_history, "num_groups": num_groups}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if num_items < 1 or num_items % num_groups:
            raise ValueError(f"num_items must be a multiple of num_groups={num_groups}, got {num_items}")
        if not 1 <= num_interests <= num_groups:
            raise ValueError(f"num_interests must lie in 1..num_groups={num_groups}, got {num_interests}")
        self.num_train = num_train
        self.num_eval = num_eval
        self.num_items = num_items
        self.num_groups = num_groups
        self.num_interests = num_interests
        self.max_history = max_history
        self.data_seed = data_seed

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        return generated_datasets(self._draw, num_train=self.num_train, num_eval=self.num_eval, seed=self.data_seed)

    def _draw(self, keys: Tensor) -> dict[str, Tensor]:
        interests = uniform(keys, self.num_groups, stream=0).argsort(stable=True)[:, : self.num_interests]
        slots = (uniform(keys, self.max_history, stream=1) * self.num_interests).to(torch.int64)
        groups = interests.gather(1, slots)  # [N, T]
        length = 1 + (uniform(keys, stream=2) * self.max_history).to(torch.int64)  # [N]
        is_seen = torch.arange(self.max_history) < length.unsqueeze(1)
        history = self._items(groups, uniform(keys, self.max_history, stream=3)) * is_seen

        near = groups.gather(1, (uniform(keys, 1, stream=4) * length.unsqueeze(1)).to(torch.int64)).squeeze(1)  # [N]
        anywhere = (uniform(keys, stream=5) * self.num_groups).to(torch.int64)
        group = torch.where(uniform(keys, stream=6) < 0.5, near, anywhere)
        candidate = self._items(group, uniform(keys, stream=7))
        is_of_interest = ((groups == group.unsqueeze(1)) & is_seen).any(1)
        chance = torch.where(is_of_interest, 0.8, 0.1)
        return {
            "input": torch.cat([candidate.unsqueeze(1), history], 1),
            "target": (uniform(keys, stream=8) < chance).to(torch.int64),
            "chance": chance,
        }

    def _items(self, groups: Tensor, numbers: Tensor) -> Tensor:
        """Items of the groups, popular ones more often, by uniform numbers."""
        popularity = 1.0 / torch.arange(1, self.num_items // self.num_groups + 1)
        bounds = popularity.cumsum(0) / popularity.sum()
        place = torch.searchsorted(bounds, numbers, right=True).clamp(max=len(bounds) - 1)
        return 1 + place * self.num_groups + groups
