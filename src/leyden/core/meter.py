"""Exact epoch means of the loss terms, without a logging call or a device sync per step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leyden.core.batch import Terms
from leyden.core.distributed import all_reduce_sum, rank, world_size

__all__ = ["NonFiniteLossError", "TermMeter"]

_NEVER = torch.iinfo(torch.int64).max


class NonFiniteLossError(ArithmeticError):
    """A loss term became NaN or infinite."""


class TermMeter:
    """Sums loss terms, weighted by the number of samples, and notes the first step in which one is not finite.

    Steps with the same names of terms share one accumulator, so that a step costs a few operations on one small vector.
    On a CPU a bad value is reported at once; elsewhere by the next `check`, because looking would stop the device.
    """

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], _Totals] = {}

    def update(self, terms: Terms, *, num_samples: int | Tensor, step: int) -> Tensor:
        """Adds the terms of one step and returns their sum, the loss.

        Args:
            terms: named scalars.
            num_samples: weight of the step; a tensor (of a count that only the device knows) is not waited for.
            step: number of the step, for messages.

        Raises:
            ValueError: there is no term, or one is not a scalar tensor, or is called ``loss``, as the sum is.
            NonFiniteLossError: a term is NaN or infinite (on a CPU; see `check`).
        """
        names = tuple(terms)
        totals = self._totals.get(names)
        if totals is None:
            _check_terms(terms)
        if len(names) == 1:
            loss = terms[names[0]]
            values = loss.detach().view(1)
        else:
            stacked = torch.stack(list(terms.values()))  # [T]
            loss, values = stacked.sum(), stacked.detach()
        if totals is None or totals.sums.device != values.device:
            totals = self._totals[names] = (totals or _Totals.zero(len(names))).to(values.device)
        if isinstance(num_samples, int):
            totals.sums.add_(values, alpha=num_samples)
        else:
            totals.sums.add_(values.double() * num_samples)
        totals.weight += num_samples
        if values.device.type != "cpu":
            bad_step = torch.where(values.isfinite(), _NEVER, step)
            torch.minimum(totals.first_bad, bad_step, out=totals.first_bad)
        elif not math.isfinite(loss.item()):
            totals.first_bad = torch.where(values.isfinite(), _NEVER, step)
            self.check()
            raise NonFiniteLossError(f"the loss is not finite in step {step}: the sum of {', '.join(names)} overflows")
        return loss

    def check(self) -> None:
        """Raises `NonFiniteLossError` naming the term and step, if any value so far was not finite."""
        for names, totals in self._totals.items():
            step, position = (number.item() for number in totals.first_bad.min(0))
            if step != _NEVER:
                raise NonFiniteLossError(f"the loss is not finite in step {step}: term {names[int(position)]!r}")

    def means(self) -> dict[str, float]:
        """Mean per term over all processes since the last `reset`; ``loss`` is the mean of the sum."""
        totals: dict[str, tuple[float, float]] = {}
        all_sums, all_weight = 0.0, 0.0
        for names, weight, sums in self._global_sums():
            for name, value in zip(names, sums, strict=True):
                total, seen = totals.get(name, (0.0, 0.0))
                totals[name] = (total + value, seen + weight)
            all_sums, all_weight = all_sums + sum(sums), all_weight + weight
        means = {name: total / seen for name, (total, seen) in totals.items()}
        return {"loss": all_sums / all_weight, **(means if len(means) > 1 else {})} if all_weight else {}

    def reset(self) -> None:
        """Forgets everything."""
        self._totals.clear()

    def state_dict(self) -> dict[str, Any]:
        """Sums over all processes: to be called by all of them."""
        return {"sums": [[list(names), weight, sums] for names, weight, sums in self._global_sums()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the sums; process 0 carries them on, the others start from zero."""
        self.reset()
        for names, weight, sums in state["sums"]:
            totals = self._totals[tuple(names)] = _Totals.zero(len(names))
            if rank() == 0:
                totals.sums, totals.weight = torch.tensor(sums, dtype=torch.float64), weight

    def _global_sums(self) -> list[tuple[tuple[str, ...], int, list[float]]]:
        result = []
        for names in self._global_names():
            totals = self._totals.get(names) or _Totals.zero(len(names)).to(_device(self._totals))
            weight = torch.as_tensor(totals.weight, dtype=torch.float64, device=totals.sums.device).view(1)
            both = all_reduce_sum(torch.cat([totals.sums, weight])).tolist()
            result.append((names, int(both[-1]), both[:-1]))
        return result

    def _global_names(self) -> list[tuple[str, ...]]:
        # a term may have been there on some of the processes only
        names = [set(self._totals)]
        if world_size() > 1:
            names = [set() for _ in range(world_size())]
            dist.all_gather_object(names, set(self._totals))
        return sorted(set.union(*names))


@dataclass
class _Totals:
    sums: Tensor  # [T], float64
    weight: int | Tensor  # number of samples
    first_bad: Tensor  # [T], int64: first step that was not finite, or _NEVER

    @classmethod
    def zero(cls, num_terms: int) -> "_Totals":
        return cls(torch.zeros(num_terms, dtype=torch.float64), 0, torch.full((num_terms,), _NEVER))

    def to(self, device: torch.device) -> "_Totals":
        return _Totals(self.sums.to(device), self.weight, self.first_bad.to(device))


def _device(totals: dict[tuple[str, ...], _Totals]) -> torch.device:
    return next((t.sums.device for t in totals.values()), torch.device("cpu"))


def _check_terms(terms: Terms) -> None:
    if not terms:
        raise ValueError("loss_terms must return at least one term")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim:
            got = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"the loss term {name!r} must be a scalar tensor, got {got}")
    if "loss" in terms:
        raise ValueError("a loss term cannot be called 'loss': the sum of all terms is; the main one is called 'task'")
