"""Values of a section of a file, checked: an error names the line, and what may stand there."""

import math
from difflib import get_close_matches

from leyden.cli.config import ConfigError, Section, plain

__all__ = ["check_keys", "mapping", "number", "whole_number"]


def check_keys(section: Section, known: tuple[str, ...], origin: str) -> None:
    """Refuses a key that nobody reads.

    Args:
        section: to be checked.
        known: its keys.
        origin: where it was written, if the key does not say.
    """
    for key in section:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"{section.origin.get(key, origin)}: there is no key {key!r}; {advice}")


def mapping(section: Section, key: str) -> Section:
    """The mapping below a key."""
    if not isinstance(section[key], Section):
        raise ConfigError(f"{section.origin[key]}: {key} must be a mapping, got {plain(section[key])!r}")
    return section[key]


def number(section: Section, key: str, default: float | None = None) -> float:
    """The finite number below a key."""
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{section.origin[key]}: {key} must be a number, got {plain(value)!r}")
    return value


def whole_number(section: Section, key: str, default: int | None = None, least: int | None = 1) -> int:
    """The whole number below a key, not smaller than ``least``."""
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f" from {least} on"
        raise ConfigError(f"{section.origin[key]}: {key} must be a whole number{bound}, got {plain(value)!r}")
    return value
