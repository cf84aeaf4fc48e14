"""What arithmetic on state dicts shares: names that must agree, precision, entries that are made when they are read."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


class Lazy(Mapping[str, Tensor]):
    """A state dict whose entries are computed when they are read, so that it takes no memory.

    Args:
        names: of the entries.
        compute: returns the entry of a name.
        sources: state dicts that the entries are computed from.
    """

    def __init__(self, names: Sequence[str], compute: Callable[[str], Tensor], sources: Sequence[State]) -> None:
        self._names = dict.fromkeys(names)
        self._compute = compute
        self._sources = sources

    def place(self, name: str) -> Any:
        """See `place`."""
        return tuple(place(source, name) for source in self._sources)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would compute the entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_names(states: Sequence[State]) -> None:
    """Raises ``ValueError`` unless there is a state and all have the same names."""
    if not states:
        raise ValueError("there must be at least one state dict, got none")
    for number, state in enumerate(states[1:], start=1):
        for name in [*states[0], *state]:
            if name not in state or name not in states[0]:
                lacking = number if name in states[0] else 0
                raise ValueError(f"the names differ: state dict {lacking} has no {name!r}")


def check_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    """Raises ``ValueError`` unless two entries have one shape."""
    if tensor.shape != like.shape:
        raise ValueError(f"the shapes of {name!r} differ: {tuple(like.shape)} and {tuple(tensor.shape)}")


def computed_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def dtype_of(state: State, name: str) -> torch.dtype:
    """The dtype of an entry; a file knows it without reading."""
    return state.dtype(name) if hasattr(state, "dtype") else state[name].dtype


def shape_of(state: State, name: str) -> tuple[int, ...]:
    """The shape of an entry; a file knows it without reading."""
    return state.shape(name) if hasattr(state, "shape") else tuple(state[name].shape)


def is_averaged(state: State, name: str) -> bool:
    """Whether arithmetic makes sense on an entry; counters are copied."""
    dtype = dtype_of(state, name)
    return dtype.is_floating_point or dtype.is_complex


def is_excluded(name: str, patterns: Collection[str]) -> bool:
    """Whether one of the names or ``fnmatch`` patterns means this entry."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; none can be while their module, which is slow to import, was not imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def place(state: State, name: str) -> Any:
    """What two entries of a state dict have in common if they are one tensor under two names."""
    if name not in state:
        return None
    if hasattr(state, "place"):  # a file, or computed
        return state.place(name)
    tensor = state[name]
    if is_dtensor(tensor) or tensor.device.type == "meta" or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def by_tensor(states: Sequence[State], compute: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Computes an entry for every name; names that are one tensor in all states are so in the result."""
    result: dict[str, Tensor] = {}
    made: dict[Any, str] = {}
    for name in states[0]:
        first = made.setdefault(tuple(place(state, name) for state in states), name)
        result[name] = result[first] if first in result else compute(name)
    return result


def unique_names(state: State) -> list[str]:
    """One name of each tensor."""
    return list({place(state, name): name for name in reversed(list(state))}.values())[::-1]
