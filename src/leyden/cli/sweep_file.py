"""Sweep files, in the format of W&B: what is tried, by which method, and what is best.

``wandb agent`` runs such a file with an account, ``leyden sweep`` without one. What would have no effect is an error.
"""

import itertools
import math
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from leyden.cli.commands import Arguments, UsageError, parse_arguments
from leyden.cli.config import ConfigError, Section, config_folder, plain, read_config
from leyden.cli.section_values import check_keys, mapping, number, whole_number
from leyden.cli.sweep_parameters import MAX_GRID, Parameter, as_choices, read_parameter

__all__ = ["Sweep", "find_sweep", "read_sweep"]

KEYS = ("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap")
LABELS = ("name", "description", "project", "entity")  # of the sweep in W&B
METHODS = ("grid", "random", "bayes")


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        path: the file.
        arguments: of ``leyden fit``, the parameters left out.
        method: ``grid``, ``random`` or ``bayes``.
        metric: that is optimized.
        mode: ``min`` or ``max``.
        target: value of the metric that is good enough, if there is one.
        parameters: what is varied.
        early: ``(min_iter, eta)`` of the successive halving; None if no run is stopped early.
        run_cap: number of runs, if it is bounded.
        content: what a sweep that goes on must have in common with its beginning.
    """

    path: Path
    arguments: Arguments
    method: str
    metric: str
    mode: str
    target: float | None
    parameters: list[Parameter]
    early: tuple[int, int] | None
    run_cap: int | None
    content: dict[str, Any]

    def grid(self) -> list[dict[str, str]]:
        """All combinations, the last parameter changing fastest."""
        choices = [parameter.choices or () for parameter in self.parameters]
        keys = [parameter.key for parameter in self.parameters]
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*choices)]


def find_sweep(name: str) -> Path:
    """Finds a sweep file by its path, or its name below ``configs/sweep/``.

    Raises:
        ConfigError: there is none.
    """
    folder = config_folder() / "sweep"
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    near = get_close_matches(name, [path.stem for path in folder.glob("*.yaml")], n=1)
    advice = f"did you mean {near[0]}?" if near else f"those below {folder} are {_known(folder)}"
    raise ConfigError(f"there is no sweep file {name!r}; {advice}")


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep file.

    Raises:
        ConfigError: something in it is wrong, with the line.
    """
    section = read_config(path)
    origin = path.name
    check_keys(section, (*KEYS, *LABELS), origin)
    for key in ("method", "metric", "parameters", "command"):
        if key not in section:
            raise ConfigError(f"{origin}: a sweep needs the key {key!r}")
    method = section["method"]
    if method not in METHODS:
        raise ConfigError(f"{section.origin['method']}: method may be {', '.join(METHODS)}, got {method!r}")
    metric, mode, target = _metric(mapping(section, "metric"))
    parameters = mapping(section, "parameters")
    if not parameters:
        raise ConfigError(f"{section.origin['parameters']}: parameters names nothing to vary")
    read = [read_parameter(key, mapping(parameters, key), parameters.origin[key]) for key in parameters]
    if method == "grid":
        read = [as_choices(parameter, parameters) for parameter in read]
        if math.prod(len(parameter.choices or ()) for parameter in read) > MAX_GRID:
            raise ConfigError(f"{section.origin['parameters']}: the grid has more than {MAX_GRID} points")
    return Sweep(
        path,
        _arguments(section),
        method,
        metric,
        mode,
        target,
        read,
        _early(mapping(section, "early_terminate"), metric) if section.get("early_terminate") is not None else None,
        whole_number(section, "run_cap") if section.get("run_cap") is not None else None,
        {key: plain(section[key]) for key in KEYS if key in section and key not in ("program", "run_cap")},
    )


def _known(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"


def _metric(section: Section) -> tuple[str, str, float | None]:
    check_keys(section, ("name", "goal", "target"), "metric")
    if not isinstance(section.get("name"), str):
        raise ConfigError("metric needs a name, such as val/loss")
    goal = section.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise ConfigError(f"{section.origin['goal']}: goal may be minimize or maximize, got {goal!r}")
    return section["name"], goal[:3], number(section, "target") if "target" in section else None


def _arguments(section: Section) -> Arguments:
    origin = section.origin["command"]
    command = section["command"]
    if not isinstance(command, list) or "fit" not in command or "${args}" not in command:
        raise ConfigError(f"{origin}: command must be a list such as [leyden, fit, -c, supervised/digits, '${{args}}']")
    words = [str(word) for word in command[command.index("fit") + 1 :] if word != "${args}"]
    try:
        arguments = parse_arguments("fit", words)
    except UsageError as error:
        raise ConfigError(f"{origin}: command: {error}") from error
    if arguments.name is not None or arguments.resume is not None:
        raise ConfigError(f"{origin}: command: each run has a folder of its own: leave out --name and --resume")
    return arguments


def _early(section: Section, metric: str) -> tuple[int, int]:
    check_keys(section, ("type", "min_iter", "max_iter", "s", "eta"), "early_terminate")
    if section.get("type") != "hyperband":
        raise ConfigError(f"early_terminate: type must be hyperband, got {section.get('type')!r}")
    if metric.startswith("test/"):
        raise ConfigError(f"early_terminate needs a metric that is logged during training, which {metric} is not")
    eta = whole_number(section, "eta", 3, least=2)
    if ("min_iter" in section) == ("max_iter" in section):
        raise ConfigError("early_terminate needs either min_iter, or max_iter and s")
    if "min_iter" in section:
        return whole_number(section, "min_iter"), eta
    return max(1, whole_number(section, "max_iter") // eta ** whole_number(section, "s", 1)), eta
