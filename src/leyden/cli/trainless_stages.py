"""Stages without a Trainer's command: combinations, curations, evaluations by a function, and calls."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.cli.combine import read_combination
from leyden.cli.config import ConfigError, Section, find_config, merge_file, read_config
from leyden.cli.run_folder import run_of_checkpoint
from leyden.cli.stage_config import ARGUMENTS
from leyden.cli.stages import FILE_KINDS
from leyden.core.replace_file import replace_file

if TYPE_CHECKING:
    from leyden.cli.stage_task import Task

__all__ = [
    "call_function",
    "check_function",
    "combine_checkpoints",
    "curate_dataset",
    "evaluate_checkpoint",
    "load_function",
]


def call_function(task: "Task") -> dict[str, Any]:
    """Calls a function with the stage's folder and its arguments.

    Returns:
        What the stage gives: paths below its folder, or numbers, by name.

    Raises:
        ConfigError: the function returned something else.
    """
    assert task.function is not None
    returned = load_function(task.function)(folder=task.folder, **task.tree)
    returned = dict(returned or {})
    for name in task.gives:
        if name not in returned:
            raise ConfigError(f"{task.function} gave no {name!r}, only {', '.join(returned) or 'nothing'}")
        if name in FILE_KINDS:
            path = Path(returned[name])
            if not path.is_file() or not path.is_relative_to(task.folder):
                raise ConfigError(f"{task.function} gave as {name} {path}, which is no file in {task.folder}")
            returned[name] = path.relative_to(task.folder).as_posix()
        else:
            returned[name] = float(returned[name])
    return {name: returned[name] for name in task.gives}


def combine_checkpoints(task: "Task") -> tuple[Path, dict[str, float]]:
    """Combines checkpoints as ``leyden combine`` does.

    Returns:
        The new checkpoint, and the metrics if one was named.
    """
    from leyden.cli.combining import combine_files, find_files

    tree, arguments = _split(task.tree)
    combination = read_combination(arguments)
    if combination.data is not None:
        tree = merge_file(tree, read_config(find_config(combination.data)))
    files = find_files(combination.ckpts, combination.at_least)
    output = task.folder / "checkpoints" / "combined.ckpt"
    metrics = combine_files(combination, files, output, (tree, task.files))
    run = run_of_checkpoint(str(files[0].path))
    if run is not None:
        with replace_file(task.folder / "config.yaml") as file:
            file.write(run.config.read_bytes())
    return output, metrics


def curate_dataset(task: "Task") -> dict[str, Any]:
    """Runs a curation as ``leyden curate`` does.

    Returns:
        Path of the dataset below the stage's folder, and the curation's numbers.
    """
    from leyden.cli.curating import parse_curation, write_curation

    _, numbers = write_curation(parse_curation(task.tree), task.folder / "dataset.safetensors")
    return {"dataset": "dataset.safetensors", **numbers}


def evaluate_checkpoint(task: "Task") -> dict[str, float]:
    """Calls a function with the method that has the weights of a checkpoint, the data, and its arguments.

    Returns:
        The numbers that the function returned.
    """
    from leyden.cli.evaluation import Evaluation
    from leyden.weights import CheckpointFile

    assert task.function is not None
    tree, arguments = _split(task.tree)
    state = dict(CheckpointFile(arguments.pop("ckpt_path")))
    evaluation = Evaluation(tree, task.files, task.folder, "test")
    return evaluation.call(state, load_function(task.function), arguments)


def load_function(path: str) -> Any:
    """Imports a function by its path.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"there is no function {path}: {error}") from error
    if not callable(function):
        raise ConfigError(f"{path} is no function")
    return function


def check_function(path: str, leading: list[Any], arguments: Mapping[str, Any]) -> None:
    """Checks that there is a function, and that it takes what it will be called with.

    Raises:
        ConfigError: it does not.
    """
    try:
        inspect.signature(load_function(path)).bind(*leading, **arguments)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _split(tree: Section) -> tuple[Section, dict[str, Any]]:
    arguments = dict(tree.pop(ARGUMENTS))
    return tree, arguments
