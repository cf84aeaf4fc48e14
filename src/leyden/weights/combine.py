"""Linear combinations of state dicts: averages, EMA after training, and the greedy soup.

"Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better" (E. Liu et al., 2024, arXiv
2404.02241) for the combination; "Model soups" (M. Wortsman et al., 2022, arXiv 2203.05482, recipe 1) for the soup.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leyden.weights._states import State, by_tensor, check_names, check_shape, computed_dtype, is_averaged

__all__ = ["average", "combine", "ema_coefficients", "greedy_soup", "select_greedy"]

PIECE = 2**17  # elements: of some files, and of the sum, half a MiB each


@torch.no_grad()
def combine(checkpoints: Sequence[State], coefficients: Sequence[float] | Tensor) -> dict[str, Tensor]:
    """Returns ``sum_i coefficient_i state_i``, visiting one entry of one state dict at a time.

    Args:
        checkpoints: K state dicts or readers of files. Entries of less than 32 bits are summed in float32; those that
            are not floating point are copied from the last one.
        coefficients: ``[K]``; any finite numbers. A checkpoint whose coefficient is 0 is not read.

    Returns:
        New tensors, on the device and in the dtype of the first; names that are one tensor everywhere stay so.

    Raises:
        ValueError: names, shapes or the number of coefficients differ, or a coefficient is not finite.
    """
    states = list(checkpoints)
    check_names(states)
    numbers = torch.as_tensor(coefficients, dtype=torch.float64)
    if numbers.shape != (len(states),) or not numbers.isfinite().all():
        raise ValueError(f"coefficients must be {len(states)} finite numbers, one per checkpoint, got {coefficients}")
    used = [(state, value) for state, value in zip(states, numbers.tolist(), strict=True) if value]
    files: list[Any] = [state for state, _ in used]
    if len(files) == 1 or not all(hasattr(state, "pieces") for state in [states[0], *files]):
        files = []

    def entry(name: str) -> Tensor:
        if files and is_averaged(states[0], name) and _are_alike(name, [states[0], *files]):
            return _sum_pieces(name, files, [value for _, value in used])
        first = states[0][name]
        if not is_averaged(states[0], name):
            return states[-1][name].to(first.device, copy=True)
        total: Tensor | None = None
        for state, value in used:
            tensor = first if state is states[0] else state[name]
            check_shape(name, tensor, first)
            if total is None:
                total = tensor.to(first.device, computed_dtype(first), copy=True)
                if value != 1.0:
                    total *= value
            else:
                total.add_(tensor.to(first.device), alpha=value)
        return torch.zeros_like(first) if total is None else total.to(first.dtype)

    return by_tensor(states, entry)


def _are_alike(name: str, files: list[Any]) -> bool:
    kinds = {(file.shape(name), file.dtype(name), file.is_contiguous(name)) for file in files}
    return len(kinds) == 1 and files[0].is_contiguous(name)


def _sum_pieces(name: str, files: list[Any], coefficients: list[float]) -> Tensor:
    """The sum for one entry of files, by pieces that stay in the cache: memory is gone through once."""
    dtype = files[0].dtype(name)
    total = torch.empty(files[0].shape(name), dtype=torch.promote_types(dtype, torch.float32))
    buffer = torch.empty(PIECE, dtype=dtype)
    readers = [file.pieces(name, buffer) for file in files]
    for part in total.view(-1).split(PIECE) if total.numel() else ():
        for number, (reader, value) in enumerate(zip(readers, coefficients, strict=True)):
            if number == 0:
                part.copy_(next(reader)).mul_(value)
            else:
                part.add_(next(reader), alpha=value)
    return total.to(dtype)


def average(states: Sequence[State], weights: Sequence[float] | Tensor | None = None) -> dict[str, Tensor]:
    """Returns the mean of state dicts (a uniform soup).

    Args:
        states: K state dicts or readers, as in `combine`.
        weights: of the states, at least 0, ``[K]``; scaled to the sum 1. All alike if None.

    Raises:
        ValueError: as in `combine`; or a weight is negative, or all are 0.
    """
    given = torch.ones(len(states)) if weights is None else torch.as_tensor(weights)
    numbers = given.to(torch.float64)
    if (numbers < 0).any() or not numbers.sum() > 0:
        raise ValueError(f"weights must be at least 0, with a positive sum, got {weights}")
    return combine(states, numbers / numbers.sum())


def ema_coefficients(num_checkpoints: int, decay: float) -> Tensor:
    """Coefficients by which `combine` makes an exponential moving average, checkpoint 0 being its start.

    Args:
        num_checkpoints: K.
        decay: in [0, 1].

    Returns:
        float64 ``[K]``, summing to 1: ``d^(K-1)``, then ``(1-d) d^(K-1-i)``.

    Raises:
        ValueError: an argument is out of range.
    """
    if num_checkpoints < 1:
        raise ValueError(f"num_checkpoints must be at least 1, got {num_checkpoints}")
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    age = torch.arange(num_checkpoints - 1, -1, -1, dtype=torch.float64)
    coefficients = (1.0 - decay) * torch.as_tensor(decay, dtype=torch.float64) ** age
    coefficients[0] = decay ** (num_checkpoints - 1)
    return coefficients


def greedy_soup(states: Sequence[State], evaluate: Callable[[dict[str, Tensor]], float]) -> dict[str, Tensor]:
    """Returns the average of the state dicts that `select_greedy` chooses; never worse than the best of them.

    Args:
        states: state dicts or readers, as in `combine`.
        evaluate: score of a state dict, higher is better; always the same for the same state.

    Raises:
        ValueError: as in `combine`, or a score is NaN.
    """
    return average([states[number] for number in select_greedy(states, evaluate)])


def select_greedy(states: Sequence[State], evaluate: Callable[[dict[str, Tensor]], float]) -> list[int]:
    """Chooses the members of a greedy soup: best first, one is added if the score of the average rises.

    At most one average is held at a time, which ``evaluate`` may take over.

    Args:
        states: state dicts or readers.
        evaluate: score of a state dict, higher is better.

    Returns:
        Numbers of the states, the best first; of equal scores the earlier state is tried first.

    Raises:
        ValueError: as in `combine`, or a score is NaN.
    """
    check_names(states)

    def score(members: list[int]) -> float:
        value = evaluate(average([states[number] for number in members]))
        if value != value:
            raise ValueError(f"evaluate gave NaN for the average of the states {members}")
        return value

    own = [score([number]) for number in range(len(states))]
    order = sorted(range(len(states)), key=lambda number: -own[number])
    chosen, best = order[:1], own[order[0]]
    for number in order[1:]:
        value = score([*chosen, number])
        if value > best:
            chosen, best = [*chosen, number], value
    return chosen
