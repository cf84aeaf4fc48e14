"""``leyden sparsity-curve``: how a checkpoint scores when its smallest weights are set to zero, without retraining."""

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.cli.commands import Arguments, in_one_line, load_tree, parse_arguments
from leyden.cli.config import ConfigError
from leyden.cli.run_folder import run_of_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["sparsity_curve"]


def sparsity_curve(argv: Sequence[str]) -> int:
    """Prunes a checkpoint by magnitude to every sparsity of a grid, evaluates it, and prints the curve.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden sparsity-curve",
        allow_abbrev=False,
        description="Evaluates a checkpoint whose smallest weights, of linear layers and convolutions, are set to "
        "zero, and says up to which sparsity it scores as the dense one.",
        epilog="--KEY=VALUE sets a value of the config that it is evaluated with, as in leyden validate.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint of Lightning")
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=[tenth / 10 for tenth in range(10)], help="default: 0 to 0.9"
    )
    parser.add_argument("--scope", choices=("global", "layer"), default="global", help="default: global")
    parser.add_argument("--patterns", nargs="+", default=[], metavar="N:M", help="of which N in M weights are kept")
    parser.add_argument("--random", action="store_true", help="prune weights by chance: the control")
    parser.add_argument("--metric", default="val/accuracy", help="val/... or test/... (default: val/accuracy)")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: by the name)")
    parser.add_argument("--tolerance", type=float, default=0.01, help="loss of the score that is none (default: 0.01)")
    parser.add_argument("--skip", nargs="*", default=["head"], help="modules that stay dense (default: head)")
    parser.add_argument("-c", "--config", action="append", default=[], help="config, if it is not that of the run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments, rest = parser.parse_known_args(list(argv))
    return in_one_line(lambda: _curve(arguments, parse_arguments("validate", rest).options), debug=arguments.debug)


def _curve(arguments: Namespace, options: list[tuple[str, str]]) -> int:
    if not Path(arguments.checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {arguments.checkpoint}")
    run = run_of_checkpoint(arguments.checkpoint)
    if not arguments.config and run is None:
        raise ConfigError(
            f"{arguments.checkpoint} lies in no run folder, whose config would evaluate it: name one by -c"
        )
    stage = arguments.metric.partition("/")[0]
    if stage not in ("val", "test"):
        raise ConfigError(f"--metric must begin with val/ or test/, got {arguments.metric!r}")
    grid = sorted({0.0, *arguments.sparsities})
    patterns = [_pattern(text) for text in arguments.patterns]
    names = arguments.config or [str(run.config) if run else ""]
    tree, files = load_tree("validate", Arguments(config=names, options=options))

    # torch takes seconds to import
    from leyden.analysis import essential_sparsity
    from leyden.cli.evaluation import Evaluation
    from leyden.metrics import default_mode
    from leyden.plugins import read_checkpoint
    from leyden.weights import magnitude_prune

    magnitude_prune({}, grid[-1], scope=arguments.scope)  # refuses a sparsity out of range
    state = read_checkpoint(arguments.checkpoint)["state_dict"]
    with tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(tree, files, Path(folder), "test" if stage == "test" else "validate")
        metrics = evaluation.metrics(state)
        if arguments.metric not in metrics:
            raise ConfigError(f"there is no metric {arguments.metric}; there are {', '.join(sorted(metrics))}")
        scores = []
        keys = _keys(evaluation.model, arguments.skip)  # the callbacks have made their parts by now
        for label, pruned in _pruned(state, keys, grid, patterns, arguments.scope, by_chance=arguments.random):
            score = evaluation.metrics(pruned)[arguments.metric]
            print(f"{label:>8}  {score:.4f}", flush=True)
            scores.append(score)
    mode = arguments.mode or default_mode(arguments.metric)
    signed = [score if mode == "max" else -score for score in scores[: len(grid)]]
    essential = essential_sparsity(grid, signed, tolerance=arguments.tolerance).item()
    print(f"{arguments.metric} within {arguments.tolerance:g} of dense up to a sparsity of {essential:g}")
    return 0


def _pattern(text: str) -> tuple[int, int]:
    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal() and 1 <= int(n) <= int(m)):
        raise ConfigError(f"--patterns takes N:M with 1 <= N <= M, such as 2:4, got {text!r}")
    return int(n), int(m)


def _keys(model: Any, skip: Sequence[str]) -> list[str]:
    """Names, in the state dict, of the weights that are pruned."""
    from leyden.nn import prunable_layers, stored_weight

    weights = {id(stored_weight(layer)) for layer in prunable_layers(model.network, skip=skip).values()}
    return [name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in weights]


def _pruned(
    state: dict[str, "Tensor"],
    keys: list[str],
    grid: list[float],
    patterns: list[tuple[int, int]],
    scope: str,
    *,
    by_chance: bool,
) -> Iterator[tuple[str, dict[str, "Tensor"]]]:
    """The state, pruned in every way, with a label."""
    import torch

    from leyden.weights import magnitude_prune, nm_prune

    ranked = {key: state[key] for key in keys}
    if by_chance:
        generator = torch.Generator().manual_seed(0)
        ranked = {key: torch.rand(state[key].shape, generator=generator) for key in keys}
    for sparsity in grid:
        kept = magnitude_prune(ranked, sparsity, scope=scope)
        yield f"{sparsity:g}", state | {key: torch.where(kept[key] != 0, state[key], 0.0) for key in keys}
    for n, m in patterns:
        fitting = [key for key in keys if state[key].shape[1] % m == 0]
        kept = nm_prune(ranked, n, m, keys=fitting)
        yield f"{n}:{m}", state | {key: torch.where(kept[key] != 0, state[key], 0.0) for key in fitting}
