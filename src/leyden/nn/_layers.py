"""Which layers of a network a conversion changes."""

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

__all__ = ["check_skip", "is_skipped"]


def check_skip(network: nn.Module, skip: Sequence[str]) -> None:
    """Checks that every name in ``skip`` is that of a module.

    Raises:
        ValueError: one is not.
    """
    names = [name for name, _ in network.named_modules() if name]
    for name in skip:
        if name not in names:
            near = get_close_matches(name, names, n=3) or names[:5]
            raise ValueError(
                f"skip: there is no module {name!r} in {type(network).__name__}; near it: {', '.join(near)}"
            )


def is_skipped(name: str, skip: Sequence[str]) -> bool:
    """Whether a module is one of ``skip``, or within one."""
    return any(name == outer or name.startswith(f"{outer}.") for outer in skip)
