"""Parameters of a sweep, as W&B's format describes them: choices, ranges and distributions."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import NormalDist
from typing import Any

from leyden.cli.config import ConfigError, Section, plain
from leyden.cli.section_values import check_keys, number, whole_number

__all__ = ["MAX_GRID", "Parameter", "as_choices", "read_parameter"]

# arguments by distribution; of those with "q_" also `q`
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "log_normal": ("mu", "sigma"),
}
QUANTIZED = {f"q_{name}": (*DISTRIBUTIONS[name], "q") for name in ("uniform", "log_uniform", "normal", "log_normal")}
QUANTIZED["q_log_uniform_values"] = ("min", "max", "q")
TAIL = 1e-4  # share of a normal distribution that is left out at each end
MAX_GRID = 10_000


@dataclass(frozen=True)
class Parameter:
    """A key of the config, and the values that it may have.

    Attributes:
        key: as on the command line.
        choices: the values, as they are typed; None for a range.
        low: of the range.
        high: of the range, which holds it.
        log: whether the range is sampled on a logarithmic scale.
        whole: whether only whole numbers of the range are meant.
        value_of: what a number of the range stands for.
    """

    key: str
    choices: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    value_of: Callable[[float], float] = float

    def text(self, drawn: Any) -> str:
        """What is typed for a drawn choice or number."""
        if self.choices is not None:
            return str(drawn)
        return str(int(drawn)) if self.whole else _text(self.value_of(drawn))


def read_parameter(key: str, section: Section, origin: str) -> Parameter:
    """Reads one entry of ``parameters``.

    Args:
        key: as on the command line.
        section: what the file says of it.
        origin: its line.

    Raises:
        ConfigError: the distribution is unknown, or its arguments are wrong.
    """
    if "parameters" in section:
        raise ConfigError(f"{origin}: write {key}.NAME for a nested parameter, as on the command line")
    name = section.get("distribution") or _inferred(section, key, origin)
    known = DISTRIBUTIONS | QUANTIZED
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"leyden sweep knows {', '.join(known)}"
        raise ConfigError(f"{section.origin['distribution']}: there is no distribution {name!r}; {advice}")
    check_keys(section, ("distribution", *known[name]), origin)
    optional = {"mu": 0.0, "sigma": 1.0, "q": 1}
    for argument in known[name]:
        if argument not in section and argument not in optional:
            raise ConfigError(f"{origin}: {name} of {key} needs {argument}")
    if name in ("constant", "categorical"):
        values = [section["value"]] if name == "constant" else section["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{section.origin['values']}: values must be a list, got {plain(values)!r}")
        return Parameter(key, tuple(dict.fromkeys(_text(plain(value)) for value in values)))
    numbers = {argument: number(section, argument, optional.get(argument)) for argument in known[name]}
    if "min" in numbers and numbers["min"] > numbers["max"]:
        raise ConfigError(f"{origin}: min of {key} is greater than its max: {numbers['min']} and {numbers['max']}")
    if name == "int_uniform":
        ends = [whole_number(section, end, least=None) for end in ("min", "max")]
        return Parameter(key, None, ends[0], ends[1], whole=True)
    parameter = _range(key, name.removeprefix("q_"), numbers, origin)
    if "q" not in numbers:
        return parameter
    if numbers["q"] <= 0:
        raise ConfigError(f"{origin}: q of {key} must be positive, got {numbers['q']}")
    inner = parameter.value_of
    return Parameter(
        key, None, parameter.low, parameter.high, parameter.log, value_of=lambda x: _quantize(inner(x), numbers["q"])
    )


def _inferred(section: Section, key: str, origin: str) -> str:
    """The distribution that W&B takes where none is named."""
    for argument, name in (("value", "constant"), ("values", "categorical")):
        if argument in section:
            return name
    if "min" in section and "max" in section:
        return "int_uniform" if all(isinstance(section[end], int) for end in ("min", "max")) else "uniform"
    raise ConfigError(f"{origin}: {key} needs value, values, min and max, or a distribution")


def _range(key: str, name: str, numbers: Mapping[str, float], origin: str) -> Parameter:
    if "mu" in numbers:
        if numbers["sigma"] <= 0:
            raise ConfigError(f"{origin}: sigma of {key} must be positive, got {numbers['sigma']}")
        inverse = NormalDist(numbers["mu"], numbers["sigma"]).inv_cdf
        value_of = inverse if name == "normal" else lambda share: math.exp(inverse(share))
        return Parameter(key, None, TAIL, 1.0 - TAIL, value_of=value_of)
    low, high = numbers["min"], numbers["max"]
    if name == "log_uniform":
        low, high = math.exp(low), math.exp(high)
    elif name == "inv_log_uniform":  # log(1/x) is uniform
        low, high = math.exp(-high), math.exp(-low)
    elif name != "uniform" and low <= 0:
        raise ConfigError(f"{origin}: min of {key} must be positive on a logarithmic scale, got {low}")
    return Parameter(key, None, low, high, log=name != "uniform")


def _quantize(value: float, q: float) -> float:
    steps = round(value / q)
    return steps * q if isinstance(q, int) else round(steps * q, 12)


def as_choices(parameter: Parameter, section: Section) -> Parameter:
    """Lists the values of a parameter, for a grid.

    Args:
        parameter: that was read.
        section: all ``parameters``.

    Raises:
        ConfigError: it is continuous.
    """
    if parameter.choices is not None:
        return parameter
    key = parameter.key
    q = section[key].get("q", 1) if section[key].get("distribution") == "q_uniform" else 1
    if not parameter.whole and section[key].get("distribution") != "q_uniform":
        raise ConfigError(f"{section.origin[key]}: a grid needs values: {key} has a range")
    steps = math.floor((parameter.high - parameter.low) / q + 1e-9) + 1
    if steps > MAX_GRID:
        raise ConfigError(f"{section.origin[key]}: {key} has more than {MAX_GRID} values")
    values = [parameter.text(parameter.low + step * q) for step in range(steps)]
    return Parameter(key, tuple(dict.fromkeys(values)))


def _text(value: Any) -> str:
    """A value as it is typed, in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
