"""Combining files of weights: which files, by which function of `leyden.weights`, and what is written."""

import glob
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import leyden
from leyden.cli.combine import Combination
from leyden.cli.config import ConfigError, Section, plain
from leyden.cli.evaluation import Evaluation
from leyden.core.replace_file import replace_file
from leyden.metrics.direction import default_mode
from leyden.plugins.checkpoint_io import AtomicCheckpointIO
from leyden.weights import (
    CheckpointFile,
    add_signatures,
    add_task_vectors,
    average,
    combine,
    ema_coefficients,
    lcsc_search,
    pack_weights,
    robust_weight_signature,
    search_rescale,
    select_greedy,
    shallow_keys,
    slerp,
)
from leyden.weights._journal import Journal
from leyden.weights.dare import lazy_dare
from leyden.weights.task_vectors import lazy_task_vector
from leyden.weights.ties import merge_task_vectors

__all__ = ["combine_files", "find_files"]

SUFFIXES = (".ckpt", ".safetensors", ".pt")
Score = Callable[[dict[str, Tensor]], float]


class WatchedFile(CheckpointFile):
    """A file that says how much of it is read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.on_read: Callable[[int], None] = lambda num_bytes: None

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        self.on_read(tensor.nbytes)
        return tensor

    def pieces(self, name: str, buffer: Tensor) -> Iterator[Tensor]:
        for piece in super().pieces(name, buffer):
            self.on_read(piece.nbytes)
            yield piece


def find_files(patterns: list[str], at_least: int = 2) -> list[WatchedFile]:
    """Opens checkpoints; those of one folder or pattern in the order of their steps, then of their names.

    Raises:
        ConfigError: there are fewer than ``at_least``, or one is named twice.
        ValueError: a file holds something else.
    """
    found: list[WatchedFile] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inner = path / "checkpoints" if (path / "checkpoints").is_dir() else path
            paths = [file for file in inner.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
        else:
            paths = [path] if path.is_file() else [Path(name) for name in glob.glob(pattern, recursive=True)]
        if not paths:
            raise ConfigError(f"there are no checkpoints {pattern}")
        files = [WatchedFile(file) for file in paths]
        found += sorted(files, key=lambda file: (file.header.get("global_step", 0), _natural(file.path)))
    names = [file.path.resolve() for file in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{twice} is named twice")
    if len(found) < at_least:
        raise ConfigError(f"there must be at least two checkpoints, got {found[0].path} alone")
    return found


def combine_files(
    combination: Combination, files: list[WatchedFile], output: Path, loaded: tuple[Section, list[Path]] | None
) -> dict[str, float]:
    """Combines files, evaluates the result if there is a metric, and writes it.

    Args:
        combination: what to do.
        files: the checkpoints.
        output: ``.ckpt``, or ``.safetensors`` with the network alone.
        loaded: merged config to evaluate with and the files that were named; None evaluates nothing, and leaves
            statistics of BatchNorm as they are averaged.

    Returns:
        All metrics of the result, if one was asked for.

    Raises:
        ConfigError: the files or the output are of the wrong kind, or the metric is not logged.
        ValueError: the files do not fit together, or an option is out of range.
    """
    if output.suffix not in (".ckpt", ".safetensors"):
        raise ConfigError(f"the result must be a .ckpt or .safetensors file, got {output}")
    odd = next((file for file in files if file.is_lightning != files[0].is_lightning), None)
    if odd is not None:
        raise ConfigError(f"{files[0].path} and {odd.path} are of different kinds: a checkpoint and weights alone")
    if output.suffix == ".ckpt" and not files[0].is_lightning:
        raise ConfigError(f"{files[0].path} is no checkpoint of Lightning, so {output} could be none: .safetensors")

    folder = output.parent.parent if output.parent.name == "checkpoints" else output.parent
    evaluation = None
    if loaded is not None and files[0].is_lightning:
        command = "test" if (combination.metric or "").startswith("test/") else "validate"
        evaluation = Evaluation(*loaded, folder, command)
    measures = evaluation is not None and evaluation.measures_batch_norm
    if not measures and any(name.endswith(".running_var") for name in files[0]):
        print("leyden: warning: statistics of BatchNorm are averaged, not measured: no config", file=sys.stderr)

    def evaluate(state: dict[str, Tensor]) -> dict[str, float]:
        if evaluation is None:
            raise ConfigError("a metric needs checkpoints of Lightning and a config")
        return evaluation.metrics(state, measure_batch_norm=measures)

    def score(state: dict[str, Tensor]) -> float:
        value = _metric(evaluate(state), combination.metric or "")
        if combination.method != "lcsc":  # which asks hundreds of times
            print(f"leyden: {combination.metric} {value:.4f}", file=sys.stderr)
        return value if (combination.mode or default_mode(combination.metric or "")) == "max" else -value

    journal = Journal(output.with_name(f".{output.name}.search"), _search_settings(combination, files, loaded))
    with _progress(combination, files):
        state, how = _run(combination, files, score, journal)
    metrics = evaluate(state) if combination.metric is not None or measures else {}
    if combination.metric is not None:
        _metric(metrics, combination.metric)
    if measures and evaluation is not None:
        state |= {name: value for name, value in evaluation.statistics().items() if name in state}
    shown = metrics if combination.metric is not None else {}
    if combination.report is not None and loaded is not None:
        # statistics of BatchNorm, if there are any, are those that were measured
        other = Evaluation(*loaded, folder, "test" if combination.report.startswith("test/") else "validate")
        reported = other.metrics(state)
        _metric(reported, combination.report)
        shown = reported | shown
    provenance = {
        **{key: value for key, value in asdict(combination).items() if value is not None},
        "ckpts": [{"path": str(file.path), "step": file.header.get("global_step")} for file in files],
        **how,
        "metrics": shown,
        "batch_norm": "measured" if measures else "combined",
        "versions": {"leyden": leyden.__version__, "torch": torch.__version__},
    }
    _write(output, state, files[-1], json.dumps(provenance))
    journal.path.unlink(missing_ok=True)
    return shown


def _search_settings(
    combination: Combination, files: list[WatchedFile], loaded: tuple[Section, list[Path]] | None
) -> dict[str, Any]:
    """All that the values of a search depend on; more iterations only make it longer."""
    return {
        "ckpts": [(str(file.path.resolve()), file.path.stat().st_mtime_ns) for file in files],
        "metric": combination.metric,
        "mode": combination.mode,
        "seed": combination.options.get("seed", 0),
        "config": None if loaded is None else str(plain(loaded[0])),
    }


def _run(
    combination: Combination, files: list[WatchedFile], score: Score, journal: Journal
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the combined state dict, and what is to be known of it."""
    method, options = combination.method, combination.options
    if method in ("average", "ema"):
        if method == "ema":
            weights = ema_coefficients(len(files), options.get("decay", 0.9))
        else:
            weights = torch.tensor(options.get("weights", [1.0] * len(files)), dtype=torch.float64)
            if len(weights) != len(files):
                raise ConfigError(f"weights must be one per checkpoint: {len(files)} numbers, got {len(weights)}")
        state = combine(files, weights) if method == "ema" else average(files, weights)
        return state, {"coefficients": (weights / weights.sum()).tolist()}
    if method == "greedy-soup":
        chosen = select_greedy(files, score)
        return average([files[number] for number in chosen]), {"chosen": [str(files[n].path) for n in chosen]}
    if method == "lcsc":
        known = journal.read()

        def evaluate(coefficients: Tensor) -> float:
            value = -score(combine(files, coefficients))
            journal.add(value)
            return value

        best, _ = lcsc_search(
            evaluate,
            len(files),
            iterations=options.get("iterations", 500),
            known=known,
            generator=torch.Generator().manual_seed(options.get("seed", 0)),
        )
        return combine(files, best), {"coefficients": best.tolist()}
    if method == "slerp":
        if len(files) != 2:
            raise ConfigError(f"slerp combines two checkpoints, got {len(files)}")
        return slerp(files[0], files[1], **options), {}
    base = CheckpointFile(combination.base or "")
    onto = base if combination.onto is None else CheckpointFile(combination.onto)
    scale = options.get("scale", 1.0)
    if method == "rws":
        if not base.is_lightning:  # safetensors sort their names
            raise ConfigError(
                f"{base.path} is no checkpoint of Lightning, which has its layers in order: rws needs one"
            )
        keys = shallow_keys(base, options["num_layers"])
        signatures = [robust_weight_signature(file, onto, base, keys=keys) for file in files]
        return add_signatures(onto, signatures, strengths=[scale] * len(files)), {"patched": keys}
    vectors = [lazy_task_vector(file, base) for file in files]
    drop_rate, seed = options.get("drop_rate", 0.9), options.get("seed", 0)

    def merged(rescale: float | None) -> dict[str, Tensor]:
        deltas = vectors
        if method.startswith("dare"):
            own = [torch.Generator().manual_seed(seed + number) for number in range(len(files))]
            deltas = [
                lazy_dare(vector, drop_rate=drop_rate, rescale=rescale, generator=generator)
                for vector, generator in zip(vectors, own, strict=True)
            ]
        if method.endswith("ties"):
            return merge_task_vectors(base, deltas, trim_rate=options.get("trim_rate", 0.8), scale=scale)
        return add_task_vectors(onto, deltas, scale=scale)

    rescale = options.get("rescale")
    if rescale != "search":
        return merged(rescale), {}
    rescale = search_rescale(lambda q: -score(merged(q)), drop_rate)
    return merged(rescale), {"rescale": rescale}


def _write(output: Path, state: dict[str, Tensor], last: CheckpointFile, provenance: str) -> None:
    if output.suffix == ".ckpt":
        checkpoint = {
            "epoch": last.header.get("epoch", 0),
            "global_step": last.header.get("global_step", 0),
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": state,
            "provenance": provenance,
        }
        AtomicCheckpointIO().save_checkpoint(checkpoint, output)
        return
    network = {name.removeprefix("network."): t for name, t in state.items() if name.startswith("network.")}
    with replace_file(output) as file:
        file.write(pack_weights(network if last.is_lightning else state, metadata={"provenance": provenance}))


def _metric(metrics: dict[str, float], name: str) -> float:
    if name not in metrics:
        raise ConfigError(f"it logged no {name!r}; it logged: {', '.join(sorted(metrics)) or 'nothing'}")
    return metrics[name]


def _natural(path: Path) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


@contextmanager
def _progress(combination: Combination, files: list[WatchedFile]) -> Iterator[None]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # the others read their files several times
    total = sum(file.num_bytes for file in files) if combination.method in ("average", "ema", "slerp") else None
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(combination.method, total=total)
        for file in files:
            file.on_read = lambda num_bytes: progress.advance(task, num_bytes)
        yield
