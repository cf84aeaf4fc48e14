"""Curricula: easy samples first (S. Vahidian et al., "When Do Curricula Work in Federated Learning?", ICCV 2023, arXiv
2212.12712, with the pacing functions of X. Wu, E. Dyer, B. Neyshabur, "When Do Curricula Work?", 2021, arXiv
2012.03107; their code: google-research/understanding-curricula)."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from leyden.data.sampler import Order

__all__ = ["Curriculum", "balance_order", "client_pool", "curriculum_order", "pacing_function"]


_SHAPES: dict[str, Callable[[float], float]] = {  # share of the growth, by the share of its time
    "linear": lambda x: x,
    "quad": lambda x: x**2,
    "root": lambda x: x**0.5,
    "step": lambda x: float(x >= 1.0),
    "exp": lambda x: math.expm1(10.0 * min(x, 1.0)) / math.expm1(10.0),
    "log": lambda x: 1.0 + math.log(x + math.exp(-10.0)) / 10.0,
}


def pacing_function(
    name: str, total_steps: int, total_data: int, *, a: float = 0.8, b: float = 0.2
) -> Callable[[int], int]:
    """Returns how many of the easiest data there are at a step, as a function that never falls.

    Args:
        name: how their number grows: ``"linear"``, ``"quad"``, ``"root"``, ``"step"``, ``"exp"`` or ``"log"``.
        total_steps: optimizer steps (or rounds) of the training.
        total_data: number of data.
        a: share of the steps after which all data are there; positive, above 1 for never.
        b: share of the data that are there at first, in [0, 1]; 1 for no curriculum.

    Raises:
        ValueError: another name, or an argument is out of range.
    """
    if name not in _SHAPES:
        raise ValueError(f"pacing must be one of {list(_SHAPES)}, got {name!r}")
    for argument, count in (("total_steps", total_steps), ("total_data", total_data)):
        if count < 1:
            raise ValueError(f"{argument} must be at least 1, got {count}")
    if not 0.0 < a < math.inf:
        raise ValueError(f"a must be positive, got {a}")
    if not 0.0 <= b <= 1.0:
        raise ValueError(f"b must lie in [0, 1], got {b}")
    return partial(_pool_size, _SHAPES[name], a * total_steps, total_data, b * total_data)


def _pool_size(shape: Callable[[float], float], end: float, total: int, start: float, step: int) -> int:
    if step >= end:
        return total
    return min(max(int(start + (total - start) * shape(step / end)), 1), total)


def curriculum_order(
    scores: Tensor, *, order: str = "curriculum", targets: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Returns the data in the order in which they come in, int64 ``[N]``.

    Args:
        scores: how hard each is, such as its loss under a reference model, ``[N]``; equal ones stay in their order.
        order: ``"curriculum"`` for the easiest first, ``"anti"`` for the reverse, ``"random"`` for any.
        targets: classes, int64 ``[N]`` or soft ``[N, C]``: the easiest of all classes come before the next ones, see
            `balance_order`.
        seed: of the random order.

    Raises:
        ValueError: another order, ``scores`` is no vector, is empty or has NaN, or ``targets`` has another length.
    """
    if order not in ("curriculum", "anti", "random"):
        raise ValueError(f"order must be 'curriculum', 'anti' or 'random', got {order!r}")
    if scores.ndim != 1 or not len(scores) or scores.isnan().any():
        raise ValueError(f"scores must be numbers [N] without NaN, N at least 1, got shape {tuple(scores.shape)}")
    if targets is not None and len(targets) != len(scores):
        raise ValueError(f"targets must be those of the {len(scores)} scores, got {len(targets)}")
    if order == "random":
        return torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    ranking = scores.argsort(stable=True)
    if targets is not None:
        ranking = torch.tensor(balance_order(ranking, targets))
    return ranking.flip(0) if order == "anti" else ranking


def balance_order(order: Tensor, targets: Tensor) -> list[int]:
    """Reorders data such that the first of every class come first, then the second of every class, and so on.

    Those of one place keep their order, and classes with fewer data end earlier.

    Args:
        order: numbers of data, int64 ``[N]``.
        targets: class of each by its number, int64 ``[N]`` or soft ``[N, C]``.
    """
    classes = (targets if targets.ndim == 1 else targets.argmax(1))[order]
    place = torch.empty_like(order)
    for number in classes.unique():
        member = classes == number
        place[member] = torch.arange(int(member.sum()), device=order.device)
    return order[place.argsort(stable=True)].tolist()


def client_pool(
    losses: Tensor,
    round: int,
    total_rounds: int,
    *,
    pacing: str = "linear",
    a: float = 0.8,
    b: float = 0.2,
    order: str = "curriculum",
    minimum: int = 1,
) -> Tensor:
    """Returns the clients from which those of a round of federated learning are drawn, int64 ``[K]``.

    (The paper orders the clients by such a loss; that the pool has as many of them as data have come in by the pacing
    function is unverified.)

    Args:
        losses: mean loss of the global model on the data of each client, ``[K_all]``.
        round: number of the round, from 0 on.
        total_rounds: rounds of the training.
        pacing: as in `pacing_function`, as are ``a`` and ``b``.
        a: share of the rounds after which all clients are there.
        b: share of the clients that are there at first.
        order: as in `curriculum_order`.
        minimum: least number of clients.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 1 <= minimum <= len(losses):
        raise ValueError(f"minimum must lie in 1..{len(losses)} (the clients), got {minimum}")
    size = pacing_function(pacing, total_rounds, len(losses), a=a, b=b)(round)
    return curriculum_order(losses, order=order)[: max(size, minimum)]


class Curriculum(Order):
    """Goes through a pool of easy samples, and lets more in.

    A pass through the pool is in a random order, in whole batches; then, and at the begin of an epoch, the pool gets as
    many samples as the pacing function says. It has a whole batch at least. An epoch has as many places as there are
    samples, so that the number of steps is the usual one. (The authors have epochs of one pass each, and pools of at
    least 256 samples, two batches.)

    Args:
        scores: how hard each sample is, ``[S]``.
        total_steps: optimizer steps of the training.
        batch_size: samples of an optimizer step, over all processes and micro-batches.
        pacing: as in `pacing_function`.
        a: share of the steps after which all samples are there.
        b: share of the samples that are there at first; with 1 the order is that of `Shuffled`.
        order: as in `curriculum_order`, as are ``targets`` and ``seed``.
        targets: classes that are to be balanced.
        seed: of a random order.

    Attributes:
        ranking: samples in the order in which they come in, int64 ``[S]``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        scores: Tensor | list[float],
        *,
        total_steps: int,
        batch_size: int,
        pacing: str = "linear",
        a: float = 0.8,
        b: float = 0.2,
        order: str = "curriculum",
        targets: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.ranking = curriculum_order(torch.as_tensor(scores), order=order, targets=targets, seed=seed)
        self.batch_size = batch_size
        self.pool_size = pacing_function(pacing, total_steps, len(self.ranking), a=a, b=b)

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the passes of an epoch; raises `ValueError` if there is not one score per sample."""
        if len(self.ranking) != num_samples:
            raise ValueError(f"scores has {len(self.ranking)} entries, but there are {num_samples} training samples")
        passes: list[Tensor] = []
        count, first_step = 0, epoch * max(1, num_samples // self.batch_size)
        while count < num_samples:
            size = self.pool_size(first_step + count // self.batch_size)
            pool = self.ranking[: max(size, self.batch_size)].sort().values
            pool = pool[torch.randperm(len(pool), generator=generator)]
            if len(pool) < num_samples:
                pool = pool[: len(pool) // self.batch_size * self.batch_size]
            passes.append(pool)
            count += len(pool)
        return torch.cat(passes)[:num_samples]
