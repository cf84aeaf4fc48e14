"""``leyden combine``: one checkpoint made of several."""

import numbers
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leyden.cli.commands import Arguments, in_one_line, load_tree, parse_arguments
from leyden.cli.config import ConfigError
from leyden.cli.run_folder import LOGS, run_of_checkpoint

__all__ = ["METHODS", "Combination", "check_combination", "combine", "read_combination"]

# options that a method takes
METHODS: dict[str, tuple[str, ...]] = {
    "average": ("weights",),
    "ema": ("decay",),
    "greedy-soup": (),
    "lcsc": ("iterations", "seed"),
    "slerp": ("t",),
    "rws": ("base", "onto", "scale", "num_layers"),
    "task-arithmetic": ("base", "onto", "scale"),
    "ties": ("base", "scale", "trim_rate"),
    "dare": ("base", "scale", "drop_rate", "rescale", "seed"),
    "dare-ties": ("base", "scale", "trim_rate", "drop_rate", "rescale", "seed"),
}


@dataclass
class Combination:
    """What is to be combined, and how; an option that is None has the method's default.

    Attributes:
        ckpts: files, folders and patterns.
        method: one of `METHODS`.
        metric: name of a metric, ``val/...`` or ``test/...``, that the result is evaluated by.
        mode: whether more (``max``) or less (``min``) of the metric is better; by its name if None.
        data: config file with other data to evaluate on.
        report: name of another metric of the result, of data that it was not chosen by.
        base: file of the weights before fine-tuning.
        onto: file of other weights that the changes are added to; for rws, those of clean training.
        options: of the method.
    """

    ckpts: list[str]
    method: str
    metric: str | None = None
    mode: str | None = None
    data: str | None = None
    report: str | None = None
    base: str | None = None
    onto: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def at_least(self) -> int:
        """How many checkpoints it takes: beside a base, one."""
        return 2 if self.base is None else 1


def combine(argv: Sequence[str]) -> int:
    """Combines checkpoints.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden combine",
        allow_abbrev=False,
        description="Combines the weights of checkpoints of one network, reading one tensor at a time. The result is a "
        "checkpoint that leyden test reads. Statistics of BatchNorm are measured anew on the training data.",
        epilog="--KEY=VALUE sets a value of the config that the result is evaluated with, as in leyden validate.",
    )
    parser.add_argument(
        "--ckpts",
        nargs="+",
        required=True,
        metavar="DIR|GLOB|FILE",
        help="checkpoints of Lightning or safetensors; those of one folder or pattern in the order of their steps",
    )
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--metric", help="evaluate the result: val/accuracy, ... (greedy-soup and lcsc choose by it)")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: by the name)")
    parser.add_argument("--report", metavar="METRIC", help="lcsc: of data that it is not chosen by: test/accuracy, ...")
    parser.add_argument("--data", metavar="FILE", help="config file with other data than those of the run")
    parser.add_argument("--weights", nargs="+", type=float, help="average: one per checkpoint (default: all alike)")
    parser.add_argument("--decay", type=float, help="ema: of the moving average, the first being its start (0.9)")
    parser.add_argument("--t", type=float, help="slerp: 0 is the first checkpoint, 1 the second (0.5)")
    parser.add_argument(
        "--base", metavar="FILE", help="task-arithmetic, ties, dare, rws: the weights before fine-tuning"
    )
    parser.add_argument(
        "--onto",
        metavar="FILE",
        help="task-arithmetic: other weights that the changes are added to; rws: those of clean training",
    )
    parser.add_argument("--scale", type=float, help="task-arithmetic, ties, dare, rws: of the sum of changes (1.0)")
    parser.add_argument("--num_layers", type=int, help="rws: how many layers are patched, from the input on")
    parser.add_argument("--trim_rate", type=float, help="ties: share of the smallest changes that is dropped (0.8)")
    parser.add_argument("--drop_rate", type=float, help="dare: share of the changes that is dropped (0.9)")
    parser.add_argument(
        "--rescale",
        type=lambda text: text if text == "search" else float(text),
        help="dare: what the others are divided by (1 - drop_rate); search: what has the best metric (DAREx-q)",
    )
    parser.add_argument("--iterations", type=int, help="lcsc: combinations that are tried (500)")
    parser.add_argument("--seed", type=int, help="dare: which are dropped; lcsc: of the search (0)")
    parser.add_argument("--output", type=Path, metavar="FILE", help=".ckpt, or .safetensors of the network alone")
    parser.add_argument("--name", help="of the folder logs/combine/NAME, without --output (default: the time)")
    parser.add_argument("-c", "--config", action="append", default=[], help="config, if it is not that of the run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments, rest = parser.parse_known_args(list(argv))

    def go() -> int:
        given = {name: getattr(arguments, name) for names in METHODS.values() for name in names}
        combination = Combination(
            arguments.ckpts,
            arguments.method,
            arguments.metric,
            arguments.mode,
            arguments.data,
            arguments.report,
            given.pop("base"),
            given.pop("onto"),
            {name: value for name, value in given.items() if value is not None},
        )
        check_combination(combination)
        options = parse_arguments("validate", rest).options
        return _combine(combination, arguments.output, arguments.name, arguments.config, options)

    return in_one_line(go, debug=arguments.debug)


def read_combination(arguments: Mapping[str, Any]) -> Combination:
    """Sorts arguments by name: ``ckpts``, ``method``, ``metric``, ``mode``, ``data``, ``report``, ``base``,
    ``onto``, options.

    Raises:
        ConfigError: one is missing, wrong, or does not belong to the others.
    """
    for name in ("ckpts", "method"):
        if name not in arguments:
            raise ConfigError(f"combine needs {name}")
    own = {name: value for name, value in arguments.items() if name in Combination.__dataclass_fields__}
    own["ckpts"] = [own["ckpts"]] if isinstance(own["ckpts"], str) else own["ckpts"]
    combination = Combination(**own, options={name: arguments[name] for name in arguments.keys() - own.keys()})
    check_combination(combination)
    return combination


def check_combination(combination: Combination) -> None:
    """Checks what can be known without reading a file.

    Raises:
        ConfigError: options do not belong together.
    """
    method = combination.method
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    for name in [*combination.options, *(name for name in ("base", "onto") if getattr(combination, name) is not None)]:
        if name not in METHODS[method]:
            able = ", ".join(other for other, names in METHODS.items() if name in names)
            raise ConfigError(f"{method} takes no {name}; it belongs to {able}" if able else f"there is no {name!r}")
    for name, value in combination.options.items():
        if name == "rescale" and value == "search":
            if combination.metric is None:
                raise ConfigError("rescale: search needs a metric to choose by, such as val/loss")
            continue
        parts = value if name == "weights" and isinstance(value, list) else [value]
        if not all(isinstance(part, numbers.Real) and not isinstance(part, bool) for part in parts):
            raise ConfigError(f"{name} must be a number{' per checkpoint' if name == 'weights' else ''}, got {value!r}")
    if combination.mode not in (None, "max", "min"):
        raise ConfigError(f"mode must be max or min, got {combination.mode!r}")
    if "base" in METHODS[method] and combination.base is None:
        raise ConfigError(f"{method} needs base: the weights before fine-tuning")
    if method == "rws":
        if combination.onto is None:
            raise ConfigError("rws needs onto: the weights of clean training")
        if not isinstance(combination.options.get("num_layers"), int):
            raise ConfigError("rws needs num_layers: how many layers are patched, from the input on")
    if combination.metric is None:
        if method in ("greedy-soup", "lcsc"):
            raise ConfigError(f"{method} needs a metric to choose by, such as val/accuracy")
        if combination.data is not None:
            raise ConfigError("data is what a metric is computed on: name a metric too")
    elif combination.metric.partition("/")[0] not in ("val", "test"):
        raise ConfigError(f"metric must begin with val/ or test/, got {combination.metric!r}")
    if combination.report is not None:
        if method != "lcsc":
            raise ConfigError(f"{method} takes no report; it belongs to lcsc")
        if combination.report.partition("/")[0] not in ("val", "test"):
            raise ConfigError(f"report must begin with val/ or test/, got {combination.report!r}")
    if combination.options.get("iterations", 0) < 0:
        raise ConfigError(f"iterations must be at least 0, got {combination.options['iterations']}")


def _combine(
    combination: Combination, output: Path | None, name: str | None, config: list[str], options: list[tuple[str, str]]
) -> int:
    # torch takes seconds to import
    from leyden.cli.combining import combine_files, find_files

    files = find_files(combination.ckpts, combination.at_least)
    run = run_of_checkpoint(str(files[0].path))
    loaded = None
    if config or run is not None:
        names = [*(config or [str(run.config) if run else ""]), *([combination.data] if combination.data else [])]
        loaded = load_tree("validate", Arguments(config=names, options=options))
    elif combination.metric is not None:
        raise ConfigError(f"{files[0].path} lies in no run folder, whose config would evaluate it: name one with -c")
    if output is None:
        folder = LOGS / "combine" / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
        output = folder / "checkpoints" / ("combined.ckpt" if files[0].is_lightning else "combined.safetensors")
    if output.exists():
        raise ConfigError(f"{output} is there already: choose another --output or --name")
    metrics = combine_files(combination, files, output, loaded)
    if run is not None and output.suffix == ".ckpt" and output.parent.name == "checkpoints":
        from leyden.core.replace_file import replace_file

        with replace_file(output.parent.parent / "config.yaml") as file:  # of the run that it could have been
            file.write(run.config.read_bytes())
    shown = "".join(
        f", {key} {value:.4f}" for key, value in metrics.items() if key in (combination.metric, combination.report)
    )
    print(f"leyden: {output}: {combination.method} of {len(files)} checkpoints{shown}", file=sys.stderr)
    return 0
