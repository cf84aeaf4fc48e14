"""The random walk (R. Sutton, A. Barto, "Reinforcement Learning: An Introduction", 2nd edition, 2018, example 7.1)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.data.sampler import Order, Sequential

__all__ = ["RandomWalk"]


class RandomWalk(DataModule):
    """Episodes on a chain of states, as one stream of transitions; the task is to predict the value of each state.

    An episode starts in the middle, goes left or right with equal chances, and ends beyond either end, with a reward of
    -1 on the left and of 1 on the right; all other rewards are 0. Training samples: ``input`` and ``next_input``, which
    are states as one-hot float32 ``[num_states]`` (zeros beyond the ends), ``reward`` float32, ``terminated`` bool.
    Validation and test: each state once, with its true value as ``target``, float32 ``[1]``.

    Args:
        num_states: length of the chain.
        num_episodes: episodes of an epoch, which ``seed`` draws.
        gamma: discount of future rewards, in the true values.
        batch_size: transitions of a step.
        order: order of the transitions; that in which they happened if None.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        num_states: int = 19,
        num_episodes: int = 50,
        gamma: float = 0.99,
        batch_size: int = 1,
        order: Order | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size, order=order or Sequential(), **{"eval_batch_size": num_states, **kwargs})
        if num_states < 1 or num_episodes < 1:
            raise ValueError(f"num_states and num_episodes must be at least 1, got {num_states} and {num_episodes}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
        self.num_states = num_states
        self.num_episodes = num_episodes
        self.gamma = gamma

    def datasets(self) -> dict[str, Dataset]:
        """Returns the stream, and the states with their values."""
        values = TensorDictDataset({"input": torch.eye(self.num_states), "target": self.true_values().unsqueeze(-1)})
        return {"train": TensorDictDataset(self._stream()), "val": values, "test": values}

    def true_values(self) -> Tensor:
        """Expected discounted sum of rewards from each state on, float32 ``[num_states]``."""
        half = torch.full((self.num_states - 1,), 0.5, dtype=torch.float64)
        moves = torch.diag(half, 1) + torch.diag(half, -1)  # chances of going from one state to another
        rewards = torch.zeros(self.num_states, dtype=torch.float64)
        rewards[0] -= 0.5
        rewards[-1] += 0.5
        identity = torch.eye(self.num_states, dtype=torch.float64)
        return torch.linalg.solve(identity - self.gamma * moves, rewards).to(torch.float32)

    def _stream(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        states, next_states = [], []
        for _ in range(self.num_episodes):
            state = self.num_states // 2
            while 0 <= state < self.num_states:
                states.append(state)
                state += 1 if torch.rand((), generator=generator) < 0.5 else -1
                next_states.append(state)
        ends = torch.tensor(next_states)
        one_hot = torch.eye(self.num_states + 2)[:, 1:-1]  # of -1 to num_states: zeros beyond the ends
        reward = (ends == self.num_states).float() - (ends == -1).float()
        return {
            "input": one_hot[torch.tensor(states) + 1],
            "next_input": one_hot[ends + 1],
            "reward": reward,
            "terminated": reward != 0.0,
        }
